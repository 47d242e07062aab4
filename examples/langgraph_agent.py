"""A LangGraph agent on a tree, without a model: it tries a hotel, fails, goes back, forks two ways and finishes.

    pip install 'katsura[adapters]' langgraph
    katsura up                                           # in another terminal
    eval "$(katsura key create --tenant me --env)"       # a key, and where the memory service is
    python examples/langgraph_agent.py
    katsura tree show langgraph.trip

`book` is the whole agent: put a model there. docs/first-agent.md builds such an agent step by step.
"""

import argparse
import operator
import os
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph

from katsura.adapters.langgraph import KatsuraSaver
from katsura.sdk.sync import Katsura

PRICES = {"H-7": 900, "H-8": 90, "H-9": 120}


class Trip(TypedDict):
    """What the agent knows: every channel is versioned with the checkpoint."""

    plan: list[str]
    log: Annotated[list[str], operator.add]


def book(trip: Trip) -> Trip:
    hotel, *rest = trip["plan"]
    verdict = "too dear" if PRICES[hotel] > 450 else "booked"
    return {"plan": rest, "log": [f"{hotel} for {PRICES[hotel]} USD: {verdict}"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default=os.environ.get("KATSURA_MEMORY_ADDRESS"), help="address of the service")
    parser.add_argument("--key", default=os.environ.get("KATSURA_API_KEY"), help="an API key")
    parser.add_argument("--thread", default="trip", help="name of the thread; one that was used before goes on")
    given = parser.parse_args()
    if not given.memory or not given.key:
        parser.error('where, and as whom? eval "$(katsura key create --tenant me --env)" says both to this shell')
    with Katsura(given.memory, api_key=given.key) as katsura:
        builder = StateGraph(Trip)
        builder.add_node("book", book)
        builder.add_edge(START, "book")
        builder.add_conditional_edges("book", lambda trip: "book" if trip["plan"] else END)
        agent = builder.compile(checkpointer=KatsuraSaver(katsura))
        here = {"configurable": {"thread_id": given.thread}}

        failed = agent.invoke({"plan": ["H-7"], "log": []}, here)
        print("tried:   ", failed["log"])

        # Revise: back to the checkpoint before the failure, with another plan. What failed stays readable.
        start = next(state for state in agent.get_state_history(here) if state.next == ("book",))
        done = agent.invoke(None, agent.update_state(start.config, {"plan": ["H-8"]}))
        print("revised: ", done["log"])

        # Fork: the same past once more, another future.
        other = agent.invoke(None, agent.update_state(start.config, {"plan": ["H-9"]}))
        print("forked:  ", other["log"])

        tree = katsura.run(katsura.memory.get_tree(f"langgraph.{given.thread}"))
        print("branches:", ", ".join(f"{b.name} ({b.depth} checkpoints deep)" for b in tree.branches))


if __name__ == "__main__":
    main()
