"""What a superstep of LangGraph costs in calls, and what is kept when something ends between two of them."""

from __future__ import annotations

import asyncio
import operator
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from katsura.adapters.langgraph import KatsuraSaver
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.domain.errors import KatsuraError, NotFoundError
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient
from katsura.sdk.sync import Katsura


class State(TypedDict):
    """A history that grows."""

    log: Annotated[list[str], operator.add]


def chain_of(steps: int) -> Any:
    builder = StateGraph(State)
    builder.add_node("act", lambda state: {"log": [f"step {len(state['log'])}"]})
    builder.add_edge(START, "act")
    builder.add_conditional_edges("act", lambda state: END if len(state["log"]) >= steps else "act")
    return builder


def used_by(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}, "recursion_limit": 100}


class Counted(MemoryClient):
    """Counts its calls, which threads make together."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.calls: Counter[str] = Counter()
        self._counting = threading.Lock()

    async def _call(self, name: str, request: object, attempts: int = 4) -> object:
        with self._counting:
            self.calls[name] += 1
        return await super()._call(name, request, attempts)


def counted(katsura: Katsura) -> list[Counter[str]]:
    assert katsura.memory_here is not None
    katsura.memory, katsura.memory_here = Counted(katsura._connection), Counted(katsura.memory_here._connection)
    return [katsura.memory.calls, katsura.memory_here.calls]


def history_of(graph: Any, thread: str) -> list[Any]:
    """Everything of a thread's checkpoints that does not hang on when they were made."""
    return [
        (found.values, found.metadata, found.next, [(task.name, task.result) for task in found.tasks])
        for found in graph.get_state_history(used_by(thread))
    ]


@pytest.mark.parametrize("face", ["sync", "async"])
async def test_a_superstep_is_one_call_and_its_writes_are_beside_its_checkpoint(
    memory_key: tuple[str, str], face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("katsura.adapters.threads.HOLD_S", 5.0)  # however slow this machine is

    def use() -> None:
        with Katsura(memory_key[0], api_key=memory_key[1]) as katsura:
            calls = counted(katsura)
            graph = chain_of(40).compile(checkpointer=KatsuraSaver(katsura))
            if face == "sync":
                graph.invoke({"log": []}, used_by(face), durability="sync")
            else:
                asyncio.run(graph.ainvoke({"log": []}, used_by(face), durability="sync"))
            made = sum(calls, Counter[str]())
            assert made["Grow"] == 42
            assert made["PutAttachments"] < 40  # those of threads that started late, after the next checkpoint's
            with Katsura(memory_key[0], api_key=memory_key[1]) as other:
                again = chain_of(40).compile(checkpointer=KatsuraSaver(other))
                right = chain_of(40).compile(checkpointer=InMemorySaver())
                right.invoke({"log": []}, used_by(face), durability="sync")
                assert history_of(again, face) == history_of(right, face)

    await asyncio.to_thread(use)


class Older(MemoryClient):
    """Speaks to a service that knows nothing of `beside`: it takes no notice, and says nothing."""

    async def grow(self, *arguments: Any, **more: Any) -> pb.GrowResponse:
        return await super().grow(*arguments, **{**more, "beside": ()})


async def test_an_older_service_gets_the_writes_by_themselves(memory_key: tuple[str, str]) -> None:
    def use() -> None:
        with Katsura(memory_key[0], api_key=memory_key[1]) as katsura:
            assert katsura.memory_here is not None
            katsura.memory_here = Older(katsura.memory_here._connection)
            graph = chain_of(5).compile(checkpointer=KatsuraSaver(katsura))
            graph.invoke({"log": []}, used_by("older"), durability="sync")
            right = chain_of(5).compile(checkpointer=InMemorySaver())
            right.invoke({"log": []}, used_by("older"), durability="sync")
            assert history_of(graph, "older") == history_of(right, "older")

    await asyncio.to_thread(use)


def put(saver: KatsuraSaver, parent: RunnableConfig, version: int) -> RunnableConfig:
    checkpoint = empty_checkpoint()
    checkpoint["id"] = str(uuid6(clock_seq=version))
    return saver.put(parent, checkpoint, {"source": "loop", "step": version}, {})


async def test_writes_without_a_checkpoint_after_them_are_stored_once_their_call_returns(
    memory_key: tuple[str, str],
) -> None:
    def use() -> None:
        with (
            Katsura(memory_key[0], api_key=memory_key[1]) as katsura,
            Katsura(memory_key[0], api_key=memory_key[1]) as other,
        ):
            saver = KatsuraSaver(katsura)
            config = put(saver, {"configurable": {"thread_id": "alone", "checkpoint_ns": ""}}, 1)
            for number in range(6):
                saver.put_writes(config, [("a", number)], f"task-{number}")
                found = KatsuraSaver(other).get_tuple(config)
                assert found is not None
                assert found.pending_writes == [(f"task-{n}", "a", n) for n in range(number + 1)]

    await asyncio.to_thread(use)


async def test_writes_that_do_not_fit_beside_are_stored_elsewhere_and_the_checkpoint_is_not_held_up(
    memory_key: tuple[str, str],
) -> None:
    def use() -> None:
        with Katsura(memory_key[0], api_key=memory_key[1]) as katsura:
            saver, texts = KatsuraSaver(katsura), [f"{number:02}" * 7_000 for number in range(60)]
            config = put(saver, {"configurable": {"thread_id": "full", "checkpoint_ns": ""}}, 1)
            writers = [
                threading.Thread(target=saver.put_writes, args=(config, [("a", text)], f"task-{n:02}"))
                for n, text in enumerate(texts)
            ]
            for writer in writers:
                writer.start()
            put(saver, config, 2)
            for writer in writers:
                writer.join()
            found = saver.get_tuple(config)
            assert found is not None
            assert found.pending_writes == [(f"task-{n:02}", "a", text) for n, text in enumerate(texts)]

    await asyncio.to_thread(use)


@pytest.mark.parametrize("face", ["sync", "async"])
async def test_writes_reach_their_checkpoint_where_somebody_else_went_on_from_it(
    memory_key: tuple[str, str], face: str
) -> None:
    thread = f"overtaken-{face}"

    def use() -> None:
        with Katsura(memory_key[0], api_key=memory_key[1]) as katsura:
            one, other = KatsuraSaver(katsura), KatsuraSaver(katsura)
            parent = put(one, {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}, 1)
            put(other, parent, 2)
            if face == "sync":
                writer = threading.Thread(target=one.put_writes, args=(parent, [("a", 1)], "task"))
                writer.start()
                put(one, parent, 3)
                writer.join()
            else:

                async def both() -> None:
                    writing = asyncio.create_task(one.aput_writes(parent, [("a", 1)], "task"))
                    checkpoint = empty_checkpoint()
                    checkpoint["id"] = str(uuid6(clock_seq=3))
                    await one.aput(parent, checkpoint, {"source": "loop", "step": 3}, {})
                    await writing

                asyncio.run(both())
            found = other.get_tuple(parent)
            assert found is not None
            assert found.pending_writes == [("task", "a", 1)]

    await asyncio.to_thread(use)


@pytest.mark.parametrize("durability", ["sync", "async"])
async def test_a_failed_save_reaches_whoever_invoked_the_graph(
    memory_key: tuple[str, str], durability: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("katsura.adapters.threads._ARRIVAL_S", 3600.0)  # nobody waits that long for what never comes
    thread = f"gone-{durability}"

    def use() -> None:
        with (
            Katsura(memory_key[0], api_key=memory_key[1]) as katsura,
            Katsura(memory_key[0], api_key=memory_key[1]) as other,
        ):

            def act(state: State) -> dict[str, Any]:
                if len(state["log"]) == 2:
                    other.delete_tree(f"langgraph.{thread}")
                return {"log": ["more"]}

            builder = StateGraph(State)
            builder.add_node("act", act)
            builder.add_edge(START, "act")
            builder.add_conditional_edges("act", lambda state: END if len(state["log"]) >= 20 else "act")
            graph: Any = builder.compile(checkpointer=KatsuraSaver(katsura))
            with pytest.raises(KatsuraError):
                graph.invoke({"log": []}, used_by(thread), durability=durability)

    await asyncio.to_thread(use)


async def test_writes_hear_at_once_that_their_checkpoint_could_not_be_stored_and_soon_of_those_after_it(
    memory_key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which LangGraph's tasks get on."""
    monkeypatch.setattr("katsura.adapters.threads._ARRIVAL_S", 3600.0)
    monkeypatch.setattr("katsura.adapters.threads._BROKEN_S", 0.01)

    def use() -> None:
        with Katsura(memory_key[0], api_key=memory_key[1]) as katsura:
            saver = KatsuraSaver(katsura)
            parent = put(saver, {"configurable": {"thread_id": "missed", "checkpoint_ns": ""}}, 1)
            katsura.delete_tree("langgraph.missed")

            async def lost() -> None:
                checkpoint, never = empty_checkpoint(), str(uuid6(clock_seq=3))
                checkpoint["id"] = str(uuid6(clock_seq=2))
                child: RunnableConfig = {"configurable": {**parent["configurable"], "checkpoint_id": checkpoint["id"]}}
                after: RunnableConfig = {"configurable": {**parent["configurable"], "checkpoint_id": never}}
                writing = asyncio.create_task(saver.aput_writes(child, [("a", 1)], "task"))
                early = asyncio.create_task(saver.aput_writes(after, [("a", 1)], "early"))
                while len(saver._threads._awaited) < 2:  # noqa: ASYNC110 - nobody is told of that
                    await asyncio.sleep(0)
                with pytest.raises(NotFoundError):
                    await saver.aput(parent, checkpoint, {"source": "loop", "step": 2}, {})
                with pytest.raises(NotFoundError, match="could not be stored"):
                    await asyncio.wait_for(writing, 30)
                with pytest.raises(NotFoundError, match="the one before it"):
                    await asyncio.wait_for(early, 30)
                with pytest.raises(NotFoundError, match="the one before it"):
                    await asyncio.wait_for(saver.aput_writes(after, [("a", 1)], "task"), 30)

            asyncio.run(lost())

    await asyncio.to_thread(use)


CRASH = """
import operator, os, sys
from typing import Annotated, TypedDict
from langgraph.graph import END, START, StateGraph
from katsura.adapters.langgraph import KatsuraSaver
from katsura.sdk.sync import Katsura

class State(TypedDict):
    log: Annotated[list[str], operator.add]

address, key, thread, crash = sys.argv[1:]

def quick(state):
    print("quick ran", flush=True)
    return {"log": ["quick"]}

def slow(state):
    if crash == "yes":
        with Katsura(address, api_key=key) as other:
            saver = KatsuraSaver(other)
            config = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
            quick_is_stored = False
            while not quick_is_stored:
                found = saver.get_tuple(config)
                quick_is_stored = found is not None and ("log", ["quick"]) in [w[1:] for w in found.pending_writes]
        os._exit(9)
    return {"log": ["slow"]}

builder = StateGraph(State)
for name, node in (("quick", quick), ("slow", slow)):
    builder.add_node(name, node)
    builder.add_edge(START, name)
    builder.add_edge(name, END)
with Katsura(address, api_key=key) as katsura:
    graph = builder.compile(checkpointer=KatsuraSaver(katsura))
    used = {"configurable": {"thread_id": thread}}
    print(graph.invoke({"log": []} if crash == "yes" else None, used, durability="sync"), flush=True)
"""


async def test_a_process_that_dies_between_a_tasks_writes_and_the_checkpoint_does_not_run_the_task_again(
    memory_key: tuple[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "crash.py"
    script.write_text(CRASH)

    async def ran(crash: str) -> tuple[int | None, str]:
        arguments = [sys.executable, str(script), *memory_key, "dies", crash]
        process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, env=dict(os.environ))
        try:
            async with asyncio.timeout(60):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode, said.decode()

    assert await ran("yes") == (9, "quick ran\n")
    assert await ran("no") == (0, "{'log': ['quick', 'slow']}\n")
