"""Random lives of a tree, each against a plain model of what its branches should hold.

Property tests draw the operations (tests/property/test_memory_trees.py) and run one life on several stores, whose logs
must be equal: `live` does the operations, checks the invariants I1-I16 from outside, and answers the log.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from katsura.domain.errors import ConflictError, KatsuraError, NotFoundError, OutOfRangeError, UnavailableError
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import (
    REDACTED,
    Attachment,
    Effect,
    Judgement,
    Node,
    Reference,
    Relation,
    Resolution,
    Slot,
    StaleMark,
    StaleReason,
    Step,
    Summary,
    SummaryBody,
    SummaryStatus,
    TreePolicy,
    Verdict,
    Wait,
    WaitKind,
    cover_digest,
)
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.core.merge import ConflictPolicy
from katsura.memory.core.slots import SlotWrite
from katsura.memory.operations import Write
from katsura.memory.service import Assembled, Memory
from katsura.memory.summaries import Outside
from katsura.state.contents import Scope, TreeChange
from katsura.state.trees import TreeRef, TreeStore, Written
from katsura.testing.tree_suite import NO_REQUEST

NAMES: Final = ["main", "b2", "b3", "b4", "b5"]
"""Branches that operations name; some are there."""
KINDS: Final = (
    "grow", "effect", "compress", "lie", "revise", "fork", "assemble", "rest", "replace", "collect", "wait", "resume",
    "invalidate", "revalidate", "attach", "redact", "search", "subgoals", "merge", "slot", "rollback", "verdict",
    "lease", "switch", "late",
)  # fmt: skip
"""Everything that can be done."""
Operation = tuple[str, str, int, bool]
"""What is done, on which branch, how much of it, and a flag."""
_counter = itertools.count()


class Life:
    """One tree, the operations done to it, and a plain model of what its branches should hold."""

    def __init__(self, store: TreeStore) -> None:
        self.memory = Memory(store, lambda: "unused", heartbeat_s=0.01)
        self.ref = TreeRef(TenantId(f"t{next(_counter)}"), TreeId("life"))
        self.model: dict[str, list[str]] = {"main": []}
        self.revision = 1
        self.nodes: dict[int, Node] = {}
        self.redacted: set[int] = set()
        self.noted: set[int] = set()
        self.beside: dict[int, dict[int, bytes]] = {}
        self.slots: dict[str, list[tuple[int, dict[str, list[str]]]]] = {"main": [(0, {})]}
        """By branch: depth and all values of every key, after each write."""
        self.watched_from, self.resumed = 1, dict[int, int]()
        self.rests: dict[int, tuple[NodeId, ...]] = {}
        self.invalidated, self.looked_at = set[int](), set[int]()
        self.judged: dict[int, int] = {}
        self.log: list[object] = []

    async def begin(self) -> None:
        """Make the tree: small hint limit and fanout, so that short lives pass them."""
        await self.memory.create_tree(
            self.ref.tenant, "", self.ref.tree, "the goal", ("a pin",), TreePolicy(hint_limit=2, rollup_fanout=2), {}
        )

    async def do(self, number: int, operation: Operation) -> None:
        """One operation, twice under one request id; every error is a typed one."""
        kind, branch, amount, flag = operation
        act: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "grow": lambda: self._grow(number, branch, amount, flag, Effect.NONE),
            "effect": lambda: self._grow(number, branch, amount, flag, Effect.IRREVERSIBLE),
            "compress": lambda: self._compress(number, branch, None, flag),
            "lie": lambda: self._compress(number, branch, SummaryBody("about INV-999"), flag),
            "revise": lambda: self._revise(number, branch, amount),
            "fork": lambda: self._fork(number, branch, amount),
            "assemble": lambda: self._assemble(branch, amount),
            "rest": lambda: self._rest(number, branch, amount, flag),
            "replace": lambda: self._replace(number, branch, amount),
            "collect": lambda: self._collect(amount),
            "wait": lambda: self._wait(number, branch, flag),
            "resume": lambda: self._resume(number, branch, amount),
            "invalidate": lambda: self._invalidate(number, amount, False),
            "revalidate": lambda: self._invalidate(number, amount, True),
            "attach": lambda: self._attach(number, amount, flag),
            "redact": lambda: self._redact(number, amount),
            "search": lambda: self._search(branch, amount, flag),
            "subgoals": lambda: self._subgoals(number, branch, amount),
            "merge": lambda: self._merge(number, branch, amount, flag),
            "slot": lambda: self._slot(number, branch, amount, flag),
            "rollback": lambda: self._rollback(number, branch, amount),
            "verdict": lambda: self._verdict(number, branch, amount, flag),
            "lease": lambda: self._lease(number, branch, amount, flag),
            "late": lambda: self._late(number, branch),
            "switch": lambda: self.memory.update_tree(self.ref, f"u{number}", TreeChange(default_branch=branch)),
        }
        try:
            first = await act[kind]()
        except KatsuraError as error:
            self.log.append((kind, type(error).__name__, error.reason))
            return
        before = (await self.memory.get_tree(self.ref))[0].revision
        if kind not in ("assemble", "attach", "subgoals", "collect", "lease", "late"):
            assert await act[kind]() == first, "I10: the same request answers the same"
        await self.memory.close()
        tree, _ = await self.memory.get_tree(self.ref)
        assert tree.revision >= before >= self.revision, "I1"
        self.revision = tree.revision
        self.log.append((kind, tree.revision, tree.node_count, tree.stale_count))

    async def reconnect(self) -> None:
        """Read until the connections that died with the store are replaced: each tells of it once."""
        for _ in range(10):
            try:
                await self.memory.get_tree(self.ref)
                return
            except UnavailableError:
                continue

    async def check(self) -> None:
        """The invariants that can be seen from outside, over the whole tree."""
        tree, branches = await self.memory.get_tree(self.ref)
        assert {b.name for b in branches} == set(self.model)
        for branch in branches:
            path = (await self.memory.get_path(self.ref, branch.name, 0, 500)).nodes
            assert self._said(path) == self.model[branch.name], "I3: nothing of one branch shows in another"
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
        assert [node.node_id for _, node in await self.memory.waiting(self.ref, branch)] == wanted
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
        nodes = {n.node_id: n for n in await self.memory.get_nodes(self.ref, range(1, tree.node_count + 1))}
        assert tree.stale_count == sum(bool(n.stale) for n in nodes.values())
        leads_to = {n: {r.node_id for r in node.references} for n, node in nodes.items()}
        assert all(to < n for n, found in leads_to.items() for to in found), "I11: no circle without a way up"
        for n, node in nodes.items():
            wanted = {m for to in leads_to[n] for m in nodes[to].stale if m.seen_from != n}
            assert n in self.looked_at or wanted <= set(node.stale), "I7: what rests on something stale is stale"
            for mark in node.stale:
                over = {n}
                while mark.cause not in over:
                    over = {to for at in over for to in leads_to[at]}
                    assert over, "nothing is stale without a cause that it leads to"
                self._check_cause(nodes[mark.cause], mark, nodes)

    def _check_cause(self, cause: Node, mark: StaleMark, nodes: dict[NodeId, Node]) -> None:
        match mark.reason:
            case StaleReason.REPLACED:
                step = nodes[mark.seen_from].body
                assert isinstance(step, Step)
                assert step.content == REDACTED or cause.node_id in step.related_node_ids
            case StaleReason.REDACTED:
                assert cause.redacted
            case StaleReason.INVALIDATED:
                assert cause.node_id in self.invalidated
            case StaleReason.FAILED:
                assert getattr(cause.judgement, "status", None) is SummaryStatus.FAILED

    async def _check_archive(self) -> None:
        """I14: export, import and verify are the identity; the copy lives on as the original would."""
        verified = await self.memory.verify(self.ref)
        assert verified.mismatches == ()
        assert verified.redacted >= len(self.redacted)
        copy = TreeRef(self.ref.tenant, TreeId("copy"))
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

    def _said(self, path: tuple[Node, ...]) -> list[str]:
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
        if all(n.judgement is not None and n.judgement.status is SummaryStatus.VALID for n in shown):
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

    async def _grow(self, number: int, branch: str, amount: int, merge: bool, effect: Effect) -> object:
        steps = [Step(f"does {i}" + " and more" * amount, effect=effect) for i in range(amount % 3 + 1)]
        return await self._grow_steps(f"g{number}", branch, steps, merge)

    async def _grow_steps(self, request: str, branch: str, steps: list[Step], merge: bool) -> object:
        grown = await self.memory.grow(Write(request, self.ref, branch, None, True), steps, merge)
        path = (await self.memory.get_path(self.ref, branch, 0, 500)).nodes
        for node in path:
            self.nodes.setdefault(node.node_id, immutable(node))
        before, after = self.model[branch], self._said(path)
        if after != before:
            assert after == before + [s.content for s in steps], "I9: merging never mixes contents"
        self.model[branch] = after
        return grown

    async def _rest(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """A step that rests on the newest nodes that there are, or a reference from the newest step to an old one."""
        if flag:
            return await self.memory.add_references(self.ref, f"e{number}", amount + 2, [Reference(NodeId(amount + 1))])
        newest = (await self.memory.get_tree(self.ref))[0].node_count
        on = self.rests.setdefault(number, tuple(NodeId(n) for n in range(max(1, newest - amount), newest + 1)))
        steps = [Step(f"does {number}", references=tuple(map(Reference, on)))]
        return await self._grow_steps(f"g{number}", branch, steps, True)

    async def _replace(self, number: int, branch: str, amount: int) -> object:
        step = Step(f"does {number}", relation=Relation.REPLACE, related_node_ids=(NodeId(amount + 1),))
        return await self._grow_steps(f"g{number}", branch, [step], True)

    async def _collect(self, amount: int) -> object:
        before = (await self.memory.get_tree(self.ref))[0].revision
        found = await self.memory.collect_garbage(self.ref, amount % 3, 1, 500)
        for name in found.branches:
            del self.model[name], self.slots[name]
        for name in self.model:
            path = (await self.memory.get_path(self.ref, name, 0, 500)).nodes
            assert not {n.node_id for n in path} & set(found.nodes), "I12"
        self.redacted.update(found.nodes)
        self.beside = {node: beside for node, beside in self.beside.items() if node not in found.nodes}
        self.watched_from = max(self.watched_from, before)
        return found

    async def _wait(self, number: int, branch: str, flag: bool) -> object:
        effect = Effect.IRREVERSIBLE if flag else Effect.NONE
        step = Step(f"does {number}", effect=effect, wait=Wait(WaitKind.APPROVAL, "the boss"))
        return await self._grow_steps(f"g{number}", branch, [step, Step("does more")], True)

    async def _resume(self, number: int, branch: str, amount: int) -> object:
        open_steps = await self.memory.waiting(self.ref, branch)
        node = open_steps[amount % len(open_steps)][1].node_id if open_steps else amount + 1
        self.resumed.setdefault(number, node)
        said, write = Step(f"does {number}", role="user"), Write(f"w{number}", self.ref, branch, None, True)
        made = await self.memory.resume_step(write, self.resumed[number], Resolution.DONE, said)
        if number not in self.noted:
            self.noted.add(number)
            self.model[branch].append(f"does {number}")
        return made

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
        path = (await self.memory.get_path(self.ref, branch, 0, 500)).nodes
        wanted = {
            n.node_id for n in path if isinstance(n.body, Step) and all(w in n.body.content for w in word.split())
        }
        found = {hit.node.node_id for hit in hits if isinstance(hit.node.body, Step)}
        assert found == wanted if flag else found >= wanted
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

    def _note_slot(self, branch: str, number: int, key: str, change: Callable[[list[str]], list[str]]) -> None:
        if number not in self.noted:
            self.noted.add(number)
            self._note(branch, key, change(self._values(branch, key)))

    def _values(self, branch: str, key: str) -> list[str]:
        return self.slots[branch][-1][1].get(key, [])

    def _note(self, branch: str, key: str, values: list[str]) -> None:
        self.slots[branch].append((len(self.model[branch]), {**self.slots[branch][-1][1], key: values}))

    def _keep_slots(self, source: str, name: str, depth: int) -> None:
        self.slots.setdefault(name, [entry for entry in self.slots[source] if entry[0] <= depth])

    async def _compress(self, number: int, branch: str, body: SummaryBody | None, proceed: bool) -> object:
        write = Write(f"c{number}", self.ref, branch, None, True)
        written = await self.memory.compress(write, 0, body, "", (), proceed and body is None)
        assert isinstance(written, Written), "no compressor outside is asked"
        if body is not None and not proceed:
            assert getattr(written.node.judgement, "status", None) is SummaryStatus.FAILED
        return written

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
        source = NAMES[amount % len(NAMES)]
        ours, theirs = [(await self.memory.get_path(self.ref, name, 0, 500)).nodes for name in (branch, source)]
        shared = {node.node_id for node in ours}
        both = [node.node_id for node in theirs if node.node_id in shared]
        difference = await self.memory.diff(self.ref, branch, source, 500)
        assert difference.common == (both[-1] if both else 0)
        assert difference.theirs == tuple(node for node in theirs if node.node_id not in shared)
        assert difference.ours == ours[len(both) :]
        pick = [node.node_id for node in difference.theirs][:2] if flag else []
        write = Write(f"m{number}", self.ref, branch, None, True)
        merged = await self.memory.merge(write, source, pick, "", ConflictPolicy.THEIRS)
        if number not in self.noted:
            self.noted.add(number)
            self.model[branch] += [n.body.content for n in merged.steps if isinstance(n.body, Step)]
            for node in merged.slots:
                assert isinstance(node.body, Slot)
                self._note(branch, node.body.key, [*self._values(branch, node.body.key), node.body.value])
        return merged

    async def _verdict(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """Somebody outside finds a summary, or a roll-up, right or wrong."""
        found = await self.memory.trees.nodes(self.ref, await self._summaries(), 1 << 30)
        judged = found[amount % len(found)].node_id if found else amount + 1
        verdict = Verdict.PASS if flag else Verdict.FAIL
        self.judged.setdefault(number, judged)
        outside = Outside("somebody", verdict, Verdict.UNSPECIFIED, "", 0)
        return await self.memory.maintain(self.ref, f"j{number}", branch, self.judged[number], (), outside)

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

    async def _subgoals(self, number: int, branch: str, amount: int) -> None:
        for i in range(amount):
            await self._grow(number * 100 + i, branch, 1, False, Effect.NONE)
            await self._compress(number * 100 + i, branch, None, False)

    async def _revise(self, number: int, branch: str, amount: int) -> object:
        path = (await self.memory.get_path(self.ref, branch, 0, 500)).nodes
        keep = len(path) * amount // 7
        restore = path[keep - 1].node_id if keep else 0
        write = Write(f"v{number}", self.ref, branch, None, True)
        revised = await self.memory.revise(write, restore, "wrong", "", True)
        self.model[revised.branch.name] = self.model[branch][:keep]
        self._keep_slots(branch, revised.branch.name, keep)
        return revised

    async def _fork(self, number: int, branch: str, amount: int) -> object:
        path = (await self.memory.get_path(self.ref, branch, 0, 500)).nodes
        keep = len(path) * amount // 6
        at = path[keep - 1].node_id if keep else -1
        made, position = await self.memory.fork(self.ref, f"f{number}", branch, at, "")
        if made.name not in self.model:
            self.model[made.name] = self.model[branch][:keep]
            self._keep_slots(branch, made.name, keep)
        return made, position

    async def _assemble(self, branch: str, amount: int) -> Assembled:
        room = 40 + 60 * amount
        assembled = await self.memory.assemble_context(self.ref, branch, room, 0, "", False)
        assembly = assembled.assembly
        assert assembly.total_tokens <= room, "I4: the budget is never exceeded"
        assert assembly.segments[0].kind is SegmentKind.PIN, "I4: pins are never dropped"
        kinds = [s.kind for s in assembly.segments]
        assert kinds.count(SegmentKind.HINT) <= 2, "I3: what was abandoned shows only as hints, within hint_limit"
        for segment in assembly.segments:
            if segment.kind is SegmentKind.SUMMARY:
                (node,) = await self.memory.get_nodes(self.ref, [segment.node_id])
                assert getattr(node.judgement, "status", None) is SummaryStatus.VALID, "I7"
        again = await self.memory.assemble_context(self.ref, branch, room, 0, "", False)
        assert again.assembly == assembly, "I4: the same revision and request give the same bytes"
        await self._check_prefix(branch, room, assembled)
        return assembled

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


def life_of(seed: int) -> list[Operation]:
    """The operations of one life, of every kind, most of them such that the tree grows."""
    draw = random.Random(seed)  # noqa: S311 - the same life for the same seed
    kinds = [*KINDS, *["grow", "subgoals", "fork", "revise", "compress"] * 3]
    return [(draw.choice(kinds), draw.choice(NAMES), draw.randrange(7), draw.random() < 0.5) for _ in range(25)]


def _in_order(line: bytes) -> object:
    """A line of an archive, its lists sorted where a server may tell them in any order."""
    found = json.loads(line)
    return {name: sorted(found[name]) if name in "fms" else found[name] for name in found}


def immutable(node: Node) -> Node:
    """A node without what is kept beside it."""
    return replace(node, attachments=(), references=(), stale=())


async def live(
    store: TreeStore, operations: list[Operation], halfway: Callable[[], None] | None = None
) -> list[object]:
    """The log of one life on `store`, all invariants checked at its end; `halfway` strikes in the middle."""
    life = Life(store)
    await life.begin()
    for number, operation in enumerate(operations):
        if halfway is not None and number == len(operations) // 2:
            halfway()
            await life.reconnect()
        await life.do(number, operation)
    await life.check()
    return life.log
