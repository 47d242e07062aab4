"""Comparing branches and bringing the work of one to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from katsura.domain.errors import FailedPreconditionError, OutOfRangeError, Reason
from katsura.domain.ids import BranchName, NodeId, TreeId
from katsura.domain.trees import ROOT, Branch, Node, Slot, Step, Summary, request_of
from katsura.memory.core import limits
from katsura.memory.core.merge import (
    ConflictPolicy,
    SlotDifference,
    abroad,
    differences,
    merged_slots,
    picked,
    slots_of,
    standing_alone,
    told,
)
from katsura.memory.core.slots import slot_tokens
from katsura.memory.core.tokens import estimate_step
from katsura.memory.operations import ID_MAX, Operations, Write, committing
from katsura.state.merging import Merged, Merging, Parting
from katsura.state.trees import TreeRef, refusal


@dataclass(frozen=True, slots=True)
class Difference:
    """How two branches differ: the newest steps of each side, oldest first, and how many there are."""

    common: NodeId
    ours: tuple[Node, ...]
    theirs: tuple[Node, ...]
    ours_count: int
    theirs_count: int
    slots: tuple[SlotDifference, ...]


@dataclass(frozen=True, slots=True)
class Brought:
    """What a Merge made, and the keys that both branches had changed."""

    steps: tuple[Node, ...]
    slots: tuple[Node, ...]
    conflicts: tuple[str, ...]
    branch: Branch
    common: NodeId
    revision: int


class Branching(Operations):
    """The operations on two branches."""

    async def diff(self, ref: TreeRef, branch: str, other: str, size: int) -> Difference:
        """Where two branches parted, and what each has that the other has not."""
        size = limits.page_size(size)
        parting = await self._trees.parting(ref, branch, other)
        ours = await self._since(ref, parting.branch, parting, size)
        theirs = await self._since(ref, parting.other, parting, size)
        values = [slots_of((await self._trees.slots(ref, b.name)).last) for b in (parting.branch, parting.other)]
        return Difference(
            parting.common,
            ours,
            theirs,
            parting.branch.depth - parting.depth,
            parting.other.depth - parting.depth,
            differences(values[0], values[1]),
        )

    async def merge(
        self,
        write: Write,
        source: str,
        pick: Sequence[int],
        text: str,
        on_conflict: ConflictPolicy,
        source_tree: str = "",
        close: bool = False,
    ) -> Brought:
        """Bring work from `source` (a branch of this tree, or of `source_tree`, which was forked off it) to a branch:
        one note, or copies of the steps in `pick`, and changed slots. With `close` the source is MERGED by that."""
        write = write.checked()
        limits.check_text(write.request_id, "request_id")
        limits.check_text(text, "text", limits.CONTENT_BYTES_MAX)
        if not source and not source_tree:
            raise limits.refuse("source", "say which branch did the work")
        if len(pick) > limits.STEPS_MAX or len(set(pick)) < len(pick):
            raise limits.refuse("pick", f"at most {limits.STEPS_MAX} different steps are taken")
        if pick and text:
            raise limits.refuse("text", "pick is given too; send one of them")
        if close and (pick or source_tree):
            raise limits.refuse("close_source", "with pick or source_tree_id the source stays; UpdateBranch closes it")
        for i, node_id in enumerate(pick):
            limits.check_range(node_id, f"pick[{i}]", 1, ID_MAX)
        fields = (write.branch, write.expected_head, write.unconditional, source, tuple(pick), text, on_conflict)
        late = [said for said in (source_tree, close) if said]  # older versions of us know requests without them
        said = request_of(write.request_id, "merge", *fields, *late)
        request = write.under(said)

        async def attempt() -> Merged:
            if source_tree:
                child = TreeRef(write.tree.tenant, TreeId(source_tree))
                found = await self._from_tree(write, child, source, pick, text, on_conflict)
                return await self._trees.merge(write.tree, found, request)
            parting = await self._trees.parting(write.tree, write.branch, source)
            if write.expected_head not in (None, parting.branch.head):
                raise refusal(write.tree, "HEAD_MOVED", str(parting.branch.head), parting.branch.name)
            steps = await self._work(write.tree, parting, pick, text, on_conflict)
            ours, theirs = [await self._trees.slots(write.tree, b.name) for b in (parting.branch, parting.other)]
            base = await self._trees.slots(write.tree, source, parting.slots) if parting.slots else None
            before = slots_of(base.last) if base else {}
            slots, conflicts = merged_slots(before, ours.last, theirs.last, parting.other.name, on_conflict)
            merging = Merging(
                parting,
                ours.head,
                ours.head_hash,
                theirs.head,
                [(step, estimate_step(step)) for step in steps],
                [(slot, slot_tokens(slot)) for slot in slots],
                conflicts,
                close,
            )
            return await self._trees.merge(write.tree, merging, request)

        with committing("merge"):
            merged = await self._trees.merge_replayed(write.tree, request)
            if merged is None:
                merged = await self._until_it_holds(write, attempt)
        return await self._brought(write.tree, merged)

    async def _from_tree(
        self, write: Write, child: TreeRef, source: str, pick: Sequence[int], text: str, policy: ConflictPolicy
    ) -> Merging:
        """What a tree that was forked off this one did since. It may grow on while this is written: the note says up to
        which step it tells."""
        tree, _ = await self._trees.read(child)
        origin = tree.origin
        if origin is None or origin.tree_id != write.tree.tree:
            raise limits.refuse("source_tree_id", f"tree {child.tree!r} was not forked off tree {write.tree.tree!r}")
        parting = await self._trees.parting(write.tree, write.branch, write.branch)
        if write.expected_head not in (None, parting.branch.head):
            raise refusal(write.tree, "HEAD_MOVED", str(parting.branch.head), parting.branch.name)
        theirs = await self._trees.slots(child, source)
        done = Parting(parting.branch, theirs.branch, ROOT, 0, ROOT, parting.head_hash)
        name, agent = BranchName(f"{child.tree}/{theirs.branch.name}"), theirs.branch.agent_id or tree.agent_id
        teller = replace(theirs.branch, name=name, agent_id=agent)
        steps = [abroad(s, child.tree) for s in await self._work(child, done, pick, text, policy, teller)]
        ours, base = [await self._trees.slots(write.tree, name) for name in (write.branch, origin.branch)]
        own = {node.body.key for node in theirs.last if isinstance(node.body, Slot)}
        held = [node for node in base.last if isinstance(node.body, Slot) and node.body.key not in own]
        slots, conflicts = merged_slots(slots_of(base.last), ours.last, (*held, *theirs.last), teller.name, policy)
        return Merging(
            replace(parting, common=origin.node_id),
            ours.head,
            ours.head_hash,
            ours.head,
            [(step, estimate_step(step)) for step in steps],
            [(slot, slot_tokens(slot)) for slot in slots],
            conflicts,
        )

    async def _brought(self, ref: TreeRef, merged: Merged) -> Brought:
        made = await self._trees.nodes(ref, (*merged.steps, *merged.slots), limits.ANSWER_BYTES_MAX)
        steps, slots = made[: len(merged.steps)], made[len(merged.steps) :]
        return Brought(steps, slots, merged.conflicts, merged.branch, merged.common, merged.revision)

    async def _work(
        self,
        ref: TreeRef,
        parting: Parting,
        pick: Sequence[int],
        text: str,
        policy: ConflictPolicy,
        teller: Branch | None = None,
    ) -> Sequence[Step]:
        """The steps that a Merge makes; with `teller` of a branch in another tree, which shares none with ours."""
        if pick:
            await self._trees.nodes(ref, pick, limits.GROW_BYTES_MAX)  # else too much for one commit
            nodes = [(await self._trees.path(ref, parting.other.name, node, 1, 0)).nodes[0] for node in pick]
            for node in nodes:
                if node.depth <= parting.depth:
                    raise limits.refuse("pick", f"step {node.node_id} is on both branches already")
            needed = {r.node_id for node in nodes for r in node.references if not r.tree_id} - set(pick)
            shared = set() if teller else {n for n in needed if await self._has(ref, parting.branch, n)}
            return [picked(node, teller or parting.other) for node in standing_alone(nodes, shared, policy)]
        count = parting.other.depth - parting.depth
        if not count:
            raise FailedPreconditionError(
                f"branch {parting.other.name!r} has done nothing since the two parted; there is nothing to merge",
                reason=Reason.BAD_BOUNDARY,
                field="source",
            )
        if count > limits.COVER_STEPS_MAX:
            raise OutOfRangeError(
                f"source: {count} steps since the two parted; one note tells of at most {limits.COVER_STEPS_MAX}. Pick "
                "steps, or merge what a branch in between tells",
                reason=Reason.BAD_BOUNDARY,
                field="source",
            )
        return told(await self._since(ref, parting.other, parting, count), teller or parting.other, text)

    async def _has(self, ref: TreeRef, branch: Branch, node_id: int) -> bool:
        """Whether a branch has a step on its path; a summary is there for all."""
        (node,) = await self._trees.nodes(ref, [node_id], limits.ANSWER_BYTES_MAX)
        if isinstance(node.body, Summary):
            return True
        try:
            await self._trees.path(ref, branch.name, node_id, 1, 0)
        except FailedPreconditionError:
            return False
        return True

    async def _since(self, ref: TreeRef, branch: Branch, parting: Parting, count: int) -> tuple[Node, ...]:
        """The newest steps of a branch after the two parted, oldest first."""
        nodes: tuple[Node, ...] = ()
        end = int(branch.head)
        while end and len(nodes) < count:
            size = min(limits.PAGE_MAX, count - len(nodes))
            page = await self._trees.path(ref, branch.name, end, size, limits.ANSWER_BYTES_MAX, parting.depth)
            nodes = (*page.nodes, *nodes)
            end = page.next_end
        return nodes
