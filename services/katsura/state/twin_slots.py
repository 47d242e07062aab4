"""Slots in memory: the twin of `slots_redis`."""

from __future__ import annotations

from collections.abc import Sequence

from katsura.domain.ids import NodeId
from katsura.domain.trees import EventKind, Node, Request, Slot
from katsura.state.contents import TreeRef
from katsura.state.slots import KEYS_MAX, SlotState
from katsura.state.trees import refusal
from katsura.state.twin_tree import TwinForest


class TwinSlots(TwinForest):
    """The part of the twin that is about slots."""

    async def slots(self, ref: TreeRef, branch: str, at: int = 0) -> SlotState:
        """The slots of a branch."""
        state = self._state(ref)
        found = state.branch(branch)
        head = NodeId(at) or state.slot_head(found)
        last = tuple(state.shown(node.node_id) for node in state.last_slots(head))
        return SlotState(found, head, state.content_hash(head), last)

    async def slots_replayed(self, ref: TreeRef, request: Request) -> tuple[tuple[Node, ...], int] | None:
        """What `set_slots` answered to this request before."""
        state = self._state(ref)
        seen = state.seen(request) if request.request_id else None
        if not isinstance(seen, tuple):
            return None
        made, revision = seen
        return tuple(state.shown(node_id) for node_id in made), revision

    async def set_slots(
        self, ref: TreeRef, seen: SlotState, writes: Sequence[tuple[Slot, int]], request: Request
    ) -> tuple[tuple[Node, ...], int]:
        """Append writes to the branch's chain."""
        state = self._state(ref)

        def write() -> tuple[tuple[NodeId, ...], int]:
            branch = state.guarded(seen.branch.name)
            head = state.slot_head(branch)
            if (head, branch.head) != (seen.head, seen.branch.head):
                raise refusal(ref, "HEAD_MOVED", str(branch.head), branch.name)
            if len(state.slot_keys(head) | {slot.key for slot, _ in writes}) > KEYS_MAX:
                raise refusal(ref, "TOO_MANY", "writes", str(KEYS_MAX))
            ids = state.append_slots(branch, head, writes)
            return ids, state.commit(EventKind.SLOTS_SET, branch.name, ids).revision

        made, revision = state.once(request, write)
        return tuple(state.shown(node_id) for node_id in made), revision

    async def slot_history(self, ref: TreeRef, branch: str, key: str, most: int) -> tuple[Node, ...]:
        """Writes of one key on the branch's path, newest first."""
        state = self._state(ref)
        head = state.slot_head(state.branch(branch))
        found: list[Node] = []
        for node in state.up(head):
            if isinstance(node.body, Slot) and node.body.key == key:
                found.append(state.shown(node.node_id))
        return tuple(found[:most])
