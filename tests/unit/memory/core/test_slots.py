"""What a write of a slot means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import ConflictError, InvalidArgumentError
from katsura.domain.ids import NodeId
from katsura.domain.trees import Node, Relation, Slot
from katsura.memory.core.slots import SLOTS_MAX, SlotWrite, check_writes, plan
from katsura.testing.trees import step_nodes

R = Relation


def node(node_id: int, slot: Slot) -> Node:
    (shape,) = step_nodes("x", first_id=node_id)
    return replace(shape, body=slot)


SET = node(5, Slot("k", "old"))
UNSET = node(6, Slot("k", "", R.ROLLBACK, previous=NodeId(5)))


@pytest.mark.parametrize(
    ("last", "relation", "made"),
    [
        ((), R.UNSPECIFIED, Slot("k", "v", R.NEW)),
        ((), R.NEW, Slot("k", "v", R.NEW)),
        ((SET,), R.UNSPECIFIED, Slot("k", "v", R.REPLACE, previous=NodeId(5))),
        ((SET,), R.REFINE, Slot("k", "v", R.REFINE, previous=NodeId(5))),
        ((SET,), R.REPLACE, Slot("k", "v", R.REPLACE, previous=NodeId(5))),
        ((UNSET,), R.NEW, Slot("k", "v", R.NEW, previous=NodeId(6))),
        ((SET,), R.NEW, None),
        ((), R.REFINE, None),
        ((), R.REPLACE, None),
        ((UNSET,), R.REPLACE, None),
    ],
)
def test_a_relation_needs_the_key_to_be_set_or_not(
    last: tuple[Node, ...], relation: Relation, made: Slot | None
) -> None:
    write = SlotWrite("k", "v", relation)
    if made is None:
        with pytest.raises(ConflictError) as caught:
            plan(last, (write,), {})
        assert caught.value.metadata["node"] == ("5" if last == (SET,) else "0")
    else:
        assert plan(last, (write,), {}) == (made,)


def test_a_rollback_takes_the_value_before_or_none() -> None:
    back = SlotWrite("k", "", R.ROLLBACK)
    before = node(3, Slot("k", "older"))
    assert plan((SET,), (back,), {"k": before}) == (Slot("k", "older", R.ROLLBACK, "", NodeId(5), NodeId(3)),)
    (gone,) = plan((SET,), (back,), {})
    assert gone.unset
    with pytest.raises(ConflictError):
        plan((UNSET,), (back,), {})


def test_a_write_may_expect_what_it_replaces() -> None:
    assert plan((SET,), (SlotWrite("k", "v", expected_node=5),), {})
    for last, expected in (((SET,), 4), ((SET,), 0), ((), 5)):
        with pytest.raises(ConflictError):
            plan(last, (SlotWrite("k", "v", expected_node=expected),), {})


def test_writes_that_can_hold_nowhere_are_refused() -> None:
    wrong = [
        (),
        (SlotWrite("a b", ""),),
        (SlotWrite("k", "x" * 1025),),
        (SlotWrite("k", "", note="x" * 1025),),
        (SlotWrite("k", "v", R.ROLLBACK),),
        (SlotWrite("k", "1"), SlotWrite("k", "2")),
        tuple(SlotWrite(f"k{i}", "") for i in range(SLOTS_MAX + 1)),
    ]
    for writes in wrong:
        with pytest.raises(InvalidArgumentError):
            check_writes(writes)
    last = tuple(node(i + 1, Slot(f"k{i}", "")) for i in range(SLOTS_MAX))
    with pytest.raises(InvalidArgumentError):
        plan(last, (SlotWrite("more", ""),), {})
    assert plan(last, (SlotWrite("k0", "v"),), {})
