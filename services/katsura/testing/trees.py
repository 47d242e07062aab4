"""Builders of memory-tree data for tests: valid by default, every field can be set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from katsura.domain.ids import DEFAULT_BRANCH, NodeId, TreeId
from katsura.domain.trees import (
    ROOT,
    Branch,
    BranchState,
    Hint,
    Judgement,
    Node,
    Shown,
    Snapshot,
    Step,
    Summary,
    SummaryBody,
    SummaryStatus,
    Tree,
    TreePolicy,
    Verdict,
    cover_digest,
)
from katsura.memory.core.tokens import estimate_step


def step_nodes(*steps: Step | str, first_id: int = 1, after: Node | None = None) -> tuple[Node, ...]:
    """A path of steps, one below the other, below `after`; a text stands for a user's message."""
    nodes: list[Node] = []
    for offset, given in enumerate(steps):
        step = Step(given) if isinstance(given, str) else given
        parent = nodes[-1] if nodes else after
        tokens = estimate_step(step)
        node_id = NodeId(first_id + offset)
        nodes.append(
            Node(
                node_id=node_id,
                parent_id=parent.node_id if parent else ROOT,
                content_hash=node_id.to_bytes(32, "big"),
                birth_branch=DEFAULT_BRANCH,
                depth=parent.depth + 1 if parent else 1,
                create_ms=1,
                revision=1,
                body=step,
                tokens=tokens,
                path_tokens=tokens + (parent.path_tokens if parent else 0),
            )
        )
    return tuple(nodes)


def summary_of(cover: Sequence[Node], body: SummaryBody, made_by: str = "test") -> Summary:
    """A summary of `cover` whose digest and counts are right."""
    return Summary(
        level=0,
        first_covered=cover[0].node_id,
        last_covered=cover[-1].node_id,
        covered_count=len(cover),
        cover_digest=cover_digest(node.content_hash for node in cover),
        body=body,
        made_by=made_by,
        version=1,
        covered_tokens=sum(node.tokens for node in cover),
        body_tokens=10,
    )


def summary_node(
    node_id: int, cover: Sequence[Node], body: SummaryBody, status: SummaryStatus = SummaryStatus.VALID
) -> Node:
    """A summary of `cover` as a node."""
    judgement = Judgement(status=status, fidelity=Verdict.PASS, version=1)
    return replace(
        cover[-1],
        node_id=NodeId(node_id),
        parent_id=ROOT,
        body=summary_of(cover, body),
        tokens=10,
        path_tokens=10,
        judgement=judgement,
    )


def hint_node(node_id: int, reason: str, restored_after: int = 0) -> Node:
    """A hint as a node."""
    hint = Hint(DEFAULT_BRANCH, NodeId(9), NodeId(restored_after), reason, "did something", ROOT)
    (shape,) = step_nodes("x", first_id=node_id)
    return replace(shape, body=hint, depth=restored_after)


def snapshot_of(
    steps: Sequence[Node] = (),
    summaries: Sequence[Node] = (),
    hints: Sequence[Node] = (),
    *,
    goal: str = "",
    pins: Sequence[str] = (),
    hint_limit: int = 3,
) -> Snapshot:
    """A branch with these raw steps, summaries and hints, none of them tokenised."""
    policy = TreePolicy(hint_limit=hint_limit)
    tree = Tree(TreeId("tree"), goal, tuple(pins), policy, {}, 1, "life", DEFAULT_BRANCH, 0, 1, 1, 1)
    head = steps[-1].node_id if steps else ROOT
    depth = max((node.depth for node in (*steps, *summaries)), default=0)
    branch = Branch(DEFAULT_BRANCH, BranchState.ACTIVE, head, ROOT, ROOT, ROOT, "", depth, 0, ROOT, 0, 1, 1)
    shown = [tuple(Shown(node, None) for node in nodes) for nodes in (steps, summaries, hints)]
    return Snapshot(tree, branch, shown[0], shown[1], shown[2])
