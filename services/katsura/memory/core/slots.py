"""What a write of a slot means: its relation to the value before (Task Memory Engine, arXiv 2505.19436)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katsura.domain.errors import ConflictError, InvalidArgumentError, Reason
from katsura.domain.ids import checked_name
from katsura.domain.trees import ROOT, Node, Relation, Slot
from katsura.memory.core.tokens import estimate

SLOTS_MAX: Final = 64
VALUE_BYTES_MAX: Final = 1024
NOTE_BYTES_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class SlotWrite:
    """A write as asked for; `expected_node` None writes over whatever is there."""

    key: str
    value: str
    relation: Relation = Relation.UNSPECIFIED
    note: str = ""
    expected_node: int | None = None


def check_writes(writes: Sequence[SlotWrite]) -> None:
    """Refuse writes that can hold in no state."""
    if not 1 <= len(writes) <= SLOTS_MAX:
        raise _wrong("writes", f"{len(writes)}; from 1 to {SLOTS_MAX} are taken")
    for i, write in enumerate(writes):
        checked_name(write.key, f"writes[{i}].key")
        if write.key in (other.key for other in writes[:i]):
            raise _wrong(f"writes[{i}].key", f"{write.key!r} is in this request twice")
        for name, most in (("value", VALUE_BYTES_MAX), ("note", NOTE_BYTES_MAX)):
            if len(getattr(write, name).encode()) > most:
                raise _wrong(f"writes[{i}].{name}", f"it is longer than {most} bytes")
        if write.relation is Relation.ROLLBACK and write.value:
            raise _wrong(f"writes[{i}].value", "a ROLLBACK brings a value back, it takes none")


def plan(last: Sequence[Node], writes: Sequence[SlotWrite], restored: Mapping[str, Node]) -> tuple[Slot, ...]:
    """The nodes that the writes make.

    Args:
        last: the last write of each key on the path.
        restored: for each key that is rolled back, the write whose value comes back, where there is one.

    Raises:
        ConflictError: VERSION_MOVED, a key is not in the state that its relation or `expected_node` asks for.
    """
    now = {node.body.key: node for node in last if isinstance(node.body, Slot)}
    live = {key for key, node in now.items() if isinstance(node.body, Slot) and not node.body.unset}
    made = []
    for i, write in enumerate(writes):
        node = now.get(write.key)
        current = node.node_id if node is not None and write.key in live else ROOT
        relation = write.relation or (Relation.REPLACE if current else Relation.NEW)
        fits = (current == ROOT) == (relation is Relation.NEW)
        if not fits or write.expected_node not in (None, current):
            is_set = f"is set by node {current}" if current else "has no value"
            raise ConflictError(
                f"writes[{i}]: slot {write.key!r} {is_set} now; read the slots again, then decide",
                reason=Reason.VERSION_MOVED,
                field=f"writes[{i}].key",
                metadata={"key": write.key, "node": str(current)},
            )
        back = restored.get(write.key)
        value = back.body.value if back is not None and isinstance(back.body, Slot) else write.value
        previous, restores = (node.node_id if node else ROOT), (back.node_id if back else ROOT)
        made.append(Slot(write.key, value, relation, write.note, previous, restores))
        live = live - {write.key} if made[-1].unset else live | {write.key}
    if len(live) > SLOTS_MAX:
        raise _wrong("writes", f"the branch would have {len(live)} slots; at most {SLOTS_MAX} are taken")
    return tuple(made)


def slot_tokens(slot: Slot) -> int:
    """Estimated tokens of a slot in a context."""
    return estimate(slot_text(slot))


def slot_text(slot: Slot) -> str:
    """A slot as a context says it."""
    return f"[value of {slot.key}] {slot.value}"


def _wrong(field: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field}: {why}", field=field)
