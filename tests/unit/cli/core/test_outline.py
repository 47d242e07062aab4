"""A tree as lines."""

from __future__ import annotations

from katsura.cli.core.outline import Line, TreeBranch, TreeNode, branch_of, newest, outline, shortened


def step(node_id: int, parent_id: int) -> TreeNode:
    return TreeNode(node_id, parent_id, "step", "user", f"text {node_id}")


def ids(line: Line) -> list[int]:
    return [node.node_id for node in line.nodes]


CHAIN = [step(1, 0), step(2, 1), step(3, 2), step(4, 3)]
MAIN = TreeBranch("main", 4, 0, "")


def test_a_chain_is_one_line() -> None:
    (line,) = outline([MAIN], CHAIN)
    assert (line.branch.name, ids(line), line.forks) == ("main", [1, 2, 3, 4], {})


def test_a_fork_keeps_what_it_wrote_and_hangs_where_it_left() -> None:
    (line,) = outline([MAIN, TreeBranch("b", 6, 2, "main")], [*CHAIN, step(5, 2), step(6, 5)])
    assert ids(line) == [1, 2, 3, 4]
    assert [ids(fork) for fork in line.forks[2]] == [[5, 6]]


def test_a_fork_of_a_fork_hangs_under_whoever_wrote_the_node() -> None:
    branches = [MAIN, TreeBranch("b", 5, 2, "main"), TreeBranch("c", 6, 5, "b"), TreeBranch("d", 7, 1, "b")]
    (line,) = outline(branches, [*CHAIN, step(5, 2), step(6, 5), step(7, 1)])
    (fork,) = line.forks[2]
    assert [ids(inner) for inner in fork.forks[5]] == [[6]]
    assert [(inner.branch.name, ids(inner)) for inner in line.forks[1]] == [("d", [7])]


def test_an_empty_branch_and_a_second_root_are_shown() -> None:
    lines = outline([MAIN, TreeBranch("empty", 2, 2, "main"), TreeBranch("other", 5, 0, "main")], [*CHAIN, step(5, 0)])
    assert [(line.branch.name, ids(line)) for line in lines] == [("main", [1, 2, 3, 4]), ("other", [5])]
    assert [(fork.branch.name, ids(fork)) for fork in lines[0].forks[2]] == [("empty", [])]


def test_summaries_and_hints_stand_after_the_step_that_they_follow() -> None:
    extra = [TreeNode(7, 2, "summary", "summary", "s"), TreeNode(8, 2, "hint", "hint", "h")]
    (line,) = outline([MAIN], [*CHAIN, *extra])
    assert ids(line) == [1, 2, 7, 8, 3, 4]


def test_nodes_without_a_branch_do_not_break_the_drawing() -> None:
    assert outline([], CHAIN) == []
    (line,) = outline([MAIN], [*CHAIN, step(9, 77)])
    assert ids(line) == [1, 2, 3, 4]


def test_a_node_is_found_on_the_branch_that_was_made_first() -> None:
    branches = [MAIN, TreeBranch("b", 5, 2, "main")]
    nodes = [*CHAIN, step(5, 2)]
    assert [branch_of(i, branches, nodes) for i in (1, 4, 5, 9)] == ["main", "main", "b", None]


def test_long_text_is_one_short_line() -> None:
    assert shortened("a\n  b", 10) == "a b"
    assert shortened("abcdef", 4) == "abc…"


def test_the_newest_nodes_stay_and_those_that_others_leave() -> None:
    lines = outline([MAIN, TreeBranch("b", 6, 2, "main")], [*CHAIN, step(5, 2), step(6, 5)])
    (line,) = newest(lines, 1)
    assert (ids(line), line.hidden) == ([2, 4], 2)
    assert [(ids(fork), fork.hidden) for fork in line.forks[2]] == [([6], 1)]
    assert newest(lines, 0) == lines
