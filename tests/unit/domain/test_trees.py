"""What requests are known by."""

from __future__ import annotations

from katsura.domain.ids import NodeId
from katsura.domain.trees import Reference, Step, Wait, WaitKind, request_of


def test_a_request_that_an_older_version_answered_is_known_by_the_same_digest() -> None:
    step = Step("x", role="tool", attributes={"a": "b"})
    assert request_of("r", "grow", (step,), True).digest == "884659600d6c0edd97de8808b2734f61"


def test_what_an_older_version_could_not_say_is_part_of_the_digest() -> None:
    said = [
        Step("x"),
        Step("x", references=(Reference(NodeId(1)),)),
        Step("x", wait=Wait(WaitKind.TOOL, "y")),
        Step("x", resolves=NodeId(1)),
    ]
    assert len({request_of("r", "grow", step).digest for step in said}) == 4
