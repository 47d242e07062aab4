"""Memory trees in memory: the twin of `trees_redis`, under the same contract suite. For tests and for reading.

One event loop, no awaits inside an operation: each is atomic. Times count up from the epoch, so runs repeat exactly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from katsura.domain.ids import DEFAULT_BRANCH, BranchName, NodeId, TenantId
from katsura.domain.trees import (
    ROOT,
    ROOT_HASH,
    Body,
    Branch,
    BranchState,
    Durability,
    Effect,
    EventKind,
    Hint,
    Judgement,
    Node,
    Request,
    Rest,
    Shown,
    Snapshot,
    StandingEffect,
    Step,
    Summary,
    SummaryStatus,
    Tree,
)
from katsura.state.tree_records import SALT_BYTES, body_digest, content_hash, record_of, stored_size
from katsura.state.trees import (
    TOKENIZERS_MAX,
    Cover,
    Event,
    Grown,
    Limits,
    NewStep,
    NewTree,
    Path,
    Position,
    Retreat,
    Revised,
    TreeRef,
    Written,
    compacted,
    excerpt,
    refusal,
)

T = TypeVar("T")
_SALT = bytes(SALT_BYTES)
_HARMLESS = (Effect.NONE, Effect.UNSPECIFIED)


@dataclass(slots=True)
class _State:
    """One tree."""

    tree: Tree
    made_by: Request
    made: tuple[Tree, Branch]
    branches: dict[str, Branch] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    steps: dict[tuple[str, str], tuple[NodeId, str]] = field(default_factory=dict)
    kids: dict[tuple[int, str], NodeId] = field(default_factory=dict)
    versions: dict[tuple[int, int, int], int] = field(default_factory=dict)
    replays: dict[str, tuple[str, object]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    tokens: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def up(self, node_id: int) -> Iterator[Node]:
        """The node and everything above it, nearest first."""
        while node_id:
            node = self.nodes[node_id]
            yield node
            node_id = node.parent_id

    def depth(self, node_id: int) -> int:
        return self.nodes[node_id].depth if node_id else 0

    def path_tokens(self, node_id: int) -> int:
        return self.nodes[node_id].path_tokens if node_id else 0

    def content_hash(self, node_id: int) -> bytes:
        return self.nodes[node_id].content_hash if node_id else ROOT_HASH

    def climb(self, node_id: int, depth: int) -> NodeId:
        """The nearest node at or above `node_id` whose depth is at most `depth`."""
        return next((n.node_id for n in self.up(node_id) if n.depth <= depth), ROOT)

    def shown(self, node_id: int) -> Node:
        tokenized = tuple(sorted(digest for digest, ids in self.tokens.items() if node_id in ids))
        return replace(self.nodes[node_id], tokenized_for=tokenized)


class TwinTreeStore:
    """Trees of all tenants in one dictionary."""

    def __init__(self, limits: Limits, incarnation: str = "twin", durability: Durability = Durability.STRICT) -> None:
        self._limits = limits
        self._incarnation = incarnation
        self._durability = durability
        self._trees: dict[TreeRef, _State] = {}
        self._now = 0

    @property
    def durability(self) -> Durability:
        """What the twin pretends that a write survives."""
        return self._durability

    async def create(self, ref: TreeRef, new: NewTree, request: Request) -> tuple[Tree, Branch]:
        """Make a tree with one empty branch."""
        state = self._trees.get(ref)
        if state is not None:
            if not request.request_id or state.made_by.request_id != request.request_id:
                raise refusal(ref, "TREE_EXISTS")
            if state.made_by.digest != request.digest:
                raise refusal(ref, "REQUEST_ID_REUSED")
            return state.made
        self._now += 1
        branch = Branch(DEFAULT_BRANCH, BranchState.ACTIVE, ROOT, ROOT, ROOT, ROOT, "", 0, 0, ROOT, 0, self._now, 1)
        tree = Tree(
            ref.tree, new.goal, new.pins, new.policy, dict(new.labels), 0, self._incarnation, branch.name, 0, 1,
            self._now, self._now,
        )  # fmt: skip
        state = self._trees[ref] = _State(tree, request, (tree, branch))
        state.branches[branch.name] = branch
        self._commit(state, EventKind.TREE_CREATED, branch.name, ())
        state.made = (state.tree, branch)
        return state.made

    async def read(self, ref: TreeRef) -> tuple[Tree, tuple[Branch, ...]]:
        """The tree and its branches in the order they were made."""
        state = self._state(ref)
        return state.tree, tuple(state.branches.values())

    async def trees(self, tenant: TenantId, page_size: int, page_token: str) -> tuple[tuple[Tree, ...], str]:
        """Trees of a tenant, newest first."""
        named = {f"{s.tree.create_ms:013}:{ref.tree}": s.tree for ref, s in self._trees.items() if ref.tenant == tenant}
        names = sorted((name for name in named if not page_token or name < page_token), reverse=True)[:page_size]
        return tuple(named[name] for name in names), names[-1] if len(names) == page_size else ""

    async def drop(self, ref: TreeRef) -> None:
        """Drop a tree and everything in it."""
        state = self._state(ref)
        self._commit(state, EventKind.TREE_DELETED, "", ())
        del self._trees[ref]

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
        return self._once(state, ref, request, lambda: self._grow(state, ref, branch, expected_head, steps, merge))

    async def replayed(self, ref: TreeRef, request: Request) -> Written | Revised | None:
        """What `summarise`, `judge` or `revise` answered to this request before."""
        state = self._state(ref)
        seen = self._seen(state, ref, request)
        return seen if isinstance(seen, Written | Revised) else None

    async def cover(self, ref: TreeRef, branch: str, expected_head: int | None, last: int) -> Cover:
        """What a summary up to the step `last` (0: the head) would cover."""
        state = self._state(ref)
        found = self._writable(state, ref, branch)
        self._compare(ref, found, expected_head)
        end = self._on_path(state, ref, found.head, last or found.head)
        previous = self._standing(state, found)
        base = previous.body.last_covered if previous and isinstance(previous.body, Summary) else ROOT
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
    ) -> Written:
        """Write a summary of `cover`; it becomes the branch's unless it FAILED."""
        state = self._state(ref)

        def write() -> Written:
            branch = self._writable(state, ref, cover.branch.name)
            parent = cover.previous.node_id if cover.previous else ROOT
            segment = (parent, cover.base, cover.last)
            moved = branch.summary_head != cover.branch.summary_head
            moved |= state.climb(branch.head, state.depth(cover.last)) != cover.last
            moved |= state.versions.get(segment, 0) != cover.versions
            self._compare(ref, branch, -1 if moved else expected_head)
            state.versions[segment] = cover.versions + 1
            node = self._add(state, parent, branch.name, summary, summary.body_tokens, state.depth(cover.last))
            node = state.nodes[node.node_id] = replace(node, judgement=replace(judgement, version=1))
            if judgement.status is not SummaryStatus.FAILED:
                branch = self._adopt(state, branch, node)
            position = self._commit(state, EventKind.COMPRESSED, branch.name, (node.node_id,))
            return Written(node, branch, position)

        return self._once(state, ref, request, write)

    async def judge(self, ref: TreeRef, branch: str, summary: Node, judgement: Judgement, request: Request) -> Written:
        """Replace what is known about a summary, if it is still what `summary` shows."""
        state = self._state(ref)

        def write() -> Written:
            found = self._branch(state, ref, branch)
            node = state.nodes.get(summary.node_id)
            if node is None or node.judgement is None:
                raise refusal(ref, "NODE_NOT_FOUND", str(summary.node_id))
            if summary.judgement is None or node.judgement.version != summary.judgement.version:
                raise refusal(ref, "HEAD_MOVED", str(found.head), found.name)
            node = replace(node, judgement=replace(judgement, version=node.judgement.version + 1))
            state.nodes[node.node_id] = node
            assert isinstance(node.body, Summary)
            previous = self._standing(state, found)
            continues = (previous.node_id if previous else ROOT) == node.parent_id != node.node_id
            on_path = state.climb(found.head, node.depth) == node.body.last_covered
            fresh = judgement.status is SummaryStatus.VALID and found.state is BranchState.ACTIVE
            if fresh and continues and on_path and found.summary_head != node.node_id:
                found = self._adopt(state, found, node)
            return Written(node, found, self._commit(state, EventKind.MAINTAINED, found.name, (node.node_id,)))

        return self._once(state, ref, request, write)

    async def retreat(self, ref: TreeRef, branch: str, expected_head: int | None, restore_after: int) -> Retreat:
        """What a Revise to `restore_after` (0: keep nothing) would leave behind."""
        state = self._state(ref)
        found = self._writable(state, ref, branch)
        self._compare(ref, found, expected_head)
        end = self._on_path(state, ref, found.head, restore_after)
        if end == found.head:
            raise refusal(ref, "BAD_BOUNDARY", str(end))
        depth = state.depth(end)
        left = [node for node in state.up(found.head) if node.depth > depth]
        hint = state.climb(found.hint, depth)
        effects = [
            StandingEffect(n.node_id, n.body.effect, n.body.undo_ref, excerpt(n.body))
            for n in left
            if isinstance(n.body, Step) and n.body.effect not in _HARMLESS
        ]
        return Retreat(found, end, left[-1], hint, state.content_hash(hint), tuple(effects))

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
            old = self._writable(state, ref, retreat.branch.name)
            self._compare(ref, old, retreat.branch.head)
            new = self._branch_at(state, ref, new_branch, old, retreat.restore_after)
            node = self._add(state, retreat.previous_hint, new.name, hint, tokens, new.depth)
            new = state.branches[new.name] = replace(new, hint=node.node_id)
            old = state.branches[old.name] = replace(old, state=BranchState.ABANDONED)
            if move_default and state.tree.default_branch == old.name:
                state.tree = replace(state.tree, default_branch=new.name)
            position = self._commit(state, EventKind.REVISED, new.name, (node.node_id,))
            return Revised(new, old, node, retreat.effects, position)

        return self._once(state, ref, request, write)

    async def fork(
        self, ref: TreeRef, branch: str, at_node: int, new_branch: str, request: Request
    ) -> tuple[Branch, Position]:
        """Name a new branch at a step of `branch` (0: its head, -1: the empty root)."""
        state = self._state(ref)

        def write() -> tuple[Branch, Position]:
            source = self._branch(state, ref, branch)
            at = self._on_path(state, ref, source.head, {0: source.head, -1: 0}.get(at_node, at_node))
            new = self._branch_at(state, ref, new_branch, source, at)
            state.branches[new.name] = new
            return new, self._commit(state, EventKind.FORKED, new.name, ())

        return self._once(state, ref, request, write)

    async def snapshot(
        self, ref: TreeRef, branch: str, token_limit: int, hint_limit: int, tokenizer: str, with_ids: bool
    ) -> Snapshot:
        """The newest part of a branch."""
        state = self._state(ref)
        found = self._branch(state, ref, branch)
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

        steps, steps_rest = newest(self._raw(state, found), token_limit, 4096)
        summaries, summaries_rest = newest(state.up(found.summary_head), token_limit, 4096)
        hints, hints_rest = newest(state.up(found.hint), token_limit, hint_limit)
        root = attached.get(ROOT)
        return Snapshot(
            state.tree, found, steps, summaries, hints, steps_rest, summaries_rest, hints_rest,
            None if root is None else len(root), root if with_ids and root is not None else (),
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
        found = self._branch(state, ref, branch)
        end = self._on_path(state, ref, found.head, end_node or found.head)
        taken: list[Node] = []
        left = bytes_max
        for node in state.up(end):
            if node.depth <= above:
                break
            left -= stored_size(node.body)
            if len(taken) == page_size or (left < 0 and taken):
                return Path(tuple(reversed(taken)), node.node_id, found)
            taken.append(state.shown(node.node_id))
        return Path(tuple(reversed(taken)), ROOT, found)

    async def nodes(self, ref: TreeRef, node_ids: Sequence[int], bytes_max: int) -> tuple[Node, ...]:
        """Nodes by id, in the order asked for."""
        state = self._state(ref)
        size = 0
        for i, node_id in enumerate(node_ids):
            if node_id not in state.nodes:
                raise refusal(ref, "NODE_NOT_FOUND", str(node_id), str(i))
            size += stored_size(state.nodes[node_id].body)
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

    async def watch(
        self, ref: TreeRef, resume_token: str, after_revision: int, heartbeat_s: float
    ) -> AsyncIterator[Event]:
        """Every commit after a point, once and in order."""
        state = self._state(ref)
        at = self._watch_start(state, resume_token, after_revision)
        while True:
            oldest = state.events[0].position.revision
            if at + 1 < oldest:
                raise compacted(f"revisions {at + 1} to {oldest - 1} are no longer kept")
            for event in [e for e in state.events if e.position.revision > at]:
                yield event
                at = event.position.revision
                if event.kind is EventKind.TREE_DELETED:
                    return
            if state.tree.revision > at:
                continue
            try:
                async with asyncio.timeout(heartbeat_s):
                    await state.changed.wait()
            except TimeoutError:
                yield Event(EventKind.HEARTBEAT, Position(state.tree.revision, self._incarnation))

    def _watch_start(self, state: _State, token: str, after: int) -> int:
        oldest, newest = state.events[0].position.revision, state.tree.revision
        if token:
            found = [e.position.revision for e in state.events if e.resume_token == token]
            if not found:
                raise compacted("the event of the resume token is no longer kept, or of another life of the store")
            return found[0]
        if after == -1:
            return newest
        if after == 0:
            return oldest - 1
        if after > newest or oldest > after + 1:
            raise compacted(f"revisions {oldest} to {newest} are kept")
        return after

    def _state(self, ref: TreeRef) -> _State:
        state = self._trees.get(ref)
        if state is None:
            raise refusal(ref, "TREE_NOT_FOUND")
        return state

    def _branch(self, state: _State, ref: TreeRef, name: str) -> Branch:
        branch = state.branches.get(name or state.tree.default_branch)
        if branch is None:
            raise refusal(ref, "BRANCH_NOT_FOUND", name)
        return branch

    def _writable(self, state: _State, ref: TreeRef, name: str) -> Branch:
        branch = self._branch(state, ref, name)
        if branch.state is not BranchState.ACTIVE:
            raise refusal(ref, "BRANCH_NOT_WRITABLE", branch.name)
        return branch

    def _compare(self, ref: TreeRef, branch: Branch, expected_head: int | None) -> None:
        if expected_head is not None and expected_head != branch.head:
            raise refusal(ref, "HEAD_MOVED", str(branch.head), branch.name)

    def _on_path(self, state: _State, ref: TreeRef, head: int, node_id: int) -> NodeId:
        if node_id and node_id not in state.nodes:
            raise refusal(ref, "NODE_NOT_FOUND", str(node_id))
        if state.climb(head, state.depth(node_id)) != node_id:
            raise refusal(ref, "BAD_BOUNDARY", str(node_id))
        return NodeId(node_id)

    def _seen(self, state: _State, ref: TreeRef, request: Request) -> object:
        digest, answer = state.replays.get(request.request_id, (request.digest, None))
        if digest != request.digest:
            raise refusal(ref, "REQUEST_ID_REUSED")
        return answer

    def _once(self, state: _State, ref: TreeRef, request: Request, act: Callable[[], T]) -> T:
        seen = self._seen(state, ref, request)
        if seen is not None:
            return seen  # type: ignore[return-value]
        answer = act()
        if request.request_id:
            state.replays[request.request_id] = (request.digest, answer)
            if len(state.replays) > self._limits.replays:
                state.replays.pop(next(iter(state.replays)))
        return answer

    def _grow(
        self, state: _State, ref: TreeRef, name: str, expected: int | None, steps: Sequence[NewStep], merge: bool
    ) -> Grown:
        branch = self._writable(state, ref, name)
        digests = [body_digest(new.step, repr(ref).encode()) for new in steps]
        found, base = self._resolve(state, ref, branch, steps, digests, merge)
        repeated = [(branch.name, new.step.client_step_id) in state.steps for new in steps]
        if all(repeated):
            position = Position(state.tree.revision, self._incarnation)
            due = branch.raw_tokens > state.tree.policy.raw_token_limit
            return Grown(tuple(n for n in found if n is not None), (True,) * len(steps), branch, position, due)
        self._compare(ref, branch, expected)
        ids: list[NodeId] = []
        for new, digest, known in zip(steps, digests, found, strict=True):
            node_id = known
            if node_id is None:
                node_id = self._add(state, base, branch.name, new.step, new.tokens, state.depth(base) + 1).node_id
                if new.step.effect in _HARMLESS:
                    state.kids.setdefault((base, digest), node_id)
                base = node_id
            if new.step.client_step_id:
                state.steps[branch.name, new.step.client_step_id] = (node_id, digest)
            ids.append(node_id)
        raw = state.path_tokens(base) - state.path_tokens(branch.boundary)
        branch = replace(branch, head=base, depth=state.depth(base), raw_tokens=raw)
        state.branches[branch.name] = branch
        position = self._commit(state, EventKind.GROWN, branch.name, tuple(ids))
        due = raw > state.tree.policy.raw_token_limit
        return Grown(tuple(ids), tuple(n is not None for n in found), branch, position, due)

    def _resolve(
        self, state: _State, ref: TreeRef, branch: Branch, steps: Sequence[NewStep], digests: Sequence[str], merge: bool
    ) -> tuple[list[NodeId | None], NodeId]:
        found: list[NodeId | None] = []
        base = branch.head
        for i, (new, digest) in enumerate(zip(steps, digests, strict=True)):
            known = state.steps.get((branch.name, new.step.client_step_id)) if new.step.client_step_id else None
            if known is not None:
                if known[1] != digest:
                    raise refusal(ref, "STEP_ID_REUSED", str(i), str(known[0]))
                found.append(known[0])
            else:
                child = state.kids.get((base, digest)) if merge and new.step.effect in _HARMLESS else None
                merge = merge and child is not None
                base = child if child is not None else base
                found.append(child)
            for node_id in new.step.related_node_ids:
                if node_id not in state.nodes:
                    raise refusal(ref, "NODE_NOT_FOUND", str(node_id), str(i))
        return found, base

    def _add(self, state: _State, parent: int, branch: str, body: Body, tokens: int, depth: int) -> Node:
        node_id = NodeId(state.tree.node_count + 1)
        self._now += 1
        node = Node(
            node_id=node_id,
            parent_id=NodeId(parent),
            content_hash=content_hash(state.content_hash(parent), record_of(body, _SALT)),
            birth_branch=BranchName(branch),
            depth=depth,
            create_ms=self._now,
            revision=state.tree.revision + 1,
            body=body,
            tokens=tokens,
            path_tokens=state.path_tokens(parent) + tokens,
        )
        state.nodes[node_id] = node
        state.tree = replace(state.tree, node_count=node_id)
        return node

    def _raw(self, state: _State, branch: Branch) -> Iterator[Node]:
        at, summary = branch.head, branch.summary_head
        while at:
            node = state.nodes[summary] if summary else None
            if node is not None and isinstance(node.body, Summary) and node.body.last_covered == at:
                if node.judgement is not None and node.judgement.status is SummaryStatus.VALID:
                    at = state.nodes[node.body.first_covered].parent_id
                summary = node.parent_id
                continue
            yield state.nodes[at]
            at = state.nodes[at].parent_id

    def _standing(self, state: _State, branch: Branch) -> Node | None:
        for node in state.up(branch.summary_head):
            if node.judgement is not None and node.judgement.status is not SummaryStatus.FAILED:
                return node
        return None

    def _adopt(self, state: _State, branch: Branch, node: Node) -> Branch:
        assert isinstance(node.body, Summary)
        last = node.body.last_covered
        raw = state.path_tokens(branch.head) - state.path_tokens(last)
        branch = replace(branch, summary_head=node.node_id, boundary=last, raw_tokens=raw)
        state.branches[branch.name] = branch
        return branch

    def _branch_at(self, state: _State, ref: TreeRef, name: str, source: Branch, at: NodeId) -> Branch:
        if name in state.branches:
            raise refusal(ref, "BRANCH_EXISTS", name)
        order = len(state.branches) + 1
        number = order
        while not name:
            name = f"b{number}" if f"b{number}" not in state.branches else ""
            number += 1
        depth = state.depth(at)
        summary = state.climb(source.summary_head, depth)
        body = state.nodes[summary].body if summary else None
        boundary = body.last_covered if isinstance(body, Summary) else ROOT
        self._now += 1
        state.tree = replace(state.tree, branch_count=order)
        return Branch(
            BranchName(name), BranchState.ACTIVE, at, summary, boundary, at, source.name, depth,
            state.path_tokens(at) - state.path_tokens(boundary), state.climb(source.hint, depth),
            min(source.cut, depth), self._now, order,
        )  # fmt: skip

    def _commit(self, state: _State, kind: EventKind, branch: str, ids: tuple[NodeId, ...]) -> Position:
        self._now += 1
        state.tree = replace(state.tree, revision=state.tree.revision + 1, update_ms=self._now)
        position = Position(state.tree.revision, self._incarnation)
        token = f"{self._incarnation}.{position.revision}-{self._now}"
        state.events.append(Event(kind, position, branch, ids, token))
        del state.events[: -self._limits.events]
        state.changed.set()
        state.changed = asyncio.Event()
        return position
