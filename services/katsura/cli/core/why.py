"""Why something of a tree is in the context of a branch, or is not: one sentence for one node.

Pure: `explain` asks the memory service for the assembled context and what was left out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

STEP, SUMMARY, HINT, SLOT = "step", "summary", "hint", "slot"


@dataclass(frozen=True, slots=True)
class Part:
    """A message of the context. `covers` is the run of steps that a summary stands for."""

    kind: str
    node_id: int
    tokens: int
    role: str
    text: str
    covers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """What the service left out, and its reason."""

    kind: str
    node_id: int
    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """A context: its parts, what was left out, and the room that they had."""

    branch: str
    budget: int
    total: int
    parts: Sequence[Part]
    left: Sequence[Left]
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The run of steps of each summary that is a part or was left out."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The node in question. `on_path`: whether the branch goes through it (of a step)."""

    node_id: int
    kind: str
    birth_branch: str
    on_path: bool = False
    redacted: bool = False
    note: str = ""
    """Of a summary that failed: what the check found."""


def why(asked: Asked, made: Assembled) -> tuple[bool, str]:
    """Whether the node is in the context, and the reason."""
    name = f"{asked.kind} #{asked.node_id}"
    part = next((part for part in made.parts if part.node_id == asked.node_id), None)
    if part is not None:
        erased = ", erased: only its place is left" if asked.redacted else ""
        return True, f"{name} is in the context of {made.branch}, with {part.tokens} tokens{erased}"
    because = _because_step(asked, made) if asked.kind == STEP else _because(asked, made)
    return False, f"{name} is not in the context of {made.branch}: {because}"


def sentence(left: Left, made: Assembled) -> str:
    """Why something was left out, in words."""
    match left.reason:
        case "covered-by-summary":
            last = left.node_id if left.kind == STEP else made.ranges.get(left.node_id, (0, 0))[1]
            over = [p for p in made.parts if p.covers and p.covers[0] <= last <= p.covers[1]]
            return f"summary #{over[0].node_id} stands for them" if over else "a summary stands for them"
        case "over-budget":
            return "does not fit the budget" if left.kind != STEP else "older than what fits the budget"
        case "summary-not-valid":
            return "not checked, or a check failed: what it covers is shown instead"
        case "hint-limit":
            return "only the newest hints are shown (policy.hint_limit)"
        case reason:
            return reason


def _because_step(asked: Asked, made: Assembled) -> str:
    if not asked.on_path:
        tells = [part for part in made.parts if part.kind == HINT and asked.birth_branch in part.text.split()]
        hint = f"; hint #{tells[0].node_id} tells why that was left" if tells else ""
        return f"{made.branch} does not go through it, it was made on {asked.birth_branch}{hint}"
    for part in made.parts:
        if part.covers and part.covers[0] <= asked.node_id <= part.covers[1]:
            return f"summary #{part.node_id} stands for steps {part.covers[0]} to {part.covers[1]}"
    for left in made.left:
        covers = made.ranges.get(left.node_id)
        if left.kind == SUMMARY and covers and covers[0] <= asked.node_id <= covers[1]:
            return f"summary #{left.node_id} stands for it, and {sentence(left, made)} ({made.budget} tokens)"
    return (
        f"older than what fits {made.budget} tokens, and no summary covers it; compress the branch, or raise the budget"
    )


def _because(asked: Asked, made: Assembled) -> str:
    left = next((left for left in made.left if left.node_id == asked.node_id), None)
    if left is not None:
        found = f" ({asked.note})" if asked.note else ""
        return f"{sentence(left, made)}{found}".replace("stands for them", "stands for it")
    if asked.kind == SLOT:
        return "a later write took its place, or it was set on another branch"
    over = made.ranges.get(asked.node_id)
    for part in made.parts if over else ():
        if over and part.covers and part.covers[0] <= over[0] and over[1] <= part.covers[1]:
            return f"summary #{part.node_id} took its place: it stands for steps {part.covers[0]} to {part.covers[1]}"
    if asked.note:
        return f"its check failed ({asked.note})"
    return f"{made.branch} does not go by it, it was made on {asked.birth_branch}"
