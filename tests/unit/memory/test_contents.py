"""Operations that are not about branches, over the in-memory store. The stores' own suite: tests/contract."""

from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError, KatsuraError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Attachment, Snapshot, Step, TreePolicy
from katsura.memory.core.assemble import Segment
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.contents import Scope, TreeChange
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))


@pytest.fixture
async def memory() -> Memory:
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(), {})
    return memory


async def grow(memory: Memory, *steps: Step, branch: str = "") -> None:
    await memory.grow(Write("", REF, branch, None, True), steps, True)


async def fails(field: str, attempt: object) -> KatsuraError:
    with pytest.raises(InvalidArgumentError) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.field == field
    return caught.value


async def test_a_change_that_says_nothing_or_contradicts_itself_is_refused(memory: Memory) -> None:
    await fails("goal", memory.update_tree(REF, "", TreeChange()))
    await fails("remove_pins", memory.update_tree(REF, "", TreeChange(add_pins=("a",), remove_pins=("a",))))
    await fails("remove_labels", memory.update_tree(REF, "", TreeChange(set_labels={"a": ""}, remove_labels=("a",))))
    await fails("default_branch", memory.update_tree(REF, "", TreeChange(default_branch="/")))
    await fails("add_pins", memory.update_tree(REF, "", TreeChange(add_pins=("a",) * 65)))
    await fails("add_pins[1]", memory.update_tree(REF, "", TreeChange(add_pins=("a", "b" * 5000))))
    await fails("set_labels['k']", memory.update_tree(REF, "", TreeChange(set_labels={"k": "v" * 5000})))


async def test_a_pin_is_in_the_very_next_context(memory: Memory) -> None:
    await grow(memory, Step("hello"))
    await memory.update_tree(REF, "", TreeChange(add_pins=("at most 450 USD",)))
    shown = await memory.assemble_context(REF, "", 1000, 0, "", False)
    assert "at most 450 USD" in shown.assembly.segments[0].content


async def test_attachments_are_keyed_once(memory: Memory) -> None:
    await grow(memory, Step("a"))
    item = Attachment("t", 0, "", b"")
    await fails("attachments", memory.put_attachments(REF, 1, (), False))
    await fails("attachments", memory.put_attachments(REF, 1, (item, item), False))
    assert (await memory.put_attachments(REF, 1, (item,), False))[0] == (True,)


async def test_nodes_are_listed_by_what_their_steps_carry(memory: Memory) -> None:
    await grow(memory, Step("a", attributes={"run": "1", "x": "y"}), Step("b", agent_id="planner"), Step("c"))
    by_run = await memory.list_nodes(REF, 0, 0, "", {"run": "1"}, "")
    assert [n.node_id for n in by_run.nodes] == [1]
    by_agent = await memory.list_nodes(REF, 0, 0, "", {}, "planner")
    assert [n.node_id for n in by_agent.nodes] == [2]
    assert [n.node_id for n in (await memory.list_nodes(REF, 3, 1, "", {}, "")).nodes] == [2]


async def test_found_steps_come_with_their_nodes(memory: Memory) -> None:
    await grow(memory, Step("a", client_step_id="c1"))
    ((found, node),) = await memory.find_steps(REF, ("c1", "c2"), "")
    assert (found.branch, found.node_id, node.body) == ("main", 1, (await memory.get_nodes(REF, [1]))[0].body)
    assert await memory.find_steps(REF, ("c2",), "") == ()
    await fails("client_step_ids", memory.find_steps(REF, (), ""))


async def test_search_answers_only_what_a_node_says(memory: Memory) -> None:
    await grow(memory, Step('He said "Kyoto"'), Step("other", agent_id="kyoto"))
    hits, end = await memory.search(REF, Scope.UNSPECIFIED, "", 'SAID "kyoto"', 0, 0, False)
    assert ([(h.node.node_id, h.live) for h in hits], end) == ([(1, True)], 0)
    assert hits[0].excerpt == 'He said "Kyoto"'
    assert (await memory.search(REF, Scope.TREE, "", "kyoto", 0, 0, False))[0] == hits
    await fails("query", memory.search(REF, Scope.PATH, "", "  ", 0, 0, False))


async def test_redacted_steps_are_told_as_such_in_a_context(memory: Memory) -> None:
    await grow(memory, Step("secret 4711"), Step("next"))
    assert (await memory.redact(REF, "", (1,)))[0] == (1,)
    shown = await memory.assemble_context(REF, "", 1000, 0, "", False)
    assert [s.content for s in shown.assembly.segments][1:] == ["[redacted]", "next"]
    await fails("node_ids", memory.redact(REF, "", ()))


async def test_what_contexts_have_shown_is_forgotten_by_a_redaction(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grow(memory, Step("secret"), Step("other"))
    snapshot = await memory.trees.snapshot(REF, "", 1000, 8, "", False)

    async def same(*_: object) -> Snapshot:
        return snapshot

    monkeypatch.setattr(memory.trees, "snapshot", same)

    async def shown() -> Segment:
        return (await memory.assemble_context(REF, "", 1000, 0, "", False)).assembly.segments[1]

    first = await shown()
    assert (first.content, await shown() is first) == ("secret", True)
    await memory.redact(REF, "", [1])
    assert await shown() is not first
