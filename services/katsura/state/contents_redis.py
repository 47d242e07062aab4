"""What a memory tree holds beside its paths, in Valkey or Redis (functions/memory_6_contents.lua and 7)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import Attachment, Request, Step, Tree
from katsura.domain.usage import Usage
from katsura.state import keys
from katsura.state.connect import Arg
from katsura.state.contents import (
    EXTRAS_BYTES_MAX,
    EXTRAS_MAX,
    LABELS_MAX,
    LOOKS_MAX,
    PINS_MAX,
    FoundStep,
    Hits,
    NodePage,
    Scope,
    TreeChange,
    TreeRef,
)
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_records import (
    body_digest,
    extra_key,
    extra_payload,
    policy_of,
    retention_json,
    retention_of,
)
from katsura.state.tree_replies import origin_of, stored_node


class RedisContents(TreeCalls):
    """The part of the store that is not about branches."""

    async def update(self, ref: TreeRef, change: TreeChange, request: Request) -> Tree:
        """Change a tree."""
        said = await self._write(
            ref,
            "update",
            request,
            int(change.goal is not None),
            change.goal or "",
            json.dumps(change.add_pins),
            json.dumps(change.remove_pins),
            json.dumps(dict(change.set_labels)),
            json.dumps(change.remove_labels),
            change.default_branch,
            PINS_MAX,
            LABELS_MAX,
            retention_json(change.retention),
            "" if change.ttl_s is None else change.ttl_s * 1000,
        )
        if change.set_labels or change.remove_labels:
            await self._notice(ref, said["revision"])
        policy = dataclasses.replace(
            policy_of(said["policy"]),
            rollup_fanout=int(said["rollup"]),
            ttl_s=said["ttl_ms"] // 1000,
            retention=retention_of(said["retention"]),
        )
        return Tree(
            tree_id=ref.tree,
            goal=said["goal"],
            pins=tuple(json.loads(said["pins"])),
            policy=policy,
            labels=json.loads(said["labels"]),
            revision=said["revision"],
            incarnation=said["incarnation"],
            default_branch=BranchName(said["default"]),
            node_count=said["next"],
            branch_count=said["branch_count"],
            create_ms=said["created"],
            update_ms=said["now"],
            stale_count=said["stale"],
            origin=origin_of(said["origin"]),
            agent_id=said["agent"],
        )

    async def put_attachments(
        self, ref: TreeRef, node_id: int, attachments: Sequence[Attachment], replace: bool
    ) -> tuple[tuple[bool, ...], int]:
        """Put bytes beside a node."""
        pairs: list[Arg] = [part for item in attachments for part in (extra_key(item), extra_payload(item))]
        kept = (self._limits.events, self._limits.replays)
        answer = await self._call(ref, "put_extras", *kept, node_id, int(replace), EXTRAS_BYTES_MAX, EXTRAS_MAX, *pairs)
        self._count(ref.tenant, Usage(bytes=answer[2]))
        return tuple(bool(written) for written in answer[3:]), answer[1]

    async def list_nodes(
        self, ref: TreeRef, before: int, page_size: int, bytes_max: int, birth_branch: str
    ) -> NodePage:
        """Nodes made before `before`, newest first."""
        answer = await self._call(ref, "list", before, page_size, bytes_max, birth_branch, LOOKS_MAX, read_only=True)
        return NodePage(tuple(stored_node(n) for n in answer[2:]), NodeId(answer[1]))

    async def find_steps(self, ref: TreeRef, client_step_ids: Sequence[str], branch: str) -> tuple[FoundStep, ...]:
        """Steps by client id."""
        answer = await self._call(ref, "find", branch, *client_step_ids, read_only=True)
        found = zip(answer[1::3], answer[2::3], answer[3::3], strict=True)
        return tuple(FoundStep(client.decode(), name.decode(), NodeId(node)) for client, name, node in found)

    async def search(
        self,
        ref: TreeRef,
        scope: Scope,
        branch: str,
        words: Sequence[bytes],
        before: int,
        page_size: int,
        bytes_max: int,
        include_abandoned: bool,
    ) -> Hits:
        """Nodes whose record holds every word."""
        limits = (page_size, LOOKS_MAX, bytes_max, int(include_abandoned))
        answer = await self._call(ref, "search", int(scope), branch, before, *limits, *words, read_only=True)
        return Hits(
            nodes=tuple(stored_node(n) for n in answer[3::2]),
            live=tuple(bool(live) for live in answer[2::2]),
            next_before=NodeId(answer[1]),
        )

    async def redact(self, ref: TreeRef, node_ids: Sequence[int], request: Request) -> tuple[tuple[NodeId, ...], int]:
        """Destroy content and salt of nodes, and of what may quote them."""
        namespace = keys.tree(ref.tenant, ref.tree, "")
        arguments: list[Arg] = []
        for node_id in node_ids:
            answer = await self._call(ref, "nodes", NO_LIMIT, node_id, read_only=True)
            body = stored_node(answer[1]).body
            arguments += [node_id, body_digest(body, namespace) if isinstance(body, Step) else ""]
        said = await self._write(ref, "redact", request, *arguments)
        return tuple(NodeId(n) for n in said["ids"]), said["revision"]
