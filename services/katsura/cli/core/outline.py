"""A session's tree as lines to draw: each branch keeps what it alone wrote, and hangs where it left its parent.

    main      #1 user   #2 assistant   #3 user   #4 assistant
                             `- try-2      #5 user   #6 assistant

Pure: `client` reads the tree, `tree` draws the outline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

_LABEL_CHARS: Final = 24


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A node.

    Attributes:
        parent_id: the step before; for a summary or a hint, the step that it follows; 0 for the first.
        kind: `step`, `summary` or `hint`.
        label: who speaks, or what it is.
    """

    node_id: int
    parent_id: int
    kind: str
    label: str
    text: str


@dataclass(frozen=True, slots=True)
class TreeBranch:
    """A branch: `head` 0 while empty, `fork_node` 0 for one that begins at the root; `state` as the service says it."""

    name: str
    head: int
    fork_node: int
    parent_branch: str
    state: str = "active"
    label: str = ""

    @property
    def abandoned(self) -> bool:
        """Whether nobody goes on from it."""
        return self.state == "abandoned"

    def told(self, default: str) -> str:
        """What is to be said beside its name, `default` being the tree's default branch."""
        role = "default" if self.name == default else ""
        said = {"active": role, "abandoned": "left behind"}.get(self.state, self.state)
        return f"{said}  {shortened(self.label, _LABEL_CHARS)}".strip() if self.label else said


@dataclass(frozen=True, slots=True)
class Line:
    """What one branch wrote itself, oldest first, and the branches that left it, by the node after which they did.

    `hidden` counts nodes that are not among `nodes`.
    """

    branch: TreeBranch
    nodes: tuple[TreeNode, ...]
    forks: Mapping[int, tuple[Line, ...]]
    hidden: int = 0

    @classmethod
    def of(
        cls, branch: TreeBranch, owned: Mapping[str, Sequence[TreeNode]], below: Mapping[str, Sequence[TreeBranch]]
    ) -> Self:
        """The line of `branch` with everything that left it."""
        nodes = tuple(owned[branch.name])
        forks: dict[int, tuple[Line, ...]] = {}
        for child in below.get(branch.name, ()):
            line = cls.of(child, owned, below)
            forks[child.fork_node] = (*forks.get(child.fork_node, ()), line)
        return cls(branch, nodes, forks)


def outline(branches: Sequence[TreeBranch], nodes: Sequence[TreeNode]) -> list[Line]:
    """The lines that begin at the root, in the order in which branches were made.

    A node belongs to the first branch whose path it is on; a branch hangs under the owner of its fork node, which is
    not always the branch that it was forked from. Summaries and hints stand after the step that they follow.
    """
    by_id = {node.node_id: node for node in nodes}
    owner: dict[int, str] = {}
    owned: dict[str, list[TreeNode]] = {}
    below: dict[str, list[TreeBranch]] = {}
    roots: list[TreeBranch] = []
    for branch in branches:
        owned[branch.name] = [by_id[i] for i in path_to(branch.head, by_id) if i not in owner]
        owner |= {node.node_id: branch.name for node in owned[branch.name]}
        parent = owner.get(branch.fork_node) if branch.fork_node else None
        if parent is None or parent == branch.name:
            roots.append(branch)
        else:
            below.setdefault(parent, []).append(branch)
    for node in nodes:
        if node.node_id not in owner and node.parent_id in owner:
            _after(owned[owner[node.parent_id]], node)
    return [Line.of(branch, owned, below) for branch in roots]


def newest(lines: Sequence[Line], most: int) -> list[Line]:
    """The lines with at most the `most` newest nodes of each (0: all), and those that others leave from."""
    if not most:
        return list(lines)
    made = []
    for line in lines:
        first = len(line.nodes) - most
        kept = tuple(node for i, node in enumerate(line.nodes) if i >= first or node.node_id in line.forks)
        forks = {node: tuple(newest(below, most)) for node, below in line.forks.items()}
        made.append(Line(line.branch, kept, forks, len(line.nodes) - len(kept)))
    return made


def path_to(head: int, by_id: Mapping[int, TreeNode]) -> list[int]:
    """Node ids from the root to `head`."""
    path: list[int] = []
    while head in by_id and head not in path:
        path.append(head)
        head = by_id[head].parent_id
    return path[::-1]


def branch_of(node_id: int, branches: Sequence[TreeBranch], nodes: Sequence[TreeNode]) -> str | None:
    """The first branch whose path holds `node_id`; None if no path does."""
    by_id = {node.node_id: node for node in nodes}
    return next((branch.name for branch in branches if node_id in path_to(branch.head, by_id)), None)


def shortened(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)] + "…"


def _after(line: list[TreeNode], node: TreeNode) -> None:
    at = next(i for i, other in enumerate(line) if other.node_id == node.parent_id)
    while at + 1 < len(line) and line[at + 1].kind != "step" and line[at + 1].parent_id == node.parent_id:
        at += 1
    line.insert(at + 1, node)
