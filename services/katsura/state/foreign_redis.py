"""Steps that refer to nodes of other trees, in Valkey or Redis (functions/memory_d_foreign.lua)."""

from __future__ import annotations

from collections.abc import Sequence

from katsura.domain.ids import NodeId
from katsura.domain.trees import Request, StaleMark
from katsura.state.connect import Arg
from katsura.state.contents import TreeRef
from katsura.state.foreign import Look, look_of
from katsura.state.tree_calls import TreeCalls, checked
from katsura.state.tree_records import looked_json, looked_of


class RedisForeign(TreeCalls):
    """The part of the store that is about nodes of other trees."""

    async def looks(self, ref: TreeRef, cursor: str) -> tuple[tuple[Look, ...], str]:
        """A page of what leads from a tree to others."""
        _, after, flat = await self._call(ref, "dump_fields", cursor or "0", "looked", read_only=True)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        found = tuple(look_of(place.decode(), looked_of(text)) for place, text in pairs)
        return found, "" if int(after) == 0 else after.decode()

    async def standing(self, ref: TreeRef, node_ids: Sequence[int]) -> tuple[tuple[StaleMark, ...] | None, ...] | None:
        """Why the first nodes no longer hold."""
        answer = await TreeCalls._answer(self, ref, "standing", *node_ids, read_only=True)  # a cold tree stays cold
        if answer[0] == b"TREE_COLD":
            return None
        return tuple(map(looked_of, checked(ref, answer)[1:]))

    async def look(self, ref: TreeRef, seen: Sequence[tuple[Look, tuple[StaleMark, ...]]]) -> tuple[NodeId, ...]:
        """Say what was seen."""
        arguments: list[Arg] = []
        for look, marks in seen:
            new = [mark for mark in marks if mark not in (look.seen or ())]
            arguments += [look.place, looked_json(look.seen), looked_json(marks), looked_json(new)]
        said = await self._write(ref, "look", Request("", ""), *arguments)
        return tuple(map(NodeId, said["ids"]))
