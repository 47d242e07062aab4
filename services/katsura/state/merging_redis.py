"""Comparing and merging branches in Valkey or Redis (functions/memory_9_merge.lua)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from katsura.domain.ids import NodeId
from katsura.domain.trees import Request
from katsura.state import keys
from katsura.state.connect import Arg
from katsura.state.contents import TreeRef
from katsura.state.merging import Merged, Merging, Parting
from katsura.state.slots import KEYS_MAX
from katsura.state.tree_calls import TreeCalls, step_arguments
from katsura.state.tree_records import SALT_BYTES, body_digest, content_hash, record_of
from katsura.state.tree_replies import branch_of


class RedisMerging(TreeCalls):
    """The part of the store that is about two branches."""

    async def parting(self, ref: TreeRef, branch: str, other: str) -> Parting:
        """Where two branches parted."""
        answer = await self._call(ref, "common", branch, other, read_only=True)
        ours, theirs, common, depth, slots, head_hash = answer[1:]
        return Parting(
            branch=branch_of(json.loads(ours)),
            other=branch_of(json.loads(theirs)),
            common=NodeId(common),
            depth=depth,
            slots=NodeId(slots),
            head_hash=bytes.fromhex(head_hash.decode()),
        )

    async def merge_replayed(self, ref: TreeRef, request: Request) -> Merged | None:
        """What `merge` answered to this request before."""
        said = await self._replayed(ref, request)
        return None if said is None else _merged(said)

    async def merge(self, ref: TreeRef, merging: Merging, request: Request) -> Merged:
        """Append steps and slots to the branch in one commit."""
        seen = merging.parting
        arguments: list[Arg] = [seen.branch.name, seen.branch.head, merging.slot_head]
        arguments += [seen.other.name, seen.other.head, merging.source_slot_head, KEYS_MAX, len(merging.steps)]
        arguments += [json.dumps(merging.conflicts), seen.common, int(merging.closes)]
        namespace, at = keys.tree(ref.tenant, ref.tree, ""), seen.head_hash
        for step, tokens in merging.steps:
            record = record_of(step, secrets.token_bytes(SALT_BYTES))
            at = content_hash(at, record)
            arguments += step_arguments(step, tokens, body_digest(step, namespace), record, at)
        at = merging.slot_hash
        for slot, tokens in merging.slots:
            record = record_of(slot, secrets.token_bytes(SALT_BYTES))
            at = content_hash(at, record)
            arguments += [slot.key, int(slot.unset), record, at.hex(), tokens]
        return _merged(await self._write(ref, "merge", request, *arguments))


def _merged(said: Mapping[str, Any]) -> Merged:
    ids = tuple(NodeId(n) for n in said["ids"])
    return Merged(
        steps=ids[: said["steps"]],
        slots=ids[said["steps"] :],
        conflicts=tuple(json.loads(said["conflicts"])),
        branch=branch_of(said["branch"]),
        common=NodeId(said["common"]),
        revision=said["revision"],
    )
