"""What a Merge brings: notes or copies of steps with their provenance, and slots by a three-way comparison.

A copy never repeats the effect of its original: what was done outside was done once.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from katsura.domain.errors import ConflictError, Reason
from katsura.domain.trees import (
    ROOT,
    Branch,
    Effect,
    Node,
    Provenance,
    Reference,
    ReferenceKind,
    Relation,
    Resolution,
    Slot,
    Step,
    StepKind,
)
from katsura.memory.core.compress import OPENS, extractive
from katsura.memory.core.limits import REFERENCES_MAX

MERGED_FROM = "merged_from"
"""Attribute of a merged step: the branch that did the work."""


class ConflictPolicy(IntEnum):
    """What happens to slots that both branches changed (numbers of the API)."""

    UNSPECIFIED = 0
    FAIL = 1
    OURS = 2
    THEIRS = 3


@dataclass(frozen=True, slots=True)
class SlotDifference:
    """A slot whose value differs; None where there is no value."""

    key: str
    ours: Node | None
    theirs: Node | None


def slots_of(last: Sequence[Node]) -> dict[str, Node]:
    """Of the last write of each key, those that hold a value."""
    return {n.body.key: n for n in last if isinstance(n.body, Slot) and not n.body.unset}


def differences(ours: Mapping[str, Node], theirs: Mapping[str, Node]) -> tuple[SlotDifference, ...]:
    """Slots whose values differ, by key."""
    keys = sorted(ours.keys() | theirs.keys())
    found = (SlotDifference(key, ours.get(key), theirs.get(key)) for key in keys)
    return tuple(d for d in found if _value(d.ours) != _value(d.theirs))


def merged_slots(
    base: Mapping[str, Node], ours: Sequence[Node], theirs: Sequence[Node], source: str, policy: ConflictPolicy
) -> tuple[tuple[Slot, ...], tuple[str, ...]]:
    """Writes that bring what `theirs` changed since `base` to `ours`, and the keys that both had changed.

    A value that the source took away stays: nothing is ever unset by a merge.

    Raises:
        ConflictError: MERGE_CONFLICT, there are such keys and the policy is FAIL.
    """
    last = {n.body.key: n for n in ours if isinstance(n.body, Slot)}
    held = slots_of(ours)
    writes, conflicts = [], []
    for difference in differences(held, slots_of(theirs)):
        key = difference.key
        before = _value(base.get(key))
        value = _value(difference.theirs)
        if value is None or value == before:
            continue
        both = _value(held.get(key)) != before
        if both:
            conflicts.append(key)
        if not both or policy is ConflictPolicy.THEIRS:
            relation = Relation.REPLACE if key in held else Relation.NEW
            previous = last[key].node_id if key in last else ROOT
            writes.append(Slot(key, value, relation, f"merged from branch {source}", previous))
    if conflicts and policy in (ConflictPolicy.UNSPECIFIED, ConflictPolicy.FAIL):
        raise ConflictError(
            f"both branches changed {', '.join(map(repr, conflicts))}; say OURS or THEIRS in on_conflict, or set them",
            reason=Reason.MERGE_CONFLICT,
            field="on_conflict",
            metadata={"keys": " ".join(conflicts)},
        )
    return tuple(writes), tuple(conflicts)


def picked(node: Node, source: Branch) -> Step:
    """A copy of a step, made on another branch."""
    step = node.body
    assert isinstance(step, Step), "steps are picked"
    return replace(
        step,
        client_step_id="",
        relation=Relation.NEW,
        related_node_ids=(node.node_id,),
        effect=Effect.NONE,
        undo_ref="",
        wait=None,
        resolves=ROOT,
        resolution=Resolution.UNSPECIFIED,
        attributes={**step.attributes, MERGED_FROM: source.name},
        references=(*step.references[: REFERENCES_MAX - 1], Reference(node.node_id, ReferenceKind.DERIVED_FROM)),
    )


def standing_alone(nodes: Sequence[Node], shared: Container[int], policy: ConflictPolicy) -> Sequence[Node]:
    """Of picked steps, those to be copied: they hold, and what they depend on is picked or there already.

    Args:
        shared: nodes that the target has.

    Raises:
        ConflictError: MERGE_CONFLICT, there are others and the policy is FAIL.
    """
    taken = {node.node_id: node for node in nodes}

    def stands(node: Node) -> bool:
        needed = [r.node_id for r in node.references if r.kind is ReferenceKind.DEPENDS_ON and not r.tree_id]
        return not node.stale and all(n in taken or n in shared for n in needed)

    while falling := [node_id for node_id, node in taken.items() if not stands(node)]:
        for node_id in falling:
            del taken[node_id]
    wrong = [node.node_id for node in nodes if node.node_id not in taken]
    if wrong and policy in (ConflictPolicy.UNSPECIFIED, ConflictPolicy.FAIL):
        raise ConflictError(
            f"picked steps {', '.join(map(str, wrong))} are stale, or depend on steps that are not picked; pick those "
            "too, or say OURS (leave them out) or THEIRS (take them so) in on_conflict",
            reason=Reason.MERGE_CONFLICT,
            field="pick",
            metadata={"nodes": " ".join(map(str, wrong))},
        )
    return nodes if policy is ConflictPolicy.THEIRS else tuple(taken.values())


def abroad(step: Step, tree_id: str) -> Step:
    """A merged step whose work was done in another tree: every node that it names is of that tree."""
    return replace(
        step,
        related_node_ids=(),
        references=tuple(replace(r, tree_id=r.tree_id or tree_id) for r in step.references),
    )


def told(work: Sequence[Node], source: Branch, text: str) -> tuple[Step, ...]:
    """What the source did as one note, and one more for each obligation that it left open."""
    first, last = work[0], work[-1]
    body = extractive(work, None)
    lines = (body.text, *(f"- {fact}" for fact in body.facts), *(f"made: {item}" for item in body.artifacts))
    agent = last.body.agent_id if isinstance(last.body, Step) else ""
    agent = agent or source.agent_id
    note = Step(
        content=f"[branch {source.name}, steps {first.node_id} to {last.node_id}]\n{text or chr(10).join(lines)}",
        role="user",
        kind=StepKind.NOTE,
        related_node_ids=(last.node_id,),
        provenance=Provenance.TOOL,
        attributes={MERGED_FROM: source.name},
        agent_id=agent,
        references=tuple(Reference(node.node_id, ReferenceKind.DERIVED_FROM) for node in work[-REFERENCES_MAX:]),
    )
    owed = (
        replace(note, content=f"Still owed: {item}", attributes={MERGED_FROM: source.name, OPENS: item})
        for item in body.open_obligations
    )
    return (note, *owed)


def _value(node: Node | None) -> str | None:
    return node.body.value if node is not None and isinstance(node.body, Slot) else None
