"""Records come back as they were written, and damage is seen."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katsura.domain.errors import DataLossError
from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import (
    Attachment,
    Check,
    Cost,
    Durability,
    Effect,
    Hint,
    Judgement,
    Provenance,
    Reference,
    Relation,
    Resolution,
    Step,
    StepKind,
    Summary,
    SummaryBody,
    SummaryStatus,
    ToolCall,
    TreePolicy,
    Verdict,
    Wait,
    WaitKind,
    request_of,
)
from katsura.state import tree_records

SALT = bytes(range(16))
texts = st.text(max_size=20)
steps = st.builds(
    Step,
    content=texts,
    role=texts,
    kind=st.sampled_from(StepKind),
    client_step_id=texts,
    tool_call=st.none() | st.builds(ToolCall, texts, texts, texts),
    relation=st.sampled_from(list(Relation)[1:]),
    related_node_ids=st.lists(st.integers(1, 99).map(NodeId), max_size=3).map(tuple),
    effect=st.sampled_from(list(Effect)[1:]),
    undo_ref=texts,
    cost=st.builds(Cost, *[st.integers(0, 1 << 40)] * 4),
    attributes=st.dictionaries(texts, texts, max_size=3),
    opaque=st.binary(max_size=10),
    attachments=st.lists(st.builds(Attachment, texts, st.integers(0, 9), texts, st.binary(max_size=9)), max_size=3).map(
        tuple
    ),
    agent_id=texts,
)


@given(steps)
def test_a_step_comes_back_as_it_was(step: Step) -> None:
    blob = tree_records.blob_of(step)
    assert tree_records.body_of(1, tree_records.record_of(step, SALT), blob) == step


def test_summaries_and_hints_come_back_as_they_were() -> None:
    body = SummaryBody("t", ("f",), ("d",), ("o",), ("a",))
    summary = Summary(1, NodeId(1), NodeId(3), 3, b"d" * 32, body, "agent", 2, 30, 9)
    hint = Hint(BranchName("main"), NodeId(7), NodeId(3), "why", "what", NodeId(5))
    for node_body in (summary, hint):
        assert tree_records.body_of(1, tree_records.record_of(node_body, SALT), b"") == node_body


def test_judgements_and_policies_come_back_as_they_were() -> None:
    judgement = Judgement(
        SummaryStatus.FAILED, Verdict.FAIL, Verdict.UNKNOWN, "n", NodeId(3), ("fidelity",),
        (Check("fidelity", Verdict.FAIL, ("x",)),), 4,
    )  # fmt: skip
    assert tree_records.judgement_of(tree_records.judgement_json(judgement), 4) == judgement
    for restore, written in ((None, 0), (NodeId(0), None), (NodeId(7), 7)):
        judgement = Judgement(suggested_restore=restore)
        text = tree_records.judgement_json(judgement)
        assert tree_records.judgement_of(text, 0) == judgement
        assert json.loads(text)[4] == written, "older versions read 0 and null as none"
    policy = TreePolicy(1, "c", ("v",), 2, Durability.STRICT, 3)
    assert tree_records.policy_of(tree_records.policy_json(policy)) == policy


def test_the_hash_depends_on_parent_salt_and_content() -> None:
    record = tree_records.record_of(Step("a"), SALT)
    hashes = {
        tree_records.content_hash(bytes(32), record),
        tree_records.content_hash(b"p" * 32, record),
        tree_records.content_hash(bytes(32), tree_records.record_of(Step("a"), b"s" * 16)),
        tree_records.content_hash(bytes(32), tree_records.record_of(Step("b"), SALT)),
    }
    assert len(hashes) == 4


def test_identical_children_may_differ_in_cost_and_client_id_only() -> None:
    digests = [
        tree_records.body_digest(step, b"tree")
        for step in (Step("a"), Step("a", client_step_id="c", cost=Cost(1)), Step("a", role="tool"))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert tree_records.body_digest(Step("a"), b"other") != digests[0]


OTHERWISE: dict[str, Any] = {
    "content": "another",
    "role": "assistant",
    "kind": StepKind.TOOL_CALL,
    "client_step_id": "c",
    "tool_call": ToolCall("", "f", ""),
    "relation": Relation.REFINE,
    "related_node_ids": (NodeId(1),),
    "effect": Effect.IRREVERSIBLE,
    "undo_ref": "u",
    "provenance": Provenance.TOOL,
    "cost": Cost(micros=1),
    "attributes": {"k": "v"},
    "opaque": b"o",
    "attachments": (Attachment("task", 0, "", b""),),
    "agent_id": "ada",
    "references": (Reference(NodeId(1)),),
    "wait": Wait(WaitKind.TOOL, "it"),
    "resolves": NodeId(1),
    "resolution": Resolution.REFUSED,
}


@pytest.mark.parametrize("name", [field.name for field in fields(Step)])
def test_no_field_of_a_step_is_left_out_of_what_its_hash_and_its_request_cover(name: str) -> None:
    resolves = NodeId(1) if name == "resolution" else NodeId(0)
    step = Step("said", resolves=resolves, resolution=Resolution.DONE if resolves else Resolution.UNSPECIFIED)
    other = replace(step, **{name: OTHERWISE[name]})
    assert tree_records.record_of(step, SALT) != tree_records.record_of(other, SALT)
    assert request_of("r", "grow", (step,)) != request_of("r", "grow", (other,))
    alike = tree_records.body_digest(step, b"t") == tree_records.body_digest(other, b"t")
    assert alike == (name in ("client_step_id", "cost"))


def test_a_changed_byte_is_data_loss() -> None:
    stored = b"1 2 main\n" + tree_records.record_of(Step("abc"), SALT)
    good = tree_records.content_hash(bytes(32), stored.partition(b"\n")[2])
    tree_records.check_chain(7, bytes(32), stored, good)
    with pytest.raises(DataLossError, match="node 7 is damaged"):
        tree_records.check_chain(7, bytes(32), stored.replace(b"abc", b"abd"), good)
    with pytest.raises(DataLossError, match="node 7"):
        tree_records.body_of(7, stored[:-5], b"")


def test_a_requests_digest_covers_named_fields() -> None:
    base = request_of("r", "grow", Step("a"), 1, None)
    assert base == request_of("r", "grow", Step("a"), 1, None)
    others = [
        request_of("r", "fork", Step("a"), 1, None),
        request_of("r", "grow", Step("b"), 1, None),
        request_of("r", "grow", Step("a"), None, 1),
        request_of("r", "grow", Step("a", opaque=b"x"), 1, None),
    ]
    assert base.digest not in {other.digest for other in others}


def test_token_ids_come_back_as_they_were() -> None:
    assert tree_records.unpack_ids(tree_records.pack_ids([0, 1, 1 << 31])) == (0, 1, 1 << 31)
