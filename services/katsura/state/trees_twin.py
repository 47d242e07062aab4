"""Memory trees in memory: the twin of `trees_redis`, under the same contract suite. For tests and for reading.

One event loop, no awaits inside an operation: each is atomic. Times count up from the epoch, so runs repeat exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from katsura.domain.ids import DEFAULT_BRANCH, BranchName, NodeId, TenantId
from katsura.domain.trees import (
    ROOT,
    Branch,
    BranchState,
    Durability,
    EventKind,
    Hint,
    Judgement,
    Node,
    Request,
    Rest,
    Shown,
    Slot,
    Snapshot,
    Step,
    Summary,
    SummaryStatus,
    Tree,
)
from katsura.domain.work import EXTERNAL, Fence
from katsura.state.tree_records import stored_size
from katsura.state.trees import (
    TOKENIZERS_MAX,
    Cover,
    Grown,
    NewStep,
    NewTree,
    Path,
    Position,
    Retreat,
    Revised,
    TreeRef,
    Written,
    excerpt,
    page_after,
    refusal,
)
from katsura.state.twin_archive import TwinArchive
from katsura.state.twin_branches import TwinBranches
from katsura.state.twin_collecting import TwinCollecting
from katsura.state.twin_contents import TwinContents
from katsura.state.twin_doubt import doubt_left, stale_on
from katsura.state.twin_foreign import TwinForeign
from katsura.state.twin_leases import TwinLeases
from katsura.state.twin_merging import TwinMerging
from katsura.state.twin_queue import TwinQueue, ask_for_verdict, fenced
from katsura.state.twin_references import TwinReferences
from katsura.state.twin_slots import TwinSlots
from katsura.state.twin_tree import TwinTree
from katsura.state.twin_usage import TwinUsage
from katsura.state.twin_watch import TwinWatch


class TwinTreeStore(
    TwinWatch,
    TwinContents,
    TwinSlots,
    TwinLeases,
    TwinBranches,
    TwinMerging,
    TwinQueue,
    TwinUsage,
    TwinReferences,
    TwinForeign,
    TwinCollecting,
    TwinArchive,
):
    """Trees of all tenants in one dictionary."""

    @property
    def durability(self) -> Durability:
        """What the twin pretends that a write survives."""
        return self._durability

    async def create(self, ref: TreeRef, new: NewTree, request: Request) -> tuple[Tree, Branch]:
        """Make a tree with one empty branch."""
        self._warm(ref)
        state = self._trees.get(ref)
        if state is not None:
            if not request.request_id or state.made_by.request_id != request.request_id:
                raise refusal(ref, "TREE_EXISTS")
            if state.made_by.digest != request.digest:
                raise refusal(ref, "REQUEST_ID_REUSED")
            return state.made
        now = self._tick()
        branch = Branch(DEFAULT_BRANCH, BranchState.ACTIVE, ROOT, ROOT, ROOT, ROOT, "", 0, 0, ROOT, 0, now, 1)
        tree = Tree(
            ref.tree, new.goal, new.pins, new.policy, dict(new.labels), 0, self._incarnation, branch.name, 0, 1,
            now, now, 0, new.origin, new.agent_id,
        )  # fmt: skip
        state = self._trees[ref] = TwinTree(
            ref, self._limits, self._incarnation, self._tick, tree, request, (tree, branch)
        )
        state.branches[branch.name] = branch
        state.commit(EventKind.TREE_CREATED, branch.name, ())
        state.made = (state.tree, branch)
        self._notices.append((ref, 1))
        return state.made

    async def read(self, ref: TreeRef) -> tuple[Tree, tuple[Branch, ...]]:
        """The tree and its branches in the order they were made."""
        state = self._state(ref)
        return state.shown_tree, tuple(state.branches.values())

    async def trees(self, tenant: TenantId, page_size: int, page_token: str) -> tuple[tuple[Tree, ...], str]:
        """Trees of a tenant, newest first."""
        shown = self._everything().items()
        named = {page_after(tree): tree for ref, tree in shown if ref.tenant == tenant}
        names = sorted((name for name in named if not page_token or name < page_token), reverse=True)[:page_size]
        return tuple(named[name] for name in names), names[-1] if len(names) == page_size else ""

    async def drop(self, ref: TreeRef) -> None:
        """Drop a tree and everything in it."""
        state = self._state(ref)
        for held_by in (branch.held_by for branch in state.branches.values() if branch.held_by):
            raise refusal(ref, "TREE_HELD", held_by)
        state.commit(EventKind.TREE_DELETED, "", ())
        self._dropped[ref] = self._trees.pop(ref)

    async def grow(
        self,
        ref: TreeRef,
        branch: str,
        expected_head: int | None,
        steps: Sequence[NewStep],
        merge: bool,
        request: Request,
    ) -> Grown:
        """Append steps, all or none."""
        state = self._state(ref)
        return state.once(request, lambda: state.grow(branch, expected_head, steps, merge))

    async def replayed(self, ref: TreeRef, request: Request) -> Written | Revised | None:
        """What `summarise`, `judge` or `revise` answered to this request before."""
        state = self._state(ref)
        seen = state.seen(request)
        return seen if isinstance(seen, Written | Revised) else None

    async def cover(self, ref: TreeRef, branch: str, expected_head: int | None, last: int) -> Cover:
        """What a summary up to the step `last` (0: the head) would cover."""
        state = self._state(ref)
        found = state.writable(branch)
        state.compare(found, expected_head)
        end = state.on_path(found.head, last or found.head)
        previous = state.standing(found)
        base = state.span(previous.node_id)[1] if previous else ROOT
        if state.depth(end) <= state.depth(base):
            raise refusal(ref, "BAD_BOUNDARY", str(end))
        parent = previous.node_id if previous else ROOT
        return Cover(
            branch=found,
            previous=previous,
            parent_hash=state.content_hash(parent),
            base=base,
            last=end,
            count=state.depth(end) - state.depth(base),
            versions=state.versions.get((parent, base, end), 0),
            tokens=state.path_tokens(end) - state.path_tokens(base),
        )

    async def summarise(
        self,
        ref: TreeRef,
        cover: Cover,
        expected_head: int | None,
        summary: Summary,
        judgement: Judgement,
        request: Request,
        fence: Fence | None = None,
    ) -> Written:
        """Write a summary of `cover`; it becomes the branch's unless it FAILED."""
        state = self._state(ref)

        def write() -> Written:
            branch = state.writable(cover.branch.name)
            parent = cover.previous.node_id if cover.previous else ROOT
            segment = (parent, cover.base, cover.last)
            moved = branch.summary_head != cover.branch.summary_head
            moved |= state.climb(branch.head, state.depth(cover.last)) != cover.last
            moved |= state.versions.get(segment, 0) != cover.versions
            state.compare(branch, -1 if moved else expected_head)
            state.versions[segment] = cover.versions + 1
            node = state.add(parent, branch.name, summary, summary.body_tokens, state.depth(cover.last))
            node = state.nodes[node.node_id] = replace(node, judgement=replace(judgement, version=1))
            if judgement.status is SummaryStatus.FAILED:
                state.fail(node.node_id)
            else:
                branch = state.adopt(branch, node)
            if judgement.status is SummaryStatus.PENDING and EXTERNAL in judgement.required:
                ask_for_verdict(state, node, branch.name, self._tick())
            position = state.commit(EventKind.COMPRESSED, branch.name, (node.node_id,))
            return Written(node, branch, position)

        return state.once(request, lambda: fenced(state, fence, write))

    async def judge(
        self,
        ref: TreeRef,
        branch: str,
        summary: Node,
        judgement: Judgement,
        request: Request,
        fence: Fence | None = None,
    ) -> Written:
        """Replace what is known about a summary, if it is still what `summary` shows."""
        state = self._state(ref)

        def write() -> Written:
            found = state.branch(branch)
            node = state.nodes.get(summary.node_id)
            if node is None or node.judgement is None:
                raise refusal(ref, "NODE_NOT_FOUND", str(summary.node_id))
            if summary.judgement is None or node.judgement.version != summary.judgement.version:
                raise refusal(ref, "HEAD_MOVED", str(found.head), found.name)
            if judgement.status is SummaryStatus.VALID:
                state.stand(node)
            node = replace(node, judgement=replace(judgement, version=node.judgement.version + 1))
            state.nodes[node.node_id] = node
            failed = state.fail(node.node_id) if judgement.status is SummaryStatus.FAILED else []
            previous = state.standing(found)
            continues = (previous.node_id if previous else ROOT) == node.parent_id != node.node_id
            on_path = state.climb(found.head, node.depth) == state.span(node.node_id)[1]
            fresh = judgement.status is SummaryStatus.VALID and found.state is BranchState.ACTIVE
            if fresh and continues and on_path and found.summary_head != node.node_id:
                found = state.adopt(found, node)
            return Written(node, found, state.commit(EventKind.MAINTAINED, found.name, (node.node_id, *failed)))

        return state.once(request, lambda: fenced(state, fence, write))

    async def summaries(self, ref: TreeRef, branch: str, most: int) -> tuple[tuple[Node, bool], ...]:
        """The branch's summaries, newest first, roll-ups standing for their covers."""
        state = self._state(ref)
        nodes = list(state.summaries(state.branch(branch)))[:most]
        return tuple((state.shown(node.node_id), state.ending(node.node_id) is not None) for node in nodes)

    async def roll_up(
        self, ref: TreeRef, branch: str, cover: Sequence[Node], summary: Summary, judgement: Judgement, request: Request
    ) -> Written:
        """Write a roll-up over summaries that follow each other."""
        state = self._state(ref)

        def write() -> Written:
            found = state.branch(branch)
            before: NodeId | None = None
            for child in cover:
                at = state.nodes[child.node_id]
                follows = before is None or state.rolled(at.parent_id) == before
                taken = state.rolled(at.node_id) != at.node_id
                if not state.valid(at.node_id) or not follows or taken:
                    raise refusal(ref, "BAD_BOUNDARY", str(at.node_id))
                before = at.node_id
            parent, depth = state.nodes[cover[0].node_id].parent_id, state.nodes[cover[-1].node_id].depth
            node = state.add(parent, found.name, summary, summary.body_tokens, depth)
            node = state.nodes[node.node_id] = replace(node, judgement=replace(judgement, version=1))
            state.put_over([child.node_id for child in cover], node.node_id)
            return Written(node, found, state.commit(EventKind.COMPRESSED, found.name, (node.node_id,)))

        return state.once(request, write)

    async def retreat(self, ref: TreeRef, branch: str, expected_head: int | None, restore_after: int) -> Retreat:
        """What a Revise to `restore_after` (0: keep nothing) would leave behind."""
        state = self._state(ref)
        found = state.writable(branch)
        state.compare(found, expected_head)
        end = state.on_path(found.head, restore_after)
        if end == found.head:
            raise refusal(ref, "BAD_BOUNDARY", str(end))
        depth = state.depth(end)
        first = state.nodes[state.climb(found.head, depth + 1)].body
        hint, effects = state.climb(found.hint, depth), state.standing_effects(found, depth)
        assert isinstance(first, Step), "paths hold steps"
        return Retreat(found, end, excerpt(first), hint, state.content_hash(hint), tuple(effects))

    async def revise(
        self,
        ref: TreeRef,
        retreat: Retreat,
        hint: Hint,
        tokens: int,
        new_branch: str,
        move_default: bool,
        request: Request,
    ) -> Revised:
        """Abandon the branch for a new one that ends at `retreat.restore_after` and carries `hint`."""
        state = self._state(ref)

        def write() -> Revised:
            old = state.guarded(retreat.branch.name)
            state.compare(old, retreat.branch.head)
            new = state.branch_at(new_branch, old, retreat.restore_after)
            node = state.add(retreat.previous_hint, new.name, hint, tokens, new.depth)
            lease = {name: getattr(old, name) for name in ("lease_token", "lease_holder", "lease_end_ms")}
            new = state.branches[new.name] = replace(new, hint=node.node_id, **lease)
            old = state.branches[old.name] = replace(old, state=BranchState.ABANDONED, left_ms=self._tick())
            doubt_left(state, old.head, state.depth(retreat.restore_after))
            if move_default and state.tree.default_branch == old.name:
                state.tree = replace(state.tree, default_branch=new.name)
            position = state.commit(EventKind.REVISED, new.name, (node.node_id,))
            return Revised(new, old, node, retreat.effects, position)

        return state.once(request, write)

    async def fork(
        self,
        ref: TreeRef,
        branch: str,
        at_node: int,
        new_branch: str,
        request: Request,
        agent_id: str = "",
        held_by: str = "",
    ) -> tuple[Branch, Position]:
        """Name a new branch at a step of `branch` (0: its head, -1: the empty root)."""
        state = self._state(ref)

        def write() -> tuple[Branch, Position]:
            source = state.branch(branch)
            at = state.on_path(source.head, {0: source.head, -1: 0}.get(at_node, at_node))
            new = replace(state.branch_at(new_branch, source, at), agent_id=agent_id, held_by=held_by)
            if held_by:
                new = replace(new, state=BranchState.ABANDONED)
            state.branches[new.name] = new
            return new, state.commit(EventKind.FORKED, new.name, ())

        return state.once(request, write)

    async def release(self, ref: TreeRef, branch: str, request: Request) -> Position:
        """Drop a branch that keeps a place."""
        state = self._state(ref)

        def write() -> Position:
            found = state.branch(branch)
            if not found.held_by:
                raise refusal(ref, "BRANCH_NOT_FOUND", branch)
            del state.branches[found.name]
            state.slot_heads.pop(found.name, None)
            state.garbage_at = state.tree.revision + 1
            return state.commit(EventKind.RELEASED, found.name, ())

        return state.once(request, write)

    async def waiting(self, ref: TreeRef, branch: str) -> tuple[Branch, tuple[Node, ...]]:
        """The steps of a branch's path that wait, oldest first."""
        state = self._state(ref)
        found = state.branch(branch)
        return found, tuple(state.shown(node_id, found.head) for node_id in state.waiting_at(found.head))

    async def snapshot(
        self, ref: TreeRef, branch: str, token_limit: int, hint_limit: int, tokenizer: str, with_ids: bool
    ) -> Snapshot:
        """The newest part of a branch."""
        state = self._state(ref)
        found = state.branch(branch)
        attached = state.tokens.get(tokenizer, {})

        def shown(node: Node) -> Shown:
            ids = attached.get(node.node_id)
            return Shown(node, None if ids is None else len(ids), ids if with_ids and ids is not None else ())

        def newest(nodes: Iterator[Node], limit: int, most: int) -> tuple[tuple[Shown, ...], Rest]:
            taken: list[Shown] = []
            for node in nodes:
                if sum(s.cost for s in taken) > limit or len(taken) == most:
                    return tuple(reversed(taken)), Rest(node.node_id, node.path_tokens)
                taken.append(shown(node))
            return tuple(reversed(taken)), Rest()

        steps, steps_rest = newest(state.raw(found), token_limit, 4096)
        summaries, summaries_rest = newest(state.summaries(found), token_limit, 4096)
        hints, hints_rest = newest(state.up(found.hint), token_limit, hint_limit)
        last = state.last_slots(state.slot_head(found))
        slots = tuple(shown(node) for node in last if isinstance(node.body, Slot) and not node.body.unset)
        root = attached.get(ROOT)
        return Snapshot(
            state.tree, found, steps, summaries, hints, steps_rest, summaries_rest, hints_rest,
            None if root is None else len(root), root if with_ids and root is not None else (), slots,
            stale_on(state, found.head), tuple(shown(state.nodes[n]) for n in state.waiting_at(found.head)),
        )  # fmt: skip

    async def note_cut(self, ref: TreeRef, branch: BranchName, cut: int) -> None:
        """Remember where the last assembly cut."""
        state = self._trees.get(ref)
        if state is not None and branch in state.branches:
            state.branches[branch] = replace(state.branches[branch], cut=cut)

    async def path(
        self, ref: TreeRef, branch: str, end_node: int, page_size: int, bytes_max: int, above: int = 0
    ) -> Path:
        """Steps of a branch's path."""
        state = self._state(ref)
        found = state.branch(branch)
        end = state.on_path(found.head, end_node or found.head)
        taken: list[Node] = []
        left = bytes_max
        for node in state.up(end):
            if node.depth <= above:
                break
            left -= stored_size(state.shown(node.node_id))
            if len(taken) == page_size or (left < 0 and taken):
                return Path(tuple(reversed(taken)), node.node_id, found)
            taken.append(state.shown(node.node_id, found.head))
        return Path(tuple(reversed(taken)), ROOT, found)

    async def nodes(self, ref: TreeRef, node_ids: Sequence[int], bytes_max: int) -> tuple[Node, ...]:
        """Nodes by id, in the order asked for."""
        state = self._state(ref)
        size = 0
        for i, node_id in enumerate(node_ids):
            if node_id not in state.nodes:
                raise refusal(ref, "NODE_NOT_FOUND", str(node_id), str(i))
            size += stored_size(state.shown(node_id))
            if i and size > bytes_max:
                raise refusal(ref, "TOO_LARGE", str(i))
        return tuple(state.shown(node_id) for node_id in node_ids)

    async def attach(self, ref: TreeRef, tokenizer: str, tokens: Mapping[int, Sequence[int]]) -> tuple[NodeId, ...]:
        """Attach rendered token ids; the ids of nodes that had some and kept them."""
        state = self._state(ref)
        for i, node_id in enumerate(tokens):
            if node_id and node_id not in state.nodes:
                raise refusal(ref, "NODE_NOT_FOUND", str(node_id), str(i))
        if tokenizer not in state.tokens and len(state.tokens) >= TOKENIZERS_MAX:
            raise refusal(ref, "TOO_MANY_TOKENIZERS")
        attached = state.tokens.setdefault(tokenizer, {})
        kept = tuple(NodeId(node_id) for node_id in tokens if node_id in attached)
        for node_id, ids in tokens.items():
            attached.setdefault(node_id, tuple(ids))
        return kept
