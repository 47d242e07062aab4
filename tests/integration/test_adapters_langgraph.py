"""LangGraph on a memory process: the conformance suite of its own makers, and real graphs."""

from __future__ import annotations

import asyncio
import operator
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.types import INTERRUPT
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from katsura.adapters.checkpoints import Key, Record
from katsura.adapters.langgraph import KatsuraSaver
from katsura.adapters.ropes import Value
from katsura.adapters.threads import Threads
from katsura.domain.errors import AlreadyExistsError, NotFoundError
from katsura.sdk.sync import Katsura


async def test_the_conformance_suite_passes_whole(katsura: Katsura) -> None:
    @checkpointer_test(name="KatsuraSaver")
    async def saver() -> AsyncIterator[KatsuraSaver]:
        yield KatsuraSaver(katsura)

    report = await validate(saver)
    failures = [failure for result in report.results.values() for failure in result.failures]
    assert not failures
    assert len(report.results) == 8
    assert all(result.detected and result.passed for result in report.results.values())
    assert sum(result.tests_passed for result in report.results.values()) >= 75


class State(TypedDict):
    """A history that grows, and a number that changes."""

    log: Annotated[list[str], operator.add]
    count: int


def counting_graph(saver: KatsuraSaver) -> Any:
    def step(state: State) -> dict[str, Any]:
        return {"log": [f"step {state['count']}"], "count": state["count"] + 1}

    builder = StateGraph(State)
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: END if state["count"] % 3 == 0 else "step")
    return builder.compile(checkpointer=saver)


def config_of(thread: str, **more: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def used_by(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}}


async def test_a_graph_goes_on_where_it_was_in_another_process_and_forks_from_the_past(
    memory_key: tuple[str, str],
) -> None:
    def use() -> None:
        with Katsura(memory_key[0], api_key=memory_key[1]) as katsura:
            graph = counting_graph(KatsuraSaver(katsura))
            assert graph.invoke({"log": ["begin"], "count": 0}, used_by("graph"))["count"] == 3
        with Katsura(memory_key[0], api_key=memory_key[1]) as katsura:
            graph = counting_graph(KatsuraSaver(katsura))
            assert graph.get_state(used_by("graph")).values["log"] == ["begin", "step 0", "step 1", "step 2"]
            past = next(s for s in graph.get_state_history(used_by("graph")) if s.values.get("count") == 2)
            forked = graph.update_state(past.config, {"log": ["another way"], "count": 5})
            assert graph.invoke(None, forked)["log"][-2:] == ["another way", "step 5"]
            assert graph.get_state(used_by("graph")).values["count"] == 6
            # the line that was left is whole
            assert graph.get_state(past.config).values["log"] == ["begin", "step 0", "step 1"]
            tree = katsura.run(katsura.memory.get_tree("langgraph.graph"))
            assert [branch.name for branch in tree.branches] == ["main", "main.2"]

    await asyncio.to_thread(use)


async def test_an_interrupted_graph_resumes_and_parallel_nodes_keep_their_writes(katsura: Katsura) -> None:
    def ask(state: State) -> dict[str, Any]:
        return {"log": [interrupt("may I?")]}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_node("beside", lambda state: {"log": ["beside"]})
    for name in ("ask", "beside"):
        builder.add_edge(START, name)
        builder.add_edge(name, END)
    graph = builder.compile(checkpointer=KatsuraSaver(katsura))
    paused = await graph.ainvoke({"log": [], "count": 0}, used_by("paused"))
    assert paused["__interrupt__"][0].value == "may I?"
    again = builder.compile(checkpointer=KatsuraSaver(katsura))
    done = await again.ainvoke(Command(resume="yes"), used_by("paused"))
    assert sorted(done["log"]) == ["beside", "yes"]


async def put(
    saver: KatsuraSaver, parent: RunnableConfig, values: dict[str, Any], version: int, **metadata: Any
) -> RunnableConfig:
    checkpoint = empty_checkpoint()
    versions = dict.fromkeys(values, version)
    checkpoint.update(id=str(uuid6(clock_seq=version)), channel_values=values, channel_versions=versions)
    return await saver.aput(parent, checkpoint, {"source": "loop", "step": version, **metadata}, versions)


async def test_a_growing_list_is_stored_as_it_grows_and_read_back_by_another_saver(katsura: Katsura) -> None:
    saver, config, messages = KatsuraSaver(katsura), config_of("growing"), list[str]()
    for version in range(1, 201):
        messages.append(f"{version:04}" * 50)
        config = await put(saver, config, {"messages": messages}, version)
    other = KatsuraSaver(katsura)
    found = await other.aget_tuple(config_of("growing"))
    assert found is not None
    assert found.checkpoint["channel_values"]["messages"] == messages
    edited = [*messages[:150], "cut", *messages[180:]]
    await put(other, config, {"messages": edited}, 201)
    found = await KatsuraSaver(katsura).aget_tuple(config_of("growing"))
    assert found is not None
    assert found.checkpoint["channel_values"]["messages"] == edited
    nodes = katsura.run(katsura.memory.list_nodes("langgraph.growing", page_size=500)).nodes
    stored = sum(len(item.data) for node in nodes for item in node.step.attachments)
    assert stored < 4 * 201 * 200  # whole copies would be 100 times 201 * 200


async def test_values_and_writes_beyond_a_megabyte_are_kept_in_pieces(katsura: Katsura) -> None:
    saver = KatsuraSaver(katsura)
    large = bytes(range(256)) * 10_000
    config = await put(saver, config_of("large"), {"blob": large, "small": 1}, 1)
    await saver.aput_writes(config, [("blob", large), ("small", 2)], "task")
    await saver.acopy_thread("large", "large-copy")
    for thread in ("large", "large-copy"):
        found = await KatsuraSaver(katsura).aget_tuple(config_of(thread))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"blob": large, "small": 1}
        assert found.pending_writes == [("task", "blob", large), ("task", "small", 2)]
    with pytest.raises(AlreadyExistsError):
        await saver.acopy_thread("large", "large-copy")


async def test_the_writes_of_many_tasks_beside_one_checkpoint_are_all_kept(katsura: Katsura) -> None:
    saver = KatsuraSaver(katsura)
    config = await put(saver, config_of("fan-out"), {"a": 1}, 1)
    texts = [f"{number:02}" * 7_000 for number in range(60)]
    await asyncio.gather(
        *(saver.aput_writes(config, [("a", text), ("b", n)], f"task-{n:02}") for n, text in enumerate(texts))
    )
    found = await saver.aget_tuple(config)
    assert found is not None
    wanted = [item for n, text in enumerate(texts) for item in ((f"task-{n:02}", "a", text), (f"task-{n:02}", "b", n))]
    assert found.pending_writes == wanted


async def test_pruning_keeps_the_bytes_that_the_newest_checkpoint_is_made_of(katsura: Katsura) -> None:
    saver, config = KatsuraSaver(katsura), config_of("pruned")
    for version in range(1, 21):
        config = await put(
            saver, config, {"log": [f"entry {n}" for n in range(version)]}, version, run_id=f"r{version}"
        )
    await saver.aprune(["pruned"])
    (left,) = [item async for item in saver.alist(config_of("pruned"))]
    assert left.checkpoint["channel_values"]["log"] == [f"entry {n}" for n in range(20)]
    await saver.acopy_thread("pruned", "pruned-copy")  # its nodes have other ids: what was erased is not copied
    copy = await KatsuraSaver(katsura).aget_tuple(config_of("pruned-copy"))
    assert copy is not None
    assert copy.checkpoint == left.checkpoint
    await put(saver, config, {"log": ["new"]}, 21, run_id="late")
    await saver.adelete_for_runs(["late"])
    back = await saver.aget_tuple(config_of("pruned"))
    assert back is not None
    assert back.metadata["step"] == 20


def joined(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*state, *(text for write in writes for text in write)]


class Deltas(TypedDict):
    """A history that LangGraph stores as writes, with a snapshot now and then."""

    log: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=4)]


async def test_delta_channels_survive_pruning_forks_and_another_process(katsura: Katsura) -> None:
    builder = StateGraph(Deltas)
    builder.add_node("one", lambda state: {"log": [f"one of {len(state['log'])}"]})
    builder.add_node("two", lambda state: {"log": [f"two of {len(state['log'])}"]})
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    builder.add_edge("two", END)
    kept, graph = list[str](), builder.compile(checkpointer=KatsuraSaver(katsura))
    for turn in range(5):
        kept += [f"turn {turn}", f"one of {3 * turn + 1}", f"two of {3 * turn + 2}"]
        assert (await graph.ainvoke({"log": [f"turn {turn}"]}, used_by("deltas")))["log"] == kept
    await KatsuraSaver(katsura).aprune(["deltas"])
    again = builder.compile(checkpointer=KatsuraSaver(katsura))
    assert (await again.aget_state(used_by("deltas"))).values["log"] == kept
    assert len([state async for state in again.aget_state_history(used_by("deltas"))]) == 1
    assert (await again.ainvoke({"log": ["last"]}, used_by("deltas")))["log"] == [
        *kept,
        "last",
        "one of 16",
        "two of 17",
    ]


async def test_two_writers_on_one_parent_both_keep_their_line_and_the_last_one_is_the_newest(katsura: Katsura) -> None:
    one, other = KatsuraSaver(katsura), KatsuraSaver(katsura)
    parent = await put(one, config_of("race"), {"who": "nobody"}, 1)
    assert await other.aget_tuple(parent) is not None
    first = await put(one, parent, {"who": "one"}, 2)
    second = await put(other, parent, {"who": "other"}, 3)
    for config, who in ((first, "one"), (second, "other"), (config_of("race"), "other")):
        found = await one.aget_tuple(config)
        assert found is not None
        assert found.checkpoint["channel_values"]["who"] == who
        assert found.parent_config == (None if who == "nobody" else parent)


async def test_writes_wait_for_their_checkpoint_and_values_are_never_pickled(katsura: Katsura) -> None:
    saver = KatsuraSaver(katsura)
    checkpoint_id = str(uuid6())
    target = config_of("early", checkpoint_id=checkpoint_id)
    early = asyncio.create_task(saver.aput_writes(target, [("a", 1)], "task"))
    await asyncio.sleep(0)
    checkpoint = empty_checkpoint()
    checkpoint["id"] = checkpoint_id
    await saver.aput(config_of("early"), checkpoint, {"source": "loop", "step": 0}, {})
    await early
    found = await saver.aget_tuple(target)
    assert found is not None
    assert found.pending_writes == [("task", "a", 1)]
    with pytest.raises(TypeError):
        await put(saver, config_of(str(uuid4())), {"odd": object()}, 1)


class Scrambler:
    """Stands for a real cipher: LangGraph's wants a package that we do not need."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "scrambled", bytes(byte ^ 0x5A for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return self.encrypt(ciphertext)[1]


async def test_people_can_read_what_a_checkpoint_changed_unless_its_values_are_encrypted(katsura: Katsura) -> None:
    for thread, serde in (("read", None), ("sealed", EncryptedSerializer(Scrambler()))):
        saver = KatsuraSaver(katsura, serde=serde)
        await put(saver, config_of(thread), {"log": ["the secret", "H-7: too dear"]}, 1)
        found = await KatsuraSaver(katsura, serde=serde).aget_tuple(config_of(thread))
        assert found is not None
        assert found.checkpoint["channel_values"]["log"] == ["the secret", "H-7: too dear"]
        await KatsuraSaver(katsura).adelete_for_runs(["some run"])  # looks at threads that it could not decrypt
    (read,), (sealed,) = (
        katsura.run(katsura.memory.get_whole_path(f"langgraph.{name}")) for name in ("read", "sealed")
    )
    assert read.step.content == "step 1: log … H-7: too dear"
    assert b"too dear" not in sealed.SerializeToString()


class SlowToFind(Threads):
    """Hands on what it found only when told to."""

    def __init__(self, katsura: Katsura) -> None:
        super().__init__(katsura.memory)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def _found(self, key: Key, checkpoint_id: str) -> Record | None:
        found = await super()._found(key, checkpoint_id)
        self.asked.set()
        await self.go_on.wait()
        return found


async def test_a_write_sees_the_checkpoint_that_came_while_it_looked_for_it(katsura: Katsura) -> None:
    async def race() -> list[str]:
        threads, key = SlowToFind(katsura), Key("overtaken", "")
        write = asyncio.create_task(threads.put_writes(key, "c", "task", "", [(0, "a", ("null", b""))]))
        await threads.asked.wait()
        await threads.put(
            key, "c", "", "", ("null", b""), ("null", b""), {}, (), {}, lambda *_: Value("null", b"", b"", 0)
        )
        threads.go_on.set()
        await write
        record = await Threads(katsura.memory).get(key)
        return [item.channel for item in record.writes] if record else []

    assert await asyncio.to_thread(katsura.run, race()) == ["a"]


async def test_a_thread_that_was_deleted_elsewhere_can_begin_anew(katsura: Katsura) -> None:
    one, other = KatsuraSaver(katsura), KatsuraSaver(katsura)
    await put(one, config_of("again"), {"a": 1}, 1)
    await other.adelete_thread("again")
    assert await one.aget_tuple(config_of("again")) is None
    await put(one, config_of("again"), {"a": 2}, 1)
    found = await other.aget_tuple(config_of("again"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": 2}
    with pytest.raises(NotFoundError):
        katsura.run(katsura.memory.get_tree("langgraph.never"))


async def test_the_example_fails_revises_forks_and_finishes(memory_key: tuple[str, str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "langgraph_agent.py"
    where = {"KATSURA_MEMORY_ADDRESS": memory_key[0], "KATSURA_API_KEY": memory_key[1]}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(example), env=os.environ | where, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    tried, revised, forked, branches = said.decode().splitlines()
    assert "H-7 for 900 USD: too dear" in tried
    assert revised.endswith("['H-8 for 90 USD: booked']")
    assert forked.endswith("['H-9 for 120 USD: booked']")
    assert branches.count("checkpoints deep") == 3


class Twins:
    """The same calls to our savers and to LangGraph's in-memory one, which is right by definition."""

    def __init__(self, katsura: Katsura, seed: int) -> None:
        self.random = random.Random(seed)
        self.ours = [KatsuraSaver(katsura), KatsuraSaver(katsura)]
        self.theirs = InMemorySaver()
        self.thread = f"twin-{seed}"
        self.made: list[tuple[RunnableConfig, dict[str, Any], dict[str, Any]]] = []
        self.paths: dict[tuple[str, str], str] = {}

    @property
    def one(self) -> KatsuraSaver:
        """Either saver: what one wrote the other must see."""
        return self.random.choice(self.ours)

    async def put(self) -> None:
        """A checkpoint after the newest one, or after any; some channels grow, shrink, appear and go."""
        namespace = self.random.choice(["", "", "", "child:1"])
        there = [made for made in self.made if made[0]["configurable"]["checkpoint_ns"] == namespace]
        parent, values, versions = (
            self.random.choice([there[-1], there[-1], self.random.choice(there)])
            if there
            else ({"configurable": {"thread_id": self.thread, "checkpoint_ns": namespace}}, {}, {})
        )
        values, versions, new = dict(values), dict(versions), dict[str, Any]()
        for name in self.random.sample(["list", "text", "map", "gone"], self.random.randint(0, 3)):
            number = len(self.made) + 1
            versions[name] = new[name] = number
            if name == "list":
                kept = values.get(name, [])[: self.random.choice([None, None, None, 3])]
                values[name] = [*kept, *(f"{number}-{n}" * 9 for n in range(self.random.randint(0, 4)))]
            elif name == "gone" and name in values:
                values.pop(name)
            else:
                values[name] = {"text": f"{number}" * number, "map": {"n": number}, "gone": number}[name]
        checkpoint = empty_checkpoint()
        checkpoint.update(id=str(uuid6()), channel_values=values, channel_versions=versions)
        metadata: Any = {"source": "loop", "step": len(self.made), "run_id": f"run-{self.random.randint(0, 5)}"}
        config = await self.one.aput(parent, checkpoint, metadata, new)
        assert config == self.theirs.put(parent, checkpoint, metadata, new)
        self.made.append((config, values, versions))

    async def write(self) -> None:
        """Pending writes of a task beside any checkpoint, some of them again."""
        config, _, _ = self.random.choice(self.made)
        task, path = f"task-{self.random.randint(0, 2)}", self.random.choice(["", "~a", "~b"])
        writes = [(self.random.choice(["a", "b", INTERRUPT]), n) for n in range(self.random.randint(1, 3))]
        if any(name == INTERRUPT for name, _ in writes):
            writes = writes[:1]
        path = self.paths.setdefault((config["configurable"]["checkpoint_id"], task), path)  # a task has one
        await self.one.aput_writes(config, writes, task, path)
        self.theirs.put_writes(config, writes, task, path)

    async def same(self) -> None:
        """Every checkpoint, the newest of each namespace and every listing are the same."""
        saver = self.one
        for config in [made[0] for made in self.made[-5:]] + [config_of(self.thread), config_of(self.thread + "x")]:
            assert await saver.aget_tuple(config) == self.theirs.get_tuple(config)
        everything: RunnableConfig = {"configurable": {"thread_id": self.thread}}
        before = self.random.choice(self.made)[0]
        for more in ({}, {"filter": {"run_id": "run-1"}}, {"limit": 3}, {"before": before}):
            ours = [item async for item in saver.alist(everything, **more)]
            assert all(item in self.theirs.list(everything, **{**more, "limit": None}) for item in ours)
            if "limit" not in more:
                assert len(ours) == len(list(self.theirs.list(everything, **more)))
            assert [item.config for item in ours] == sorted(
                (item.config for item in ours), key=lambda c: c["configurable"]["checkpoint_id"], reverse=True
            )


@pytest.mark.parametrize("seed", range(3))
async def test_random_calls_to_two_savers_answer_as_langgraphs_own_saver(katsura: Katsura, seed: int) -> None:
    twins = Twins(katsura, seed)
    await twins.put()
    for _ in range(60):
        await twins.random.choice([twins.put, twins.put, twins.write])()
    await twins.same()
    await twins.one.acopy_thread(twins.thread, f"{twins.thread}-copy")
    copies = [item async for item in twins.one.alist({"configurable": {"thread_id": f"{twins.thread}-copy"}})]
    for copy in copies:
        copy.config["configurable"]["thread_id"] = twins.thread
        if copy.parent_config:
            copy.parent_config["configurable"]["thread_id"] = twins.thread
        assert copy == twins.theirs.get_tuple(copy.config)
    assert len(copies) == len(twins.made)
    newest = await twins.one.aget_tuple(config_of(twins.thread))
    await twins.one.aprune([twins.thread])
    for saver in twins.ours:
        assert await saver.aget_tuple(config_of(twins.thread)) == newest
