"""Slots over the in-memory store. The stores' own suite: tests/contract."""

from __future__ import annotations

import pytest

from katsura.domain.errors import ConflictError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Relation, Slot, Step, TreePolicy
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.core.slots import SlotWrite
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))
BACK = (SlotWrite("city", "", Relation.ROLLBACK),)


@pytest.fixture
async def memory() -> Memory:
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(), {})
    return memory


async def put(memory: Memory, value: str, request_id: str = "", branch: str = "") -> object:
    return await memory.set_slots(REF, request_id, branch, (SlotWrite("city", value),))


async def held(memory: Memory, branch: str = "") -> list[str]:
    return [n.body.value for n in await memory.get_slots(REF, branch) if isinstance(n.body, Slot)]


async def test_going_back_to_the_city_as_originally_planned(memory: Memory) -> None:
    for city in ("Seattle", "Portland", "Boise"):
        await put(memory, city)
    for wanted in (["Portland"], ["Seattle"], []):
        await memory.set_slots(REF, "", "", BACK)
        assert await held(memory) == wanted
    with pytest.raises(ConflictError):
        await memory.set_slots(REF, "", "", BACK)
    await put(memory, "Seattle")
    history = await memory.slot_history(REF, "", "city", 0)
    assert [n.body.relation.name for n in history if isinstance(n.body, Slot)] == [
        "NEW", "ROLLBACK", "ROLLBACK", "ROLLBACK", "REPLACE", "REPLACE", "NEW",
    ]  # fmt: skip
    await put(memory, "Boise")
    await memory.set_slots(REF, "", "", BACK)
    assert await held(memory) == ["Seattle"]


async def test_a_rollback_of_a_replaced_rollback_finds_the_value_that_stood(memory: Memory) -> None:
    await put(memory, "a")
    await put(memory, "b")
    await memory.set_slots(REF, "", "", BACK)
    await put(memory, "c")
    await memory.set_slots(REF, "", "", BACK)
    assert await held(memory) == ["a"]


async def test_a_repeated_write_is_one_write(memory: Memory) -> None:
    first = await put(memory, "a", "r")
    await put(memory, "b")
    assert await put(memory, "a", "r") == first
    assert await held(memory) == ["b"]


async def test_the_context_says_current_values_where_they_were_set_and_drops_none(memory: Memory) -> None:
    write = Write("", REF, "", None, True)
    await memory.grow(write, [Step("first")], True)
    await put(memory, "Seattle")
    await memory.grow(write, [Step("x" * 300), Step("second")], True)
    shown = await memory.assemble_context(REF, "", 1000, 0, "", False)
    contents = [s.content for s in shown.assembly.segments]
    assert contents == ["Goal: goal", "first", "[value of city] Seattle", "x" * 300, "second"]
    tight = await memory.assemble_context(REF, "", 40, 0, "", False)
    assert [s.kind for s in tight.assembly.segments] == [SegmentKind.PIN, SegmentKind.SLOT, SegmentKind.STEP]
    await put(memory, "Portland")
    shown = await memory.assemble_context(REF, "", 1000, 0, "", False)
    assert [s.content for s in shown.assembly.segments][1:] == [
        "first", "x" * 300, "second", "[value of city] Portland",
    ]  # fmt: skip
