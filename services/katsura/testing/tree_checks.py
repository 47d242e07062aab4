"""What a tree should hold after everything that was done to it: a plain model, and I1-I16 seen from outside."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace

from katsura.domain.errors import KatsuraError, NotFoundError, OutOfRangeError
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import (
    REDACTED,
    BranchState,
    Node,
    Slot,
    StaleMark,
    StaleReason,
    Step,
    Summary,
    SummaryStatus,
    WaitKind,
    cover_digest,
)
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.operations import Write
from katsura.memory.service import Assembled, Memory
from katsura.state.references import MARKS_MAX
from katsura.state.trees import Grown, TreeRef

Place = tuple[str, int]
"""A node of a tree of the same tenant."""


class Held:
    """One tree as it is, and as it should be. Depths of steps count from 1."""

    def __init__(self, memory: Memory, ref: TreeRef) -> None:
        self.memory, self.ref = memory, ref
        self.revision = 1
        self.pins = ["a pin"]
        self.model: dict[str, list[str]] = {"main": []}
        """By branch: what its steps said when they were made."""
        self.states = {"main": BranchState.ACTIVE}
        self.slots: dict[str, list[tuple[int, dict[str, list[str]]]]] = {"main": [(0, {})]}
        """By branch: depth and all values of every key, after each write."""
        self.subgoals: dict[str, list[tuple[int, int]]] = {"main": []}
        """By branch: depth of each step that begins one (0) or ends the one begun at that depth."""
        self.stated: dict[str, list[tuple[int, bool]]] = {"main": []}
        """By branch: depth of each step that states a criterion, and what it says."""
        self.nodes: dict[int, Node] = {}
        self.redacted, self.left = set[int](), set[int]()
        self.invalidated, self.looked_at = set[int](), set[int]()
        self.beside: dict[int, dict[int, bytes]] = {}
        self.away: dict[int, set[Place]] = {}
        """What steps refer to in other trees."""
        self.led: dict[int, set[int]] = {}
        """What steps referred to until that was taken back."""
        self.meddled = False
        """Whether summaries were rolled up that were not due, or found right after others had been rolled up."""
        self.watched_from = 1
        self.forked = False
        """Whether its contexts begin in another tree."""
        self.noted: set[int] = set()
        """Operations that the model knows of, so that it counts repeated ones once."""

    def keep(self, source: str, name: str, depth: int) -> None:
        """A branch begins with what another one holds down to a depth."""
        if name in self.model:
            return
        self.model[name] = self.model[source][:depth]
        self.states[name] = BranchState.ACTIVE
        self.slots[name] = [entry for entry in self.slots[source] if entry[0] <= depth]
        self.subgoals[name] = [entry for entry in self.subgoals[source] if entry[0] <= depth]
        self.stated[name] = [entry for entry in self.stated[source] if entry[0] <= depth]

    def forget(self, name: str) -> None:
        """A branch is gone."""
        for kept in (self.model, self.states, self.slots, self.subgoals, self.stated):
            del kept[name]

    def open_subgoals(self, branch: str) -> list[int]:
        """Depths at which the subgoals began that a branch has not ended, outermost first."""
        found: list[int] = []
        for depth, begun in self.subgoals[branch]:
            if begun:
                found.remove(begun)
            else:
                found.append(depth)
        return found

    async def path(self, branch: str) -> tuple[Node, ...]:
        """The whole path of a branch."""
        return (await self.memory.get_path(self.ref, branch, 0, 500)).nodes

    async def all_nodes(self) -> dict[NodeId, Node]:
        """Every node there is."""
        tree, _ = await self.memory.get_tree(self.ref)
        return {n.node_id: n for n in await self.memory.get_nodes(self.ref, range(1, tree.node_count + 1))}

    async def grow_steps(self, request: str, branch: str, steps: list[Step], merge: bool) -> Grown:
        """Append steps; the path is then what it was, and these."""
        grown = await self.memory.grow(Write(request, self.ref, branch, None, True), steps, merge)
        path = await self.path(branch)
        for node in path:
            self.nodes.setdefault(node.node_id, immutable(node))
        before, after = self.model[branch], self.said(path)
        if after != before:
            assert after == before + [s.content for s in steps], "I9: merging never mixes contents"
        self.model[branch] = after
        return grown

    async def check(self) -> None:
        """The invariants that can be seen from outside, over the whole tree."""
        tree, branches = await self.memory.get_tree(self.ref)
        assert {b.name: b.state for b in branches} == self.states
        for branch in branches:
            path = await self.path(branch.name)
            assert self.said(path) == self.model[branch.name], "I3: nothing of one branch shows in another"
            await self._check_slots(branch.name)
            assert [n.depth for n in path] == list(range(1, len(path) + 1))
            for node in path:
                self._check_node(node)
            await self._check_waiting(branch.name, path)
            await self._check_covers(branch.summary_head, path)
            await self._check_rolled(branch.name, path)
        events = []
        async for event in self.memory.watch(self.ref, "", 0):
            events.append(event.position.revision)
            if event.position.revision == tree.revision:
                break
        assert events == list(range(min(events[0], self.watched_from), tree.revision + 1)), "I13"
        await self._check_references()
        await self._check_archive()
        stranger = TreeRef(TenantId("stranger"), self.ref.tree)
        try:
            await self.memory.get_nodes(stranger, [1])
        except NotFoundError:
            return
        raise AssertionError("I15: a stranger reads")

    async def _check_waiting(self, branch: str, path: tuple[Node, ...]) -> None:
        """What waits on a path, and only that, is an open obligation of its context."""
        steps = {n.node_id: n.body for n in path if isinstance(n.body, Step)}
        resolved = {step.resolves for step in steps.values()}
        wanted = [n for n, step in steps.items() if step.wait and n not in resolved]
        waiting = [node for _, node in await self.memory.waiting(self.ref, branch)]
        assert [node.node_id for node in waiting] == wanted
        begun = [
            n.depth
            for n in waiting
            if isinstance(n.body, Step) and n.body.wait and n.body.wait.kind is WaitKind.SUBGOAL
        ]
        assert begun == self.open_subgoals(branch), "a subgoal is owed on every path that holds it until it ends there"
        if self.forked:
            return
        try:
            found = await self.memory.assemble_context(self.ref, branch, 200, 0, "", False)
        except OutOfRangeError:
            return
        shown = {s.node_id for s in found.assembly.segments if s.kind is SegmentKind.STEP}
        notices = sum(s.kind is SegmentKind.WAITING for s in found.assembly.segments)
        assert notices == sum(n not in shown for n in wanted), "I4: open obligations are never dropped"

    async def _check_references(self) -> None:
        """I11, and what is stale: exactly what something befell, and what leads to it."""
        tree, _ = await self.memory.get_tree(self.ref)
        nodes = await self.all_nodes()
        assert tree.stale_count == sum(bool(n.stale) for n in nodes.values())
        for n, node in nodes.items():
            here = {r.node_id for r in node.references if not r.tree_id}
            assert all(to < n for to in here), "I11: no circle without a way up"
            assert {(r.tree_id, r.node_id) for r in node.references if r.tree_id} == self.away.get(n, set())
            wanted = {m for to in here for m in nodes[to].stale if m.seen_from != n}
            full = n in self.looked_at or len(node.stale) == MARKS_MAX
            assert full or wanted <= set(node.stale), "I7: what rests on something stale is stale"

    def check_cause(self, cause: Node, mark: StaleMark, nodes: dict[NodeId, Node]) -> None:
        """What a mark says befell a node of this tree did."""
        match mark.reason:
            case StaleReason.REPLACED if mark.seen_from:
                step = nodes[mark.seen_from].body
                assert isinstance(step, Step)
                assert step.content == REDACTED or cause.node_id in step.related_node_ids
            case StaleReason.REDACTED:
                assert cause.redacted
            case StaleReason.INVALIDATED:
                assert cause.node_id in self.invalidated
            case StaleReason.ABANDONED:
                assert cause.node_id in self.left
            case StaleReason.FAILED:
                assert getattr(cause.judgement, "status", None) is SummaryStatus.FAILED

    async def _check_archive(self) -> None:
        """I14: export, import and verify are the identity; the copy lives on as the original would."""
        verified = await self.memory.verify(self.ref)
        assert verified.mismatches == ()
        assert verified.redacted >= len(self.redacted)
        copy = TreeRef(self.ref.tenant, TreeId(f"{self.ref.tree}.copy"))
        tree, digest = await self.memory.import_tree(copy.tenant, copy.tree, self.memory.export(self.ref))
        assert digest == verified.root_digest == (await self.memory.verify(copy)).root_digest
        ours, theirs = [b"".join([piece async for piece in self.memory.export(ref)]) for ref in (self.ref, copy)]
        assert [*map(_in_order, ours.split(b"\n")[1:-2])] == [*map(_in_order, theirs.split(b"\n")[1:-2])]
        for branch in (await self.memory.get_tree(self.ref))[1]:
            views = [await self.memory.assemble_context(r, branch.name, 900, 0, "", False) for r in (self.ref, copy)]
            assert views[0].assembly == views[1].assembly
        write = Write("", copy, tree.default_branch, None, True)
        if any(b.name == tree.default_branch and b.state == 1 for b in (await self.memory.get_tree(copy))[1]):
            grown = await self.memory.grow(write, [Step("lives on")], True)
            assert grown.node_ids[0] == tree.node_count + 1

    async def _check_slots(self, branch: str) -> None:
        nodes = await self.memory.get_slots(self.ref, branch)
        held = {n.body.key: n.body.value for n in nodes if isinstance(n.body, Slot)}
        wanted = {key: values[-1] for key, values in self.slots[branch][-1][1].items() if values}
        assert held.keys() == wanted.keys(), "I3: slots are isolated as steps are"
        assert all(held[key] in (wanted[key], REDACTED) for key in held)

    def _check_node(self, node: Node) -> None:
        assert node.redacted == (node.node_id in self.redacted), "Redact erases what was asked for, and no other step"
        assert [(a.index, a.data) for a in node.attachments] == list(self.beside.get(node.node_id, {}).items())
        bare = immutable(node)
        before = self.nodes.setdefault(node.node_id, bare)
        if node.redacted:
            bare = replace(bare, body=before.body, redacted=False)
            assert "does" not in repr(node)
        assert before == bare, "I2: nodes never change, and Redact keeps hash and shape"

    def said(self, path: tuple[Node, ...]) -> list[str]:
        """What the steps said when they were made."""
        made = [self.nodes.get(n.node_id, n) if n.redacted else n for n in path]
        return [n.body.content for n in made if isinstance(n.body, Step)]

    async def _check_covers(self, summary_id: int, path: tuple[Node, ...]) -> None:
        position = {node.node_id: i for i, node in enumerate(path)}
        end: int | None = None
        while summary_id:
            (node,) = await self.memory.get_nodes(self.ref, [summary_id])
            assert isinstance(node.body, Summary)
            first, last = position[node.body.first_covered], position[node.body.last_covered]
            assert end is None or last + 1 == end, "I6: no gap, no overlap, in order"
            assert cover_digest(n.content_hash for n in path[first : last + 1]) == node.body.cover_digest
            end, summary_id = first, node.parent_id
        assert end in (None, 0), "I6: the first cover begins at the root"

    async def _check_rolled(self, branch: str, path: tuple[Node, ...]) -> None:
        """I5 and I6 with roll-ups: what a context would show covers the compressed prefix once, in few pieces."""
        found = await self.memory.trees.summaries(self.ref, branch, 500)
        shown = [node for node, _ in found]
        ends = [node.depth for node in reversed(shown)]
        assert ends == sorted(set(ends)), "each ends further on than the one before"
        valid = all(n.judgement is not None and n.judgement.status is SummaryStatus.VALID for n in shown)
        if valid and not self.meddled:
            levels = [(node.body.level, covered) for node, covered in found if isinstance(node.body, Summary)]
            runs = [(covered, len(list(run))) for (_, covered), run in itertools.groupby(levels)]
            assert all(covered or n <= 3 for covered, n in runs), "fewer than twice the fanout of each level in a row"
            assert levels == sorted(levels) or any(covered for covered, _ in runs), "unless a roll-up failed"
        for node in shown:
            assert isinstance(node.body, Summary)
            parts = await self.memory.get_nodes(self.ref, node.body.parts)
            assert all(part.judgement is not None and part.judgement.status is SummaryStatus.VALID for part in parts)
            if parts:
                assert cover_digest(part.content_hash for part in parts) == node.body.cover_digest

    def _note_slot(self, branch: str, number: int, key: str, change: Callable[[list[str]], list[str]]) -> None:
        if number not in self.noted:
            self.noted.add(number)
            self._note(branch, key, change(self._values(branch, key)))

    def _values(self, branch: str, key: str) -> list[str]:
        return self.slots[branch][-1][1].get(key, [])

    def _note(self, branch: str, key: str, values: list[str]) -> None:
        self.slots[branch].append((len(self.model[branch]), {**self.slots[branch][-1][1], key: values}))

    async def _check_prefix(self, branch: str, room: int, before: Assembled) -> None:
        try:
            write = Write("", self.ref, branch, None, True)
            await self.memory.grow(write, [Step(f"later {self.revision}")], True)
            self.model[branch].append(f"later {self.revision}")
            after = await self.memory.assemble_context(self.ref, branch, room, 0, "", False)
        except KatsuraError:
            return
        lost, was = [{d.node_id for d in a.assembly.dropped if d.kind is SegmentKind.SUMMARY} for a in (after, before)]
        if not after.cut_moved and lost <= was:  # the newest step takes the room of summaries where both do not fit
            old, now = [
                [s.content for s in a.assembly.segments if s.kind not in (SegmentKind.HINT, SegmentKind.STALE)]
                for a in (before, after)
            ]
            assert now[: len(old)] == old, "I16: the prefix stays"


def _in_order(line: bytes) -> object:
    """A line of an archive, its lists sorted where a server may tell them in any order."""
    found = json.loads(line)
    return {name: sorted(found[name]) if name in "fms" else found[name] for name in found}


def immutable(node: Node) -> Node:
    """A node without what is kept beside it."""
    return replace(node, attachments=(), references=(), stale=())
