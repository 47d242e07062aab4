"""One memory tree in memory: what `trees_twin` keeps per tree, with the rules that the Lua functions apply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from katsura.domain.errors import KatsuraError
from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import (
    ROOT,
    ROOT_HASH,
    Attachment,
    Body,
    Branch,
    BranchState,
    Cost,
    Durability,
    EventKind,
    Hint,
    Judgement,
    Node,
    Relation,
    Request,
    Slot,
    StaleReason,
    StandingEffect,
    Step,
    Summary,
    SummaryStatus,
    Tree,
    Verdict,
)
from katsura.domain.usage import Charge
from katsura.domain.work import WorkItem
from katsura.state.tree_records import SALT_BYTES, blob_of, body_digest, content_hash, record_of
from katsura.state.trees import (
    WAITING_MAX,
    Event,
    Grown,
    Limits,
    NewStep,
    Position,
    TreeRef,
    refusal,
    standing_of,
)
from katsura.state.twin_doubt import Doubts, check_references, refer, seen_marks

T = TypeVar("T")
_SALT = bytes(SALT_BYTES)


@dataclass(slots=True)
class TwinTree:
    """One tree, and every rule that one operation applies to it. `tick` is the store's clock, in milliseconds."""

    ref: TreeRef
    limits: Limits
    incarnation: str
    tick: Callable[[], int]
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
    rollups: dict[int, NodeId] = field(default_factory=dict)
    covers: dict[int, set[NodeId]] = field(default_factory=dict)
    slot_heads: dict[str, NodeId] = field(default_factory=dict)
    extras: dict[int, dict[str, Attachment]] = field(default_factory=dict)
    work: dict[str, WorkItem] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)
    claims: int = 0
    doubts: Doubts = field(default_factory=Doubts)
    gone: set[str] = field(default_factory=set)
    lease_token: int = 0
    """What the write that is under way is made under."""
    collected: int = 0
    garbage_at: int | None = None
    """Revision from which one more pass over all nodes finds what was too new before."""
    collector: tuple[int, int, str] = (0, 0, "")
    """The newest claim to collect: token, when it ends, worker."""

    @property
    def shown_tree(self) -> Tree:
        """The tree as readers see it."""
        return replace(self.tree, stale_count=len(self.doubts.marks))

    def up(self, node_id: int) -> Iterator[Node]:
        """The node and everything above it, nearest first."""
        while node_id:
            node = self.nodes[node_id]
            yield node
            node_id = node.parent_id

    def depth(self, node_id: int) -> int:
        """Steps from the root to a node; 0 for the root."""
        return self.nodes[node_id].depth if node_id else 0

    def path_tokens(self, node_id: int) -> int:
        """Tokens from the root to a node."""
        return self.nodes[node_id].path_tokens if node_id else 0

    def content_hash(self, node_id: int) -> bytes:
        """Content hash of a node, or of the root."""
        return self.nodes[node_id].content_hash if node_id else ROOT_HASH

    def climb(self, node_id: int, depth: int) -> NodeId:
        """The nearest node at or above `node_id` whose depth is at most `depth`."""
        return next((n.node_id for n in self.up(node_id) if n.depth <= depth), ROOT)

    def slot_head(self, branch: Branch) -> NodeId:
        """The last slot write on a branch's path."""
        return self.slot_heads.get(branch.name, ROOT)

    def last_slots(self, head: int) -> list[Node]:
        """The last write of each key up to a slot write, oldest first, those included that unset theirs."""
        last: dict[str, Node] = {}
        for node in self.up(head):
            if isinstance(node.body, Slot):
                last.setdefault(node.body.key, node)
        return sorted(last.values(), key=lambda node: node.node_id)

    def slot_keys(self, head: int) -> set[str]:
        """Keys that the path of a slot write has ever set."""
        return {node.body.key for node in self.last_slots(head) if isinstance(node.body, Slot)}

    def append_slots(self, branch: Branch, head: NodeId, writes: Sequence[tuple[Slot, int]]) -> tuple[NodeId, ...]:
        """Append writes to the chain that ends at `head`, and make it the branch's."""
        ids = []
        for slot, tokens in writes:
            head = self.add(head, branch.name, slot, tokens, branch.depth).node_id
            ids.append(head)
        self.slot_heads[branch.name] = head
        return tuple(ids)

    def shown(self, node_id: int, head: int | None = None) -> Node:
        """The node with everything kept beside it, stale as seen from the path that ends at `head` (None: any)."""
        tokenized = tuple(sorted(digest for digest, ids in self.tokens.items() if node_id in ids))
        beside = tuple(self.extras.get(node_id, {}).values())
        references = self.doubts.references.get(node_id, ())
        stale = seen_marks(self, node_id, head)
        node = self.nodes[node_id]
        return replace(node, tokenized_for=tokenized, attachments=beside, references=references, stale=stale)

    def branch(self, name: str) -> Branch:
        """A branch by name. Raises BRANCH_NOT_FOUND."""
        branch = self.branches.get(name or self.tree.default_branch)
        if branch is None:
            raise refusal(self.ref, "BRANCH_NOT_FOUND", name)
        return branch

    def writable(self, name: str) -> Branch:
        """A branch that may grow. Raises BRANCH_NOT_WRITABLE."""
        branch = self.branch(name)
        if branch.state is not BranchState.ACTIVE:
            raise not_writable(self.ref, branch)
        return branch

    def guarded(self, name: str) -> Branch:
        """A branch whose path the write under way may change. Raises LEASE_HELD or LEASE_LOST, too."""
        return self.guard(self.writable(name), self.lease_token)

    def guard(self, branch: Branch, token: int) -> Branch:
        """The branch, if a write under the lease `token` (0: none) may change its path."""
        if token and (token != branch.lease_token or not branch.lease_holder):
            raise lease_lost(self.ref, branch)
        if not token and branch.lease_end_ms > self.tick():
            raise refusal(self.ref, "LEASE_HELD", str(branch.head), branch.name, branch.lease_holder)
        return branch

    def compare(self, branch: Branch, expected_head: int | None) -> None:
        """Refuse a head that has moved."""
        if expected_head is not None and expected_head != branch.head:
            raise refusal(self.ref, "HEAD_MOVED", str(branch.head), branch.name)

    def on_path(self, head: int, node_id: int) -> NodeId:
        """`node_id`, if it lies on the path that ends at `head`."""
        if node_id and node_id not in self.nodes:
            raise refusal(self.ref, "NODE_NOT_FOUND", str(node_id))
        if self.climb(head, self.depth(node_id)) != node_id:
            raise refusal(self.ref, "BAD_BOUNDARY", str(node_id))
        return NodeId(node_id)

    def seen(self, request: Request) -> object:
        """What a request was answered before, or None."""
        digest, answer = self.replays.get(request.request_id, (request.digest, None))
        if digest != request.digest:
            raise refusal(self.ref, "REQUEST_ID_REUSED")
        return answer

    def once(self, request: Request, act: Callable[[], T]) -> T:
        """`act`, or its answer where the request was answered before."""
        seen = self.seen(request)
        if seen is not None:
            return seen  # type: ignore[return-value]
        self.lease_token = request.lease_token
        answer = act()
        if request.request_id:
            self.replays[request.request_id] = (request.digest, answer)
            if len(self.replays) > self.limits.replays:
                self.replays.pop(next(iter(self.replays)))
        return answer

    def grow(self, name: str, expected: int | None, steps: Sequence[NewStep], merge: bool) -> Grown:
        """Append steps, all or none."""
        branch = self.guarded(name)
        digests = [body_digest(new.step, repr(self.ref).encode()) for new in steps]
        found, base = self.resolve(branch, steps, digests, merge)
        repeated = [(branch.name, new.step.client_step_id) in self.steps for new in steps]
        if all(repeated):
            position = Position(self.tree.revision, self.incarnation)
            due = branch.raw_tokens > self.tree.policy.raw_token_limit
            return Grown(tuple(n for n in found if n is not None), (True,) * len(steps), branch, position, due)
        self.compare(branch, expected)
        self.check_waiting(base, [new.step for new, known in zip(steps, found, strict=True) if known is None])
        ids: list[NodeId] = []
        for new, digest, known in zip(steps, digests, found, strict=True):
            node_id = known
            if node_id is None:
                node_id = base = self.append(base, branch.name, new.step, new.tokens, digest)
                self.charge(new.step)
            if new.step.client_step_id:
                self.steps[branch.name, new.step.client_step_id] = (node_id, digest)
            ids.append(node_id)
        raw = self.path_tokens(base) - self.path_tokens(branch.boundary)
        branch = replace(branch, head=base, depth=self.depth(base), raw_tokens=raw)
        self.branches[branch.name] = branch
        position = self.commit(EventKind.GROWN, branch.name, tuple(ids))
        due = raw > self.tree.policy.raw_token_limit
        return Grown(tuple(ids), tuple(n is not None for n in found), branch, position, due)

    def charge(self, step: Step) -> None:
        """Charge a new step to its agent, where it names one or a cost."""
        if step.agent_id or step.cost != Cost():
            size, cost = len(record_of(step, _SALT)) + len(blob_of(step)), step.cost
            charge = Charge(1, size, cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens, cost.micros)
            self.charges[step.agent_id] = self.charges.get(step.agent_id, Charge()) + charge

    def resolve(
        self, branch: Branch, steps: Sequence[NewStep], digests: Sequence[str], merge: bool
    ) -> tuple[list[NodeId | None], NodeId]:
        """Which steps are there already (None: new), and the node that the first new one follows."""
        found: list[NodeId | None] = []
        base = branch.head
        for i, (new, digest) in enumerate(zip(steps, digests, strict=True)):
            known = self.steps.get((branch.name, new.step.client_step_id)) if new.step.client_step_id else None
            if known is not None:
                if known[1] != digest:
                    raise refusal(self.ref, "STEP_ID_REUSED", str(i), str(known[0]))
                found.append(known[0])
            else:
                child = self.kids.get((base, digest)) if merge and new.step.mergeable else None
                merge = merge and child is not None
                base = child if child is not None else base
                found.append(child)
            for node_id in new.step.related_node_ids:
                if node_id not in self.nodes:
                    raise refusal(self.ref, "NODE_NOT_FOUND", str(node_id), str(i))
            check_references(self, ROOT, new.step.references, i)
        return found, base

    def waiting_at(self, head: int) -> list[NodeId]:
        """The steps that wait after a step, oldest first."""
        path = [node for node in self.up(head) if isinstance(node.body, Step)]
        resolved = {node.body.resolves for node in path if isinstance(node.body, Step)}
        waits = [node.node_id for node in path if isinstance(node.body, Step) and node.body.wait is not None]
        return [node_id for node_id in reversed(waits) if node_id not in resolved]

    def check_waiting(self, base: int, steps: Sequence[Step]) -> None:
        """Refuse steps that resolve what does not wait, and too many that wait."""
        open_steps = set(self.waiting_at(base))
        count = len(open_steps)
        for step in steps:
            if step.resolves and step.resolves not in open_steps:
                raise refusal(self.ref, "NOT_WAITING", str(step.resolves))
            open_steps.discard(step.resolves)
            count += (step.wait is not None) - bool(step.resolves)
        if count > WAITING_MAX:
            raise refusal(self.ref, "TOO_MANY", "steps", str(WAITING_MAX))

    def append(self, base: NodeId, branch: str, step: Step, tokens: int, digest: str) -> NodeId:
        """Make a step below `base`, and everything that follows from what it says."""
        node_id = self.add(base, branch, step, tokens, self.depth(base) + 1).node_id
        if step.mergeable:
            self.kids.setdefault((base, digest), node_id)
        if step.references:
            refer(self, node_id, [replace(reference, declared=True) for reference in step.references])
        for related in step.related_node_ids if step.relation is Relation.REPLACE else ():
            self.doubts.doubt(related, StaleReason.REPLACED, node_id)
        return node_id

    def add(self, parent: int, branch: str, body: Body, tokens: int, depth: int) -> Node:
        """Make a node below `parent`."""
        node_id = NodeId(self.tree.node_count + 1)
        now = self.tick()
        node = Node(
            node_id=node_id,
            parent_id=NodeId(parent),
            content_hash=content_hash(self.content_hash(parent), record_of(body, _SALT)),
            birth_branch=BranchName(branch),
            depth=depth,
            create_ms=now,
            revision=self.tree.revision + 1,
            body=body,
            tokens=tokens,
            path_tokens=self.path_tokens(parent) + tokens,
        )
        self.nodes[node_id] = node
        self.tree = replace(self.tree, node_count=node_id)
        return node

    def span(self, node_id: int) -> tuple[NodeId, NodeId]:
        """The step before the cover of a summary, and its last step."""
        body = self.nodes[node_id].body
        assert isinstance(body, Summary), "summaries span"
        if body.level == 0:
            return self.nodes[body.first_covered].parent_id, body.last_covered
        return self.span(body.first_covered)[0], self.span(body.last_covered)[1]

    def valid(self, node_id: int) -> bool:
        """Whether a summary may be relied on."""
        judgement = self.nodes[node_id].judgement
        return judgement is not None and judgement.status is SummaryStatus.VALID

    def roll_ups_over(self, summary: int) -> list[NodeId]:
        """Every roll-up over a summary, as they were made."""
        named = self.rollups.get(summary)
        return sorted(self.covers.get(summary, set()) | ({named} if named is not None else set()))

    def put_over(self, parts: Sequence[int], roll_up: NodeId) -> None:
        """Take down a roll-up over its parts, oldest first."""
        for part in parts:
            named = self.rollups.get(part)
            self.covers.setdefault(part, set()).update({roll_up} if named is None else {roll_up, named})
            if part == parts[-1] or named is None or not self.valid(named):
                self.rollups[part] = roll_up

    def ending(self, summary: int) -> NodeId | None:
        """The roll-up that ends with a summary."""
        over = self.rollups.get(summary)
        return over if over is not None and self.span(over)[1] == self.span(summary)[1] else None

    def rolled(self, summary: NodeId) -> NodeId:
        """The highest VALID roll-up that ends with a summary, or the summary itself."""
        over = self.ending(summary)
        return self.rolled(over) if over is not None and self.valid(over) else summary

    def summaries(self, branch: Branch) -> Iterator[Node]:
        """Summaries of a branch, newest first, VALID roll-ups standing for their covers."""
        at = self.rolled(branch.summary_head)
        while at:
            yield self.nodes[at]
            at = self.rolled(self.nodes[at].parent_id)

    def stand(self, node: Node) -> None:
        """Let a roll-up stand over its parts. Raises BAD_BOUNDARY where one is not VALID, or another VALID one ends."""
        parts = node.body.parts if isinstance(node.body, Summary) else ()
        for part in parts:
            other = self.ending(part) if part == parts[-1] else None
            taken = other is not None and other != node.node_id and self.valid(other)
            if not self.valid(part) or taken:
                raise refusal(self.ref, "BAD_BOUNDARY", str(part))
        self.put_over(parts, node.node_id)

    def fail(self, node_id: NodeId) -> list[NodeId]:
        """What a summary's failure leads to: the roll-ups over it fail too; their ids."""
        failed: list[NodeId] = []
        self.doubts.doubt(node_id, StaleReason.FAILED)
        under = [node_id]
        for child in under:
            for over in self.roll_ups_over(child):
                before = self.nodes[over].judgement
                if before is not None and before.status is not SummaryStatus.FAILED:
                    note = f"summary {child}, which it covers, failed"
                    judgement = Judgement(SummaryStatus.FAILED, Verdict.FAIL, Verdict.UNKNOWN, note)
                    judgement = replace(judgement, version=before.version + 1)
                    self.nodes[over] = replace(self.nodes[over], judgement=judgement)
                    self.doubts.doubt(over, StaleReason.FAILED)
                    failed.append(over)
                if over not in under:
                    under.append(over)
        return failed

    def raw(self, branch: Branch) -> Iterator[Node]:
        """Raw steps, newest first, passing over the covers of VALID summaries."""
        at, summary = branch.head, self.rolled(branch.summary_head)
        while at:
            if summary and self.span(summary)[1] == at:
                if self.valid(summary):
                    at = self.span(summary)[0]
                summary = self.rolled(self.nodes[summary].parent_id)
                continue
            yield self.nodes[at]
            at = self.nodes[at].parent_id

    def standing(self, branch: Branch) -> Node | None:
        """The last summary of the branch that did not fail."""
        for node in self.up(branch.summary_head):
            if node.judgement is not None and node.judgement.status is not SummaryStatus.FAILED:
                return node
        return None

    def adopt(self, branch: Branch, node: Node) -> Branch:
        """Make a summary the branch's."""
        last = self.span(node.node_id)[1]
        raw = self.path_tokens(branch.head) - self.path_tokens(last)
        branch = replace(branch, summary_head=node.node_id, boundary=last, raw_tokens=raw)
        self.branches[branch.name] = branch
        return branch

    def branch_at(self, name: str, source: Branch, at: NodeId) -> Branch:
        """A new branch at a step of `source`, not yet kept."""
        if name in self.branches or name in self.gone:
            raise refusal(self.ref, "BRANCH_EXISTS", name)
        order = self.tree.branch_count + 1
        number = order
        while not name:
            name = f"b{number}" if f"b{number}" not in {*self.branches, *self.gone} else ""
            number += 1
        depth = self.depth(at)
        summary = self.climb(source.summary_head, depth)
        self.slot_heads[name] = self.climb(self.slot_head(source), depth)
        boundary = self.span(summary)[1] if summary else ROOT
        now = self.tick()
        self.tree = replace(self.tree, branch_count=order)
        return Branch(
            BranchName(name), BranchState.ACTIVE, at, summary, boundary, at, source.name, depth,
            self.path_tokens(at) - self.path_tokens(boundary), self.climb(source.hint, depth),
            min(source.cut, depth), now, order,
        )  # fmt: skip

    def standing_effects(self, branch: Branch, depth: int, maker: str = "") -> list[StandingEffect]:
        """What the steps of a branch below `depth` did outside, newest first, and what the hints there, or made on the
        branch `maker`, tell of."""
        steps = [(n.node_id, n.body) for n in self.up(branch.head) if n.depth > depth]
        effects = [standing_of(n, body) for n, body in steps if isinstance(body, Step) and not body.harmless]
        for over in self.up(branch.hint):
            if (over.depth > depth or over.birth_branch == maker) and isinstance(over.body, Hint):
                effects += over.body.standing
        return effects

    def commit(self, kind: EventKind, branch: str, ids: tuple[NodeId, ...]) -> Position:
        """Close a commit: revision, event, and waking whoever watches."""
        now = self.tick()
        self.tree = replace(self.tree, revision=self.tree.revision + 1, update_ms=now)
        position = Position(self.tree.revision, self.incarnation)
        token = f"{self.incarnation}.{position.revision}-{now}"
        self.events.append(Event(kind, position, branch, ids, token, self.ref.tree))
        del self.events[: -self.limits.events]
        return position


def lease_lost(ref: TreeRef, branch: Branch) -> KatsuraError:
    """The error where a token is not the newest of a branch."""
    return refusal(ref, "BRANCH_LEASE_LOST", str(branch.head), branch.name, branch.lease_holder)


def not_writable(ref: TreeRef, branch: Branch) -> KatsuraError:
    """The error where a branch is not ACTIVE."""
    return refusal(ref, "BRANCH_NOT_WRITABLE", branch.name, str(int(branch.state)), branch.held_by)


def entered(branch: Branch, state: BranchState, now: int) -> Branch:
    """The branch in a state. Whoever holds it lets go where it stops taking writes."""
    if state is branch.state:
        return branch
    if state is not BranchState.ACTIVE:
        branch = replace(branch, lease_holder="", lease_end_ms=0)
    return replace(branch, state=state, left_ms=now if state is BranchState.ABANDONED else 0)


class TwinForest:
    """Trees of all tenants in one dictionary: what every part of the twin stands on."""

    def __init__(self, limits: Limits, incarnation: str = "twin", durability: Durability = Durability.STRICT) -> None:
        self._limits = limits
        self._incarnation = incarnation
        self._durability = durability
        self._trees: dict[TreeRef, TwinTree] = {}
        self._frozen: dict[TreeRef, TwinTree] = {}
        self._now = 0
        self._dropped: dict[TreeRef, TwinTree] = {}
        self._notices: list[tuple[TreeRef, int]] = []
        self._changed = asyncio.Event()

    def _tick(self) -> int:
        """The time. It passes only where something is written, so that whoever waits for a commit waits for it."""
        self._now += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return self._now

    def _state(self, ref: TreeRef) -> TwinTree:
        state = self._trees.get(ref)
        if state is None:
            raise refusal(ref, "TREE_NOT_FOUND")
        return state
