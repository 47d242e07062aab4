"""Archives over the in-memory store: what is refused. The stores' own suite: tests/contract."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable

import pytest

from katsura.domain.errors import DataLossError, InvalidArgumentError, KatsuraError, NotFoundError
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import Reference, Step, TreePolicy
from katsura.memory.foreign import Lookout
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.tree_records import content_hash
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))


@pytest.fixture
async def memory() -> Memory:
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(), {})
    write = Write("", REF, "", None, True)
    await memory.grow(write, [Step("one", client_step_id="c"), Step("two")], True)
    await memory.compress(write, 0, None, "", (), False)
    return memory


async def lines_of(memory: Memory) -> list[dict[str, object]]:
    archive = b"".join([piece async for piece in memory.export(REF)])
    return [json.loads(line) for line in archive.splitlines()]


async def load(memory: Memory, lines: list[dict[str, object]], size: int = 7) -> bytes:
    archive = b"".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(archive), size):
            yield archive[at : at + size]

    return (await memory.import_tree(REF.tenant, "copy", pieces()))[1]


async def test_an_archive_comes_in_whatever_way_it_was_cut(memory: Memory) -> None:
    lines = await lines_of(memory)
    digest = await load(memory, lines)
    copy = TreeRef(REF.tenant, TreeId("copy"))
    assert (await memory.verify(copy)) == await memory.verify(REF)
    assert (await memory.verify(copy)).root_digest == digest


async def test_a_step_that_is_stale_by_a_node_of_another_tree_comes_in_stale(memory: Memory) -> None:
    other = TreeRef(REF.tenant, TreeId("other"))
    await memory.create_tree(other.tenant, "", "other", "goal", (), TreePolicy(), {})
    await memory.grow(Write("", other, "", None, True), [Step(f"step {i}") for i in range(9)], True)
    on = Step("on it", references=(Reference(NodeId(9), tree_id="other"),))
    (node_id,) = (await memory.grow(Write("", REF, "", None, True), [on], True)).node_ids
    assert node_id < 9, "the cause has an id that this tree does not reach"
    await memory.invalidate(other, "", [9], False)
    await Lookout(memory.trees).turn(REF, 64)
    await load(memory, await lines_of(memory))
    (copied,) = await memory.get_nodes(TreeRef(REF.tenant, TreeId("copy")), [node_id])
    assert [(mark.cause, mark.tree_id) for mark in copied.stale] == [(9, "other")]


def change(index: int, name: str, at: int, value: object) -> Callable[[list[dict[str, object]]], object]:
    return lambda lines: lines[index][name].__setitem__(at, value)  # type: ignore[attr-defined]


def forged(**fields: object) -> Callable[[list[dict[str, object]]], object]:
    """The second step with another record, and a hash to match."""

    def forge(lines: list[dict[str, object]]) -> None:
        record = bytes(16) + json.dumps({"t": "s", "r": "user", "c": "", **fields}).encode()
        before = bytes.fromhex(lines[1]["r"][0])  # type: ignore[index]
        change(2, "r", 0, content_hash(before, record).hex())(lines)
        change(2, "r", 2, base64.b64encode(record).decode())(lines)

    return forge


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda lines: lines.pop(), InvalidArgumentError),
        (lambda lines: lines.pop(0), InvalidArgumentError),
        (lambda lines: lines.pop(2), InvalidArgumentError),
        (lambda lines: lines.insert(1, lines.pop(2)), InvalidArgumentError),
        (lambda lines: lines[0].update(format=2), InvalidArgumentError),
        (lambda lines: lines[0]["tree"].update(default_branch="x"), InvalidArgumentError),
        (lambda lines: lines[0]["branches"][0].update(head=9), InvalidArgumentError),
        (lambda lines: lines[0]["branches"][0].update(name="a b"), InvalidArgumentError),
        (lambda lines: lines[0].update(rollups=[[3, 9]]), InvalidArgumentError),
        (lambda lines: lines[0].update(rollups=[[3, 3]]), InvalidArgumentError),
        (lambda lines: lines[0].update(rollups=[[0, 3]]), InvalidArgumentError),
        (lambda lines: lines[-1].update(end=2), InvalidArgumentError),
        (lambda lines: lines[-2].update(s=[["main", "c", 9]]), InvalidArgumentError),
        (change(1, "r", 0, "00" * 32), DataLossError),
        (change(1, "r", 2, "AAAA"), DataLossError),
        (change(1, "r", 1, "1 2 main\n3"), InvalidArgumentError),
        (change(3, "r", 3, ""), InvalidArgumentError),
        (change(1, "p", 0, 7), InvalidArgumentError),
        (change(1, "p", 1, 7), InvalidArgumentError),
        (change(1, "p", 2, -1), InvalidArgumentError),
        (change(2, "p", 3, 3), InvalidArgumentError),
        (change(2, "p", 4, 1), InvalidArgumentError),
        (change(3, "p", 4, 9), InvalidArgumentError),
        (change(3, "r", 3, f'{"9" * 400} 1\n[2,1,3,"",0,[],[]]'), InvalidArgumentError),
        (change(3, "r", 3, "2 1\n[2,1,3,5,0,[],[]]"), InvalidArgumentError),
        (forged(), None),
        (forged(c=5), InvalidArgumentError),
        (forged(a={"k": 1}), InvalidArgumentError),
        (forged(o=[1, 2, "3", 4]), InvalidArgumentError),
        (forged(z=[9, 1]), InvalidArgumentError),
        (lambda lines: lines.insert(1, lines[0]), InvalidArgumentError),
        (lambda lines: lines[0]["tree"].update(goal=5), InvalidArgumentError),
        (lambda lines: lines[0]["tree"].update(pins=[5]), InvalidArgumentError),
        (lambda lines: lines[0]["tree"].update(labels=["a"]), InvalidArgumentError),
        (lambda lines: lines[0]["tree"].update(revision="x"), InvalidArgumentError),
        (lambda lines: lines[0]["tree"].update(create_ms=1 << 60), InvalidArgumentError),
        (lambda lines: lines[0].update(branches=["x"]), InvalidArgumentError),
        (lambda lines: lines[0].update(usage={"a\nsteps": "many"}), InvalidArgumentError),
        (lambda lines: lines[0].update(slot_heads={"main": 1}), InvalidArgumentError),
        (lambda lines: lines[0].update(rollups=[[1, 3]]), InvalidArgumentError),
        (lambda lines: lines[0]["branches"][0].update(head=1), InvalidArgumentError),
        (lambda lines: lines[0]["branches"][0].update(head=3), InvalidArgumentError),
        (lambda lines: lines[0]["branches"][0].update(summary_head=1), InvalidArgumentError),
        (lambda lines: lines[0]["branches"][0].update(hint=3), InvalidArgumentError),
        (lambda lines: lines[-2].update(s=[["main", "c", 3]]), InvalidArgumentError),
        (lambda lines: lines.append({"what": 1}), None),
        (lambda lines: lines.insert(0, {"what": 1}), InvalidArgumentError),
    ],
)
async def test_an_archive_that_was_damaged_is_refused_whole(
    memory: Memory, damage: Callable[[list[dict[str, object]]], object], kind: type[KatsuraError] | None
) -> None:
    lines = await lines_of(memory)
    del lines[-1]["digest"]  # as versions before it wrote them: each check has to hold alone
    damage(lines)
    if kind is None:
        await load(memory, lines)
        return
    with pytest.raises(kind):
        await load(memory, lines)
    with pytest.raises(NotFoundError):
        await memory.get_tree(TreeRef(REF.tenant, TreeId("copy")))


@pytest.mark.parametrize(
    "forge",
    [
        lambda lines: lines[0]["tree"].update(goal="another goal"),
        lambda lines: lines[0]["tree"].update(pins=["pay twice"]),
        lambda lines: lines[0]["branches"][0].update(raw_tokens=1),
        change(3, "r", 3, '3 1\n[2,1,3,"",0,["fidelity"],[["fidelity",1,[]]]]'),
        lambda lines: lines[-2].update(s=[["main", "c", 2]]),
    ],
)
async def test_an_archive_whose_hashes_hold_but_that_was_changed_is_refused_whole(
    memory: Memory, forge: Callable[[list[dict[str, object]]], object]
) -> None:
    lines = await lines_of(memory)
    forge(lines)
    with pytest.raises(DataLossError, match="changed since it was exported"):
        await load(memory, lines)
    with pytest.raises(NotFoundError):
        await memory.get_tree(TreeRef(REF.tenant, TreeId("copy")))
    del lines[-1]["digest"]
    await load(memory, lines)  # nothing but the digest tells


async def test_verify_names_what_is_not_what_was_written(memory: Memory) -> None:
    store = memory.trees
    assert isinstance(store, TwinTreeStore)
    node = store._trees[REF].nodes[1]
    store._trees[REF].nodes[1] = node.__class__(
        **{**{f: getattr(node, f) for f in node.__slots__}, "body": Step("changed")}
    )
    found = await memory.verify(REF)
    assert [(n, "hash" in what) for n, what in found.mismatches] == [(1, True)]
