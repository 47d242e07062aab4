"""One LangGraph run whose message list grows, on one saver; runs in the peer's environment and in ours.

    python bench/peers/langgraph_growth.py --saver redis --url redis://... --steps 3000

Every superstep appends one message of 200 bytes and is checkpointed before the next begins (`durability="sync"`). The
last line of standard output is JSON: `{"seconds": [...]}` since the start, after each tenth of the steps, and `read_s`,
what reading the last state takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

TEXT = "The agent looked at one more page of results and noted what it said. " * 3
SYNC = ("katsura", "redis", "redis-ttl", "redis-shallow", "none", "memory")
ASYNC = ("katsura-async", "redis-async", "redis-async-ttl", "redis-async-shallow")


def graph_of(steps: int, marks: list[float]) -> StateGraph[Any, Any, Any, Any]:
    def act(state: MessagesState) -> dict[str, Any]:
        done = len(state["messages"])
        if done % (steps // 10) == 0:
            marks.append(time.perf_counter())
        return {"messages": [AIMessage(f"{done} {TEXT}"[:200], id=f"m{done}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("act", act)
    builder.add_edge(START, "act")
    builder.add_conditional_edges("act", lambda state: END if len(state["messages"]) >= steps else "act")
    return builder


def arguments_of(steps: int, saver: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {"configurable": {"thread_id": "t"}, "recursion_limit": steps + 10}
    return config, {"durability": "sync"} if saver is not None else {}


def run(saver: Any, steps: int) -> dict[str, Any]:
    marks: list[float] = []
    graph = graph_of(steps, marks).compile(checkpointer=saver)
    config, more = arguments_of(steps, saver)
    graph.invoke({"messages": []}, config, **more)
    marks.append(time.perf_counter())
    if saver is not None:
        assert len(graph.get_state(config).values["messages"]) == steps
    return told(marks)


async def arun(saver: Any, steps: int) -> dict[str, Any]:
    marks: list[float] = []
    graph = graph_of(steps, marks).compile(checkpointer=saver)
    config, more = arguments_of(steps, saver)
    await graph.ainvoke({"messages": []}, config, **more)
    marks.append(time.perf_counter())
    assert len((await graph.aget_state(config)).values["messages"]) == steps
    return told(marks)


def told(marks: list[float]) -> dict[str, Any]:
    return {"seconds": [mark - marks[0] for mark in marks], "read_s": time.perf_counter() - marks[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saver", choices=(*SYNC, *ASYNC), required=True)
    parser.add_argument("--url", default="", help="of their Redis, or of our memory service")
    parser.add_argument("--key", default="", help="our API key")
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(measured(options)))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    if options.saver == "none":
        return run(None, options.steps)
    if options.saver == "memory":
        from langgraph.checkpoint.memory import InMemorySaver

        return run(InMemorySaver(), options.steps)
    if options.saver.startswith("katsura"):
        from katsura.adapters.langgraph import KatsuraSaver
        from katsura.sdk.sync import Katsura

        with Katsura(options.url, api_key=options.key) as katsura:
            saver = KatsuraSaver(katsura)
            if options.saver == "katsura":
                return run(saver, options.steps)
            return asyncio.run(arun(saver, options.steps))
    from langgraph.checkpoint.redis import RedisSaver, ShallowRedisSaver
    from langgraph.checkpoint.redis.aio import AsyncRedisSaver
    from langgraph.checkpoint.redis.ashallow import AsyncShallowRedisSaver

    ttl = {"ttl": {"default_ttl": 60, "refresh_on_read": True}} if options.saver.endswith("-ttl") else {}
    shallow = options.saver.endswith("-shallow")
    if options.saver in SYNC:
        with (ShallowRedisSaver if shallow else RedisSaver).from_conn_string(options.url, **ttl) as theirs:
            theirs.setup()
            return run(theirs, options.steps)

    async def there() -> dict[str, Any]:
        kind = AsyncShallowRedisSaver if shallow else AsyncRedisSaver
        async with kind.from_conn_string(options.url, **ttl) as theirs:
            await theirs.asetup()
            return await arun(theirs, options.steps)

    return asyncio.run(there())


if __name__ == "__main__":
    main()
