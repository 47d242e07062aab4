"""What a text quotes: identifiers, amounts, dates, addresses. The unit of fidelity: a summary may quote only its cover.

Recognised by form alone, in any language that writes digits and Latin months. Numbers of one or two digits without a
unit are counts, not quotes. Quotes never span a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from itertools import chain
from typing import Final

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH: Final = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY: Final = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR: Final = r"(?P<year>\d{4})"
_CURRENCIES: Final = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "%": "%"}
_CODES: Final = ("USD", "EUR", "GBP", "JPY", "CHF", "CNY", "INR", "CAD", "AUD")
_CODE: Final = f"(?:{'|'.join(_CODES)})"
_NUMBER: Final = r"\d+(?:[,'_]\d{3})*(?:\.\d+)?"

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'<>)\]]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?<![\w/.])(?:~|\.{0,2})(?:/[\w.@%+-]+){2,}",
                      re.I)  # fmt: skip
_DATES = (
    re.compile(r"(?<!\d)(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})(?!\d)"),
    re.compile(rf"(?<!\w){_DAY}[ \t]+(?:of[ \t]+)?{_MONTH},?[ \t]+{_YEAR}(?!\w)", re.I),
    re.compile(rf"(?<!\w){_MONTH}[ \t]+{_DAY},?[ \t]+{_YEAR}(?!\w)", re.I),
    re.compile(rf"(?<!\w){_MONTH}[ \t]+{_DAY}(?![\w:])", re.I),
    re.compile(rf"(?<!\w){_DAY}[ \t]+(?:of[ \t]+)?{_MONTH}(?!\w)", re.I),
)
_LITERAL = re.compile(
    r"(?<![\w./])\d{1,2}([./])\d{1,2}\1\d{2,4}(?![\w/])"  # 21/11/2026
    r"|(?<![\w:])\d{1,2}:\d{2}(?::\d{2})?(?![\w:])"  # 14:30
    r"|(?<![\w.])\d+(?:\.\d+){2,}(?!\w)"  # 1.2.3
)
_IDENTIFIER = re.compile(r"#\d+|(?<![\w#-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*(?![\w])")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]{1,3})\Z")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)\Z", re.I)
_AMOUNT = re.compile(
    rf"(?P<before>[$€£¥]|\b{_CODE}[ \t]?)?(?<![\w.])(?P<number>{_NUMBER})(?P<after>[ \t]?(?:%|[$€£¥]|{_CODE}\b))?(?!\w)"
)
_REFERENCE = re.compile(r"\b(?:steps?|nodes?|summary)[ \t]+#?(\d+)(?:[ \t]*[-\u2013][ \t]*(\d+))?", re.I)


@dataclass(frozen=True, slots=True)
class Quotes:
    """Quotes of a text, each in one normal form.

    Attributes:
        words: identifiers and addresses, in lower case.
        dates: `2026-11-21`, or `11-21` where the text names no year; clock times and other notations as written.
        amounts: number in normal form, and its currency or `%` ("" for none).
        references: node ids that the text names as steps.
    """

    words: frozenset[str]
    dates: frozenset[str]
    amounts: frozenset[tuple[str, str]]
    references: frozenset[int]


def quotes_of(text: str) -> Quotes:
    """Everything that `text` quotes."""
    words: set[str] = set()
    dates: set[str] = set()
    amounts: set[tuple[str, str]] = set()
    references: set[int] = set()

    def take_reference(found: re.Match[str]) -> str:
        references.update(int(number) for number in found.groups() if number)
        return "\n"

    def take_word(found: re.Match[str]) -> str:
        word = found.group().rstrip(".,;:")
        quantity = _QUANTITY.match(word)
        if quantity and not _ORDINAL.match(word):
            unit = quantity.group(2)
            amounts.add((_normal(quantity.group(1)), unit.upper() if unit.upper() in _CODES else unit.lower()))
        elif not quantity:
            words.add(word.lower())
        return "\n"

    def take_date(found: re.Match[str]) -> str:
        dates.add(_date(found.groupdict()))
        return "\n"

    def take_literal(found: re.Match[str]) -> str:
        dates.add(found.group().replace(".", "/"))
        return "\n"

    text = _REFERENCE.sub(take_reference, text)
    text = _ADDRESS.sub(take_word, text)
    for pattern in _DATES:
        text = pattern.sub(take_date, text)
    text = _LITERAL.sub(take_literal, text)
    text = _IDENTIFIER.sub(take_word, text)
    for found in _AMOUNT.finditer(text):
        unit = (found["before"] or found["after"] or "").strip()
        number = found["number"]
        if unit or len(number) > 2:
            amounts.add((_normal(number), _CURRENCIES.get(unit, unit)))
    return Quotes(frozenset(words), frozenset(dates), frozenset(amounts), frozenset(references))


def unsupported(said: Quotes, cover: Iterable[Quotes], covered_ids: Set[int]) -> list[str]:
    """What `said` quotes that nothing in the cover does, item by item, for a person."""
    pieces = list(cover)
    words = frozenset(chain.from_iterable(q.words for q in pieces))
    dates = frozenset(chain.from_iterable(q.dates for q in pieces))
    amounts = frozenset(chain.from_iterable(q.amounts for q in pieces))
    mentioned = frozenset(chain.from_iterable(q.references for q in pieces))
    days = dates | {date[5:] for date in dates if len(date) == len("2026-11-21") and date[4] == "-"}
    units: dict[str, set[str]] = {}
    for number, unit in amounts:
        units.setdefault(number, set()).add(unit)
    findings = [f"id {word!r} does not occur in the covered steps" for word in sorted(said.words - words)]
    findings += [f"date {date!r} does not occur in the covered steps" for date in sorted(said.dates - days)]
    for number, unit in sorted(said.amounts):
        seen = units.get(number, set())
        if not seen or (unit and not seen & {unit, ""}):
            findings.append(f"amount {f'{number} {unit}'.strip()!r} does not occur in the covered steps")
    findings += [f"step {n} is not among the covered steps" for n in sorted(said.references - covered_ids - mentioned)]
    return findings


def _normal(number: str) -> str:
    number = re.sub(r"[,'_]", "", number)
    whole, _, fraction = number.partition(".")
    fraction = fraction.rstrip("0")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{fraction}" if fraction else whole


def _date(parts: dict[str, str | None]) -> str:
    month, day, year = parts["month"] or "", parts["day"] or "", parts.get("year")
    number = int(month) if month.isdigit() else _MONTHS.index(month[:3].lower()) + 1
    return f"{year}-{number:02}-{int(day):02}" if year else f"{number:02}-{int(day):02}"
