"""Slots in Valkey or Redis (functions/memory_8_slots.lua)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from katsura.domain.ids import NodeId
from katsura.domain.trees import Node, Request, Slot
from katsura.state.connect import Arg
from katsura.state.contents import TreeRef
from katsura.state.slots import KEYS_MAX, SlotState
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_records import SALT_BYTES, content_hash, record_of
from katsura.state.tree_replies import branch_of, stored_node


class RedisSlots(TreeCalls):
    """The part of the store that is about slots."""

    async def slots(self, ref: TreeRef, branch: str, at: int = 0) -> SlotState:
        """The slots of a branch."""
        found, head, head_hash, *last = (await self._call(ref, "slots", branch, at, read_only=True))[1:]
        nodes = tuple(stored_node(node) for node in last)
        return SlotState(branch_of(json.loads(found)), NodeId(head), bytes.fromhex(head_hash.decode()), nodes)

    async def slots_replayed(self, ref: TreeRef, request: Request) -> tuple[tuple[Node, ...], int] | None:
        """What `set_slots` answered to this request before."""
        said = await self._replayed(ref, request)
        return None if said is None else await self._slots_said(ref, said)

    async def set_slots(
        self, ref: TreeRef, state: SlotState, writes: Sequence[tuple[Slot, int]], request: Request
    ) -> tuple[tuple[Node, ...], int]:
        """Append writes to the branch's chain."""
        arguments: list[Arg] = [state.branch.name, state.head, state.branch.head, KEYS_MAX]
        at = state.head_hash
        for slot, tokens in writes:
            record = record_of(slot, secrets.token_bytes(SALT_BYTES))
            at = content_hash(at, record)
            arguments += [slot.key, int(slot.unset), record, at.hex(), tokens]
        return await self._slots_said(ref, await self._write(ref, "set_slots", request, *arguments))

    async def _slots_said(self, ref: TreeRef, said: Mapping[str, Any]) -> tuple[tuple[Node, ...], int]:
        nodes = await self._call(ref, "nodes", NO_LIMIT, *said["ids"], read_only=True)
        return tuple(stored_node(node) for node in nodes[1:]), said["revision"]

    async def slot_history(self, ref: TreeRef, branch: str, key: str, most: int) -> tuple[Node, ...]:
        """Writes of one key on the branch's path, newest first."""
        answer = await self._call(ref, "slot_history", branch, key, most, read_only=True)
        return tuple(stored_node(node) for node in answer[1:])
