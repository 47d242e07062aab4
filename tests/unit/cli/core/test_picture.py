"""A tree as a picture."""

from __future__ import annotations

from xml.etree import ElementTree

from katsura.cli.core.outline import TreeBranch, TreeNode, newest, outline
from katsura.cli.core.picture import svg

NODES = (
    TreeNode(1, 0, "step", "user", "Where to? <b> & more"),
    TreeNode(2, 1, "step", "assistant", "Oslo. " * 400),
    TreeNode(3, 1, "step", 'a"/><script>', "Rome."),
    TreeNode(4, 2, "summary", "summary of #1 to #2", "Oslo."),
)
BRANCHES = (TreeBranch("main", 2, 0, ""), TreeBranch("try-<2>", 3, 1, "main", "abandoned"))


def test_it_is_xml_that_holds_every_node_and_branch_and_no_wider_than_asked() -> None:
    drawn = svg('a "trip" & <more>', outline(BRANCHES, NODES), "main", width=500)
    root = ElementTree.fromstring(drawn)
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {'a "trip" & <more>', "main", "default", "try-<2>", "left behind"} <= set(texts)
    assert [text for text in texts if text.startswith("#1 user")] == ["#1 user  Where to? <b> & more"]
    assert all(len(text) * 7.3 < 500 for text in texts)
    assert (root.get("width"), root.get("aria-label")) == ("500", 'a "trip" & <more>')


def test_every_dot_has_a_row_of_its_own_and_a_fork_begins_below_what_it_left() -> None:
    root = ElementTree.fromstring(svg("t", outline(BRANCHES, NODES), "main"))
    names = "{http://www.w3.org/2000/svg}"
    rows = [float(circle.get("cy", "0")) for circle in root.iter(f"{names}circle")]
    assert len(set(rows)) == len(rows) == 3
    lanes = {circle.get("cx") for circle in root.iter(f"{names}circle")}
    assert len(lanes) == 2


def test_what_is_not_shown_is_counted() -> None:
    chain = [TreeNode(n, n - 1, "step", "user", "x") for n in range(1, 1301)]
    assert "1,298 not shown" in svg("t", newest(outline([TreeBranch("main", 1300, 0, "")], chain), 2), "main")
