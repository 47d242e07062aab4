"""Trees as the sessions API shows them: one JSON object per session, branch and node."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.sdk import MemoryClient

_PAGE: Final = 500


async def whole_tree(memory: MemoryClient, session_id: str) -> dict[str, object]:
    """A session with its branches and every node that they reach, by id."""
    found = await memory.get_tree(session_id)
    nodes: dict[int, tree_pb.Node] = {}
    aside: set[int] = set()
    for branch in found.branches:
        if branch.head:
            nodes |= {node.node_id: node for node in await _unread(memory, session_id, branch.name, nodes)}
        aside |= {branch.hint, branch.summary_head} - {0}
    while aside:
        read = await memory.get_nodes(session_id, sorted(aside))
        nodes |= {node.node_id: node for node in read}
        before = {node.parent_id if node.HasField("summary") else node.hint.previous_hint for node in read}
        aside = before - nodes.keys() - {0}
    return session_object(found.tree) | {
        "branches": [branch_object(branch) for branch in found.branches],
        "nodes": [node_object(nodes[node_id]) for node_id in sorted(nodes)],
    }


async def _unread(memory: MemoryClient, session_id: str, branch: str, known: Container[int]) -> list[tree_pb.Node]:
    """The steps of a branch, from its head back to one that is known: branches share what they were forked from."""
    nodes: list[tree_pb.Node] = []
    end = 0
    while True:
        page = await memory.get_path(session_id, branch=branch, end_node=end, page_size=_PAGE)
        nodes += page.nodes
        end = page.next_end_node
        if not end or end in known:
            return nodes


def session_object(tree: tree_pb.Tree) -> dict[str, object]:
    """A session."""
    return {
        "id": tree.tree_id,
        "object": "session",
        "created_at": tree.create_time.seconds,
        "updated_at": tree.update_time.seconds,
        "goal": tree.goal or None,
        "pins": list(tree.pins),
        "metadata": dict(tree.labels),
        "default_branch": tree.default_branch,
        "node_count": tree.node_count,
        "branch_count": tree.branch_count,
        "revision": tree.revision,
    }


def branch_object(branch: tree_pb.Branch) -> dict[str, object]:
    """A branch."""
    return {
        "name": branch.name,
        "state": word(tree_pb.BranchState.Name(branch.state), "BRANCH_STATE_"),
        "head": branch.head,
        "depth": branch.depth,
        "fork_node": branch.fork_node,
        "parent_branch": branch.parent_branch or None,
        "boundary": branch.boundary,
        "summary_head": branch.summary_head,
        "hint": branch.hint,
        "raw_tokens": branch.raw_tokens,
        "label": branch.label,
        "note": branch.note,
    }


def node_object(node: tree_pb.Node) -> dict[str, object]:
    """A step, a summary or a hint, by its `type`."""
    shown: dict[str, object] = {
        "id": node.node_id,
        "parent_id": node.parent_id,
        "branch": node.birth_branch,
        "depth": node.depth,
        "created_at": node.create_time.seconds,
    }
    if node.HasField("step"):
        step = node.step
        kind = word(tree_pb.StepKind.Name(step.kind), "STEP_KIND_")
        return shown | {"type": "step", "kind": kind, "role": step.role, "content": step.content}
    if node.HasField("summary"):
        summary = node.summary
        return shown | {
            "type": "summary",
            "content": summary.summary_body.text,
            "status": word(tree_pb.SummaryStatus.Name(summary.status), "SUMMARY_STATUS_"),
            "fidelity": word(tree_pb.Verdict.Name(summary.fidelity), "VERDICT_"),
            "outcome": word(tree_pb.Verdict.Name(summary.outcome), "VERDICT_"),
            "covers": [summary.first_covered, summary.last_covered],
            "note": summary.note or None,
        }
    hint = node.hint
    return shown | {
        "type": "hint",
        "content": hint.reason,
        "abandoned_branch": hint.abandoned_branch,
        "abandoned_head": hint.abandoned_head,
        "restored_after": hint.restored_after,
    }


def word(name: str, prefix: str) -> str:
    """`BRANCH_STATE_ACTIVE` is `active` over HTTP."""
    return name.removeprefix(prefix).lower()
