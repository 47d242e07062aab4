from __future__ import annotations

from katsura.placement import catalogue
from katsura.placement.problem import NodeClass
from katsura_operator.core.affinity import expressions, selected

CORE = catalogue.built_in().named("cpu")


def node_class(name: str, *nodes: str) -> NodeClass:
    return NodeClass(name, None, 0, CORE, 4.0, 2**30, "z", False, 0.1, 1.0, 1.0, nodes)


def test_one_class_needs_no_words() -> None:
    assert expressions([node_class("c", "a", "b")], {"a": {}, "b": {}}, []) == {"c": ()}


def test_labels_that_all_share_and_nobody_else_has_name_a_class() -> None:
    nodes = {"a": {"disk": "fast"}, "b": {"disk": "fast"}, "c": {"disk": "slow"}}
    made = expressions([node_class("f", "a", "b"), node_class("s", "c")], nodes, [{"disk": "fast"}])
    assert made["f"] == ({"key": "disk", "operator": "In", "values": ["fast"]},)


def test_host_names_stand_in_where_labels_do_not_tell() -> None:
    nodes = {"a": {"kubernetes.io/hostname": "ha"}, "b": {"kubernetes.io/hostname": "hb"}}
    made = expressions([node_class("x", "a"), node_class("y", "b")], nodes, [])
    assert made["x"] == ({"key": "kubernetes.io/hostname", "operator": "In", "values": ["ha"]},)


def test_a_node_that_joins_a_labelled_class_changes_nothing() -> None:
    nodes = {"a": {"disk": "fast"}, "c": {"disk": "slow"}, "d": {"disk": "fast"}}
    few = expressions([node_class("f", "a"), node_class("s", "c")], nodes, [{"disk": "x"}])
    more = expressions([node_class("f", "a", "d"), node_class("s", "c")], nodes, [{"disk": "x"}])
    assert few == more


def test_a_selector_is_said_as_it_is() -> None:
    assert selected({"b": "2", "a": "1"})[0] == {"key": "a", "operator": "In", "values": ["1"]}
