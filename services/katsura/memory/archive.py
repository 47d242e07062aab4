"""Whole trees in and out, and checking what is stored. An archive is checked as it comes in: hashes and places."""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from katsura.domain.errors import DataLossError, InvalidArgumentError, Reason
from katsura.domain.ids import NodeId, TenantId, TreeId, checked_name
from katsura.domain.trees import (
    ROOT_HASH,
    Attachment,
    Body,
    Branch,
    Hint,
    Judgement,
    Slot,
    Step,
    Summary,
    Tree,
    cover_digest,
)
from katsura.domain.units import MIB
from katsura.domain.usage import Usage
from katsura.memory.core import limits
from katsura.memory.operations import Operations, committing
from katsura.state.archive import (
    Archived,
    ArchivedEnd,
    ArchivedHead,
    ArchivedNode,
    ArchivedReferences,
    LineDigest,
    check_types,
    end_line,
    line_of,
    part_of,
    root_digest,
)
from katsura.state.tree_records import body_of, content_hash, extra_from, is_tombstone, judgement_of
from katsura.state.trees import TreeRef

_CHUNK_BYTES: Final = MIB
_LINE_BYTES_MAX: Final = 8 * MIB
_MISMATCHES_MAX: Final = 100
_HEAD = re.compile(r"\d{1,15} \d{1,15} [A-Za-z0-9][A-Za-z0-9._:-]*\Z")
_VERDICT = re.compile(r"[1-3] \d{1,15}\n\[")


@dataclass(frozen=True, slots=True)
class Verified:
    """What checking a tree found; mismatches are (node, what is wrong), at most 100."""

    nodes: int
    redacted: int
    root_digest: bytes
    mismatches: tuple[tuple[NodeId, str], ...]


class Archive(Operations):
    """The operations on whole trees."""

    async def export(self, ref: TreeRef) -> AsyncIterator[bytes]:
        """The archive of a tree as it is now, in pieces of whole lines."""
        lines, size, nodes, digest = [], 0, 0, LineDigest()
        async for part in self._trees.dump(ref):
            lines.append(line_of(part))
            digest.add(lines[-1])
            size += len(lines[-1])
            nodes += isinstance(part, ArchivedNode)
            if size >= _CHUNK_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
        yield b"".join((*lines, end_line(ArchivedEnd(nodes, digest.value))))

    async def import_tree(
        self,
        tenant: TenantId,
        tree_id: str,
        pieces: AsyncIterator[bytes],
        fits: Callable[[Usage], Awaitable[None]] | None = None,
    ) -> tuple[Tree, bytes]:
        """Make a tree of an archive; the tree, and its root digest. `fits` raises where so much is too much."""
        if tree_id:
            limits.check_tree_id(tree_id)
        parts = _checked(_parts(pieces))
        first = await anext(parts, None)
        if not isinstance(first, ArchivedHead):
            raise limits.refuse("lines", "the archive does not begin with its head; send the whole file")
        limits.complete_policy(first.tree.policy, self._trees.durability)
        ref = TreeRef(tenant, TreeId(tree_id or limits.check_tree_id(first.tree.tree_id)))
        hashes: list[bytes] = []
        size = 0

        async def all_parts() -> AsyncIterator[Archived]:
            nonlocal size
            yield first
            async for part in parts:
                if isinstance(part, ArchivedNode):
                    hashes.append(part.content_hash)
                    size += len(part.record) + len(part.blob) + sum(map(len, part.extras))
                    if fits is not None:
                        await fits(Usage(nodes=len(hashes), bytes=size))
                yield part

        with committing("import"):
            tree = await self._trees.restore(ref, all_parts())
        return tree, root_digest(hashes, first.branches)

    async def freeze(self, ref: TreeRef) -> bool:
        """Move a tree into an object; whether it was moved."""
        return await self._trees.freeze(ref)

    async def verify(self, ref: TreeRef) -> Verified:
        """Compute every hash of a tree again."""
        hashes = {0: ROOT_HASH}
        covers: list[tuple[NodeId, Summary]] = []
        parents: dict[int, int] = {}
        wrong: list[tuple[NodeId, str]] = []
        redacted = 0
        branches: tuple[Branch, ...] = ()
        async for part in self._trees.dump(ref):
            if isinstance(part, ArchivedHead):
                branches = part.branches
            if not isinstance(part, ArchivedNode):
                continue
            hashes[part.node_id], parents[part.node_id] = part.content_hash, part.parent
            if is_tombstone(part.record):
                redacted += 1
            elif content_hash(hashes[part.parent], part.record) != part.content_hash:
                wrong.append((part.node_id, "its content does not match its hash"))
                continue
            try:
                body = body_of(part.node_id, part.record, part.blob)
            except DataLossError as error:
                wrong.append((part.node_id, error.message))
                continue
            if isinstance(body, Summary):
                covers.append((part.node_id, body))
        for node_id, summary in covers:
            cover = summary.parts or _path(parents, summary.last_covered, summary.covered_count)
            if cover_digest(hashes[n] for n in cover) != summary.cover_digest:
                wrong.append((node_id, "its cover is not the one that was summarised"))
        del hashes[0]
        digest = root_digest(hashes.values(), branches)
        return Verified(len(hashes), redacted, digest, tuple(wrong[:_MISMATCHES_MAX]))


def _path(parents: dict[int, int], last: int, count: int) -> tuple[int, ...]:
    path: list[int] = []
    while last and len(path) < count:
        path.append(last)
        last = parents[last]
    return tuple(reversed(path))


async def _parts(pieces: AsyncIterator[bytes]) -> AsyncIterator[Archived | ArchivedEnd]:
    """Parts of an archive that comes in pieces cut anywhere.

    Raises:
        DataLossError: a line is not what ExportTree wrote.
    """
    rest, digest = b"", LineDigest()

    def read(line: bytes) -> Archived | ArchivedEnd:
        part = part_of(line)
        if isinstance(part, ArchivedEnd) and part.digest not in (b"", digest.value):
            raise DataLossError("the archive was changed since it was exported; nothing was imported")
        digest.add(line + b"\n")
        return part

    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _LINE_BYTES_MAX:
            raise limits.refuse("lines", "a line is longer than any that ExportTree writes")
        for line in lines:
            yield read(line)
    if rest:
        yield read(rest)


async def _checked(parts: AsyncIterator[Archived | ArchivedEnd]) -> AsyncIterator[Archived]:
    """The parts, if they are a whole tree: hashes match, ids count up, what is pointed to is there.

    Raises:
        InvalidArgumentError: they are not.
        DataLossError: a hash does not match.
    """
    hashes, made = {0: ROOT_HASH}, _Made()
    head: ArchivedHead | None = None
    async for part in parts:
        if isinstance(part, ArchivedEnd):
            if head is not None and part.nodes == len(hashes) - 1 == head.tree.node_count:
                made.check_head(head)
                return
            raise limits.refuse("lines", f"the archive ends after {len(hashes) - 1} nodes, which are not all")
        if isinstance(part, ArchivedHead):
            if head is not None:
                raise limits.refuse("lines", "the archive has two heads")
            head = part
            _check_head(part)
        elif isinstance(part, ArchivedNode):
            made.add(part.node_id, _check_node(part, hashes), part)
            hashes[part.node_id] = part.content_hash
        elif isinstance(part, ArchivedReferences):
            _check_references(part, hashes)
        elif any(node < 1 or not made.holds(node, Step) for _, _, node in part.steps):
            raise limits.refuse("lines", "a client step id names a step that is not there")
        yield part
    raise limits.refuse("lines", "the archive has no last line; send the whole file")


def _check_head(head: ArchivedHead) -> None:
    most = head.tree.node_count
    if head.tree.default_branch not in {branch.name for branch in head.branches}:
        raise limits.refuse("lines", "the default branch is not there")
    named: list[int] = [n for b in head.branches for n in (b.head, b.summary_head, b.boundary, b.fork_node, b.hint)]
    named += [*head.slot_heads.values(), *head.rollups.values()]
    if any(not 0 <= node <= most for node in named):
        raise limits.refuse("lines", "a branch points to a node that is not there")
    if any(not 0 < child < over for child, over in head.rollups.items()):
        raise limits.refuse("lines", "a roll-up covers a summary that was not made before it")
    for branch in head.branches:
        checked_name(branch.name, "lines")


def _check_references(part: ArchivedReferences, hashes: dict[int, bytes]) -> None:
    for from_node, references in part.references:
        for to in (r.node_id for r in references if not r.tree_id):
            if from_node not in hashes or not 0 < to < from_node:
                raise limits.refuse("lines", f"node {from_node} cannot refer to node {to}")
    for node_id, marks in part.marks:
        own = [m.cause for m in marks if not m.tree_id]
        if any(n not in hashes for n in (node_id, *own, *(m.seen_from for m in marks))):
            raise limits.refuse("lines", f"node {node_id} is stale by a node that is not there")


class _Made:
    """Kinds and depths of the nodes of an archive. What leads to a node must lead to one of the right kind: whoever
    follows it later takes it for one."""

    def __init__(self) -> None:
        self._kinds: list[type] = [object]
        self._depths = [0]

    def holds(self, node_id: int, *kinds: type) -> bool:
        """Whether it is the root, or a node of one of the kinds."""
        return node_id == 0 or (0 < node_id < len(self._kinds) and self._kinds[node_id] in kinds)

    def add(self, node_id: int, body: Body, part: ArchivedNode) -> None:
        """Take a node, if all that it leads to is there."""
        leads = self.holds(part.parent, type(body))
        match body:
            case Step():
                leads = leads and part.b == 0 and part.depth == self._depths[part.parent] + 1
                leads = leads and (part.a == node_id or self.holds(part.a, Step)) and self.holds(body.resolves, Step)
            case Summary():
                covered = Summary if body.level else Step
                ends = self.holds(part.b, Step) and part.depth == self._depths[part.b]
                leads = leads and ends and self.holds(part.a, Step) and all(body.parts)
                leads = leads and all(self.holds(n, covered) for n in (body.first_covered, body.last_covered))
                leads = leads and all(self.holds(n, Summary) for n in body.parts)
            case Hint():
                steps = (body.abandoned_head, body.restored_after, *(e.node_id for e in body.standing))
                leads = leads and all(self.holds(n, Step) for n in (part.b, *steps))
                leads = leads and self.holds(body.previous_hint, Hint)
            case Slot():
                leads = leads and self.holds(part.b, Step)
                leads = leads and all(self.holds(n, Slot) for n in (body.previous, body.restores))
        if not leads:
            raise limits.refuse("lines", f"node {node_id} leads to a node that is not there, or of another kind")
        self._kinds.append(type(body))
        self._depths.append(part.depth)

    def check_head(self, head: ArchivedHead) -> None:
        """Refuse branches that lead to nodes of other kinds than they should."""
        for b in head.branches:
            steps = all(self.holds(n, Step) for n in (b.head, b.boundary, b.fork_node))
            if not steps or not self.holds(b.summary_head, Summary) or not self.holds(b.hint, Hint):
                raise limits.refuse("lines", f"branch {b.name!r} leads to a node of another kind")
            if self._depths[b.head] != b.depth:
                raise limits.refuse("lines", f"branch {b.name!r} is not as deep as its head")
        summaries = [n for pair in head.rollups.items() for n in pair]
        if not all(self.holds(n, Slot) for n in head.slot_heads.values()) or not all(
            self.holds(n, Summary) for n in summaries
        ):
            raise limits.refuse("lines", "a slot or a roll-up is a node of another kind")


def _check_node(part: ArchivedNode, hashes: dict[int, bytes]) -> Body:
    if part.node_id != len(hashes) or part.parent not in hashes:
        raise limits.refuse("lines", f"node {part.node_id} is out of order, or its parent is missing")
    if not is_tombstone(part.record) and content_hash(hashes[part.parent], part.record) != part.content_hash:
        raise DataLossError(
            f"node {part.node_id} of the archive does not match its hash; nothing was imported",
            reason=Reason.UNSPECIFIED,
            metadata={"node": str(part.node_id)},
        )
    try:
        body = body_of(part.node_id, part.record, part.blob)
        check_types(body, type(body))
        for item in (*map(extra_from, part.extras), *(body.attachments if isinstance(body, Step) else ())):
            check_types(item, Attachment)
            limits.check_range(item.index, "lines", -(1 << 31), (1 << 31) - 1)
        if part.verdict:
            check_types(judgement_of(part.verdict.partition("\n")[2], 1), Judgement)
    except (DataLossError, ValueError, IndexError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise InvalidArgumentError(f"lines: node {part.node_id} cannot be read", field="lines") from error
    known = _HEAD.match(part.head) and (not part.verdict or _VERDICT.match(part.verdict))
    if not known or isinstance(body, Summary) != bool(part.verdict):
        raise limits.refuse("lines", f"node {part.node_id} is not as ExportTree writes it")
    return body
