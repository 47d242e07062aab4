"""`katsura tree watch`: commits of trees as they come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.text import Text

from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.cli.direct import MemoryDoor
from katsura.cli.exit import Exit
from katsura.sdk.memory import MemoryClient


def watch(
    door: MemoryDoor,
    trees: Sequence[str],
    labels: Mapping[str, str],
    count: int,
    from_now: bool,
    as_json: bool,
    console: Console,
) -> Exit:
    """Print the commits of `trees` and of those that have `labels`, one a line, until `count` were told (0: no end)."""

    async def tell(memory: MemoryClient) -> Exit:
        left = count
        async with aclosing(memory.watch_trees(trees, labels=labels, from_now=from_now)) as watched:
            async for event in watched:
                if event.kind == pb.EVENT_KIND_HEARTBEAT:
                    continue
                line = json.dumps(MessageToDict(event)) if as_json else _line(event)
                console.print(line, soft_wrap=True, highlight=False, markup=False)
                left -= 1
                if left == 0:
                    break
        return Exit.OK

    return door.ask(tell)


def _line(event: pb.WatchResponse) -> Text:
    what = pb.EventKind.Name(event.kind).removeprefix("EVENT_KIND_").lower().replace("_", " ")
    line = Text.assemble((event.tree_id, "bold"), f" {event.position.revision} {what}")
    if event.branch:
        line.append(f" on {event.branch}", "dim")
    return line.append("".join(f" #{node}" for node in event.node_ids))
