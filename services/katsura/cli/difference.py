"""`katsura tree diff`: where two branches parted, and what each has that the other has not."""

from __future__ import annotations

import json

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.text import Text

from katsura.api.memory.v1 import memory_merge_pb2 as merge_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.cli.core.outline import shortened
from katsura.cli.direct import MemoryDoor
from katsura.cli.exit import Exit
from katsura.sdk.memory import MemoryClient

_STEPS = 50
_TEXT_MIN_CHARS = 8


def diff(door: MemoryDoor, tree: str, other: str, branch: str, as_json: bool, console: Console) -> Exit:
    """Compare a branch (empty: the default one) with another."""

    async def read(memory: MemoryClient) -> tuple[str, merge_pb.DiffResponse]:
        ours = branch or (await memory.get_tree(tree)).tree.default_branch
        return ours, await memory.diff(tree, other, branch=ours, page_size=_STEPS)

    ours, found = door.ask(read)
    if as_json:
        said = {"branch": ours, "other_branch": other}
        console.print_json(json.dumps(said | MessageToDict(found, preserving_proto_field_name=True)))
    else:
        _draw(ours, other, found, console)
    return Exit.OK


def _draw(ours: str, theirs: str, found: merge_pb.DiffResponse, console: Console) -> None:
    where = f"after #{found.common_node}" if found.common_node else "at the root"
    console.print(Text.assemble((ours, "bold"), " and ", (theirs, "bold"), f" part {where}"))
    sides = (("-", "red", ours, found.ours_count, found.ours), ("+", "green", theirs, found.theirs_count, found.theirs))
    for sign, style, branch, count, nodes in sides:
        console.print(Text(f"{sign} only {branch}: {count} {'step' if count == 1 else 'steps'}", style))
        if count > len(nodes):
            console.print(Text(f"    {count - len(nodes)} older ones", "dim"))
        for node in nodes:
            console.print(_line(node, console.width), no_wrap=True, overflow="ellipsis")
    for slot in found.slots:
        console.print(Text.assemble(("~ slot ", "yellow"), (slot.key, "bold")))
        for sign, style, side, write in (("-", "red", ours, slot.ours), ("+", "green", theirs, slot.theirs)):
            value = write.slot.value if write.node_id else "not set"
            console.print(
                Text(f"    {sign} {side}: {shortened(value, max(_TEXT_MIN_CHARS, console.width - 24))}", style)
            )


def _line(node: tree_pb.Node, width: int) -> Text:
    step = node.step
    speaker = "note" if step.kind == tree_pb.STEP_KIND_NOTE else step.role or "step"
    head = f"    #{node.node_id} {speaker} "
    said = step.content or (f"{step.tool_call.name}()" if step.tool_call.name else "")
    return Text(head + shortened("(erased)" if node.redacted else said, max(_TEXT_MIN_CHARS, width - len(head) - 1)))
