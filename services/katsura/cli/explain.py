"""`katsura tree explain`: what is in the context of a branch, what is not, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.cli.core.outline import shortened
from katsura.cli.core.why import HINT, SLOT, STEP, SUMMARY, Asked, Assembled, Left, Part, sentence, why
from katsura.cli.direct import MemoryDoor
from katsura.cli.exit import Exit
from katsura.domain.errors import FailedPreconditionError, NotFoundError
from katsura.sdk.memory import MemoryClient

_TEXT_MIN_CHARS = 24


def explain(
    door: MemoryDoor, tree: str, node: int | None, branch: str, budget: int, as_json: bool, console: Console
) -> Exit:
    """Show the context of a branch, or say of one node why it is in it or not."""
    made, asked = door.ask(lambda memory: _read(memory, tree, node, branch, budget))
    verdict = why(asked, made) if asked else None
    if as_json:
        said = asdict(made) | ({"node_id": node, "included": verdict[0], "why": verdict[1]} if verdict else {})
        console.print_json(json.dumps(said))
    elif verdict:
        console.print(Text(verdict[1], "green" if verdict[0] else "yellow"), soft_wrap=True)
    else:
        _draw(made, console)
    return Exit.OK


async def _read(
    memory: MemoryClient, tree: str, node: int | None, branch: str, budget: int
) -> tuple[Assembled, Asked | None]:
    said = await memory.assemble_context(tree, branch=branch, budget_tokens=budget)
    ranges = await _ranges(memory, tree, _summaries(said))
    asked = None
    if node is not None:
        (found,) = await memory.get_nodes(tree, [node])
        if found.HasField("summary"):
            ranges |= await _ranges(memory, tree, [node])
        asked = _asked(found, await _on_path(memory, tree, said.branch.name, found))
    parts = [
        Part(_kind(s.kind), s.node_id, s.token_count, s.role, _text(s), ranges.get(s.node_id)) for s in said.segments
    ]
    left = [Left(_kind(d.kind), d.node_id, d.reason, d.token_count) for d in said.dropped]
    return Assembled(said.branch.name, budget, said.total_tokens, parts, left, ranges), asked


def _summaries(said: pb.AssembleContextResponse) -> list[int]:
    shown = [segment.node_id for segment in said.segments if segment.kind == pb.SEGMENT_KIND_SUMMARY]
    return shown + [left.node_id for left in said.dropped if left.kind == pb.SEGMENT_KIND_SUMMARY]


async def _ranges(memory: MemoryClient, tree: str, summaries: Iterable[int]) -> dict[int, tuple[int, int]]:
    """The run of steps of each summary; a roll-up's reaches from that of its first part to that of its last."""
    nodes: dict[int, tree_pb.Node] = {}
    wanted = set(summaries)
    while wanted:
        read = await memory.get_nodes(tree, sorted(wanted))
        nodes |= {node.node_id: node for node in read}
        wanted = {end for node in read if node.summary.level for end in _ends(node)} - nodes.keys() - {0}

    def run(node_id: int) -> tuple[int, int]:
        first, last = _ends(nodes[node_id])
        return (run(first)[0], run(last)[1]) if nodes[node_id].summary.level and first else (first, last)

    return {node_id: run(node_id) for node_id in nodes}


def _ends(node: tree_pb.Node) -> tuple[int, int]:
    return node.summary.first_covered, node.summary.last_covered


async def _on_path(memory: MemoryClient, tree: str, branch: str, node: tree_pb.Node) -> bool:
    if not node.HasField("step"):
        return False
    try:
        await memory.get_path(tree, branch=branch, end_node=node.node_id, page_size=1)
    except (FailedPreconditionError, NotFoundError):
        return False
    return True


def _asked(node: tree_pb.Node, on_path: bool) -> Asked:
    kind = {"step": STEP, "summary": SUMMARY, "hint": HINT, "slot": SLOT}[str(node.WhichOneof("body"))]
    failed = node.summary.status == tree_pb.SUMMARY_STATUS_FAILED
    return Asked(node.node_id, kind, node.birth_branch, on_path, node.redacted, node.summary.note if failed else "")


def _kind(kind: pb.SegmentKind.ValueType) -> str:
    return pb.SegmentKind.Name(kind).removeprefix("SEGMENT_KIND_").lower()


def _text(segment: pb.Segment) -> str:
    call = segment.tool_call
    return segment.content or (f"{call.name}({call.arguments_json})" if call.name else "")


def _draw(made: Assembled, console: Console) -> None:
    room = f"{made.total} of {made.budget} tokens in {len(made.parts)} messages"
    console.print(Text.assemble(("context of ", "dim"), (made.branch, "bold"), f"  {room}"))
    width = max(_TEXT_MIN_CHARS, console.width - 36)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("tokens", justify="right")
    table.add_column("what", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis")
    for part in made.parts:
        table.add_row(str(part.tokens), _name(part), Text(shortened(part.text, width)))
    console.print(table)
    if not made.left:
        console.print("nothing was left out", style="dim")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("tokens", "left out", "why"):
        table.add_column(title, justify="right" if title == "tokens" else "left")
    for left in made.left:
        upto = "steps up to " if left.kind == STEP else f"{left.kind} "
        table.add_row(str(left.tokens), f"{upto}#{left.node_id}", sentence(left, made))
    console.print(table)


def _name(part: Part) -> str:
    if not part.node_id:
        return "goal and pins"
    return f"#{part.node_id} {part.role if part.kind == STEP else part.kind}"
