"""`katsura tree usage`: what trees take, beside the quotas, and what each agent cost."""

from __future__ import annotations

import json
from collections.abc import Iterable

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from katsura.api.memory.v1 import usage_service_pb2 as pb
from katsura.cli.direct import MemoryDoor
from katsura.cli.exit import Exit
from katsura.domain.units import human_bytes
from katsura.sdk.usage import UsageClient


def usage(door: MemoryDoor, tree: str, as_json: bool, console: Console) -> Exit:
    """Show the usage of a tree, or of everything that the key speaks for."""
    found: pb.GetUsageResponse | pb.GetTreeUsageResponse
    if tree:
        found = door.ask_over(lambda connection: UsageClient(connection).of_tree(tree))
    else:
        found = door.ask_over(lambda connection: UsageClient(connection).usage(recount=True))
    if as_json:
        console.print_json(json.dumps(MessageToDict(found, always_print_fields_with_no_presence=True)))
        return Exit.OK
    quotas = found.quotas if isinstance(found, pb.GetUsageResponse) else pb.Quotas()
    took, limits = found.usage, _of(quotas.stored_bytes, human_bytes(quotas.stored_bytes))
    console.print(f"trees  {took.trees}{_of(quotas.trees, str(quotas.trees))}", highlight=False)
    console.print(f"nodes  {took.nodes}{_of(quotas.nodes, str(quotas.nodes))}", highlight=False)
    console.print(f"bytes  {human_bytes(took.stored_bytes)}{limits}", highlight=False)
    console.print(f"blocks {took.blocks}", highlight=False)
    if isinstance(found, pb.GetUsageResponse):
        most = _of(quotas.requests_per_minute, str(quotas.requests_per_minute))
        console.print(f"requests this minute  {found.requests_this_minute}{most}", highlight=False)
    if found.agents:
        console.print(_table(found.agents))
    return Exit.OK


def _of(limit: int, shown: str) -> str:
    return f" of {shown}" if limit else ""


def _table(agents: Iterable[pb.AgentUsage]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("agent", overflow="fold")
    for title in ("steps", "bytes", "prompt tokens", "cached", "completion", "cost"):
        table.add_column(title, justify="right")
    for agent in agents:
        counts = (agent.prompt_tokens, agent.cached_tokens, agent.completion_tokens)
        cost = f"{agent.micros / 1e6:.6f}".rstrip("0").rstrip(".")
        table.add_row(agent.agent_id or "-", str(agent.steps), human_bytes(agent.stored_bytes), *map(str, counts), cost)
    return table
