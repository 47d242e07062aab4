"""What a memory tree holds beside its paths, in memory: the twin of `contents_redis`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import (
    ROOT,
    Attachment,
    BranchState,
    EventKind,
    Hint,
    Judgement,
    Node,
    Request,
    Slot,
    StaleReason,
    Step,
    Summary,
    SummaryStatus,
    Tree,
    Verdict,
)
from katsura.state.branches import Marked
from katsura.state.contents import (
    EXTRAS_BYTES_MAX,
    EXTRAS_MAX,
    LABELS_MAX,
    LOOKS_MAX,
    PINS_MAX,
    FoundStep,
    Hits,
    NodePage,
    Scope,
    TreeChange,
    TreeRef,
)
from katsura.state.tree_records import (
    SALT_BYTES,
    body_digest,
    extra_key,
    extra_of,
    record_of,
    redacted_body,
    stored_size,
)
from katsura.state.trees import Revised, refusal
from katsura.state.twin_tree import TwinForest, TwinTree

_SALT = bytes(SALT_BYTES)
_REDACTED = Judgement(SummaryStatus.FAILED, Verdict.FAIL, Verdict.UNKNOWN, "its content was redacted")


class TwinContents(TwinForest):
    """The part of the twin that is not about branches."""

    async def update(self, ref: TreeRef, change: TreeChange, request: Request) -> Tree:
        """Change a tree."""
        state = self._state(ref)

        def write() -> Tree:
            tree = state.tree
            pins = [pin for pin in dict.fromkeys((*tree.pins, *change.add_pins)) if pin not in change.remove_pins]
            labels = {**tree.labels, **change.set_labels}
            labels = {key: value for key, value in labels.items() if key not in change.remove_labels}
            if len(pins) > PINS_MAX:
                raise refusal(ref, "TOO_MANY", "add_pins", str(PINS_MAX))
            if len(labels) > LABELS_MAX:
                raise refusal(ref, "TOO_MANY", "set_labels", str(LABELS_MAX))
            if change.default_branch:
                state.writable(change.default_branch)
            state.tree = replace(
                tree,
                goal=tree.goal if change.goal is None else change.goal,
                pins=tuple(pins),
                labels=labels,
                policy=replace(
                    tree.policy,
                    retention=change.retention or tree.policy.retention,
                    ttl_s=tree.policy.ttl_s if change.ttl_s is None else change.ttl_s,
                ),
                default_branch=BranchName(change.default_branch or tree.default_branch),
            )
            position = state.commit(EventKind.TREE_UPDATED, "", ())
            if change.set_labels or change.remove_labels:
                self._notices.append((ref, position.revision))
            return state.shown_tree

        return state.once(request, write)

    async def put_attachments(
        self, ref: TreeRef, node_id: int, attachments: Sequence[Attachment], replace: bool
    ) -> tuple[tuple[bool, ...], int]:
        """Put bytes beside a node."""
        state = self._state(ref)
        if node_id not in state.nodes:
            raise refusal(ref, "NODE_NOT_FOUND", str(node_id))
        beside = dict(state.extras.get(node_id, {}))
        written = []
        for item in attachments:
            old = beside.get(extra_key(item))
            written.append(old is None or (replace and old != item))
            if written[-1]:
                beside[extra_key(item)] = item
        if sum(len(extra_of(item)) for item in beside.values()) > EXTRAS_BYTES_MAX:
            raise refusal(ref, "TOO_MUCH_ATTACHED", str(node_id), str(EXTRAS_BYTES_MAX))
        if len(beside) > EXTRAS_MAX:
            raise refusal(ref, "TOO_MANY", "attachments", str(EXTRAS_MAX))
        if any(written):
            state.extras[node_id] = beside
            state.commit(EventKind.ATTACHED, state.nodes[node_id].birth_branch, (NodeId(node_id),))
        return tuple(written), state.tree.revision

    async def list_nodes(
        self, ref: TreeRef, before: int, page_size: int, bytes_max: int, birth_branch: str
    ) -> NodePage:
        """Nodes made before `before`, newest first."""
        state = self._state(ref)
        taken: list[Node] = []
        newest = min(before - 1, state.tree.node_count) if before else state.tree.node_count
        for looks, node_id in enumerate(range(newest, 0, -1)):
            if len(taken) == page_size or looks == LOOKS_MAX:
                return NodePage(tuple(taken), NodeId(node_id + 1))
            node = state.shown(node_id)
            if birth_branch in ("", node.birth_branch):
                bytes_max -= stored_size(node)
                if bytes_max < 0 and taken:
                    return NodePage(tuple(taken), NodeId(node_id + 1))
                taken.append(node)
        return NodePage(tuple(taken), ROOT)

    async def find_steps(self, ref: TreeRef, client_step_ids: Sequence[str], branch: str) -> tuple[FoundStep, ...]:
        """Steps by client id."""
        state = self._state(ref)
        if branch:
            state.branch(branch)
        names = [branch] if branch else sorted(state.branches)
        return tuple(
            FoundStep(client, name, state.steps[name, client][0])
            for client in client_step_ids
            for name in names
            if (name, client) in state.steps
        )

    async def search(
        self,
        ref: TreeRef,
        scope: Scope,
        branch: str,
        words: Sequence[bytes],
        before: int,
        page_size: int,
        bytes_max: int,
        include_abandoned: bool,
    ) -> Hits:
        """Nodes whose record holds every word."""
        state = self._state(ref)
        nodes: list[Node] = []
        live: list[bool] = []
        last = before
        for looks, node in enumerate(_searched(state, scope, branch, before)):
            if looks == LOOKS_MAX or len(nodes) == page_size:
                return Hits(tuple(nodes), tuple(live), NodeId(last))
            record = record_of(node.body, _SALT)[SALT_BYTES:].lower()
            if not node.redacted and all(word in record for word in words):
                is_live = _held(state, node)
                if is_live or scope is not Scope.TREE or include_abandoned:
                    shown = state.shown(node.node_id)
                    bytes_max -= stored_size(shown)
                    if bytes_max < 0 and nodes:
                        return Hits(tuple(nodes), tuple(live), NodeId(last))
                    nodes.append(shown)
                    live.append(is_live)
            last = node.node_id
        return Hits(tuple(nodes), tuple(live), ROOT)

    async def redact(self, ref: TreeRef, node_ids: Sequence[int], request: Request) -> tuple[tuple[NodeId, ...], int]:
        """Destroy content and salt of nodes, and of what may quote them."""
        state = self._state(ref)

        def write() -> tuple[tuple[NodeId, ...], int]:
            for i, node_id in enumerate(node_ids):
                if node_id not in state.nodes:
                    raise refusal(ref, "NODE_NOT_FOUND", str(node_id), str(i))
            asked = [state.nodes[node_id] for node_id in dict.fromkeys(node_ids)]
            steps = {node.node_id for node in asked if isinstance(node.body, Step)}
            quoting = [node for node in state.nodes.values() if _quotes(state, node, steps)]
            quoting.sort(key=lambda node: (isinstance(node.body, Hint), node.node_id))
            found = list(dict.fromkeys(node.node_id for node in (*asked, *quoting)))
            for node_id in found:  # a roll-up may quote what it covers
                found += [over for over in state.roll_ups_over(node_id) if over not in found]
            gone = tuple(found)
            for node_id in gone:
                erase(state, state.nodes[node_id])
            _scrub_replays(state, gone)
            return gone, state.commit(EventKind.REDACTED, "", gone).revision

        return state.once(request, write)


def _searched(state: TwinTree, scope: Scope, branch: str, before: int) -> Iterator[Node]:
    if scope is Scope.TREE:
        newest = min(before - 1, state.tree.node_count) if before else state.tree.node_count
        return (state.nodes[node_id] for node_id in range(newest, 0, -1))
    found = state.branch(branch)
    stop = found.fork_node if scope is Scope.BRANCH else ROOT
    start = found.head
    if before:
        start = state.nodes[state.on_path(found.head, before)].parent_id
        if state.depth(before) <= state.depth(stop):
            raise refusal(state.ref, "BAD_BOUNDARY", str(before))
    depth = state.depth(stop)
    return (node for node in state.up(start) if node.depth > depth)


def _held(state: TwinTree, node: Node) -> bool:
    for branch in state.branches.values():
        heads = {Summary: branch.summary_head, Hint: branch.hint, Slot: state.slot_head(branch)}
        head = heads.get(type(node.body), branch.head)
        if branch.state is BranchState.ABANDONED:
            continue
        last = state.span(node.node_id)[1] if isinstance(node.body, Summary) else ROOT
        for at in state.up(head):
            found: NodeId | None = at.node_id
            while found is not None and found != node.node_id and last and state.span(found)[1] == last:
                found = state.rollups.get(found)
            if found == node.node_id:
                return True
    return False


def _quotes(state: TwinTree, node: Node, steps: set[NodeId]) -> bool:
    match node.body:
        case Summary():
            before, last = state.span(node.node_id)
            return any(n.node_id in steps for n in state.up(last) if n.depth > state.depth(before))
        case Hint():
            first = state.climb(node.body.abandoned_head, node.depth + 1)
            return not steps.isdisjoint((first, *(effect.node_id for effect in node.body.standing)))
    return False


def erase(state: TwinTree, node: Node) -> None:
    """Destroy content and salt of a node, and what is kept beside it."""
    if isinstance(node.body, Step):
        digest = body_digest(node.body, repr(state.ref).encode())
        state.kids.pop((node.parent_id, digest), None)
        if node.body.client_step_id:
            state.steps[node.birth_branch, node.body.client_step_id] = (node.node_id, "-")
    judgement = node.judgement and replace(_REDACTED, version=node.judgement.version + 1)
    state.nodes[node.node_id] = replace(node, body=redacted_body(node.body), redacted=True, judgement=judgement)
    if judgement:
        state.fail(node.node_id)
    elif isinstance(node.body, Step):
        state.doubts.doubt(node.node_id, StaleReason.REDACTED)
    state.extras.pop(node.node_id, None)
    for ids in state.tokens.values():
        ids.pop(node.node_id, None)


def _scrub_replays(state: TwinTree, gone: Sequence[NodeId]) -> None:
    for request_id, (digest, answer) in state.replays.items():
        if isinstance(answer, Revised):
            effects = tuple(
                replace(e, undo_ref="", excerpt="[redacted]") if e.node_id in gone else e for e in answer.effects
            )
            hint = state.nodes[answer.hint.node_id]
            state.replays[request_id] = (digest, replace(answer, effects=effects, hint=hint))
        elif isinstance(answer, Marked):  # kept as ids, and read again
            left = tuple(e for e in answer.effects if e.node_id not in gone)
            state.replays[request_id] = (digest, replace(answer, effects=left))
