"""The OpenAI Agents SDK on a memory process: its own runner, a scripted model, our session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from agents import Agent, Model, ModelResponse, RunConfig, Runner, Session, SQLiteSession, Usage, function_tool
from agents.extensions.memory import AdvancedSQLiteSession
from agents.items import TResponseInputItem
from agents.memory import SessionSettings
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from katsura.adapters.agents import KatsuraSession
from katsura.domain.errors import InvalidArgumentError, NotFoundError
from katsura.sdk.sync import Katsura

CONFIG = RunConfig(tracing_disabled=True)


class Scripted(Model):
    """A model that asks for the weather first and then says how many items it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[Any]] = []

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **more: Any) -> ModelResponse:
        self.shown.append(list(input))
        answered = any(item.get("type") == "function_call_output" for item in input)
        text = ResponseOutputText(annotations=[], text=f"{len(input)} items", type="output_text", logprobs=[])
        said: Any = (
            ResponseOutputMessage(id="m", content=[text], role="assistant", status="completed", type="message")
            if answered
            else ResponseFunctionToolCall(
                arguments='{"city":"Kyoto"}', call_id="c", name="weather", type="function_call"
            )
        )
        return ModelResponse(output=[said], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **more: Any) -> AsyncIterator[Any]:
        raise AssertionError("nobody streams here")


@function_tool
def weather(city: str) -> str:
    """The weather."""
    return f"rain in {city}"


def said(*texts: str) -> list[TResponseInputItem]:
    return [{"role": "user", "content": text} for text in texts]


async def test_an_agent_remembers_its_tools_and_turns_as_with_the_sdks_own_session(katsura: Katsura) -> None:
    shown = []
    for session in (KatsuraSession("weather", katsura), SQLiteSession("weather")):
        model = Scripted()
        agent = Agent(name="guide", model=model, tools=[weather])
        for question in ("Weather?", "And now?"):
            answer = await Runner.run(agent, question, session=cast(Session, session), run_config=CONFIG)
        assert answer.final_output == "5 items"
        shown.append([*model.shown, await session.get_items()])
        if isinstance(session, SQLiteSession):
            session.close()
    assert shown[0] == shown[1]
    path = await asyncio.wrap_future(katsura.start(katsura.memory.get_whole_path("weather")))
    assert [(node.step.role, node.step.content) for node in path[:4]] == [
        ("user", "Weather?"),
        ("assistant", ""),
        ("tool", "rain in Kyoto"),
        ("assistant", "3 items"),
    ]


async def test_the_newest_items_are_given_and_taken_back_and_forks_go_their_own_way(katsura: Katsura) -> None:
    session = KatsuraSession("s", katsura, session_settings=SessionSettings(limit=2))
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.add_items([])
    await session.add_items(said("a", "b", "c"))
    assert await session.get_items() == said("b", "c")
    assert await session.get_items(limit=10) == said("a", "b", "c")
    assert await session.get_items(limit=0) == []
    assert await session.pop_item() == said("c")[0]
    fork = await session.fork("other")
    await fork.add_items(said("d"))
    assert await fork.pop_item() == said("d")[0]
    await fork.add_items(said("e"))
    await session.add_items(said("f"))
    assert await fork.get_items(limit=9) == said("a", "b", "e")
    assert await KatsuraSession("s", katsura).get_items() == said("a", "b", "f")
    assert [await session.pop_item() for _ in range(4)] == [*said("f", "b", "a"), None]
    await session.clear_session()
    await session.clear_session()
    assert await session.get_items() == []
    with pytest.raises(NotFoundError):
        await fork.add_items(said("g"))
    with pytest.raises(InvalidArgumentError):
        KatsuraSession("no name", katsura)


async def test_a_fork_before_a_turn_holds_what_the_sdks_branching_session_holds(katsura: Katsura) -> None:
    ours, theirs = KatsuraSession("turns", katsura), AdvancedSQLiteSession(session_id="turns", create_tables=True)
    answer: TResponseInputItem = {"role": "assistant", "content": "yes"}
    items = [said("one")[0], answer, said("two")[0], answer, answer, said("three")[0]]
    for session in (ours, theirs):
        await session.add_items(items)
    assert [(turn.number, turn.content) for turn in await ours.turns()] == [(1, "one"), (2, "two"), (3, "three")]
    for turn in (1, 2, 3):
        fork = await ours.fork(before_turn=turn)
        await theirs.create_branch_from_turn(turn)
        assert await fork.get_items() == await theirs.get_items() == items[: (0, 2, 5)[turn - 1]]
        await theirs.switch_to_branch("main")
    assert await ours.get_items() == items
    assert [each.branch for each in await ours.branches()] == ["main", "b2", "b3", "b4"]
    assert await KatsuraSession("never", katsura).branches() == []
    for turn in (0, 4):
        with pytest.raises(NotFoundError, match="has 3"):
            await ours.fork(before_turn=turn)
    theirs.close()


async def test_of_many_who_add_and_take_back_at_once_nobody_loses_an_item(katsura: Katsura) -> None:
    sessions = [KatsuraSession("crowd", katsura) for _ in range(4)]
    await asyncio.gather(*(s.add_items(said(*(f"{i}-{n}" for n in range(5)))) for i, s in enumerate(sessions)))
    items = await sessions[0].get_items()
    assert sorted(cast(dict[str, str], item)["content"] for item in items) == sorted(
        f"{i}-{n}" for i in range(4) for n in range(5)
    )
    taken = await asyncio.gather(*(session.pop_item() for session in sessions))
    assert sorted(map(str, taken)) == sorted(map(str, items[-4:]))
    assert await sessions[0].get_items() == items[:-4]
    many = said(*map(str, range(700)))
    await KatsuraSession("many", katsura).add_items(many)
    assert await KatsuraSession("many", katsura).get_items() == many
    assert await KatsuraSession("many", katsura).get_items(limit=600) == many[-600:]
