"""Writing trees down and making them again, in memory: the twin of `archive_redis`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import ROOT, EventKind, Hint, Node, Request, Slot, Step, Summary, Tree
from katsura.state.archive import Archived, ArchivedHead, ArchivedNode, ArchivedReferences, ArchivedSteps
from katsura.state.contents import TreeRef
from katsura.state.tree_records import (
    SALT_BYTES,
    blob_of,
    body_digest,
    body_of,
    extra_from,
    extra_key,
    extra_of,
    is_tombstone,
    judgement_json,
    judgement_of,
    record_of,
)
from katsura.state.trees import refusal
from katsura.state.twin_doubt import refer
from katsura.state.twin_tree import TwinForest, TwinTree
from katsura.state.usage import charges_from, flat_charges

_SALT = bytes(SALT_BYTES)


class TwinArchive(TwinForest):
    """The part of the twin that writes trees down and makes them again."""

    async def dump(self, ref: TreeRef) -> AsyncIterator[Archived]:
        """The tree as of one moment."""
        state = self._state(ref)
        heads = {name: int(node) for name, node in state.slot_heads.items() if node}
        usage = flat_charges(state.charges)
        yield ArchivedHead(state.tree, tuple(state.branches.values()), heads, dict(state.rollups), usage)
        for node in list(state.nodes.values()):
            yield _archived(state, node)
        references = tuple((NodeId(n), each) for n, each in sorted(state.doubts.references.items()) if each)
        if references:
            yield ArchivedReferences(references=references)
        if state.doubts.marks:
            yield ArchivedReferences(marks=tuple((NodeId(n), each) for n, each in sorted(state.doubts.marks.items())))
        yield ArchivedSteps(
            tuple(
                (branch, client, node)
                for (branch, client), (node, _) in state.steps.items()
                if branch in state.branches
            )
        )

    async def restore(self, ref: TreeRef, parts: AsyncIterator[Archived]) -> Tree:
        """Make a tree of what `dump` gave, all or nothing."""
        if ref in self._trees or ref in self._frozen:
            raise refusal(ref, "TREE_EXISTS")
        state: TwinTree | None = None
        async for part in parts:
            if isinstance(part, ArchivedHead):
                tree = replace(part.tree, tree_id=ref.tree, incarnation=self._incarnation)
                made = (tree, part.branches[0])
                state = TwinTree(ref, self._limits, self._incarnation, self._tick, tree, Request("", ""), made)
                state.branches = {branch.name: branch for branch in part.branches}
                state.slot_heads = {name: NodeId(node) for name, node in part.slot_heads.items()}
                state.rollups = {child: NodeId(node) for child, node in part.rollups.items()}
                state.charges = charges_from(part.usage)
            elif state is None:
                break
            elif isinstance(part, ArchivedNode):
                _restore_node(state, part)
            elif isinstance(part, ArchivedReferences):
                for from_node, references in part.references:
                    refer(state, from_node, references, spread=False)
                state.doubts.marks.update(part.marks)
            else:
                for branch, client, node in part.steps:
                    body = state.nodes[node].body
                    known = isinstance(body, Step) and not state.nodes[node].redacted
                    digest = body_digest(body, repr(ref).encode()) if known and isinstance(body, Step) else "-"
                    state.steps[branch, client] = (node, digest)
        if state is None:
            raise InvalidArgumentError("lines: the archive has no head; send the whole file", field="lines")
        self._trees[ref] = state
        state.commit(EventKind.TREE_CREATED, state.tree.default_branch, ())
        self._notices.append((ref, 1))
        return state.tree


def _archived(state: TwinTree, node: Node) -> ArchivedNode:
    record = record_of(node.body, _SALT)
    match node.body:
        case Summary():
            a, b = state.span(node.node_id)
        case Hint():
            a, b = ROOT, node.body.restored_after
        case Slot():
            a, b = NodeId(1), NodeId(min(node.depth, 1))
        case Step():
            marked = (n for n in state.up(node.node_id) if _marked(n))
            a, b = next((n.node_id for n in marked), ROOT), ROOT
    verdict = ""
    if node.judgement is not None:
        text = judgement_json(node.judgement)
        verdict = f"{int(node.judgement.status)} {node.judgement.version}\n{text}"
    return ArchivedNode(
        node_id=node.node_id,
        parent=node.parent_id,
        depth=node.depth,
        tokens=node.tokens,
        a=a,
        b=b,
        content_hash=node.content_hash,
        head=f"{node.create_ms} {node.revision} {node.birth_branch}",
        record=record[:-1] + b',"x":1}' if node.redacted else record,
        verdict=verdict,
        blob=blob_of(node.body) if isinstance(node.body, Step) else b"",
        extras=tuple(map(extra_of, state.extras.get(node.node_id, {}).values())),
    )


def _marked(node: Node) -> bool:
    body = node.body
    return isinstance(body, Step) and (not body.harmless or body.wait is not None or bool(body.resolves))


def _restore_node(state: TwinTree, part: ArchivedNode) -> None:
    body = body_of(part.node_id, part.record, part.blob)
    created, revision, branch = part.head.split(" ")
    judgement = None
    if part.verdict:
        head, _, text = part.verdict.partition("\n")
        judgement = judgement_of(text, int(head.split(" ")[1]))
    node = Node(
        node_id=part.node_id,
        parent_id=part.parent,
        content_hash=part.content_hash,
        birth_branch=BranchName(branch),
        depth=part.depth,
        create_ms=int(created),
        revision=int(revision),
        body=body,
        tokens=part.tokens,
        path_tokens=state.path_tokens(part.parent) + part.tokens,
        judgement=judgement,
        redacted=is_tombstone(part.record),
    )
    state.nodes[node.node_id] = node
    if isinstance(body, Step) and body.mergeable and not node.redacted:
        state.kids.setdefault((part.parent, body_digest(body, repr(state.ref).encode())), node.node_id)
    if isinstance(body, Summary):
        if body.level == 0:
            state.versions[part.parent, part.a, part.b] = body.version
        for child in body.parts:
            state.covers.setdefault(child, set()).add(node.node_id)
    if part.extras:
        found = [extra_from(entry) for entry in part.extras]
        state.extras[node.node_id] = {extra_key(item): item for item in found}
