"""Collecting what nobody can reach, in Valkey or Redis (functions/memory_9_zcollect.lua)."""

from __future__ import annotations

import json

from katsura.domain.ids import NodeId
from katsura.domain.retention import Retention
from katsura.domain.trees import Request, Step
from katsura.state import keys
from katsura.state.collecting import Collected
from katsura.state.connect import Arg
from katsura.state.contents import TreeRef
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_records import body_digest
from katsura.state.tree_replies import stored_node


class RedisCollecting(TreeCalls):
    """The part of the store that forgets."""

    async def claim_collecting(self, ref: TreeRef, keep: Retention, worker: str, lease_ms: int) -> int:
        """The fencing token of a claim to collect; 0 where nothing is to be done."""
        answer = await self._call(ref, "claim_collecting", *_kept(keep), worker, lease_ms)
        token: int = answer[1]
        return token

    async def collect(self, ref: TreeRef, keep: Retention, looks: int, token: int = 0) -> Collected:
        """Drop abandoned branches and the content of what nobody can reach. What is found is looked at again in the
        call that erases it: a step may have been walked onto in between."""
        found = await self._call(ref, "collectable", *_kept(keep), looks, read_only=True)
        _, _, last, done, *ids = found
        namespace = keys.tree(ref.tenant, ref.tree, "")
        arguments: list[Arg] = [*_kept(keep), 0 if done else last, token]
        for node_id in ids:
            answer = await self._call(ref, "nodes", NO_LIMIT, node_id, read_only=True)
            body = stored_node(answer[1]).body
            arguments += [node_id, body_digest(body, namespace) if isinstance(body, Step) else ""]
        said = await self._write(ref, "collect", Request("", ""), *arguments)
        gone, erased = json.loads(said["gone"]), json.loads(said["ids"])
        return Collected(tuple(gone or ()), tuple(NodeId(n) for n in erased or ()), bool(done))


def _kept(keep: Retention) -> tuple[int, int, int]:
    return keep.abandoned, keep.revisions, keep.abandoned_s * 1000
