"""`katsura tree list|show|fork|revise`: a session's tree in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from katsura.cli.client import Gateway, SessionTree
from katsura.cli.core.outline import Line, TreeNode, branch_of, newest, outline, shortened
from katsura.cli.core.picture import svg
from katsura.cli.exit import Exit
from katsura.domain.errors import NotFoundError, PermissionDeniedError

_STYLES = {"user": "cyan", "assistant": "green", "system": "magenta"}
_TEXT_MIN_CHARS = 8


def list_sessions(gateway: Gateway, limit: int, as_json: bool, console: Console) -> Exit:
    """Show trees, newest first."""
    with gateway:
        found = gateway.sessions(limit)
    if as_json:
        console.print_json(json.dumps(found))
        return Exit.OK
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("tree", "nodes", "branches", "last change", "goal"):
        table.add_column(title, overflow="fold")
    for session in found:
        when = datetime.fromtimestamp(session["updated_at"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        counts = (str(session["node_count"]), str(session["branch_count"]))
        table.add_row(str(session["id"]), *counts, when, shortened(session["goal"] or "", 40))
    console.print(table if found else "no trees; `katsura chat` begins one")
    return Exit.OK


def show(gateway: Gateway, session: str, last: int, picture: Path | None, as_json: bool, console: Console) -> Exit:
    """Draw one; `last` bounds the steps of each branch (0: all), `picture` is an SVG file to draw into."""
    with gateway:
        tree = gateway.tree(session)
    if picture is not None:
        drawn = svg(tree.session, newest(outline(tree.branches, tree.nodes), last), tree.default_branch)
        try:
            picture.write_text(drawn, "utf-8")
        except OSError as error:
            raise PermissionDeniedError(f"cannot write {picture}: {error.strerror}") from error
        console.print(f"{tree.session} is drawn in {picture}", soft_wrap=True, highlight=False, markup=False)
    elif as_json:
        console.print_json(json.dumps(tree.raw))
    else:
        console.print(drawing(tree, console.width, last=last))
    return Exit.OK


def fork(gateway: Gateway, session: str, node: int, name: str, as_json: bool, console: Console) -> Exit:
    """Begin a new branch after a step."""
    with gateway:
        made = gateway.fork(session, owner_of(gateway.tree(session), node), node, name)
    if as_json:
        console.print_json(json.dumps({"branch": made.name, "head": made.head}))
    else:
        console.print(
            f"branch {made.name} begins after #{node}; go on with: katsura chat {session} --branch {made.name}"
        )
    return Exit.OK


def revise(gateway: Gateway, session: str, branch: str, keep: int, hint: str, as_json: bool, console: Console) -> Exit:
    """Leave a branch, go back to a step and keep a hint of why."""
    with gateway:
        tree = gateway.tree(session)
        branch = branch or tree.default_branch
        made = gateway.revise(session, branch, tree.head_of(branch), keep, hint)
    if as_json:
        console.print_json(
            json.dumps({"branch": made.branch.name, "head": made.branch.head, "standing": made.standing})
        )
        return Exit.OK
    console.print(f"{branch} is left behind; {made.branch.name} goes on after #{keep} and remembers why")
    for excerpt in made.standing:
        console.print(f"still stands in the world: {excerpt}", style="yellow")
    return Exit.OK


def owner_of(tree: SessionTree, node: int) -> str:
    """The branch that a step is on; NotFoundError if it is on none."""
    branch = branch_of(node, tree.branches, tree.nodes)
    if branch is None:
        raise NotFoundError(
            f"session {tree.session} has no step #{node}; `katsura tree show {tree.session}` lists them"
        )
    return branch


def drawing(tree: SessionTree, width: int, mark: int = 0, last: int = 0) -> Tree:
    """The tree for a terminal `width` columns wide; `mark` is the node that the person is at, `last` see `newest`."""
    root = Tree(Text(tree.session, "bold"), guide_style="dim")
    _hang(root, newest(outline(tree.branches, tree.nodes), last), tree, width - 4, mark)
    return root


def _hang(parent: Tree, lines: Sequence[Line], tree: SessionTree, width: int, mark: int) -> None:
    for line in lines:
        title = Text.assemble((line.branch.name, "bold"), style="strike" if line.branch.abandoned else "")
        if told := line.branch.told(tree.default_branch):
            title.append(f"  {told}", "dim")
        below = parent.add(title)
        _hang(below, line.forks.get(0, ()), tree, width - 4, mark)
        if line.hidden:
            below.add(Text(f"… {line.hidden:,} not shown", "dim"))
        for node in line.nodes:
            leaf = below.add(_leaf(node, width - 4, mark))
            _hang(leaf, line.forks.get(node.node_id, ()), tree, width - 8, mark)


def _leaf(node: TreeNode, width: int, mark: int) -> Text:
    head = f"#{node.node_id} {node.label} "
    style = _STYLES.get(node.label, "yellow" if node.kind != "step" else "default")
    text = Text.assemble((head, style), no_wrap=True, overflow="ellipsis")
    text.append(shortened(node.text, max(_TEXT_MIN_CHARS, width - len(head) - 2)))
    return text.append(" ◀", "bold") if node.node_id == mark else text
