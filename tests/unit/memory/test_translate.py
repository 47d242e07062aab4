"""Messages and domain data mean the same."""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum

import pytest

from katsura.api.memory.v1 import (
    block_service_pb2,
    memory_contents_pb2,
    memory_merge_pb2,
    memory_pb2,
    memory_service_pb2,
)
from katsura.domain import trees
from katsura.domain.blocks import BlockScope
from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import NodeId
from katsura.domain.trees import (
    Attachment,
    Cost,
    Effect,
    Judgement,
    Provenance,
    Reference,
    ReferenceKind,
    Relation,
    Step,
    StepKind,
    SummaryBody,
    ToolCall,
    Wait,
    WaitKind,
)
from katsura.memory import translate
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.core.merge import ConflictPolicy
from katsura.state.contents import Scope
from katsura.testing.trees import hint_node, step_nodes, summary_node

FULL = Step(
    content="text",
    role="tool",
    kind=StepKind.OBSERVATION,
    client_step_id="c",
    tool_call=ToolCall("i", "n", "{}"),
    relation=Relation.REFINE,
    related_node_ids=(NodeId(1),),
    effect=Effect.REVERSIBLE,
    undo_ref="u",
    provenance=Provenance.TOOL,
    cost=Cost(1, 2, 3, 4),
    attributes={"a": "b"},
    opaque=b"o",
    attachments=(Attachment("t", 1, "m", b"d"),),
    agent_id="g",
    references=(Reference(NodeId(1), ReferenceKind.REUSES, "other"),),
    wait=Wait(WaitKind.APPROVAL, "the boss"),
)


@pytest.mark.parametrize(
    ("kind", "proto", "prefix"),
    [
        (trees.Durability, memory_pb2.Durability, "DURABILITY_"),
        (trees.BranchState, memory_pb2.BranchState, "BRANCH_STATE_"),
        (trees.StepKind, memory_pb2.StepKind, "STEP_KIND_"),
        (trees.Relation, memory_pb2.Relation, "RELATION_"),
        (trees.Effect, memory_pb2.Effect, "EFFECT_"),
        (trees.Provenance, memory_pb2.Provenance, "PROVENANCE_"),
        (trees.SummaryStatus, memory_pb2.SummaryStatus, "SUMMARY_STATUS_"),
        (trees.Verdict, memory_pb2.Verdict, "VERDICT_"),
        (trees.EventKind, memory_service_pb2.EventKind, "EVENT_KIND_"),
        (BlockScope, block_service_pb2.BlockScope, "BLOCK_SCOPE_"),
        (ConflictPolicy, memory_merge_pb2.ConflictPolicy, "CONFLICT_POLICY_"),
        (Scope, memory_contents_pb2.SearchScope, "SEARCH_SCOPE_"),
        (SegmentKind, memory_service_pb2.SegmentKind, "SEGMENT_KIND_"),
        (trees.ReferenceKind, memory_pb2.ReferenceKind, "REFERENCE_KIND_"),
        (trees.WaitKind, memory_pb2.WaitKind, "WAIT_KIND_"),
        (trees.Resolution, memory_pb2.Resolution, "RESOLUTION_"),
        (trees.StaleReason, memory_pb2.StaleReason, "STALE_REASON_"),
    ],
)
def test_enumerations_have_the_numbers_of_the_api(kind: type[IntEnum], proto: object, prefix: str) -> None:
    ours = {prefix + item.name: int(item) for item in kind}
    theirs = dict(proto.items())  # type: ignore[attr-defined]
    assert {name: number for name, number in theirs.items() if number} == {n: v for n, v in ours.items() if v}


def test_a_step_survives_the_wire_with_every_field() -> None:
    (node,) = step_nodes(FULL)
    message = memory_pb2.Node.FromString(translate.node_message(node).SerializeToString())
    assert translate.step_from(message.step, "step") == FULL
    assert (message.node_id, message.depth, message.content_hash) == (1, 1, node.content_hash)


def test_a_summary_carries_its_judgement() -> None:
    node = summary_node(2, step_nodes("a"), SummaryBody("t", ("f",), ("d",), ("o",), ("r",)))
    message = translate.node_message(replace(node, judgement=replace(node.judgement or Judgement(), note="n"))).summary
    assert translate.body_from(message.summary_body) == SummaryBody("t", ("f",), ("d",), ("o",), ("r",))
    assert (message.status, message.fidelity, message.note) == (
        memory_pb2.SUMMARY_STATUS_VALID,
        memory_pb2.VERDICT_PASS,
        "n",
    )


def test_a_hint_is_a_hint() -> None:
    assert translate.node_message(hint_node(3, "why")).hint.reason == "why"


def test_an_unknown_number_of_an_enumeration_names_its_field() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        translate.step_from(memory_pb2.Step(kind=77), "steps[3]")  # type: ignore[arg-type]
    assert caught.value.field == "steps[3].kind"


def test_a_verdict_that_suggests_the_root_is_told_from_one_that_suggests_nothing() -> None:
    said = [memory_service_pb2.ExternalVerdict(validator="v", suggested_restore=restore) for restore in (None, 0, 4)]
    assert [translate.outside_from(one).to_root for one in said] == [False, True, False]
    for restore in (None, NodeId(0), NodeId(4)):
        node = replace(
            summary_node(5, step_nodes(Step("a")), SummaryBody("x")), judgement=Judgement(suggested_restore=restore)
        )
        shown = translate.node_message(node).summary
        assert (shown.suggested_restore if shown.HasField("suggested_restore") else None) == restore
