"""Slots: named values of a path with history."""

from __future__ import annotations

from collections.abc import Sequence

from katsura.domain.ids import checked_name
from katsura.domain.trees import Node, Relation, Slot, request_of
from katsura.memory.core import limits
from katsura.memory.core.slots import SlotWrite, check_writes, plan, slot_tokens
from katsura.memory.operations import Operations, Write, committing
from katsura.state.slots import SlotState
from katsura.state.trees import TreeRef


class Slots(Operations):
    """The operations on slots."""

    async def set_slots(
        self, ref: TreeRef, request_id: str, branch: str, writes: Sequence[SlotWrite], lease_token: int = 0
    ) -> tuple[tuple[Node, ...], int]:
        """Write slots, all or none; their nodes, and the tree's revision."""
        limits.check_text(request_id, "request_id")
        check_writes(writes)
        write = Write(request_id, ref, branch, None, True, lease_token).checked()
        request = write.under(request_of(request_id, "set_slots", branch, tuple(writes)))

        async def attempt() -> tuple[tuple[Node, ...], int]:
            state = await self._trees.slots(ref, branch)
            made = plan(state.last, writes, await self._restored(ref, state, writes))
            return await self._trees.set_slots(ref, state, [(slot, slot_tokens(slot)) for slot in made], request)

        with committing("set_slots"):
            if (done := await self._trees.slots_replayed(ref, request)) is not None:
                return done
            return await self._until_it_holds(write, attempt)

    async def get_slots(self, ref: TreeRef, branch: str) -> tuple[Node, ...]:
        """The writes that hold now, by key."""
        state = await self._trees.slots(ref, branch)
        held = [(node.body.key, node) for node in state.last if isinstance(node.body, Slot) and not node.body.unset]
        return tuple(node for _, node in sorted(held, key=lambda pair: pair[0]))

    async def slot_history(self, ref: TreeRef, branch: str, key: str, size: int) -> tuple[Node, ...]:
        """Writes of one key on the branch's path, newest first."""
        checked_name(key, "key")
        return await self._trees.slot_history(ref, branch, key, limits.page_size(size))

    async def _restored(self, ref: TreeRef, state: SlotState, writes: Sequence[SlotWrite]) -> dict[str, Node]:
        last = {node.body.key: node for node in state.last if isinstance(node.body, Slot)}
        found = {}
        for write in writes:
            if write.relation is Relation.ROLLBACK and write.key in last:
                before = await self._before(ref, last[write.key])
                if before is not None:
                    found[write.key] = before
        return found

    async def _before(self, ref: TreeRef, node: Node) -> Node | None:
        """The write whose value stood before `node`; a rollback of a rollback goes further back than the first one."""
        slot = node.body
        assert isinstance(slot, Slot), "the history of a slot holds slots"
        if slot.relation is Relation.ROLLBACK and slot.restores:
            (back,) = await self._trees.nodes(ref, [slot.restores], limits.ANSWER_BYTES_MAX)
            assert isinstance(back.body, Slot)
            slot = back.body
        if not slot.previous:
            return None
        (before,) = await self._trees.nodes(ref, [slot.previous], limits.ANSWER_BYTES_MAX)
        assert isinstance(before.body, Slot), "the history of a slot holds slots"
        if before.body.unset:
            return None
        if before.body.relation is Relation.ROLLBACK:
            (before,) = await self._trees.nodes(ref, [before.body.restores], limits.ANSWER_BYTES_MAX)
        return before
