from __future__ import annotations

from katsura.placement.pack import pack
from katsura.placement.patterns import Column, Member
from katsura.testing.clusters import node_class

CLASS = node_class("A100-80", 2)


def column(service: str, accelerators: int, cores: float = 1.0) -> Column:
    member = Member("unified", CLASS.name, 1, accelerators, cores, 2**30)
    return Column(service, "Unified", (member,), 1.0, None, "a", False)


def test_the_largest_go_first_so_that_powers_of_two_always_fit() -> None:
    packed = pack([(column("s", 1), 4), (column("l", 8), 1), (column("m", 4), 1)], [CLASS])
    assert not packed.left
    assert packed.nodes_used() == {CLASS.name: 2}


def test_what_runs_keeps_its_node() -> None:
    held = {("s", "unified", CLASS.name): [CLASS.nodes[1]]}
    packed = pack([(column("s", 1), 2)], [CLASS], held)
    assert {p.node for i in packed.instances for p in i.places} == {CLASS.nodes[1]}


def test_cores_that_do_not_fit_name_their_class() -> None:
    packed = pack([(column("s", 1, cores=60.0), 4)], [CLASS])
    assert packed.left == {CLASS.name}
    assert len(packed.instances) == 2


def test_what_stays_gives_up_the_emptiest_nodes_that_are_not_needed() -> None:
    large = node_class("A100-80", 4)
    held = {("s", "unified", large.name): [*large.nodes[:1] * 5, large.nodes[1], large.nodes[2]]}
    packed = pack([(column("s", 1), 7)], [large], held)
    assert {p.node for i in packed.instances for p in i.places} == {large.nodes[0]}


def test_the_second_of_two_routers_goes_to_another_node_that_is_in_use() -> None:
    def spread(count: int, free: int = 2) -> list[str]:
        packed = pack([(column("m", 8), free), (column("r", 0), count)], [CLASS])
        return [p.node for i in packed.instances for p in i.places if not p.accelerators]

    assert spread(2) == [CLASS.nodes[0], CLASS.nodes[1]]
    assert set(spread(2, free=1)) == {CLASS.nodes[0]}  # no node is opened for it
    assert len(set(spread(5))) == 2
