"""The drawing of a tree."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from katsura.cli.client import SessionTree
from katsura.cli.core.outline import TreeBranch, TreeNode
from katsura.cli.tree import drawing, owner_of
from katsura.domain.errors import NotFoundError

TREE = SessionTree(
    "trip",
    "main",
    (TreeBranch("main", 2, 0, ""), TreeBranch("try", 3, 1, "main", "abandoned")),
    (
        TreeNode(1, 0, "step", "user", "Where to?\nTell [bold]me[/bold]."),
        TreeNode(2, 1, "step", "assistant", "Oslo. " * 40),
        TreeNode(3, 1, "step", "assistant", "Rome."),
    ),
    {},
)


def drawn(width: int = 60) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(drawing(TREE, width, mark=2))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_branches_hang_where_they_left_and_texts_are_one_line() -> None:
    lines = drawn()
    assert lines[0] == "trip"
    assert lines[1] == "└── main  default"
    assert lines[2] == "    ├── #1 user Where to? Tell [bold]me[/bold]."
    assert lines[3] == "    │   └── try  left behind"
    assert lines[4] == "    │       └── #3 assistant Rome."
    assert lines[5].startswith("    └── #2 assistant Oslo. Oslo.")
    assert lines[5].endswith("… ◀")
    assert len(lines) == 6


def test_states_and_labels_stand_beside_the_names() -> None:
    branch = TreeBranch("main", 2, 0, "", "frozen", "nightly")
    assert branch.told("main") == "frozen  nightly"
    assert replace(branch, state="merged", label="").told("main") == "merged"
    assert replace(branch, state="active").told("main") == "default  nightly"
    assert replace(branch, state="active", label="x" * 30).told("other") == "x" * 23 + "…"
    assert replace(branch, state="active", label="").told("other") == ""


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert len(drawn(width)) == 6


def test_a_step_that_is_not_there_is_said() -> None:
    assert owner_of(TREE, 3) == "try"
    with pytest.raises(NotFoundError, match="no step #9"):
        owner_of(TREE, 9)
