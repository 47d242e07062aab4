"""Messages of `katsura.api.memory.v1` to domain data and back. Called by `server` only; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from functools import cache, lru_cache
from typing import Final, TypeVar, cast

from google.protobuf.timestamp_pb2 import Timestamp

from katsura.api.memory.v1 import memory_contents_pb2 as contents_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.api.memory.v1 import memory_slots_pb2 as slots_pb
from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import NodeId
from katsura.domain.retention import KEEP_ABANDONED, KEEP_REVISIONS, Retention
from katsura.domain.trees import (
    NO_COST,
    Attachment,
    Branch,
    Cost,
    Durability,
    Effect,
    EventKind,
    Hint,
    Judgement,
    Node,
    Origin,
    Provenance,
    Reference,
    ReferenceKind,
    Relation,
    Slot,
    StaleMark,
    StaleStep,
    StandingEffect,
    Step,
    StepKind,
    Summary,
    SummaryBody,
    ToolCall,
    Tree,
    TreePolicy,
    Verdict,
    Wait,
    WaitKind,
)
from katsura.memory.contents import Hit
from katsura.memory.core.assemble import Dropped, Segment
from katsura.memory.core.slots import SlotWrite
from katsura.memory.following import Followed
from katsura.memory.summaries import Outside
from katsura.state.contents import TreeChange
from katsura.state.trees import Event, Position

K = TypeVar("K", bound=IntEnum)
_KEPT: Final = 8192
_KEPT_CHARS: Final = 2048


def enum_of(kind: type[K], value: int, field: str) -> K:
    """The domain's value of an open enumeration; an unknown number is the caller's mistake."""
    found = _values(kind).get(value)
    if found is None:
        raise InvalidArgumentError(f"{field}: {value} is not a {kind.__name__}", field=field)
    return cast(K, found)


@cache
def _values(kind: type[IntEnum]) -> dict[int, IntEnum]:
    return {int(value): value for value in kind}


def policy_from(message: tree_pb.TreePolicy) -> TreePolicy:
    """A policy as sent."""
    return TreePolicy(
        raw_token_limit=message.raw_token_limit,
        compressor=message.compressor,
        validators=tuple(message.validators),
        hint_limit=message.hint_limit,
        durability=enum_of(Durability, message.durability, "policy.durability"),
        ttl_s=message.ttl_s,
        rollup_fanout=message.rollup_fanout,
        retention=retention_from(message.retention) if message.HasField("retention") else None,
    )


def retention_from(message: tree_pb.Retention) -> Retention:
    """A retention as sent, with defaults for what was left out."""
    return Retention(
        message.keep_abandoned if message.HasField("keep_abandoned") else KEEP_ABANDONED,
        message.keep_revisions or KEEP_REVISIONS,
        message.abandoned_ttl_s,
    )


def step_from(message: tree_pb.Step, at: str) -> Step:
    """A step as sent; `at` is its place in the request."""
    return Step(
        content=message.content,
        role=message.role,
        kind=enum_of(StepKind, message.kind, f"{at}.kind"),
        client_step_id=message.client_step_id,
        tool_call=_call_from(message.tool_call) if message.HasField("tool_call") else None,
        relation=enum_of(Relation, message.relation, f"{at}.relation"),
        related_node_ids=tuple(map(NodeId, message.related_node_ids)) if message.related_node_ids else (),
        effect=enum_of(Effect, message.effect, f"{at}.effect"),
        undo_ref=message.undo_ref,
        provenance=enum_of(Provenance, message.provenance, f"{at}.provenance"),
        cost=_cost_from(message.cost) if message.HasField("cost") else NO_COST,
        attributes=dict(message.attributes) if message.attributes else {},
        opaque=message.opaque,
        attachments=attachments_from(message.attachments) if message.attachments else (),
        agent_id=message.agent_id,
        references=references_from(message.references, f"{at}.references") if message.references else (),
        wait=Wait(enum_of(WaitKind, message.wait.kind, f"{at}.wait.kind"), message.wait.what)
        if message.HasField("wait")
        else None,
    )


def _call_from(call: tree_pb.ToolCall) -> ToolCall:
    return ToolCall(call.call_id, call.name, call.arguments_json)


def _cost_from(cost: tree_pb.Cost) -> Cost:
    return Cost(cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens, cost.micros)


def references_from(messages: Iterable[tree_pb.Reference], at: str) -> tuple[Reference, ...]:
    """What a step refers to, as sent; `at` is their place in the request."""
    return tuple(
        Reference(NodeId(r.node_id), enum_of(ReferenceKind, r.kind, f"{at}[{i}].kind"), r.tree_id)
        for i, r in enumerate(messages)
    )


def attachments_from(messages: Iterable[tree_pb.Attachment]) -> tuple[Attachment, ...]:
    """Named bytes, as sent."""
    return tuple(Attachment(a.task, a.index, a.media_type, a.data) for a in messages)


def change_from(message: contents_pb.UpdateTreeRequest) -> TreeChange:
    """What changes about a tree, as sent."""
    return TreeChange(
        goal=message.goal if message.HasField("goal") else None,
        add_pins=tuple(message.add_pins),
        remove_pins=tuple(message.remove_pins),
        set_labels=dict(message.set_labels),
        remove_labels=tuple(message.remove_labels),
        default_branch=message.default_branch,
        retention=retention_from(message.retention) if message.HasField("retention") else None,
        ttl_s=message.ttl_s if message.HasField("ttl_s") else None,
    )


def slot_from(message: slots_pb.SlotWrite, at: str) -> SlotWrite:
    """A slot to be written; `at` is its place in the request."""
    return SlotWrite(
        key=message.key,
        value=message.value,
        relation=enum_of(Relation, message.relation, f"{at}.relation"),
        note=message.note,
        expected_node=message.expected_node if message.HasField("expected_node") else None,
    )


def hit_message(hit: Hit) -> contents_pb.SearchHit:
    """A node that says the words."""
    return contents_pb.SearchHit(node=node_message(hit.node), excerpt=hit.excerpt, live=hit.live)


def body_from(message: tree_pb.SummaryBody) -> SummaryBody:
    """What a summary says, as sent."""
    return SummaryBody(
        text=message.text,
        facts=tuple(message.facts),
        decisions=tuple(message.decisions),
        open_obligations=tuple(message.open_obligations),
        artifacts=tuple(message.artifacts),
    )


def outside_from(message: pb.ExternalVerdict) -> Outside:
    """The verdict of a validator outside."""
    return Outside(
        validator=message.validator,
        fidelity=enum_of(Verdict, message.fidelity, "verdict.fidelity"),
        outcome=enum_of(Verdict, message.outcome, "verdict.outcome"),
        note=message.note,
        suggested_restore=message.suggested_restore,
        to_root=message.HasField("suggested_restore") and not message.suggested_restore,
    )


def tree_message(tree: Tree) -> tree_pb.Tree:
    """A tree."""
    policy = tree.policy
    return tree_pb.Tree(
        tree_id=tree.tree_id,
        goal=tree.goal,
        pins=tree.pins,
        policy=tree_pb.TreePolicy(
            raw_token_limit=policy.raw_token_limit,
            compressor=policy.compressor,
            validators=policy.validators,
            hint_limit=policy.hint_limit,
            durability=tree_pb.Durability.ValueType(policy.durability),
            ttl_s=policy.ttl_s,
            rollup_fanout=policy.rollup_fanout,
            retention=_retention_message(policy.retention),
        ),
        labels=dict(tree.labels),
        revision=tree.revision,
        store_incarnation=tree.incarnation,
        default_branch=tree.default_branch,
        node_count=tree.node_count,
        branch_count=tree.branch_count,
        cold=tree.cold,
        create_time=time_message(tree.create_ms),
        update_time=time_message(tree.update_ms),
        stale_count=tree.stale_count,
        origin=_origin_message(tree.origin),
        agent_id=tree.agent_id,
    )


def _retention_message(retention: Retention | None) -> tree_pb.Retention | None:
    if retention is None:
        return None
    return tree_pb.Retention(
        keep_abandoned=retention.abandoned,
        keep_revisions=retention.revisions,
        abandoned_ttl_s=retention.abandoned_s,
    )


def branch_message(branch: Branch) -> tree_pb.Branch:
    """A branch."""
    return tree_pb.Branch(
        name=branch.name,
        state=tree_pb.BranchState.ValueType(branch.state),
        head=branch.head,
        summary_head=branch.summary_head,
        boundary=branch.boundary,
        fork_node=branch.fork_node,
        parent_branch=branch.parent_branch,
        depth=branch.depth,
        raw_tokens=branch.raw_tokens,
        hint=branch.hint,
        cut=branch.cut,
        create_time=time_message(branch.create_ms),
        agent_id=branch.agent_id,
        held_by_tree=branch.held_by,
        abandon_time=time_message(branch.left_ms) if branch.left_ms else None,
        lease_holder=branch.lease_holder,
        lease_end_time=time_message(branch.lease_end_ms) if branch.lease_end_ms else None,
        label=branch.label,
        note=branch.note,
    )


def position_message(position: Position) -> pb.Position:
    """A point in time."""
    return pb.Position(revision=position.revision, store_incarnation=position.incarnation)


def node_message(node: Node) -> tree_pb.Node:
    """A node of any kind."""
    message = tree_pb.Node(
        node_id=node.node_id,
        parent_id=node.parent_id,
        content_hash=node.content_hash,
        birth_branch=node.birth_branch,
        depth=node.depth,
        create_time=time_message(node.create_ms),
        revision=node.revision,
        tokenized_for=node.tokenized_for,
        attachments=[_attachment_message(item) for item in node.attachments],
        redacted=node.redacted,
        references=map(_reference_message, node.references),
        stale=map(_mark_message, node.stale),
    )
    match node.body:
        case Step():
            message.step.CopyFrom(_step_message(node.body))
        case Summary():
            message.summary.CopyFrom(_summary_message(node.body, node.judgement or Judgement()))
        case Hint():
            message.hint.CopyFrom(_hint_message(node.body))
        case Slot():
            message.slot.CopyFrom(_slot_message(node.body))
    return message


def check_messages(judgement: Judgement | None) -> list[pb.CheckResult]:
    """Every check that ran."""
    checks = judgement.checks if judgement else ()
    return [
        pb.CheckResult(
            validator=check.validator, verdict=tree_pb.Verdict.ValueType(check.verdict), findings=check.findings
        )
        for check in checks
    ]


def effect_message(effect: StandingEffect) -> tree_pb.StandingEffect:
    """An effect left standing."""
    return tree_pb.StandingEffect(
        node_id=effect.node_id,
        effect=tree_pb.Effect.ValueType(effect.effect),
        undo_ref=effect.undo_ref,
        excerpt=effect.excerpt,
    )


def segment_message(segment: Segment) -> pb.Segment:
    """One message of a context; not to be changed, since short ones are kept for the next context."""
    if len(segment.content) > _KEPT_CHARS or segment.tool_call is not None or segment.token_ids:
        return _segment_message(segment)
    return _segment_message_before(segment)


def _segment_message(segment: Segment) -> pb.Segment:
    return pb.Segment(
        kind=pb.SegmentKind.ValueType(segment.kind),
        role=segment.role,
        content=segment.content,
        node_id=segment.node_id,
        token_count=segment.token_count,
        estimated=segment.estimated,
        token_ids=segment.token_ids,
        text_hash=segment.text_hash,
        tool_call=_call_message(segment.tool_call),
        tree_id=segment.tree_id,
    )


_segment_message_before: Final = lru_cache(_KEPT)(_segment_message)


def dropped_message(dropped: Dropped) -> pb.Dropped:
    """Something left out."""
    return pb.Dropped(
        kind=pb.SegmentKind.ValueType(dropped.kind),
        node_id=dropped.node_id,
        reason=dropped.reason,
        token_count=dropped.token_count,
    )


def stale_message(stale: StaleStep) -> pb.StaleStep:
    """A step of a path that no longer holds."""
    return pb.StaleStep(node_id=stale.node_id, mark=_mark_message(stale.mark), tree_id=stale.tree_id)


def event_message(event: Event) -> pb.WatchResponse:
    """One commit, or a heartbeat."""
    return pb.WatchResponse(
        kind=pb.EventKind.ValueType(event.kind),
        position=position_message(event.position),
        branch=event.branch,
        node_ids=event.node_ids,
        resume_token=event.resume_token,
        tree_id=event.tree_id,
    )


def kinds_from(request: pb.WatchRequest) -> frozenset[EventKind]:
    """Kinds of commits that a Watch asks for; those that only a newer version of us knows never come."""
    asked = set(map(int, request.kinds))
    return frozenset(kind for kind in EventKind if int(kind) in asked)


def followed_from(request: pb.WatchRequest) -> Followed:
    """What a Watch over many trees asks for. Raises INVALID_FIELD where it asks for one tree, too."""
    for field in ("tree_id", "resume_token"):
        if getattr(request, field):
            raise InvalidArgumentError(f"{field}: it goes with one tree; send {field}s for many", field=field)
    if request.after_revision not in (0, -1):
        raise InvalidArgumentError("after_revision: of many trees it is 0 or -1", field="after_revision")
    return Followed(
        tree_ids=tuple(request.tree_ids),
        labels=dict(request.labels),
        tokens=dict(request.resume_tokens),
        from_now=request.after_revision == -1,
    )


def _origin_message(origin: Origin | None) -> tree_pb.Origin | None:
    if origin is None:
        return None
    return tree_pb.Origin(
        tree_id=origin.tree_id,
        branch=origin.branch,
        node_id=origin.node_id,
        content_hash=bytes.fromhex(origin.content_hash),
        depth=origin.depth,
    )


def _attachment_message(item: Attachment) -> tree_pb.Attachment:
    return tree_pb.Attachment(task=item.task, index=item.index, media_type=item.media_type, data=item.data)


def _step_message(step: Step) -> tree_pb.Step:
    cost = step.cost
    return tree_pb.Step(
        client_step_id=step.client_step_id,
        kind=tree_pb.StepKind.ValueType(step.kind),
        role=step.role,
        content=step.content,
        tool_call=_call_message(step.tool_call),
        relation=tree_pb.Relation.ValueType(step.relation),
        related_node_ids=step.related_node_ids,
        effect=tree_pb.Effect.ValueType(step.effect),
        undo_ref=step.undo_ref,
        provenance=tree_pb.Provenance.ValueType(step.provenance),
        cost=tree_pb.Cost(
            prompt_tokens=cost.prompt_tokens,
            cached_tokens=cost.cached_tokens,
            completion_tokens=cost.completion_tokens,
            micros=cost.micros,
        ),
        attributes=dict(step.attributes),
        opaque=step.opaque,
        attachments=[_attachment_message(item) for item in step.attachments],
        agent_id=step.agent_id,
        references=map(_reference_message, step.references),
        wait=tree_pb.Wait(kind=tree_pb.WaitKind.ValueType(step.wait.kind), what=step.wait.what) if step.wait else None,
        resolves=step.resolves,
        resolution=tree_pb.Resolution.ValueType(step.resolution),
    )


def _reference_message(reference: Reference) -> tree_pb.Reference:
    return tree_pb.Reference(
        node_id=reference.node_id,
        kind=tree_pb.ReferenceKind.ValueType(reference.kind),
        tree_id=reference.tree_id,
        declared=reference.declared,
    )


def _mark_message(mark: StaleMark) -> tree_pb.StaleMark:
    reason = tree_pb.StaleReason.ValueType(mark.reason)
    return tree_pb.StaleMark(cause_node=mark.cause, reason=reason, seen_from=mark.seen_from, tree_id=mark.tree_id)


def _summary_message(summary: Summary, judgement: Judgement) -> tree_pb.Summary:
    body = summary.body
    return tree_pb.Summary(
        level=summary.level,
        first_covered=summary.first_covered,
        last_covered=summary.last_covered,
        covered_count=summary.covered_count,
        cover_digest=summary.cover_digest,
        summary_body=tree_pb.SummaryBody(
            text=body.text,
            facts=body.facts,
            decisions=body.decisions,
            open_obligations=body.open_obligations,
            artifacts=body.artifacts,
        ),
        status=tree_pb.SummaryStatus.ValueType(judgement.status),
        fidelity=tree_pb.Verdict.ValueType(judgement.fidelity),
        outcome=tree_pb.Verdict.ValueType(judgement.outcome),
        note=judgement.note,
        suggested_restore=judgement.suggested_restore,
        made_by=summary.made_by,
        version=summary.version,
        covered_tokens=summary.covered_tokens,
        body_tokens=summary.body_tokens,
        parts=summary.parts,
    )


def _hint_message(hint: Hint) -> tree_pb.Hint:
    return tree_pb.Hint(
        abandoned_branch=hint.abandoned_branch,
        abandoned_head=hint.abandoned_head,
        restored_after=hint.restored_after,
        reason=hint.reason,
        first_action=hint.first_action,
        previous_hint=hint.previous_hint,
        standing_effects=map(effect_message, hint.standing),
    )


def _slot_message(slot: Slot) -> tree_pb.Slot:
    return tree_pb.Slot(
        key=slot.key,
        value=slot.value,
        relation=tree_pb.Relation.ValueType(slot.relation),
        note=slot.note,
        previous=slot.previous,
        restores=slot.restores,
    )


def _call_message(call: ToolCall | None) -> tree_pb.ToolCall | None:
    if call is None:
        return None
    return tree_pb.ToolCall(call_id=call.call_id, name=call.name, arguments_json=call.arguments_json)


def time_message(ms: int) -> Timestamp:
    """Milliseconds since the epoch."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
