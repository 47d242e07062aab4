"""YAML with positions."""

from __future__ import annotations

import pytest

from katsura.manifests.document import Entries, Items, Leaf, Node, parse, tree
from katsura.manifests.foreign import plain
from katsura.manifests.rules import Problem


def read(text: str) -> tuple[list[Node], list[str]]:
    problems: list[Problem] = []
    nodes = list(parse("f.yaml", text, problems))
    return nodes, [str(problem) for problem in problems]


def test_every_value_knows_its_line_and_column() -> None:
    nodes, problems = read("a: 1\nb:\n  - x\n  - c: true\n")
    (root,) = nodes
    assert isinstance(root, Entries)
    b = root.nodes["b"]
    assert isinstance(b, Items)
    inner = b.nodes[1]
    assert isinstance(inner, Entries)
    leaf = inner.nodes["c"]
    assert isinstance(leaf, Leaf)
    assert (leaf.value, leaf.place.line, leaf.place.column) == (True, 4, 8)
    assert inner.keys["c"].column == 5
    assert problems == []


def test_empty_documents_are_no_documents() -> None:
    assert read("---\n---\n# nothing\n---\na: 1\n---\n") == (read("\n\n\n\na: 1\n")[0], [])


def test_a_syntax_error_names_its_line_and_spares_the_documents_before_it() -> None:
    nodes, problems = read("a: 1\n---\nb: [1,\nc: }\n")
    assert len(nodes) == 1
    assert len(problems) == 1
    assert problems[0].startswith("f.yaml:4: not YAML: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: a: written twice; the first is on line 1"),
        ("a: !!python/name:os.system ''", "f.yaml:1: a: tags such as"),
        ("a: !Secret x", "f.yaml:1: a: tags such as '!Secret' are not read; write plain data"),
        ("a: &x\n  b: *x", "f.yaml:1: a.b: an anchor that contains itself has no end; write the value out"),
        ("? [1, 2]\n: x", "f.yaml:1: a field name must be a plain word"),
        ("a: 1\nb: \0", "f.yaml:2: not YAML: special characters are not allowed"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_place(text: str, problem: str) -> None:
    _, problems = read(text)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_a_date_is_text_and_an_anchor_may_be_shared() -> None:
    nodes, problems = read("a: 2026-01-02\nb: &n [1]\nc: *n")
    assert problems == []
    assert isinstance(nodes[0], Entries)
    assert nodes[0].nodes["a"].value == "2026-01-02"  # type: ignore[union-attr]
    assert nodes[0].nodes["c"] == nodes[0].nodes["b"]


def test_parsed_json_is_a_tree_without_a_detour_through_yaml() -> None:
    root = tree("chat", {"small": 1e-05, "said": "🚀\x7f", "list": [None, {"yes": True}]})
    assert isinstance(root, Entries)
    assert plain(root) == {"small": 1e-05, "said": "🚀\x7f", "list": [None, {"yes": True}]}
    assert root.keys["said"].problem("said", "no").file == "chat"
