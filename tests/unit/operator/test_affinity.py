from __future__ import annotations

from katsura.placement import catalogue
from katsura.placement.problem import NodeClass
from katsura_operator.core.affinity import expressions, selected

CORE = catalogue.built_in().named("cpu")
ZONE = "topology.kubernetes.io/zone"


def node_class(name: str, *nodes: str, domain: str = "z", cores: float = 4.0) -> NodeClass:
    return NodeClass(name, None, 0, CORE, cores, 2**30, domain, False, 0.1, 1.0, 1.0, nodes)


def one(key: str, *values: str) -> tuple[dict[str, object], ...]:
    return ({"key": key, "operator": "In", "values": list(values)},)


def test_one_kind_of_node_needs_no_words_whatever_is_free_on_each() -> None:
    classes = [node_class("a", "a", cores=3), node_class("b", "b", cores=4)]
    assert expressions(classes, {"a": {ZONE: "z"}, "b": {ZONE: "z"}}, []) == {"a": (), "b": ()}


def test_labels_of_profiles_come_first() -> None:
    nodes = {"a": {"disk": "fast", ZONE: "x"}, "b": {"disk": "fast", ZONE: "x"}, "c": {"disk": "slow", ZONE: "y"}}
    made = expressions([node_class("f", "a", "b"), node_class("s", "c", domain="y")], nodes, [{"disk": "fast"}])
    assert made["f"] == one("disk", "fast")


def test_zones_are_told_where_devices_do_not_differ() -> None:
    nodes = {"a": {ZONE: "x"}, "b": {ZONE: "y"}}
    made = expressions([node_class("x", "a", domain="x"), node_class("y", "b", domain="y")], nodes, [])
    assert made == {"x": one(ZONE, "x"), "y": one(ZONE, "y")}


def test_host_names_stand_in_where_labels_do_not_tell() -> None:
    nodes = {"a": {"kubernetes.io/hostname": "ha"}, "b": {"kubernetes.io/hostname": "hb"}}
    made = expressions([node_class("x", "a", domain="x"), node_class("y", "b", domain="y")], nodes, [])
    assert made["x"] == one("kubernetes.io/hostname", "ha")


def test_a_kind_that_leaves_and_comes_back_changes_no_word_of_the_others() -> None:
    nodes = {"a": {"disk": "fast"}, "c": {"disk": "slow"}}
    both = expressions([node_class("f", "a"), node_class("s", "c", domain="y")], nodes, [{"disk": "fast"}])
    alone = expressions([node_class("f", "a")], {"a": nodes["a"]}, [{"disk": "fast"}])
    assert both["f"] == alone["f"]


def test_a_selector_is_said_as_it_is() -> None:
    assert selected({"b": "2", "a": "1"})[0] == {"key": "a", "operator": "In", "values": ["1"]}
