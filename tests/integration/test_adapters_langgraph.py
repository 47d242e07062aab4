"""LangGraph on a memory process: the conformance suite of its own makers, and real graphs."""

from __future__ import annotations

import asyncio
import operator
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from katsura.adapters.langgraph import KatsuraSaver
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


async def test_pruning_keeps_the_bytes_that_the_newest_checkpoint_is_made_of(katsura: Katsura) -> None:
    saver, config = KatsuraSaver(katsura), config_of("pruned")
    for version in range(1, 21):
        config = await put(
            saver, config, {"log": [f"entry {n}" for n in range(version)]}, version, run_id=f"r{version}"
        )
    await saver.aprune(["pruned"])
    (left,) = [item async for item in saver.alist(config_of("pruned"))]
    assert left.checkpoint["channel_values"]["log"] == [f"entry {n}" for n in range(20)]
    await put(saver, config, {"log": ["new"]}, 21, run_id="late")
    await saver.adelete_for_runs(["late"])
    back = await saver.aget_tuple(config_of("pruned"))
    assert back is not None
    assert back.metadata["step"] == 20


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
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(example), "--memory", memory_key[0], "--key", memory_key[1], stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    tried, revised, forked, branches = said.decode().splitlines()
    assert "H-7 for 900 USD: too dear" in tried
    assert revised.endswith("['H-8 for 90 USD: booked']")
    assert forked.endswith("['H-9 for 120 USD: booked']")
    assert branches.count("checkpoints deep") == 3
