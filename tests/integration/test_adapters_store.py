"""LangGraph's store on a memory process: the same calls as its in-memory store, the same answers."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.store.base import BaseStore, GetOp, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from katsura.adapters.langgraph import KatsuraSaver
from katsura.adapters.store import KatsuraStore
from katsura.sdk.blocks import of_user
from katsura.sdk.sync import Katsura


def answers(store: BaseStore) -> list[Any]:
    users, ada = ("users",), ("users", "ada")
    store.put(ada, "seat", {"say": "aisle", "rank": 2})
    store.put(ada, "meal/1", {"say": "no fish", "rank": 1})
    store.put(("users", "bob", "old"), "seat", {"say": "window", "rank": 3})
    store.put(("usersx",), "seat", {"say": "none"})
    store.put(ada, "seat", {"say": "window", "rank": 2})
    found = [store.get(ada, "seat"), store.get(ada, "none")]
    batch = store.batch(
        [GetOp(ada, "new"), PutOp(ada, "new", {"n": 1}), PutOp(ada, "new", {"rank": 0}), SearchOp(users)]
    )
    store.delete(ada, "meal/1")
    store.delete(ada, "meal/1")
    return [
        [item and (item.namespace, item.key, item.value) for item in found],
        batch[:3],
        sorted((item.namespace, item.key) for item in batch[3]),  # type: ignore[union-attr]
        sorted((item.namespace, item.key) for item in store.search(users)),
        [item.key for item in store.search(users, filter={"rank": {"$gte": 3}})],
        len(store.search(users, limit=2)),
        len(store.search(users, limit=5, offset=2)),
        [item.key for item in store.search(("nobody",))],
        sorted(store.list_namespaces()),
        store.list_namespaces(prefix=users, max_depth=2),
        store.list_namespaces(suffix=("old",)),
        store.list_namespaces(prefix=("users", "*", "old")),
        len(store.list_namespaces(limit=1, offset=1)),
    ]


async def test_it_answers_as_langgraphs_own_store(katsura: Katsura) -> None:
    ours = await asyncio.to_thread(answers, KatsuraStore(katsura, owner=of_user("same")))
    assert ours == answers(InMemoryStore())


async def test_words_are_found_time_to_live_is_kept_and_owners_are_apart(katsura: Katsura) -> None:
    store = KatsuraStore(katsura, owner=of_user("words"))
    await store.aput(("notes",), "a", {"text": "Der Zug nach Köln ist spät"}, ttl=60)
    await store.aput(("notes",), "b", {"text": "Zug nach Bonn"})
    assert [item.key for item in await store.asearch(("notes",), query="zug Köln")] == ["a"]
    item = await store.aget(("notes",), "a")
    assert item is not None
    assert item.created_at <= item.updated_at
    assert item.updated_at.tzinfo is not None
    assert await KatsuraStore(katsura).aget(("notes",), "a") is None


class State(TypedDict):
    seen: int


async def test_nodes_of_a_graph_share_the_store_across_threads(katsura: Katsura) -> None:
    async def count(state: State, *, store: BaseStore) -> State:
        item = await store.aget(("counts",), "visits")
        seen = item.value["n"] + 1 if item else 1
        await store.aput(("counts",), "visits", {"n": seen})
        return {"seen": seen}

    builder = StateGraph(State)
    builder.add_node("count", count)
    builder.add_edge(START, "count")
    builder.add_edge("count", END)
    graph = builder.compile(checkpointer=KatsuraSaver(katsura), store=KatsuraStore(katsura, owner=of_user("graph")))
    for seen in (1, 2):
        answer = await graph.ainvoke({"seen": 0}, {"configurable": {"thread_id": f"visit-{seen}"}})
        assert answer["seen"] == seen
