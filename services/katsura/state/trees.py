"""The store of memory trees: every mutation atomic within its tree, every read as of one revision.

The memory service calls it. `RedisTreeStore` (trees_redis.py) keeps trees in Valkey or Redis, `TwinTreeStore`
(trees_twin.py) in memory; one contract suite covers both. What a summary or a context should say is not decided here.

Every method may raise UnavailableError (STORE_UNAVAILABLE): a mutation that raised it may have happened, and is
repeated with the same `Request`. Reasons of refusal:

    NotFoundError            TREE_NOT_FOUND (also for another tenant's id), BRANCH_NOT_FOUND, NODE_NOT_FOUND
    AlreadyExistsError       TREE_EXISTS, BRANCH_EXISTS, REQUEST_ID_REUSED (also for a client_step_id with another body)
    ConflictError            HEAD_MOVED: metadata "head" is the branch's head now; LEASE_HELD, LEASE_LOST: "holder", too
    FailedPreconditionError  BAD_BOUNDARY, BAD_REFERENCE, BRANCH_NOT_WRITABLE, NOT_WAITING, TREE_HELD
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InternalError,
    KatsuraError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
)
from katsura.domain.ids import BranchName, NodeId, TenantId
from katsura.domain.trees import (
    Branch,
    BranchState,
    Durability,
    Hint,
    Judgement,
    Node,
    Origin,
    Request,
    Snapshot,
    StandingEffect,
    Step,
    Summary,
    Tree,
    TreePolicy,
)
from katsura.domain.usage import Counted
from katsura.domain.work import Fence
from katsura.state.archive import TreeArchive
from katsura.state.branches import TreeBranches
from katsura.state.cold import TreeCold
from katsura.state.collecting import TreeCollecting
from katsura.state.contents import TreeContents
from katsura.state.contents import TreeRef as TreeRef
from katsura.state.foreign import TreeForeign
from katsura.state.leases import TreeLeases, lease_refusal
from katsura.state.merging import TreeMerging
from katsura.state.queue import TreeQueue
from katsura.state.references import TreeReferences
from katsura.state.slots import TreeSlots
from katsura.state.watching import Event as Event
from katsura.state.watching import Position as Position
from katsura.state.watching import TreeWatching

SHORT_TEXT_CHARS = 200
"""Length to which excerpts of steps are shortened."""
WAITING_MAX = 64
"""Steps of one path that wait at once."""
TOKENIZERS_MAX = 16
"""Tokenizers whose ids one tree keeps."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a tree's past the store keeps, at least: events for Watch, answers for repeated requests."""

    events: int = 8192
    replays: int = 1024


@dataclass(frozen=True, slots=True)
class NewTree:
    """A tree to be made."""

    goal: str
    pins: tuple[str, ...]
    policy: TreePolicy
    labels: Mapping[str, str]
    origin: Origin | None = None
    agent_id: str = ""


@dataclass(frozen=True, slots=True)
class NewStep:
    """A step to be appended, and its estimated tokens."""

    step: Step
    tokens: int


@dataclass(frozen=True, slots=True)
class Grown:
    """One node id per step, whether it was there before, the branch afterwards, and whether its raw segment has passed
    the policy's limit."""

    node_ids: tuple[NodeId, ...]
    merged: tuple[bool, ...]
    branch: Branch
    position: Position
    compress_due: bool


@dataclass(frozen=True, slots=True)
class Cover:
    """What a new summary of a branch would cover: the steps after `base` up to `last`.

    Attributes:
        branch: as seen; its head and summary head are compared when the summary is written.
        previous: the last summary that did not fail, which the new one continues.
        versions: summaries made of this very segment so far.
        tokens: of the cover, by the default estimate.
    """

    branch: Branch
    previous: Node | None
    parent_hash: bytes
    base: NodeId
    last: NodeId
    count: int
    versions: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Written:
    """A summary or hint as written, its branch afterwards, and when."""

    node: Node
    branch: Branch
    position: Position


@dataclass(frozen=True, slots=True)
class Revised:
    """The new branch, the one left behind, the hint between them, and what cannot be undone by branching."""

    branch: Branch
    abandoned: Branch
    hint: Node
    effects: tuple[StandingEffect, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class Retreat:
    """What a Revise would leave behind: everything its hint needs to be written."""

    branch: Branch
    restore_after: NodeId
    first_action: str
    previous_hint: NodeId
    previous_hash: bytes
    effects: tuple[StandingEffect, ...]


@dataclass(frozen=True, slots=True)
class Path:
    """A page of a path, oldest first, and where the page before it ends (0 at the root)."""

    nodes: tuple[Node, ...]
    next_end: NodeId
    branch: Branch


class TreeStore(
    TreeContents,
    TreeSlots,
    TreeLeases,
    TreeBranches,
    TreeMerging,
    TreeQueue,
    TreeReferences,
    TreeForeign,
    TreeCollecting,
    TreeArchive,
    TreeCold,
    TreeWatching,
    Protocol,
):
    """Trees of all tenants. A branch given as "" is the tree's default branch."""

    @property
    def durability(self) -> Durability:
        """What an acknowledged write survives."""
        ...

    async def create(self, ref: TreeRef, new: NewTree, request: Request) -> tuple[Tree, Branch]:
        """Make a tree with one empty branch. Raises TREE_EXISTS."""
        ...

    async def read(self, ref: TreeRef) -> tuple[Tree, tuple[Branch, ...]]:
        """The tree and its branches in the order they were made."""
        ...

    async def trees(self, tenant: TenantId, page_size: int, page_token: str) -> tuple[tuple[Tree, ...], str]:
        """Trees of a tenant, newest first, and the token of the next page ("" at the end)."""
        ...

    async def drop(self, ref: TreeRef) -> None:
        """Drop a tree and everything in it; watchers get TREE_DELETED. Raises TREE_HELD."""
        ...

    async def grow(
        self,
        ref: TreeRef,
        branch: str,
        expected_head: int | None,
        steps: Sequence[NewStep],
        merge: bool,
        request: Request,
    ) -> Grown:
        """Append steps, all or none. A step whose client_step_id is known on this branch answers the step made before;
        with `merge`, a leading step that equals a child of the head (effect NONE) is walked onto."""
        ...

    async def replayed(self, ref: TreeRef, request: Request) -> Written | Revised | None:
        """What `summarise`, `judge` or `revise` answered to this request before; writes pass the barrier again."""
        ...

    async def cover(self, ref: TreeRef, branch: str, expected_head: int | None, last: int) -> Cover:
        """What a summary up to the step `last` (0: the head) would cover. Raises BAD_BOUNDARY where nothing is left."""
        ...

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
        """Write a summary of `cover`; it becomes the branch's unless it FAILED. Raises HEAD_MOVED where the branch is
        no longer as `cover` saw it. One that is PENDING and requires EXTERNAL becomes a task. With `fence` it is the
        result of a task (state/queue.py)."""
        ...

    async def judge(
        self,
        ref: TreeRef,
        branch: str,
        summary: Node,
        judgement: Judgement,
        request: Request,
        fence: Fence | None = None,
    ) -> Written:
        """Replace what is known about a summary, if it is still what `summary` shows (else HEAD_MOVED). One that turns
        VALID and continues the branch's chain becomes its summary; a roll-up cannot turn VALID while a summary under it
        is not, or where another VALID one ends (BAD_BOUNDARY). With `fence` it is the result of a task."""
        ...

    async def summaries(self, ref: TreeRef, branch: str, most: int) -> tuple[tuple[Node, bool], ...]:
        """The branch's summaries, newest first, VALID roll-ups standing for their covers; and whether a roll-up ends
        with each, which then is not VALID."""
        ...

    async def roll_up(
        self, ref: TreeRef, branch: str, cover: Sequence[Node], summary: Summary, judgement: Judgement, request: Request
    ) -> Written:
        """Write a roll-up over summaries that are VALID, follow each other and end where no VALID roll-up ends (else
        BAD_BOUNDARY). It stands for them on every branch that has them all; a branch that has some of them, because it
        turned off in their middle, may have them in a roll-up of its own."""
        ...

    async def retreat(self, ref: TreeRef, branch: str, expected_head: int | None, restore_after: int) -> Retreat:
        """What a Revise to `restore_after` (0: keep nothing) would leave behind."""
        ...

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
        ...

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
        """Name a new branch at a step of `branch` (0: its head, -1: the empty root). With `held_by` it keeps the place
        for that tree: the tree is not dropped and does not expire before `release`."""
        ...

    async def release(self, ref: TreeRef, branch: str, request: Request) -> Position:
        """Drop a branch that keeps a place."""
        ...

    async def waiting(self, ref: TreeRef, branch: str) -> tuple[Branch, tuple[Node, ...]]:
        """The steps of a branch's path that wait, oldest first. `grow` raises NOT_WAITING for a step that resolves one
        that does not, and RESOURCE_EXHAUSTED past WAITING_MAX."""
        ...

    async def snapshot(
        self, ref: TreeRef, branch: str, token_limit: int, hint_limit: int, tokenizer: str, with_ids: bool
    ) -> Snapshot:
        """The newest part of a branch, until steps, and summaries, cost more than `token_limit` each."""
        ...

    async def counted(self, ref: TreeRef) -> Counted:
        """What a tree takes, and whom its steps are charged to: exact as of one revision."""
        ...

    async def note_cut(self, ref: TreeRef, branch: BranchName, cut: int) -> None:
        """Remember where the last assembly cut. Not a commit."""
        ...

    async def path(
        self, ref: TreeRef, branch: str, end_node: int, page_size: int, bytes_max: int, above: int = 0
    ) -> Path:
        """Steps of a branch's path that end at `end_node` (0: the head), none at or above depth `above`."""
        ...

    async def nodes(self, ref: TreeRef, node_ids: Sequence[int], bytes_max: int) -> tuple[Node, ...]:
        """Nodes by id, in the order asked for."""
        ...

    async def attach(self, ref: TreeRef, tokenizer: str, tokens: Mapping[int, Sequence[int]]) -> tuple[NodeId, ...]:
        """Attach rendered token ids (under 0: those of goal and pins); the ids of nodes that had some and kept them."""
        ...


def refusal(ref: TreeRef, reason: str, *details: str) -> KatsuraError:
    """The error for a store function's answer `{reason, details...}`."""
    first = details[0] if details else ""
    match reason:
        case "TREE_NOT_FOUND":
            text = f"tree {ref.tree!r} does not exist"
            return NotFoundError(text, reason=Reason.TREE_NOT_FOUND, field="tree_id")
        case "BRANCH_NOT_FOUND":
            text = f"tree {ref.tree!r} has no branch {first!r}"
            return NotFoundError(text, reason=Reason.BRANCH_NOT_FOUND, field="branch")
        case "NODE_NOT_FOUND":
            place = {"index": details[1]} if len(details) > 1 else {}
            text = f"tree {ref.tree!r} has no node {first}"
            return NotFoundError(text, reason=Reason.NODE_NOT_FOUND, metadata={"node": first, **place})
        case "TREE_EXISTS":
            text = f"tree {ref.tree!r} exists already; choose another tree_id, or none"
            return AlreadyExistsError(text, reason=Reason.TREE_EXISTS, field="tree_id")
        case "TREE_HELD":
            text = f"tree {first!r} was forked off tree {ref.tree!r} and reads what is in it; drop that one first"
            return FailedPreconditionError(text, reason=Reason.TREE_HELD, field="tree_id", metadata={"held_by": first})
        case "BRANCH_EXISTS":
            text = f"branch {first!r} exists already; choose another new_branch, or none"
            return AlreadyExistsError(text, reason=Reason.BRANCH_EXISTS, field="new_branch")
        case "REQUEST_ID_REUSED":
            text = "request_id was used before with another body; make a new one for a new request"
            return AlreadyExistsError(text, reason=Reason.REQUEST_ID_REUSED, field="request_id")
        case "STEP_ID_REUSED":
            text = f"steps[{first}].client_step_id was used on this branch for another step, node {details[1]}"
            field = f"steps[{first}].client_step_id"
            return AlreadyExistsError(text, reason=Reason.REQUEST_ID_REUSED, field=field, metadata={"node": details[1]})
        case "HEAD_MOVED":
            text = f"branch {details[1]!r} has moved: its head is now {first}; read it again, then decide"
            return ConflictError(text, reason=Reason.HEAD_MOVED, metadata={"head": first, "branch": details[1]})
        case "LEASE_LOST":
            why = "it is done" if details[1] == "done" else "another worker has it, or it was given back"
            text = f"the claim of {first!r} is not the newest: {why}; drop the result and claim again"
            return ConflictError(text, reason=Reason.LEASE_LOST, field="token", metadata={"work_id": first})
        case "LEASE_HELD" | "BRANCH_LEASE_LOST":
            return lease_refusal(reason == "LEASE_HELD", first, details[1], details[2])
        case "NO_WORK":
            text = f"nothing waits on branch {details[1]!r}: no step is raw, or summary {details[2]} is not pending"
            return FailedPreconditionError(text, reason=Reason.NO_WORK, metadata={"branch": details[1]})
        case "BAD_REFERENCE":
            place = {"index": details[1]} if len(details) > 1 else {}
            text = f"a reference leads from a step to a step or summary made before it; node {first} is none"
            return FailedPreconditionError(text, reason=Reason.BAD_REFERENCE, metadata={"node": first, **place})
        case "NOT_WAITING":
            text = f"node {first} waits for nothing on this branch: it never did, or a step after it resolved it"
            return FailedPreconditionError(text, reason=Reason.NOT_WAITING, metadata={"node": first})
        case "BAD_BOUNDARY":
            text = f"node {first} is not a place on this branch where that can be done"
            return FailedPreconditionError(text, reason=Reason.BAD_BOUNDARY, metadata={"node": first})
        case "BRANCH_NOT_WRITABLE":
            return _not_writable(first, int(details[1]), details[2])
        case "TOO_MANY":
            text = f"{first}: afterwards there would be more than {details[1]}; take some away first"
            return ResourceExhaustedError(text, field=first, metadata={"most": details[1]})
        case "TOO_MUCH_ATTACHED":
            text = f"node {first} would carry more than {details[1]} bytes of attachments; put them beside another node"
            return ResourceExhaustedError(text, field="attachments", metadata={"node": first, "most": details[1]})
        case "TOO_LARGE":
            text = f"the nodes asked for are too large for one answer; ask for the first {first} of them"
            return OutOfRangeError(text, reason=Reason.BODY_TOO_LARGE, field="node_ids", metadata={"fits": first})
        case "TOO_MANY_TOKENIZERS":
            text = f"the tree keeps token ids of {TOKENIZERS_MAX} tokenizers already"
            return ResourceExhaustedError(text, field="tokenizer_digest")
    return InternalError(f"the store answered {reason} {details}")


def _not_writable(branch: str, number: int, held_by: str) -> KatsuraError:
    state = BranchState(number) if number in frozenset(BranchState) else BranchState.UNSPECIFIED
    again = "fork it, or make it ACTIVE again (UpdateBranch)"
    text = {
        BranchState.ABANDONED: f"was abandoned; go on with the branch that took its place, {again}",
        BranchState.FROZEN: f"is frozen; {again}",
        BranchState.MERGED: f"was merged and is closed; go on with the branch that has its work, {again}",
    }.get(state, "is in a state that this version does not know; ask one that does")
    if held_by:
        text = f"keeps the place of tree {held_by!r}, which was forked off there; fork it"
    return FailedPreconditionError(
        f"branch {branch!r} {text}",
        reason=Reason.BRANCH_NOT_WRITABLE,
        field="branch",
        metadata={"branch": branch, "state": state.name},
    )


def page_after(tree: Tree) -> str:
    """Where the page of trees goes on that follows `tree`."""
    return f"{tree.create_ms:013}:{tree.tree_id}"


def standing_of(node: NodeId, step: Step) -> StandingEffect:
    """A step that is not harmless as the effect that it leaves standing."""
    return StandingEffect(node, step.effect, step.undo_ref, excerpt(step))


def excerpt(step: Step) -> str:
    """The first words of a step, on one line."""
    text = step.content
    if step.tool_call is not None:
        text = f"{step.tool_call.name}({step.tool_call.arguments_json}) {text}"
    text = " ".join(text.split())
    return text if len(text) <= SHORT_TEXT_CHARS else text[: SHORT_TEXT_CHARS - 1] + "…"
