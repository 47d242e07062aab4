"""Agent memory as plain data: trees, branches, and immutable nodes (steps, summaries, hints).

The numbers of every enumeration are those of `katsura.api.memory.v1`, so translating one is a cast (a contract test
compares the names). Times are milliseconds since the Unix epoch, by the store's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import blake2b
from typing import Final

from katsura.domain.ids import BranchName, NodeId, TreeId
from katsura.domain.requests import LATE as LATE
from katsura.domain.requests import Request as Request
from katsura.domain.requests import request_of as request_of
from katsura.domain.retention import Retention

ROOT: Final = NodeId(0)
"""Where every path begins; no node has this id."""
ROOT_HASH: Final = bytes(32)
"""Parent hash of a first node."""
REDACTED: Final = "[redacted]"
"""What a node says whose content was destroyed."""


class Durability(IntEnum):
    """What a store promises about an acknowledged write, weakest first."""

    UNSPECIFIED = 0
    CACHE = 1
    """May be evicted at any time, or gone after a restart."""
    RELAXED = 2
    """Survives the death of every process of ours. A power cut may lose the last second; so may `kill -9` of the store
    itself, up to two seconds while its disk stalls (`appendfsync everysec` puts writes off behind a running fsync)."""
    STRICT = 3
    """On disk (fsync before the answer), or confirmed by replicas, before the answer."""


class BranchState(IntEnum):
    """Whether a branch may grow."""

    UNSPECIFIED = 0
    ACTIVE = 1
    ABANDONED = 2
    """Left behind, by a Revise or by a caller: readable, not writable, and in time forgotten."""
    FROZEN = 3
    """Kept as it is: readable, not writable."""
    MERGED = 4
    """Its work is on another branch: readable, not writable."""


class StepKind(IntEnum):
    """What a step is."""

    UNSPECIFIED = 0
    MESSAGE = 1
    TOOL_CALL = 2
    OBSERVATION = 3
    NOTE = 4


class Relation(IntEnum):
    """How a step relates to the earlier steps it names (Task Memory Engine, arXiv 2505.19436)."""

    UNSPECIFIED = 0
    NEW = 1
    REFINE = 2
    REPLACE = 3
    ROLLBACK = 4


class Effect(IntEnum):
    """What a step did to the outside world."""

    UNSPECIFIED = 0
    NONE = 1
    REVERSIBLE = 2
    IRREVERSIBLE = 3


class Provenance(IntEnum):
    """Where content came from; what a TOOL said is untrusted."""

    UNSPECIFIED = 0
    USER = 1
    MODEL = 2
    TOOL = 3
    SYSTEM = 4


class SummaryStatus(IntEnum):
    """Whether a summary may be relied on."""

    UNSPECIFIED = 0
    PENDING = 1
    VALID = 2
    FAILED = 3


class Verdict(IntEnum):
    """Answer of a check."""

    UNSPECIFIED = 0
    PASS = 1
    FAIL = 2
    UNKNOWN = 3


class EventKind(IntEnum):
    """What a commit did."""

    UNSPECIFIED = 0
    HEARTBEAT = 1
    TREE_CREATED = 2
    GROWN = 3
    COMPRESSED = 4
    MAINTAINED = 5
    REVISED = 6
    FORKED = 7
    TREE_DELETED = 8
    TREE_UPDATED = 9
    ATTACHED = 10
    REDACTED = 11
    SLOTS_SET = 12
    MERGED = 13
    REFERRED = 14
    INVALIDATED = 15
    RELEASED = 16
    COLLECTED = 17
    STALE = 18
    BRANCH_UPDATED = 19
    TREE_LEFT = 20


class WaitKind(IntEnum):
    """For what a step waits."""

    UNSPECIFIED = 0
    TOOL = 1
    APPROVAL = 2
    SUBGOAL = 3


class Resolution(IntEnum):
    """How waiting ended."""

    UNSPECIFIED = 0
    DONE = 1
    REFUSED = 2


class ReferenceKind(IntEnum):
    """What a step has to do with a node that was there before."""

    UNSPECIFIED = 0
    DEPENDS_ON = 1
    REUSES = 2
    DERIVED_FROM = 3


class StaleReason(IntEnum):
    """What happened to a node, so that whatever refers to it is stale."""

    UNSPECIFIED = 0
    REPLACED = 1
    REDACTED = 2
    ABANDONED = 3
    INVALIDATED = 4
    FAILED = 5
    GONE = 6


@dataclass(frozen=True, slots=True)
class TreePolicy:
    """Limits and defaults of a tree; `memory.core.limits` fills in what a caller left at zero. Without a `retention` of
    its own the service's settings decide what is forgotten."""

    raw_token_limit: int = 0
    compressor: str = ""
    validators: tuple[str, ...] = ()
    hint_limit: int = 0
    durability: Durability = Durability.UNSPECIFIED
    ttl_s: int = 0
    rollup_fanout: int = 0
    retention: Retention | None = field(default=None, metadata=LATE)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tree was forked off another one: its paths begin after the step `node_id` of the tree `tree_id`.

    Attributes:
        branch: keeps the place in the other tree.
        content_hash: of the step, hexadecimal.
        depth, tokens: steps, and their estimated tokens, that stand before this tree's first.
    """

    tree_id: str
    branch: str
    node_id: NodeId
    content_hash: str
    depth: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree as of one revision."""

    tree_id: TreeId
    goal: str
    pins: tuple[str, ...]
    policy: TreePolicy
    labels: Mapping[str, str]
    revision: int
    incarnation: str
    default_branch: BranchName
    node_count: int
    branch_count: int
    create_ms: int
    update_ms: int
    stale_count: int = 0
    origin: Origin | None = None
    agent_id: str = ""
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """A named line of execution: heads only, everything else is reached through parents.

    Attributes:
        boundary: last step covered by `summary_head`; the raw segment is what follows it.
        raw_tokens: tokens of the raw segment, by the default estimate.
        cut: depth below which the last assembly showed summaries only.
        order: 1 for the tree's first branch, then counting.
        agent_id: whom it was made for.
        held_by: tree that was forked off here: the branch keeps the place, and is not writable.
        left_ms: when it was left behind; 0 where it was not, or by a version of us that did not say.
        lease_token, lease_holder, lease_end_ms: of the newest lease on it; 0 where there was none, nobody since it was
            given back.
        label, note: what callers call it, and said of it last.
    """

    name: BranchName
    state: BranchState
    head: NodeId
    summary_head: NodeId
    boundary: NodeId
    fork_node: NodeId
    parent_branch: str
    depth: int
    raw_tokens: int
    hint: NodeId
    cut: int
    create_ms: int
    order: int
    agent_id: str = ""
    held_by: str = ""
    left_ms: int = 0
    lease_token: int = 0
    lease_holder: str = ""
    lease_end_ms: int = 0
    label: str = ""
    note: str = ""

    @property
    def left(self) -> bool:
        """Whether nobody goes on from it."""
        return self.state is BranchState.ABANDONED and not self.held_by


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asked for; the arguments are JSON text as it wrote them."""

    call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step cost: tokens, and money in millionths."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    micros: int = 0


NO_COST: Final = Cost()


@dataclass(frozen=True, slots=True)
class Attachment:
    """Named bytes on a step."""

    task: str
    index: int
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Reference:
    """From a step to a node made before it, of the tree `tree_id` (empty: its own). `declared` by the step itself when
    it was made, or added later."""

    node_id: NodeId
    kind: ReferenceKind = ReferenceKind.DEPENDS_ON
    tree_id: str = ""
    declared: bool = False


@dataclass(frozen=True, slots=True, order=True)
class StaleMark:
    """Why a node is stale: `reason` befell `cause`, which it is or leads to, of the tree `tree_id` (empty: its own).
    Seen only from paths that hold the step `seen_from`; from everywhere where that is ROOT."""

    seen_from: NodeId
    cause: NodeId
    reason: StaleReason
    tree_id: str = ""


@dataclass(frozen=True, slots=True)
class StaleStep:
    """A step that is stale as seen from a branch, from the depth `depth` of its path on."""

    node_id: NodeId
    mark: StaleMark
    depth: int
    tree_id: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a step waits for, in words."""

    kind: WaitKind
    what: str


@dataclass(frozen=True, slots=True)
class Step:
    """An action, an observation or a message. One that `resolves` another ended its waiting."""

    content: str
    role: str = "user"
    kind: StepKind = StepKind.MESSAGE
    client_step_id: str = ""
    tool_call: ToolCall | None = None
    relation: Relation = Relation.NEW
    related_node_ids: tuple[NodeId, ...] = ()
    effect: Effect = Effect.NONE
    undo_ref: str = ""
    provenance: Provenance = Provenance.UNSPECIFIED
    cost: Cost = NO_COST
    attributes: Mapping[str, str] = field(default_factory=dict)
    opaque: bytes = b""
    attachments: tuple[Attachment, ...] = ()
    agent_id: str = ""
    references: tuple[Reference, ...] = field(default=(), metadata=LATE)
    wait: Wait | None = field(default=None, metadata=LATE)
    resolves: NodeId = field(default=ROOT, metadata=LATE)
    resolution: Resolution = field(default=Resolution.UNSPECIFIED, metadata=LATE)

    @property
    def harmless(self) -> bool:
        """Whether it left nothing standing outside."""
        return self.effect in (Effect.UNSPECIFIED, Effect.NONE)

    @property
    def mergeable(self) -> bool:
        """Whether an equal sibling is the same step: it left nothing standing, and nothing waits or is resolved."""
        return self.harmless and self.wait is None and not self.resolves


@dataclass(frozen=True, slots=True)
class SummaryBody:
    """What a summary says."""

    text: str
    facts: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    open_obligations: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """The digest of a segment: the immutable half. What is known about its truth is a `Judgement`.

    Attributes:
        level: 0 covers steps; 1 and more (a roll-up) cover summaries, `first_covered` to `last_covered`.
        cover_digest: hash over the content hashes of the cover, in order.
        version: counts the summaries made of this segment.
        covered_tokens, body_tokens: by the default estimate.
        parts: of a roll-up, the summaries that it covers, oldest first.
    """

    level: int
    first_covered: NodeId
    last_covered: NodeId
    covered_count: int
    cover_digest: bytes
    body: SummaryBody
    made_by: str
    version: int
    covered_tokens: int
    body_tokens: int
    parts: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """What one validator found."""

    validator: str
    verdict: Verdict
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known about a summary's truth: the half that changes. `version` counts its changes."""

    status: SummaryStatus = SummaryStatus.PENDING
    fidelity: Verdict = Verdict.UNKNOWN
    outcome: Verdict = Verdict.UNKNOWN
    note: str = ""
    suggested_restore: NodeId | None = None
    required: tuple[str, ...] = ()
    """Validators whose verdict must be known before the summary is VALID."""
    checks: tuple[Check, ...] = ()
    version: int = 0


@dataclass(frozen=True, slots=True)
class Hint:
    """What a Revise left behind: untrusted history, and the effects that still stand outside, at most 16."""

    abandoned_branch: BranchName
    abandoned_head: NodeId
    restored_after: NodeId
    reason: str
    first_action: str
    previous_hint: NodeId
    standing: tuple[StandingEffect, ...] = field(default=(), metadata=LATE)


@dataclass(frozen=True, slots=True)
class Slot:
    """A write of a named value.

    Attributes:
        previous: write of the same key before it on the path.
        restores: of a ROLLBACK, the write whose value is back; ROOT where there was none, and the key is unset.
    """

    key: str
    value: str
    relation: Relation = Relation.NEW
    note: str = ""
    previous: NodeId = ROOT
    restores: NodeId = ROOT

    @property
    def unset(self) -> bool:
        """Whether the key has no value from here on."""
        return self.relation is Relation.ROLLBACK and self.restores == ROOT


Body = Step | Summary | Hint | Slot


@dataclass(frozen=True, slots=True)
class Node:
    """A node: immutable but for what is kept beside it (from `judgement` on) and for Redact.

    Attributes:
        parent_id: the step before it; of a summary, hint or slot, the one of its kind before it.
        depth: steps from the root up to this one; of a summary, up to its last covered step.
        tokens: of a step, its default estimate; of a summary, that of its body.
        path_tokens: `tokens` summed over the path from the root, this node included.
        judgement: of a summary.
        tokenized_for: digests of the tokenizers for which token ids are attached.
        attachments: put beside it after it was made, in the order they were first put.
        redacted: whether its content was destroyed; hash and shape are what they were.
        references: of a step, what it refers to, declared by itself or added later.
        stale: why it no longer holds, in the order of the marks.
    """

    node_id: NodeId
    parent_id: NodeId
    content_hash: bytes
    birth_branch: BranchName
    depth: int
    create_ms: int
    revision: int
    body: Body
    tokens: int
    path_tokens: int
    judgement: Judgement | None = None
    tokenized_for: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    redacted: bool = False
    references: tuple[Reference, ...] = ()
    stale: tuple[StaleMark, ...] = ()


@dataclass(frozen=True, slots=True)
class StandingEffect:
    """Something an abandoned step did outside that branching does not undo."""

    node_id: NodeId
    effect: Effect
    undo_ref: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A node as an assembly sees it. `count` is its rendered tokens under the tokenizer asked for, None where no ids
    are attached; `token_ids` are those ids where they were asked for; `tree_id` where it is of another tree."""

    node: Node
    count: int | None
    token_ids: tuple[int, ...] = ()
    tree_id: str = ""

    @property
    def cost(self) -> int:
        """Rendered tokens, or their estimate."""
        return self.node.tokens if self.count is None else self.count


@dataclass(frozen=True, slots=True)
class Rest:
    """What a snapshot left out: the newest node of it, and the tokens of all of it by the default estimate."""

    node_id: NodeId = ROOT
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an assembly needs of a branch, as of one revision.

    Attributes:
        steps: raw steps oldest first, without those covered by a VALID summary.
        summaries, hints: the branch's chains, oldest first.
        slots: the current write of each key, oldest first.
        stale: what no longer holds of the path, newest first.
        waiting: steps of the path that wait, oldest first.
        root_count, root_ids: of the segment that shows goal and pins (attached under node 0).
    """

    tree: Tree
    branch: Branch
    steps: tuple[Shown, ...]
    summaries: tuple[Shown, ...]
    hints: tuple[Shown, ...]
    steps_rest: Rest = Rest()
    summaries_rest: Rest = Rest()
    hints_rest: Rest = Rest()
    root_count: int | None = None
    root_ids: tuple[int, ...] = ()
    slots: tuple[Shown, ...] = ()
    stale: tuple[StaleStep, ...] = ()
    waiting: tuple[Shown, ...] = ()


def cover_digest(hashes: Iterable[bytes]) -> bytes:
    """Digest over the content hashes of a cover, in order, 32 bytes."""
    return blake2b(b"".join(hashes), digest_size=32, person=b"katsura-cover").digest()
