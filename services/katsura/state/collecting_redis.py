"""Collecting what nobody can reach, in Valkey or Redis (functions/memory_9_zcollect.lua)."""

from __future__ import annotations

import json
from typing import Any, Final

from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.retention import Retention
from katsura.domain.trees import Request, Step
from katsura.state import keys
from katsura.state.collecting import Collectable, Collected
from katsura.state.connect import Arg, translated
from katsura.state.contents import TreeRef
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_records import body_digest, retention_of, stored_size
from katsura.state.tree_replies import stored_node

_NODES_AT_ONCE: Final = 16
"""Each may be megabytes."""


class RedisCollecting(TreeCalls):
    """The part of the store that forgets."""

    async def retentions(
        self, tenant: TenantId, page_size: int, page_token: str
    ) -> tuple[tuple[tuple[TreeId, Retention | None, bool], ...], str]:
        """The trees of a tenant that are in the store, with what each keeps and whether it refers to others: one round
        trip a page."""
        newest = b"(" + page_token.encode() if page_token else b"+"
        with translated(self._store.url):
            found: Any = await self._store.client.zrevrangebylex(
                keys.tree_index(tenant), newest, b"-", start=0, num=page_size
            )
        names = [name.decode() for name in found]
        trees = [TreeId(name.partition(":")[2]) for name in names]
        pipeline = self._store.client.pipeline(transaction=False)
        for tree in trees:
            pipeline.hmget(keys.tree(tenant, tree, "meta"), "revision", "retention", "foreign")
        with translated(self._store.url):
            kept = await pipeline.execute() if trees else []
        pairs = zip(trees, kept, strict=True)
        live = tuple(
            (tree, retention_of(text or b""), foreign is not None)
            for tree, (revision, text, foreign) in pairs
            if revision is not None
        )
        return live, names[-1] if len(names) == page_size else ""

    async def claim_collecting(self, ref: TreeRef, keep: Retention, worker: str, lease_ms: int) -> int:
        """The fencing token of a claim to collect; 0 where nothing is to be done."""
        answer = await self._call(ref, "claim_collecting", *_kept(keep), worker, lease_ms)
        token: int = answer[1]
        return token

    async def collectable(self, ref: TreeRef, keep: Retention, looks: int, after: int) -> Collectable:
        """What collecting would drop and erase."""
        found = await self._call(ref, "collectable", *_kept(keep), looks, after, read_only=True)
        _, gone, last, done, *ids = found
        size = 0
        for at in range(0, len(ids), _NODES_AT_ONCE):
            answer = await self._call(ref, "nodes", NO_LIMIT, *ids[at : at + _NODES_AT_ONCE], read_only=True)
            size += sum(map(stored_size, map(stored_node, answer[1:])))
        nodes = tuple(NodeId(n) for n in ids)
        return Collectable(tuple(json.loads(gone) or ()), nodes, size, NodeId(last), bool(done))

    async def collect(self, ref: TreeRef, keep: Retention, looks: int, token: int = 0) -> Collected:
        """Drop abandoned branches and the content of what nobody can reach. What is found is looked at again in the
        call that erases it: a step may have been walked onto in between."""
        found = await self._call(ref, "collectable", *_kept(keep), looks, "", read_only=True)
        _, _, last, done, *ids = found
        namespace = keys.tree(ref.tenant, ref.tree, "")
        arguments: list[Arg] = [*_kept(keep), 0 if done else last, token]
        for at in range(0, len(ids), _NODES_AT_ONCE):
            answer = await self._call(ref, "nodes", NO_LIMIT, *ids[at : at + _NODES_AT_ONCE], read_only=True)
            for node in map(stored_node, answer[1:]):
                digest = body_digest(node.body, namespace) if isinstance(node.body, Step) else ""
                arguments += [node.node_id, digest]
        said = await self._write(ref, "collect", Request("", ""), *arguments)
        gone, erased = json.loads(said["gone"]), json.loads(said["ids"])
        return Collected(tuple(gone or ()), tuple(NodeId(n) for n in erased or ()), bool(done))


def _kept(keep: Retention) -> tuple[int, int, int]:
    return keep.abandoned, keep.revisions, keep.abandoned_s * 1000
