"""Random lives of trees that refer to each other, each against a plain model of what should be there.

Property tests draw the operations (tests/property/test_memory_trees.py) and run one life on several stores, whose logs
must be equal: `live` does the operations, checks the invariants I1-I16 from outside, and answers the log.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Final

from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import (
    ROOT,
    Branch,
    BranchState,
    Node,
    Reference,
    StaleMark,
    StaleReason,
    Step,
    SummaryStatus,
    Tree,
)
from katsura.memory.descent import Offshoot
from katsura.memory.foreign import Lookout, carried
from katsura.memory.service import Memory
from katsura.state.references import MARKS_MAX
from katsura.state.trees import TreeRef, TreeStore
from katsura.testing.tree_checks import Place
from katsura.testing.tree_cut import CutStore
from katsura.testing.tree_life import KINDS, NAMES, Life, Operation

BETWEEN: Final = ("cross", "look", "drop", "offshoot", "bring", "freeze")
"""What befalls trees as a whole."""
ALL_KINDS: Final = (*KINDS, *BETWEEN)
"""Everything that can be done."""
_ROUNDS: Final = 20
_counter = itertools.count()


class Lives:
    """Two trees of a tenant, and at times a third one that was forked off one of them. The second one may be dropped;
    then another one takes its place."""

    def __init__(self, store: TreeStore) -> None:
        self.cut = CutStore(store)
        self.memory = Memory(self.cut.store, lambda: "unused", heartbeat_s=0.01)
        self.lookout = Lookout(self.cut.store)
        self.tenant = TenantId(f"t{next(_counter)}")
        self.trees: list[Life] = []
        self.gone: set[str] = set()
        self.crossed: dict[int, tuple[Place, ...]] = {}
        self.source: tuple[Life, str] | None = None
        """What the third one was forked off, and the branch that keeps the place."""
        self.log: list[object] = []

    async def begin(self, name: str) -> Life:
        """Make a tree."""
        life = Life(self.memory, TreeRef(self.tenant, TreeId(name)), self.cut)
        await life.begin()
        return life

    async def do(self, number: int, operation: Operation) -> None:
        """One operation on one tree, or between them."""
        at, count = operation.tree % len(self.trees), len(self.trees)
        life, other = self.trees[at], self.trees[(at + 1) % count]
        if not operation.branch:
            default = (await self.memory.get_tree(life.ref))[0].default_branch
            operation = operation._replace(branch=default)
        match operation.kind:
            case "cross":
                places = await self._places(number, life, other, operation)
                await life.attempt(operation, lambda: self._cross(number, life, operation, places))
            case "look":
                await self.lookout.turn(life.ref, operation.amount + 1)
                life.log.append(("look", (await self.memory.get_tree(life.ref))[0].stale_count))
            case "drop" if at == 2:
                await self._drop_offshoot(operation)
            case "drop":
                await self._drop(operation)
            case "offshoot" if count == 2:
                await self._fork(number, life, operation)
            case "bring" if self.source:
                child, (into, _) = self.trees[2], self.source
                act = lambda: into.bring(number, operation.branch, child, operation.flag)  # noqa: E731
                await into.attempt(operation, act)
            case "freeze":
                await self._freeze(life)
            case "offshoot" | "bring":
                life.log.append((operation.kind, count))
            case _:
                await life.do(number, operation)

    async def reconnect(self) -> None:
        """Read until the connections that died with the store are replaced: each tells of it once."""
        for _ in range(10):
            try:
                await self.memory.get_tree(self.trees[0].ref)
                return
            except UnavailableError:
                continue

    async def _places(self, number: int, life: Life, other: Life, operation: Operation) -> tuple[Place, ...]:
        """Nodes of the other tree, the newest and (with the flag) the first; one that is not there yet (amount 5); of
        a tree that is gone (6), and of the own tree by its name (0)."""
        if operation.amount == 6 and self.gone:
            return self.crossed.setdefault(number, ((max(self.gone), 1),))
        there = life if operation.amount == 0 else other
        newest = (await self.memory.get_tree(there.ref))[0].node_count
        at = newest + 1 if operation.amount == 5 else max(1, newest - operation.amount + 1)
        places = ((there.ref.tree, at), (there.ref.tree, 1)) if operation.flag and at != 1 else ((there.ref.tree, at),)
        return self.crossed.setdefault(number, places)

    async def _cross(self, number: int, life: Life, operation: Operation, places: tuple[Place, ...]) -> object:
        name, at = places[0]
        try:
            added = [Reference(NodeId(at), tree_id=name)]
            await self.memory.add_references(life.ref, f"e{number}", 1, added)
            raise AssertionError("I11: only a step itself refers to another tree, so that no circle closes")
        except InvalidArgumentError:
            pass
        grown = await life.rest_on(number, operation.branch, places)
        assert operation.amount != 5, "I11: what is not there yet is not referred to, so that no circle closes"
        assert name not in self.gone, "nor what is gone"
        return grown

    async def _freeze(self, life: Life) -> None:
        """Move a tree out; whoever touches it next brings it back as it was, but for its past events."""
        moved = await self.memory.freeze(life.ref)
        tree, _ = await self.memory.get_tree(life.ref)
        life.watched_from, life.revision = tree.revision, tree.revision
        life.log.append(("freeze", moved, tree.revision))

    async def _fork(self, number: int, source: Life, operation: Operation) -> None:
        """A tree that goes on from somewhere in another one."""
        branch, name = operation.branch, f"off.{number}"
        if branch not in source.model:
            return
        path = await source.path(branch)
        depth = len(path) * operation.amount // 6
        off = Offshoot(branch, path[depth - 1].node_id if depth else -1, "", "scout")

        async def act() -> tuple[Tree, Branch]:
            return await self.memory.fork_tree(source.ref, f"q{number}", name, off)

        if operation.cut:
            await self.cut.during(operation.cut, act)
        tree, made = await act()
        assert await act() == (tree, made), "I10"
        assert tree.origin is not None
        assert tree.origin.depth == depth
        source.keep(branch, tree.origin.branch, depth)
        source.states[tree.origin.branch] = BranchState.ABANDONED
        life = Life(self.memory, TreeRef(self.tenant, TreeId(name)), self.cut)
        life.forked, life.pins = True, [*source.pins]
        self.trees.append(life)
        self.source = source, tree.origin.branch

    async def _drop(self, operation: Operation) -> None:
        """Drop the second tree, unless another one goes on from it."""
        old = self.trees[1]
        if self.source and self.source[0] is old:
            try:
                await self.memory.delete_tree(old.ref)
            except FailedPreconditionError:
                return
            raise AssertionError("I11: what another tree goes on from is not dropped")
        await self._delete(old, operation)
        self.trees[1] = await self.begin(f"beside.{len(self.gone)}")

    async def _drop_offshoot(self, operation: Operation) -> None:
        assert self.source is not None
        (source, place), self.source = self.source, None
        await self._delete(self.trees.pop(), operation)
        kept = any(b.name == place for b in (await self.memory.get_tree(source.ref))[1])
        assert not kept or operation.cut, "the place is given up"
        if not kept:
            source.forget(place)

    async def _delete(self, old: Life, operation: Operation) -> None:
        if operation.cut:
            await self.cut.during(operation.cut, lambda: self.memory.delete_tree(old.ref))
        try:
            await self.memory.delete_tree(old.ref)
        except NotFoundError:
            assert operation.cut in (-1, -2, -3, 2, 3), "it went unasked"
        self.log += old.log
        self.gone.add(old.ref.tree)

    async def check(self) -> None:
        """The invariants of each tree, and of what leads from one to another once upkeep has seen everything."""
        await self._settle()
        for life in self.trees:
            await life.check()
        nodes = {str(life.ref.tree): await life.all_nodes() for life in self.trees}
        leads_to: dict[Place, set[Place]] = {}
        for life in self.trees:
            tree = str(life.ref.tree)
            for n, node in nodes[tree].items():
                leads_to[tree, n] = {(r.tree_id or tree, int(r.node_id)) for r in node.references}
                leads_to[tree, n] |= {(tree, to) for to in life.led.get(n, ())}
        over = {place: self._over(place, leads_to) for place in leads_to}
        assert not any(place in found for place, found in over.items()), "I11: no circle, over trees neither"
        for life in self.trees:
            for n, node in nodes[life.ref.tree].items():
                await self._check_seen(life, node, nodes)
                for mark in node.stale:
                    self._check_mark(life, mark, over[life.ref.tree, n] | {(life.ref.tree, n)}, nodes)

    async def _settle(self) -> None:
        """Turns of upkeep until nothing is new."""
        before: list[int] = []
        for _ in range(_ROUNDS):
            for life in self.trees:
                await self.lookout.turn(life.ref, 64)
            now = [(await self.memory.get_tree(life.ref))[0].revision for life in self.trees]
            if now == before:
                break
            before = now
        else:
            raise AssertionError("upkeep comes to an end")

    def _over(self, place: Place, leads_to: dict[Place, set[Place]]) -> set[Place]:
        found: set[Place] = set()
        ahead = list(leads_to[place])
        while ahead:
            at = ahead.pop()
            if at not in found:
                found.add(at)
                ahead += leads_to.get(at, ())
        return found

    async def _check_seen(self, life: Life, node: Node, nodes: dict[str, dict[NodeId, Node]]) -> None:
        """I7 across trees: what befell a node is seen by every step of another tree that rests on it."""
        if node.node_id in life.looked_at or len(node.stale) == MARKS_MAX:
            return
        for tree, n in life.away.get(node.node_id, ()):
            befell = [StaleMark(ROOT, NodeId(n), StaleReason.GONE)]
            if tree not in self.gone:
                there = next(other for other in self.trees if other.ref.tree == tree)
                befell = await self._befell(there, nodes[tree][NodeId(n)])
            assert set(carried(life.ref.tree, TreeId(tree), befell)) <= set(node.stale), "I7: over trees too"

    async def _befell(self, life: Life, node: Node) -> list[StaleMark]:
        befell = list(node.stale)
        if getattr(node.judgement, "status", None) is SummaryStatus.FAILED:
            befell.append(StaleMark(ROOT, node.node_id, StaleReason.FAILED))
        live = [b.name for b in (await self.memory.get_tree(life.ref))[1] if not b.left]
        paths = [await life.path(name) for name in live]
        if isinstance(node.body, Step) and all(node.node_id not in {n.node_id for n in path} for path in paths):
            befell.append(StaleMark(ROOT, node.node_id, StaleReason.ABANDONED))
        return befell

    def _check_mark(self, life: Life, mark: StaleMark, over: set[Place], nodes: dict[str, dict[NodeId, Node]]) -> None:
        """Nothing is stale without a cause that it leads to, and that befell it."""
        cause = (mark.tree_id or life.ref.tree, mark.cause)
        if any(tree in self.gone for tree, _ in over):
            return  # by way of a tree that nobody can read any more
        assert cause in over, "nothing is stale without a cause that it leads to"
        there = next(other for other in self.trees if other.ref.tree == cause[0])
        there.check_cause(nodes[cause[0]][mark.cause], mark, nodes[cause[0]])


def life_of(seed: int) -> list[Operation]:
    """The operations of one life, of every kind, most of them such that the trees grow."""
    draw = random.Random(seed)  # noqa: S311 - the same life for the same seed
    often = ["grow", "chain", "fork", "revise", "compress", "begin", "begin", "end", "end", "cross"]
    kinds = [*ALL_KINDS, *often * 3, *["wait", "resume", "merge", "offshoot", "bring"] * 2]
    begun = [Operation("grow", "", draw.randrange(7), False, tree) for tree in (0, 1)]
    return begun + [
        Operation(
            kind=draw.choice(kinds),
            branch=draw.choice(["", *NAMES[: 2 + number // 8]]) if draw.random() < 0.6 else "",
            amount=draw.randrange(7),
            flag=draw.random() < 0.5,
            tree=draw.choice((0, 0, 0, 1, 1, 2)),
            cut=draw.choice((0, 0, 0, 0, 1, -1, 2, -2, -3)),
        )
        for number in range(30)
    ]


async def live(
    store: TreeStore, operations: list[Operation], halfway: Callable[[], None] | None = None
) -> list[object]:
    """The log of one life on `store`, all invariants checked at its end; `halfway` strikes in the middle."""
    lives = Lives(store)
    lives.trees = [await lives.begin("life"), await lives.begin("beside")]
    for number, operation in enumerate(operations):
        if halfway is not None and number == len(operations) // 2:
            halfway()
            await lives.reconnect()
        await lives.do(number, operation)
    await lives.check()
    return [*lives.log, *(entry for life in lives.trees for entry in life.log)]
