"""Writing trees down and making them again, in Valkey or Redis (functions/memory_9_archive.lua)."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from katsura.domain.errors import InvalidArgumentError, KatsuraError
from katsura.domain.ids import NodeId
from katsura.domain.trees import Branch, Slot, Step, Summary, Tree
from katsura.domain.usage import Usage
from katsura.state import keys
from katsura.state.archive import Archived, ArchivedHead, ArchivedNode, ArchivedReferences, ArchivedSteps
from katsura.state.connect import Arg
from katsura.state.contents import TreeRef
from katsura.state.tree_calls import TreeCalls
from katsura.state.tree_records import (
    body_digest,
    body_of,
    extra_from,
    extra_key,
    is_tombstone,
    looked_json,
    mark_of,
    marks_list,
    policy_json,
    references_json,
    references_of,
    retention_json,
)
from katsura.state.tree_replies import branch_of, index_name, origin_json, tree_of

_NODES_PER_CALL: Final = 200
_BYTES_PER_CALL: Final = 2 << 20


class RedisArchive(TreeCalls):
    """The part of the store that writes trees down and makes them again."""

    async def dump(self, ref: TreeRef) -> AsyncIterator[Archived]:
        """The tree as of one moment."""
        await self._settle(ref)
        answer = await self._call(ref, "dump_head", read_only=True)
        meta, branches, slots, rollups, usage = answer[1:]
        tree = tree_of(ref, meta)
        found = sorted((branch_of(json.loads(text)) for text in branches[1::2]), key=lambda b: b.order)
        heads = {name.decode(): int(node) for name, node in zip(slots[::2], slots[1::2], strict=True)}
        over = {int(child): int(node) for child, node in zip(rollups[::2], rollups[1::2], strict=True)}
        charged = {name.decode(): int(count) for name, count in zip(usage[::2], usage[1::2], strict=True)}
        yield ArchivedHead(tree, tuple(found), heads, over, charged)
        last = 0
        while last < tree.node_count:
            page = await self._call(
                ref, "dump_nodes", last, tree.node_count, _NODES_PER_CALL, _BYTES_PER_CALL, read_only=True
            )
            for unit in page[1:]:
                yield _archived(unit)
                last = unit[0]
        last, known = tree.node_count, {branch.name for branch in found}
        async for fields in self._fields(ref, "references"):
            steps = [(NodeId(int(node)), references_of(text)) for node, text in fields]
            if kept := tuple(each for each in steps if each[0] <= last):
                yield ArchivedReferences(references=kept)
        async for fields in self._fields(ref, "stale"):
            marks = [(NodeId(int(node)), tuple(map(mark_of, json.loads(text)))) for node, text in fields]
            early = [(node, tuple(m for m in each if m.seen_from <= last)) for node, each in marks if node <= last]
            if any(each for _, each in early):
                yield ArchivedReferences(marks=tuple(each for each in early if each[1]))
        async for fields in self._fields(ref, "steps"):
            named = [_client(field, value) for field, value in fields]
            yield ArchivedSteps(tuple(step for step in named if step[2] <= last and step[0] in known))

    async def _fields(self, ref: TreeRef, key: str) -> AsyncIterator[list[tuple[bytes, bytes]]]:
        """Fields of one of the tree's hashes and their values, page by page."""
        cursor: Any = b"0"
        while True:
            _, cursor, flat = await self._call(ref, "dump_fields", cursor, key, read_only=True)
            yield list(zip(flat[::2], flat[1::2], strict=True))
            if int(cursor) == 0:
                return

    async def restore(self, ref: TreeRef, parts: AsyncIterator[Archived]) -> Tree:
        """Make a tree of what `dump` gave, all or nothing."""
        await self._store.refresh()
        token = secrets.token_hex(8)
        await self._call(ref, "restore_begin", token)
        try:
            return await self._restore(ref, token, parts)
        except KatsuraError:
            await self._call(ref, "restore_abort", token)  # what a killed process leaves behind expires
            raise

    async def _restore(
        self, ref: TreeRef, token: str, parts: AsyncIterator[Archived], end: str = "restore_end"
    ) -> Tree:
        namespace = keys.tree(ref.tenant, ref.tree, "")
        head: ArchivedHead | None = None
        digests: dict[int, str] = {}
        nodes: list[ArchivedNode] = []
        async for part in parts:
            match part:
                case ArchivedHead():
                    head = part
                case ArchivedNode():
                    nodes.append(part)
                    if len(nodes) >= _NODES_PER_CALL or sum(map(_size, nodes)) > _BYTES_PER_CALL:
                        await self._restore_nodes(ref, token, nodes, namespace, digests)
                        nodes = []
                case ArchivedReferences():
                    await self._restore_nodes(ref, token, nodes, namespace, digests)
                    nodes = []
                    await self._restore_references(ref, token, part)
                    if end != "restore_end":  # an import has seen nothing yet, whatever its lines say
                        await self._restore_looks(ref, token, part)
                case ArchivedSteps():
                    await self._restore_nodes(ref, token, nodes, namespace, digests)
                    nodes = []
                    await self._restore_steps(ref, token, part, digests)
        if head is None:
            raise InvalidArgumentError("lines: the archive has no head; send the whole file", field="lines")
        await self._restore_nodes(ref, token, nodes, namespace, digests)
        return await self._restore_end(ref, token, head, end)

    async def _restore_nodes(
        self, ref: TreeRef, token: str, nodes: Sequence[ArchivedNode], namespace: bytes, digests: dict[int, str]
    ) -> None:
        arguments: list[Arg] = []
        extras: list[Arg] = []
        for node in nodes:
            digest, slot, segment = _derived(node, namespace)
            digests[node.node_id] = digest or "-"
            stored = node.head.encode() + b"\n" + node.record
            place = (node.node_id, node.parent, node.depth, node.tokens, node.a, node.b, node.content_hash.hex())
            mergeable = digest if _harmless(node) else ""
            arguments += [*place, stored, node.verdict, node.blob, mergeable, *slot, *segment]
            extras += _extra_fields(node)
        if nodes:
            await self._call(ref, "restore_nodes", token, *arguments)
        if extras:
            await self._call(ref, "restore_fields", token, *extras)

    async def _restore_steps(self, ref: TreeRef, token: str, part: ArchivedSteps, digests: dict[int, str]) -> None:
        fields: list[Arg] = []
        for branch, client, node in part.steps:
            fields += ["steps", f"{branch} {client}", f"{node} {digests.get(node, '-')}"]
        if fields:
            await self._call(ref, "restore_fields", token, *fields)

    async def _restore_references(self, ref: TreeRef, token: str, part: ArchivedReferences) -> None:
        references: list[Arg] = [arg for n, found in part.references for arg in (n, references_json(found))]
        marks: list[Arg] = [arg for n, found in part.marks for arg in (n, json.dumps(marks_list(found)))]
        if references:
            await self._call(ref, "restore_references", token, *references)
        if marks:
            await self._call(ref, "restore_marks", token, *marks)

    async def _restore_looks(self, ref: TreeRef, token: str, part: ArchivedReferences) -> None:
        looks: list[Arg] = [arg for each in part.looks for arg in ("looked", each.place, looked_json(each.seen))]
        if looks:
            await self._call(ref, "restore_fields", token, *looks)

    async def _restore_end(self, ref: TreeRef, token: str, head: ArchivedHead, end: str) -> Tree:
        tree = head.tree
        meta = {
            "goal": tree.goal,
            "pins": json.dumps(tree.pins),
            "policy": policy_json(tree.policy),
            "labels": json.dumps(dict(tree.labels)),
            "revision": str(tree.revision),
            "next": str(tree.node_count),
            "branch_count": str(tree.branch_count),
            "default": tree.default_branch,
            "created": str(tree.create_ms),
            "updated": str(tree.update_ms),
            "ttl_ms": str(tree.policy.ttl_s * 1000),
            "raw_limit": str(tree.policy.raw_token_limit),
            "rollup": str(tree.policy.rollup_fanout),
            "incarnation": self._store.incarnation,
            "origin": origin_json(tree.origin),
            "agent": tree.agent_id,
            "retention": retention_json(tree.policy.retention),
            "holds": str(sum(bool(b.held_by) for b in head.branches)),
        }
        branches = {b.name: json.dumps(_kept(b)) for b in head.branches}
        slots = {name: str(node) for name, node in head.slot_heads.items()}
        rollups = {str(child): str(node) for child, node in head.rollups.items()}
        usage = {name: str(count) for name, count in head.usage.items()}
        texts = [json.dumps(part) for part in (meta, branches, slots, rollups, usage)]
        made = await self._call(ref, end, token, self._limits.events, *texts)
        self._count(ref.tenant, Usage(1, made[2], made[3]))
        answer = await self._call(ref, "read", read_only=True)
        await self._index(ref, index_name(ref, tree.create_ms))
        return tree_of(ref, answer[1])


def _kept(branch: Branch) -> dict[str, Any]:
    """A branch as functions keep it: what is not said is not there."""
    fields = {**dataclasses.asdict(branch), "state": int(branch.state)}
    return {name: value for name, value in fields.items() if value != "" or name == "parent_branch"}


def _archived(unit: Sequence[Any]) -> ArchivedNode:
    node_id, link, stored, verdict, blob, _, extras, *_ = unit
    parent, _, _, depth, tokens, _, a, b, digest = link.split(b" ")
    head, _, record = stored.partition(b"\n")
    return ArchivedNode(
        NodeId(node_id), NodeId(int(parent)), int(depth), int(tokens), int(a), int(b), bytes.fromhex(digest.decode()),
        head.decode(), record, verdict.decode(), blob, tuple(extras),
    )  # fmt: skip


def _client(field: bytes, value: bytes) -> tuple[str, str, NodeId]:
    branch, _, client = field.decode().partition(" ")
    return branch, client, NodeId(int(value.split(b" ")[0]))


def _size(node: ArchivedNode) -> int:
    return len(node.record) + len(node.blob) + sum(map(len, node.extras))


def _harmless(node: ArchivedNode) -> bool:
    body = body_of(node.node_id, node.record, node.blob)
    return isinstance(body, Step) and body.mergeable


def _derived(node: ArchivedNode, namespace: bytes) -> tuple[str, tuple[Arg, Arg], tuple[Arg, Arg]]:
    """What follows from a body: the digest of a step, key and unset of a slot, segment and version of a summary."""
    body = body_of(node.node_id, node.record, node.blob)
    digest = "" if is_tombstone(node.record) or not isinstance(body, Step) else body_digest(body, namespace)
    slot: tuple[Arg, Arg] = (body.key, int(body.unset)) if isinstance(body, Slot) else ("", 0)
    if isinstance(body, Summary) and body.level == 0:
        return digest, slot, (f"{node.parent}:{node.a}:{node.b}", body.version)
    return digest, slot, ("", 0)


def _extra_fields(node: ArchivedNode) -> list[Arg]:
    fields: list[Arg] = []
    for k, entry in enumerate(node.extras, start=1):
        fields += ["extras", f"{node.node_id}:{k}", entry]
        fields += ["extras", f"{node.node_id}={extra_key(extra_from(entry))}", k]
    if fields:
        fields += ["extras", str(node.node_id), f"{len(node.extras)} {sum(map(len, node.extras))}"]
    return fields
