"""What happens to one tree of a random life, and what each operation should have done.

`tree_lives` draws the operations, for several trees that refer to each other; `tree_checks` knows what should be there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from katsura.domain.errors import (
    ConflictError,
    FailedPreconditionError,
    KatsuraError,
    Reason,
)
from katsura.domain.ids import NodeId, TreeId
from katsura.domain.trees import (
    Attachment,
    BranchState,
    Effect,
    Judgement,
    Reference,
    Relation,
    Resolution,
    Slot,
    Step,
    Summary,
    SummaryBody,
    SummaryStatus,
    TreePolicy,
    Verdict,
    Wait,
    WaitKind,
)
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.core.merge import ConflictPolicy
from katsura.memory.core.slots import SlotWrite
from katsura.memory.merging import Brought
from katsura.memory.operations import Write
from katsura.memory.service import Assembled, Memory
from katsura.memory.summaries import Outside
from katsura.state.branches import BranchChange
from katsura.state.contents import Scope, TreeChange
from katsura.state.trees import TreeRef, Written
from katsura.testing.tree_checks import Place, immutable
from katsura.testing.tree_cut import CutStore
from katsura.testing.tree_subgoals import STATED, SubgoalLife
from katsura.testing.tree_suite import NO_REQUEST

NAMES: Final = ["main", "b2", "b3", "b4", "b5"]
"""Branches that operations name; some are there."""
KINDS: Final = (
    "grow", "effect", "compress", "lie", "revise", "fork", "assemble", "rest", "unrest", "replace", "collect", "wait",
    "resume", "invalidate", "revalidate", "attach", "redact", "search", "chain", "merge", "slot", "rollback", "verdict",
    "lease", "switch", "late", "begin", "end", "state", "pin", "rollup",
    "mark", "named",
)  # fmt: skip
"""What one tree can go through."""
_APPENDS: Final = frozenset((
    "grow", "effect", "compress", "lie", "revise", "replace", "wait", "resume", "merge", "slot", "rollback", "lease",
    "late", "begin", "end", "state", "cross", "named",
    "bring",
))  # fmt: skip
"""What only an active branch takes."""
_ONCE: Final = ("assemble", "attach", "chain", "collect", "lease", "late")
"""What is not asked for again under the same request id: it has none, or asks by itself."""


class Operation(NamedTuple):
    """What is done, on which branch ("": the default one), how much of it, a flag, and to which tree. `cut`: at which
    write to the store the service dies (0: not), before that is done or (negative) after it; it is then asked again."""

    kind: str
    branch: str
    amount: int
    flag: bool
    tree: int = 0
    cut: int = 0


class Life(SubgoalLife):
    """One tree, the operations done to it, and what they should do."""

    def __init__(self, memory: Memory, ref: TreeRef, cut: CutStore) -> None:
        super().__init__(memory, ref)
        self.cut = cut
        self.resumed = dict[int, int]()
        self.rests: dict[int, tuple[Reference, ...]] = {}
        self.pinned: dict[int, TreeChange] = {}
        self.judged: dict[int, int] = {}
        self.names: dict[tuple[str, int], int] = {}
        self.sources: dict[int, str] = {}
        self.picks: dict[int, tuple[NodeId, ...]] = {}
        self.rolled: dict[int, tuple[NodeId, ...]] = {}
        self.log: list[object] = []

    async def begin(self) -> None:
        """Make the tree: small hint limit and fanout, so that short lives pass them."""
        await self.memory.create_tree(
            self.ref.tenant, "", self.ref.tree, "the goal", ("a pin",), TreePolicy(hint_limit=2, rollup_fanout=2), {}
        )

    async def do(self, number: int, operation: Operation) -> None:
        """One operation."""
        await self.attempt(operation, self._act(number, operation))

    async def attempt(self, operation: Operation, act: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Do something twice under one request id, and once before where it is to be cut off; every error is a typed
        one."""
        kind = operation.kind
        refused = kind in _APPENDS and self.states.get(operation.branch) is not BranchState.ACTIVE
        if operation.cut and kind not in _ONCE:
            await self.cut.during(operation.cut, act)
        try:
            first = await act()
        except KatsuraError as error:
            self.log.append((kind, type(error).__name__, error.reason))
            return
        assert not refused, "a branch that is frozen, merged, abandoned or not there takes no write"
        before = (await self.memory.get_tree(self.ref))[0].revision
        if kind not in _ONCE:
            assert await act() == first, "I10: the same request answers the same"
        await self.memory.close()
        tree, _ = await self.memory.get_tree(self.ref)
        assert tree.revision >= before >= self.revision, "I1"
        self.revision = tree.revision
        self.log.append((kind, tree.revision, tree.node_count, tree.stale_count))

    def _act(self, number: int, operation: Operation) -> Callable[[], Coroutine[Any, Any, Any]]:
        kind, branch, amount, flag, *_ = operation
        acts: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "grow": lambda: self._grow(number, branch, amount, flag, Effect.NONE),
            "effect": lambda: self._grow(number, branch, amount, flag, Effect.IRREVERSIBLE),
            "compress": lambda: self._compress(number, branch, None, flag),
            "lie": lambda: self._compress(number, branch, SummaryBody("about INV-999"), flag),
            "rollup": lambda: self._roll_up(number, branch, amount, flag),
            "revise": lambda: self._revise(number, branch, amount),
            "fork": lambda: self._fork(number, branch, amount),
            "assemble": lambda: self._assemble(branch, amount),
            "rest": lambda: self._rest(number, branch, amount, flag),
            "unrest": lambda: self._unrest(number, amount),
            "replace": lambda: self._replace(number, branch, amount),
            "collect": lambda: self._collect(amount),
            "wait": lambda: self._wait(number, branch, flag),
            "resume": lambda: self._resume(number, branch, amount),
            "begin": lambda: self.begin_subgoal(number, branch, amount, flag),
            "end": lambda: self.end_subgoal(number, branch, amount, flag),
            "state": lambda: self.state_criterion(number, branch, flag),
            "invalidate": lambda: self._invalidate(number, amount, False),
            "revalidate": lambda: self._invalidate(number, amount, True),
            "attach": lambda: self._attach(number, amount, flag),
            "redact": lambda: self._redact(number, amount),
            "search": lambda: self._search(branch, amount, flag),
            "chain": lambda: self._chain(number, branch, amount),
            "merge": lambda: self._merge(number, branch, amount, flag),
            "slot": lambda: self._slot(number, branch, amount, flag),
            "rollback": lambda: self._rollback(number, branch, amount),
            "verdict": lambda: self._verdict(number, branch, amount, flag),
            "lease": lambda: self._lease(number, branch, amount, flag),
            "late": lambda: self._late(number, branch),
            "named": lambda: self._named(number, branch, amount, flag),
            "mark": lambda: self._mark(number, branch, amount, flag),
            "pin": lambda: self._pin(number, flag),
            "switch": lambda: self.memory.update_tree(self.ref, f"u{number}", TreeChange(default_branch=branch)),
        }
        return acts[kind]

    async def _grow(self, number: int, branch: str, amount: int, merge: bool, effect: Effect) -> object:
        steps = [Step(f"does {i}" + " and more" * amount, effect=effect) for i in range(amount % 3 + 1)]
        return await self.grow_steps(f"g{number}", branch, steps, merge)

    async def _named(self, number: int, branch: str, amount: int, merge: bool) -> object:
        """A step with a name of its own: there once on each branch, whoever asks again."""
        known, before = self.names.get((branch, amount), number) != number, self.model.get(branch)
        step = Step(f"does what is named {amount}", client_step_id=f"c{amount}")
        grown = await self.grow_steps(f"g{number}", branch, [step], merge)
        assert not known or (grown.merged == (True,) and self.model[branch] == before), "I9: it is there once"
        self.names.setdefault((branch, amount), number)
        return grown

    async def _rest(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """A step that rests on the newest nodes that there are, or a reference from the newest step to an old one."""
        if flag:
            return await self.memory.add_references(self.ref, f"e{number}", amount + 2, [Reference(NodeId(amount + 1))])
        newest = (await self.memory.get_tree(self.ref))[0].node_count
        on = tuple(Reference(NodeId(n)) for n in range(max(1, newest - amount), newest + 1))
        step = Step(f"does {number}", references=self.rests.setdefault(number, on))
        return await self.grow_steps(f"g{number}", branch, [step], True)

    async def rest_on(self, number: int, branch: str, places: Sequence[Place]) -> object:
        """A step that rests on nodes of other trees."""
        step = Step(f"does {number}", references=tuple(Reference(NodeId(n), tree_id=tree) for tree, n in places))
        grown = await self.grow_steps(f"g{number}", branch, [step], True)
        self.away[grown.node_ids[0]] = set(places)
        return grown

    async def _unrest(self, number: int, amount: int) -> object:
        """Take back what `rest` added; what a step declared itself stays."""
        node, revision = await self.memory.remove_references(self.ref, f"n{number}", amount + 2, [amount + 1])
        assert all(r.declared for r in node.references if r.node_id == amount + 1 and not r.tree_id)
        self.led.setdefault(amount + 2, set()).add(amount + 1)
        return node.references, revision

    async def _replace(self, number: int, branch: str, amount: int) -> object:
        step = Step(f"does {number}", relation=Relation.REPLACE, related_node_ids=(NodeId(amount + 1),))
        return await self.grow_steps(f"g{number}", branch, [step], True)

    async def _collect(self, amount: int) -> object:
        before = (await self.memory.get_tree(self.ref))[0].revision
        found = await self.memory.collect_garbage(self.ref, amount % 3, 1, 500)
        for name in found.branches:
            self.forget(name)
        for name in self.model:
            path = await self.path(name)
            assert not {n.node_id for n in path} & set(found.nodes), "I12"
        self.redacted.update(found.nodes)
        self.beside = {node: beside for node, beside in self.beside.items() if node not in found.nodes}
        self.watched_from = max(self.watched_from, before)
        return found

    async def _wait(self, number: int, branch: str, flag: bool) -> object:
        effect = Effect.IRREVERSIBLE if flag else Effect.NONE
        step = Step(f"does {number}", effect=effect, wait=Wait(WaitKind.APPROVAL, "the boss"))
        return await self.grow_steps(f"g{number}", branch, [step, Step("does more")], True)

    async def _resume(self, number: int, branch: str, amount: int) -> object:
        owed = [node for _, node in await self.memory.waiting(self.ref, branch)]
        others = [n.node_id for n in owed if n.depth not in self.open_subgoals(branch)]
        node = others[amount % len(others)] if others else amount + 1
        self.resumed.setdefault(number, node)
        said, write = Step(f"does {number}", role="user"), Write(f"w{number}", self.ref, branch, None, True)
        made = await self.memory.resume_step(write, self.resumed[number], Resolution.DONE, said)
        if number not in self.noted:
            self.noted.add(number)
            self.model[branch].append(f"does {number}")
        return made

    async def _pin(self, number: int, flag: bool) -> object:
        """A constraint more, or (but for one) the newest less."""
        if number not in self.noted and (flag or len(self.pins) > 1):
            self.noted.add(number)
            change = TreeChange(add_pins=(f"pin {number}",)) if flag else TreeChange(remove_pins=(self.pins[-1],))
            self.pinned[number] = change
            self.pins = [*self.pins, *change.add_pins] if flag else self.pins[:-1]
        return await self.memory.update_tree(self.ref, f"u{number}", self.pinned.get(number, TreeChange()))

    async def _invalidate(self, number: int, amount: int, holds: bool) -> object:
        revision = await self.memory.invalidate(self.ref, f"i{number}", (amount + 1,), holds)
        (self.looked_at if holds else self.invalidated).add(amount + 1)
        return revision

    async def _attach(self, number: int, amount: int, flag: bool) -> object:
        items = [Attachment("t", i, "", b"%d" % number) for i in range(amount % 3 + 1)]
        written, _ = await self.memory.put_attachments(self.ref, amount + 1, items, flag)
        beside = self.beside.setdefault(amount + 1, {})
        assert written == tuple(i.index not in beside or (flag and beside[i.index] != i.data) for i in items)
        beside.update({i.index: i.data for i, put in zip(items, written, strict=True) if put})
        return written

    async def _redact(self, number: int, amount: int) -> object:
        (node,) = await self.memory.get_nodes(self.ref, [amount + 1])
        if not node.redacted:
            self.nodes.setdefault(node.node_id, immutable(node))
        ids, revision = await self.memory.redact(self.ref, f"x{number}", (amount + 1,))
        for node in await self.memory.get_nodes(self.ref, ids):
            if isinstance(node.body, Step):
                self.redacted.add(node.node_id)
            if isinstance(node.body, Summary):
                assert getattr(node.judgement, "status", None) is SummaryStatus.FAILED, "I7: nobody trusts it"
            assert node.redacted
            self.beside.pop(node.node_id, None)
        return ids, revision

    async def _search(self, branch: str, amount: int, flag: bool) -> object:
        word = f"does {amount % 3}"
        hits, end = await self.memory.search(self.ref, Scope.PATH if flag else Scope.TREE, branch, word, 0, 500, True)
        assert end == 0
        path = await self.path(branch)
        steps = {n.node_id: n.body for n in path if isinstance(n.body, Step)}
        wanted = {n for n, step in steps.items() if all(w in step.content for w in word.split())}
        beside = {n for n, step in steps.items() if all(w in f"{step.content} {step.attributes}" for w in word.split())}
        found = {hit.node.node_id for hit in hits if isinstance(hit.node.body, Step)}
        assert wanted <= found <= beside if flag else wanted <= found
        return [(hit.node.node_id, hit.live) for hit in hits]

    async def _slot(self, number: int, branch: str, amount: int, flag: bool) -> object:
        key, value = f"k{amount % 3}", f"value {number}"
        relation = Relation.NEW if flag else Relation.UNSPECIFIED
        made = await self.memory.set_slots(self.ref, f"s{number}", branch, (SlotWrite(key, value, relation),))
        self._note_slot(branch, number, key, lambda values: [*values, value])
        return made

    async def _rollback(self, number: int, branch: str, amount: int) -> object:
        key = f"k{amount % 3}"
        made = await self.memory.set_slots(self.ref, f"s{number}", branch, (SlotWrite(key, "", Relation.ROLLBACK),))
        self._note_slot(branch, number, key, lambda values: values[:-1])
        return made

    async def _compress(self, number: int, branch: str, body: SummaryBody | None, proceed: bool) -> object:
        write = Write(f"c{number}", self.ref, branch, None, True)
        written = await self.memory.compress(write, 0, body, "", (), proceed and body is None)
        assert isinstance(written, Written), "no compressor outside is asked"
        if body is not None and not proceed:
            assert getattr(written.node.judgement, "status", None) is SummaryStatus.FAILED
        return written

    async def _roll_up(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """Of two that follow each other, or (flag) of what is due."""
        shown = [node.node_id for node, _ in await self.memory.trees.summaries(self.ref, branch, 500)]
        at = amount % max(1, len(shown) - 1)
        ids = self.rolled.setdefault(number, () if flag else tuple(reversed(shown[at : at + 2])))
        made = await self.memory.roll_up(self.ref, f"o{number}", branch, None, ids)
        self.meddled |= bool(ids)
        return made

    async def _late(self, number: int, branch: str) -> None:
        """A compressor that began before somebody else summarised the same, and ends after it."""
        old = await self.memory.trees.cover(self.ref, branch, None, 0)
        await self._compress(number, branch, None, False)
        made = Summary(
            0, old.last, old.last, old.count, b"", SummaryBody("late"), "late", old.versions + 1, old.tokens, 1
        )
        try:
            valid = Judgement(status=SummaryStatus.VALID)
            await self.memory.trees.summarise(self.ref, old, None, made, valid, NO_REQUEST)
        except ConflictError:
            return
        raise AssertionError("I8: what was computed from an older state overwrote a newer one")

    async def _merge(self, number: int, branch: str, amount: int, flag: bool) -> object:
        others = sorted(self.model.keys() - {branch}) or [branch]
        source = self.sources.setdefault(number, others[amount % len(others)])
        ours, theirs = [await self.path(name) for name in (branch, source)]
        shared = {node.node_id for node in ours}
        both = [node.node_id for node in theirs if node.node_id in shared]
        difference = await self.memory.diff(self.ref, branch, source, 500)
        assert difference.common == (both[-1] if both else 0)
        assert difference.theirs == tuple(node for node in theirs if node.node_id not in shared)
        assert difference.ours == ours[len(both) :]
        pick = [node.node_id for node in difference.theirs][:2] if flag else []
        write = Write(f"m{number}", self.ref, branch, None, True)
        closes = amount > 3 and not pick
        merged = await self.memory.merge(write, source, pick, "", ConflictPolicy.THEIRS, close=closes)
        if closes:
            self.states[source] = BranchState.MERGED
        if number not in self.noted:
            self.noted.add(number)
            self._note_merge(branch, merged)
            for step in merged.steps if pick else ():
                assert isinstance(step.body, Step)
                original = step.body.related_node_ids[0]
                self.away[step.node_id] = set() if original in self.redacted else self.away.get(original, set())
        return merged

    async def bring(self, number: int, branch: str, child: Life, flag: bool) -> object:
        """Bring the work of a tree that was forked off this one, as a note or (flag) step by step."""
        tree, _ = await self.memory.get_tree(child.ref)
        steps = [node.node_id for node in await child.path(tree.default_branch)]
        pick = self.picks.setdefault(number, tuple(steps[:2] if flag else ()))
        write = Write(f"m{number}", self.ref, branch, None, True)
        merged = await self.memory.merge(write, "", pick, "", ConflictPolicy.THEIRS, child.ref.tree)
        if number not in self.noted:
            self.noted.add(number)
            self._note_merge(branch, merged)
            for step in merged.steps:
                found = {(r.tree_id, int(r.node_id)) for r in step.references}
                told = {n for name, n in found if name == child.ref.tree}
                assert told & set(pick or steps), "with provenance"
                self.away[step.node_id] = found
        return merged

    def _note_merge(self, branch: str, merged: Brought) -> None:
        for node in merged.steps:
            assert isinstance(node.body, Step)
            self.model[branch].append(node.body.content)
            if said := node.body.attributes.get(STATED):
                self.stated[branch].append((len(self.model[branch]), said == "pass"))
        for node in merged.slots:
            assert isinstance(node.body, Slot)
            self._note(branch, node.body.key, [*self._values(branch, node.body.key), node.body.value])

    async def _verdict(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """Somebody outside finds a summary, or a roll-up, right or wrong."""
        found = await self.memory.trees.nodes(self.ref, await self._summaries(), 1 << 30)
        judged = found[amount % len(found)].node_id if found else amount + 1
        verdict = Verdict.PASS if flag else Verdict.FAIL
        self.judged.setdefault(number, judged)
        outside = Outside("somebody", verdict, Verdict.UNSPECIFIED, "", 0)
        written = await self.memory.maintain(self.ref, f"j{number}", branch, self.judged[number], (), outside)
        self.meddled |= flag
        return written

    async def _summaries(self) -> list[int]:
        tree, _ = await self.memory.get_tree(self.ref)
        nodes = await self.memory.get_nodes(self.ref, range(1, tree.node_count + 1))
        return [node.node_id for node in nodes if isinstance(node.body, Summary)]

    async def _lease(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """A branch that is taken is written under its token only, and everybody's once it is given back."""
        token = (await self.memory.acquire_lease(self.ref, branch, f"holder {amount}", 3600)).lease_token
        for wrong in (0, token - 1 or token + 1):
            write = Write("", self.ref, branch, None, True, wrong)
            told = ""
            try:
                await self.memory.grow(write, [Step("not mine")], True)
            except ConflictError as error:
                told = error.metadata["holder"]
            assert told == f"holder {amount}", "a late writer is refused, and told who has the branch"
        if flag:
            said = f"mine {number}"
            await self.memory.grow(Write("", self.ref, branch, None, True, token), [Step(said)], False)
            self.model[branch].append(said)
        await self.memory.release_lease(self.ref, branch, token)
        return None

    async def _chain(self, number: int, branch: str, amount: int) -> None:
        for i in range(amount):
            await self._grow(1000 + number * 100 + i, branch, 1, False, Effect.NONE)
            await self._compress(1000 + number * 100 + i, branch, None, False)

    async def _revise(self, number: int, branch: str, amount: int) -> object:
        path = await self.path(branch)
        keep = len(path) * amount // 7
        restore = path[keep - 1].node_id if keep else 0
        write = Write(f"v{number}", self.ref, branch, None, True)
        revised = await self.memory.revise(write, restore, "wrong", "", True)
        self.left.update(node.node_id for node in path[keep:])
        self.states[branch] = BranchState.ABANDONED
        self.keep(branch, revised.branch.name, keep)
        return revised

    async def _mark(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """A branch is frozen, merged or abandoned by its owner; at least as often it is taken up again."""
        state = (
            BranchState.ACTIVE if flag else (BranchState.FROZEN, BranchState.MERGED, BranchState.ABANDONED)[amount % 3]
        )
        path = await self.path(branch)
        write, change = Write(f"k{number}", self.ref, branch, None, True), BranchChange(state, note=f"note {number}")
        marked = await self.memory.update_branch(write, change)
        (found,) = [b for b in (await self.memory.get_tree(self.ref))[1] if b.name == branch]
        assert (found.state, found.note) == (state, f"note {number}")
        self.states[branch] = state
        if state is BranchState.ABANDONED:
            self.left.update(node.node_id for node in path)
        if state is not BranchState.ACTIVE:
            await self._refused(branch)
        return marked

    async def _refused(self, branch: str) -> None:
        """A branch that is not active takes nothing, of whatever kind."""
        write, slot = Write("", self.ref, branch, None, True), SlotWrite("k0", "not taken", Relation.UNSPECIFIED)
        attempts: tuple[Callable[[], Coroutine[Any, Any, object]], ...] = (
            lambda: self.memory.grow(write, [Step("not taken")], True),
            lambda: self.memory.set_slots(self.ref, "", branch, (slot,)),
            lambda: self.memory.begin_subgoal(write, "not taken", [], None),
            lambda: self.memory.compress(write, 0, None, "", (), False),
            lambda: self.memory.revise(write, 0, "not taken", "", True),
            lambda: self.memory.acquire_lease(self.ref, branch, "nobody", 3600),
        )
        for attempt in attempts:
            try:
                await attempt()
            except FailedPreconditionError as error:
                if error.reason is Reason.BRANCH_NOT_WRITABLE:
                    continue
                raise
            raise AssertionError("a branch that is not active takes no write")

    async def _fork(self, number: int, branch: str, amount: int) -> object:
        path = await self.path(branch)
        keep = len(path) * amount // 6
        at = path[keep - 1].node_id if keep else -1
        made, position = await self.memory.fork(self.ref, f"f{number}", branch, at, "")
        self.keep(branch, made.name, keep)
        return made, position

    async def _assemble(self, branch: str, amount: int) -> Assembled:
        room = 40 + 60 * amount
        assembled = await self.memory.assemble_context(self.ref, branch, room, 0, "", False)
        assembly = assembled.assembly
        assert assembly.total_tokens <= room, "I4: the budget is never exceeded"
        assert assembly.segments[0].kind is SegmentKind.PIN
        assert all(pin in assembly.segments[0].content for pin in self.pins), "I4: pins are never dropped"
        kinds = [s.kind for s in assembly.segments]
        assert kinds.count(SegmentKind.HINT) <= 2, "I3: what was abandoned shows only as hints, within hint_limit"
        for segment in assembly.segments:
            if segment.kind is SegmentKind.SUMMARY:
                of = replace(self.ref, tree=TreeId(segment.tree_id or self.ref.tree))
                (node,) = await self.memory.get_nodes(of, [segment.node_id])
                assert getattr(node.judgement, "status", None) is SummaryStatus.VALID, "I7"
        again = await self.memory.assemble_context(self.ref, branch, room, 0, "", False)
        assert again.assembly == assembly, "I4: the same revision and request give the same bytes"
        await self._check_prefix(branch, room, assembled)
        return assembled
