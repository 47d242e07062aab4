"""What identifies a call."""

from __future__ import annotations

import pytest

from katsura.domain.requests import request_of
from katsura.domain.trees import Cost, Step, StepKind, ToolCall, Wait, WaitKind

FULL = Step(
    "Zürich\n",
    "tool",
    StepKind.OBSERVATION,
    "c1",
    ToolCall("1", "look", "{}"),
    cost=Cost(1, 2, 3, 4),
    attributes={"b": "1", "a": "2"},
    opaque=b"x",
    agent_id="ann",
)


def test_a_request_is_known_to_every_version_of_us_by_the_same_digest() -> None:
    full = request_of("r", "grow", "main", None, True, (FULL, Step("b")), True)
    late = request_of("r", "grow", Step("b", wait=Wait(WaitKind.TOOL, "w")))
    assert full.digest == "57b2b0d40f2bc2fd74a574e1abea14ed"
    assert late.digest == "818d257316761d4de44490444b802d49"


def test_a_late_field_is_said_only_where_it_says_something() -> None:
    assert request_of("r", "grow", Step("b", wait=None)) == request_of("r", "grow", Step("b"))
    assert request_of("r", "grow", Step("b", wait=Wait(WaitKind.TOOL, "w"))) != request_of("r", "grow", Step("b"))


def test_what_is_no_data_identifies_no_call() -> None:
    with pytest.raises(TypeError, match="object"):
        request_of("r", "grow", object())
