"""What counts as a quote, and when a quote is supported."""

from __future__ import annotations

import pytest

from katsura.memory.core.quotes import Quotes, quotes_of, unsupported


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("order INV-2041 and inv-2041.", {"inv-2041"}),
        ("see #123, file /srv/data/a.txt", {"#123", "/srv/data/a.txt"}),
        ("mail a.b@example.org at https://x.org/p?q=1.", {"a.b@example.org", "https://x.org/p?q=1"}),
        ("id 3f2a9c1d and B12", {"3f2a9c1d", "b12"}),
        ("the 1st of 3 tries, plain words", set()),
    ],
)
def test_identifiers_and_addresses(text: str, words: set[str]) -> None:
    assert quotes_of(text).words == words


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("on 2026-11-21", {"2026-11-21"}),
        ("on 21 November 2026, 21st of Nov 2026", {"2026-11-21"}),
        ("on November 21, 2026 and Nov. 21st 2026", {"2026-11-21"}),
        ("on 5 May", {"05-05"}),
        ("at 14:30 on 3/4/2026", {"14:30", "3/4/2026"}),
        ("v1.2.3", set()),
        ("release 1.2.3", {"1/2/3"}),
        ("Nov\n21", set()),
    ],
)
def test_dates(text: str, dates: set[str]) -> None:
    assert quotes_of(text).dates == dates


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("$1,200.50", {("1200.5", "USD")}),
        ("1200.50 USD and 15 %", {("1200.5", "USD"), ("15", "%")}),
        ("450EUR", {("450", "EUR")}),
        ("007 and 450", {("7", ""), ("450", "")}),
        ("3 items", set()),
        ("12kg", {("12", "kg")}),
    ],
)
def test_amounts(text: str, amounts: set[tuple[str, str]]) -> None:
    assert quotes_of(text).amounts == amounts


def findings(said: str, *cover: str) -> list[str]:
    return unsupported(quotes_of(said), [quotes_of(text) for text in cover], {1, 2})


@pytest.mark.parametrize(
    "said",
    [
        "paid $1200.5 for INV-7 on 21 Nov 2026 (step 2)",
        "paid 1,200.50",
        "on Nov 21 with inv-7",
        "tried 3 times",
    ],
)
def test_what_the_cover_says_in_any_notation_is_supported(said: str) -> None:
    assert findings(said, "invoice INV-7: 1,200.50 USD", "due 2026-11-21") == []


@pytest.mark.parametrize(
    ("said", "finding"),
    [
        ("INV-8", "id 'inv-8'"),
        ("1,200.51 USD", "amount '1200.51 USD'"),
        ("1,200.50 EUR", "amount '1200.5 EUR'"),
        ("2026-11-22", "date '2026-11-22'"),
        ("Nov 22", "date '11-22'"),
        ("as step 9 did", "step 9"),
        ("see steps 1-7", "step 7"),
    ],
)
def test_a_planted_id_amount_date_or_step_is_found(said: str, finding: str) -> None:
    found = findings(said, "invoice INV-7: 1,200.50 USD", "due 2026-11-21")
    assert len(found) == 1
    assert found[0].startswith(finding)


def test_a_year_that_the_cover_does_not_name_is_invented() -> None:
    assert findings("21 Nov 2026", "due Nov 21") == ["date '2026-11-21' does not occur in the covered steps"]


def test_plain_prose_quotes_nothing() -> None:
    nothing: frozenset[str] = frozenset()
    assert quotes_of("The agent looked for hotels and found two.") == Quotes(nothing, nothing, frozenset(), frozenset())
