"""Deterministic compressors quote their cover and nothing else."""

from __future__ import annotations

import pytest

from katsura.domain.trees import Step, SummaryBody, ToolCall, Verdict
from katsura.memory.core.compress import (
    COMPRESSORS,
    body_tokens,
    extractive,
    mask_observations,
    open_obligations,
    shorten,
    summary_token_limit,
)
from katsura.memory.core.validate import Evidence, fidelity
from katsura.testing.trees import step_nodes, summary_of

PATH = step_nodes(
    Step(
        "Book a room in Kyoto for 3 nights from 2026-11-21, at most $450.", attributes={"obligation": "send the bill"}
    ),
    Step("", role="assistant", tool_call=ToolCall("c1", "search", '{"city": "Kyoto"}')),
    Step("Found hotel H-77 for 1,200.50 USD\nand hostel H-12 for 90 USD\nsee https://ex.org/h/12", role="tool"),
    Step("I take H-12.", role="assistant"),
)


def test_text_is_cut_between_words() -> None:
    assert shorten("one two three", 13) == "one two three"
    assert shorten("one two three", 9) == "one two …"
    assert shorten("  a\t b \n c ", 99) == "a b / c"


def test_the_extractive_compressor_keeps_edges_facts_obligations_and_addresses() -> None:
    body = extractive(PATH, None)
    assert body.text.splitlines()[0].startswith("user: Book a room in Kyoto")
    assert body.text.splitlines()[-1] == "assistant: I take H-12."
    assert "Found hotel H-77 for 1,200.50 USD" in body.facts
    assert body.open_obligations == ("send the bill",)
    assert body.artifacts == ("https://ex.org/h/12",)
    assert body.decisions == ("called search",)


def test_masking_shows_every_action_and_no_observation() -> None:
    body = mask_observations(PATH, None)
    assert "step 3: tool: (observation masked)" in body.text
    assert 'search / {"city": "Kyoto"}' in body.text
    assert "hostel" not in body.text


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compressor_passes_its_own_validation(name: str) -> None:
    previous = SummaryBody("before", open_obligations=("call back",))
    body = COMPRESSORS[name](PATH, previous)
    check = fidelity(Evidence(summary_of(PATH, body), PATH, previous))
    assert (check.verdict, check.findings) == (Verdict.PASS, ())


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_summary_of_much_is_short(name: str) -> None:
    cover = step_nodes(*(f"line {i} says ID-{i} costs {i} USD" for i in range(400)))
    body = COMPRESSORS[name](cover, None)
    assert body_tokens(body) <= summary_token_limit(sum(node.tokens for node in cover))


def test_obligations_are_carried_opened_and_closed() -> None:
    steps = [
        Step("a", attributes={"obligation": "x"}),
        Step("b", attributes={"closes": "old"}),
        Step("c", attributes={"obligation": "y"}),
        Step("d", attributes={"closes": "x"}),
    ]
    assert open_obligations(steps, SummaryBody("", open_obligations=("old", "kept"))) == ("kept", "y")
