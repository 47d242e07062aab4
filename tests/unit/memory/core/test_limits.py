"""Every refusal names its field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError, Reason
from katsura.domain.ids import NodeId
from katsura.domain.trees import (
    Attachment,
    Cost,
    Durability,
    Effect,
    Provenance,
    Relation,
    Step,
    StepKind,
    SummaryBody,
    ToolCall,
    TreePolicy,
)
from katsura.memory.core import limits

BARE = Step("hello", kind=StepKind.UNSPECIFIED, relation=Relation.UNSPECIFIED, effect=Effect.UNSPECIFIED)


@pytest.mark.parametrize(
    ("step", "field"),
    [
        (replace(BARE, role="robot"), "steps[1].role"),
        (replace(BARE, role=""), "steps[1].role"),
        (replace(BARE, content=""), "steps[1].content"),
        (replace(BARE, content="x" * (limits.CONTENT_BYTES_MAX + 1)), "steps[1].content"),
        (replace(BARE, client_step_id="x" * 5000), "steps[1].client_step_id"),
        (replace(BARE, client_step_id="a\nb"), "steps[1].client_step_id"),
        (replace(BARE, client_step_id="twice"), "steps[1].client_step_id"),
        (replace(BARE, attributes={str(i): "" for i in range(65)}), "steps[1].attributes"),
        (replace(BARE, attributes={"k": "x" * 5000}), "steps[1].attributes['k']"),
        (replace(BARE, related_node_ids=(NodeId(0),)), "steps[1].related_node_ids"),
        (replace(BARE, related_node_ids=(NodeId(1),) * 65), "steps[1].related_node_ids"),
        (replace(BARE, effect=Effect.REVERSIBLE), "steps[1].undo_ref"),
        (replace(BARE, opaque=b"x" * (limits.BLOB_BYTES_MAX + 1)), "steps[1].attachments"),
        (replace(BARE, attachments=(Attachment("", 0, "", b"x" * 700_000),) * 2), "steps[1].attachments"),
        (replace(BARE, cost=Cost(micros=(1 << 40) + 1)), "steps[1].cost.micros"),
        (replace(BARE, cost=Cost(cached_tokens=-1)), "steps[1].cost.cached_tokens"),
        (replace(BARE, tool_call=ToolCall("", "", "")), "steps[1].tool_call.name"),
        (replace(BARE, tool_call=ToolCall("", "f", "x" * (1 << 21))), "steps[1].tool_call.arguments_json"),
    ],
)
def test_a_wrong_step_is_refused_by_field(step: Step, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        limits.complete_steps([replace(BARE, client_step_id="twice"), step])
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


def test_the_number_and_sum_of_steps_are_limited() -> None:
    for steps in ([], [BARE] * 257, [replace(BARE, content="x" * 1_000_000)] * 4):
        with pytest.raises(InvalidArgumentError) as caught:
            limits.complete_steps(steps)
        assert caught.value.field == "steps"


def test_a_step_is_completed_by_its_role() -> None:
    call = ToolCall("c", "f", "{}")
    steps = limits.complete_steps(
        [BARE, replace(BARE, role="tool"), replace(BARE, role="assistant", tool_call=call, content="")]
    )
    assert [s.kind for s in steps] == [StepKind.MESSAGE, StepKind.OBSERVATION, StepKind.TOOL_CALL]
    assert [s.provenance for s in steps] == [Provenance.USER, Provenance.TOOL, Provenance.MODEL]
    assert {s.relation for s in steps} == {Relation.NEW}
    assert {s.effect for s in steps} == {Effect.NONE}
    told = replace(BARE, kind=StepKind.NOTE, provenance=Provenance.SYSTEM)
    assert limits.complete_steps([told])[0].provenance is Provenance.SYSTEM


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (TreePolicy(raw_token_limit=-1), "policy.raw_token_limit"),
        (TreePolicy(hint_limit=17), "policy.hint_limit"),
        (TreePolicy(ttl_s=-5), "policy.ttl_s"),
        (TreePolicy(compressor="magic"), "policy.compressor"),
        (TreePolicy(validators=("fidelity", "magic")), "policy.validators[1]"),
        (TreePolicy(validators=("fidelity", "fidelity")), "policy.validators[1]"),
    ],
)
def test_a_wrong_policy_is_refused_by_field(policy: TreePolicy, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        limits.complete_policy(policy, Durability.STRICT)
    assert caught.value.field == field


def test_a_tree_that_asks_for_more_than_the_store_gives_is_refused() -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        limits.complete_policy(TreePolicy(durability=Durability.STRICT), Durability.RELAXED)
    assert caught.value.reason is Reason.DURABILITY_UNAVAILABLE
    told = limits.complete_policy(TreePolicy(durability=Durability.CACHE), Durability.RELAXED)
    assert told.durability is Durability.CACHE
    assert limits.complete_policy(TreePolicy(), Durability.RELAXED).durability is Durability.RELAXED


def test_texts_of_a_tree_are_limited() -> None:
    for goal, pins, labels, field in [
        ("x" * 70_000, (), {}, "goal"),
        ("", ("x",) * 65, {}, "pins"),
        ("", ("x" * 5000,), {}, "pins[0]"),
        ("", (), {"k": "x" * 5000}, "labels['k']"),
    ]:
        with pytest.raises(InvalidArgumentError) as caught:
            limits.check_tree(goal, pins, labels)
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (SummaryBody(" \n"), "summary_body.text"),
        (SummaryBody("x", facts=("x" * 5000,)), "summary_body.facts[0]"),
        (SummaryBody("x", open_obligations=("x",) * 257), "summary_body.open_obligations"),
    ],
)
def test_a_wrong_summary_is_refused_by_field(body: SummaryBody, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        limits.check_body(body, "summary_body")
    assert caught.value.field == field


def test_a_page_has_a_default_and_a_largest_size() -> None:
    assert [limits.page_size(n) for n in (0, 7, 10_000)] == [limits.PAGE_DEFAULT, 7, limits.PAGE_MAX]
    with pytest.raises(InvalidArgumentError, match="page_size"):
        limits.page_size(-1)
