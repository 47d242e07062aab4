"""`katsura tree export|import|verify`: whole trees in and out as JSON lines, and every hash computed again."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from rich.console import Console

from katsura.cli.direct import MemoryDoor
from katsura.cli.exit import Exit
from katsura.domain.errors import AlreadyExistsError, InvalidArgumentError, PermissionDeniedError
from katsura.sdk.memory import MemoryClient

_READ_BYTES = 1 << 20
_PIPE = Path("-")


def export_tree(door: MemoryDoor, tree: str, out: Path, console: Console) -> Exit:
    """Write a tree to a file, which is there only when it is whole, or to standard output (`-`)."""
    if out == _PIPE:
        door.ask(lambda memory: _write(memory, tree, sys.stdout.buffer))
        sys.stdout.buffer.flush()
        return Exit.OK
    partial = out.with_name(out.name + ".partial")
    try:
        with partial.open("wb") as file:
            size = door.ask(lambda memory: _write(memory, tree, file))
        partial.replace(out)
    except OSError as error:
        raise PermissionDeniedError(f"cannot write {out}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    console.print(f"{tree} is in {out}: {size:,} bytes", soft_wrap=True, highlight=False, markup=False)
    return Exit.OK


def import_tree(door: MemoryDoor, source: Path, name: str, as_json: bool, console: Console) -> Exit:
    """Make a tree from an archive (`-`: standard input); `name` empty keeps the one it had."""
    try:
        with nullcontext(sys.stdin.buffer) if source == _PIPE else source.open("rb") as file:
            made = door.ask(lambda memory: memory.import_tree(_pieces(file), tree_id=name))
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {source}: {error.strerror}", field="file") from error
    except AlreadyExistsError as error:
        taken = f"there is a tree {name!r}" if name else "there is a tree of the archive's name"
        raise AlreadyExistsError(f"{taken} already; choose another with --name") from error
    tree, digest = made.tree, made.root_digest.hex()
    if as_json:
        console.print_json(json.dumps({"tree": tree.tree_id, "nodes": tree.node_count, "digest": digest}))
    else:
        said = f"{tree.tree_id} has {tree.node_count} nodes and {tree.branch_count} branches; digest {digest}"
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    return Exit.OK


def verify(door: MemoryDoor, tree: str, as_json: bool, console: Console) -> Exit:
    """Compute every hash again; FAILED where a node is not what was written."""
    found = door.ask(lambda memory: memory.verify_tree(tree))
    wrong = [{"node_id": node.node_id, "what": node.what} for node in found.mismatches]
    counts = {"nodes": found.node_count, "redacted": found.redacted_count}
    if as_json:
        console.print_json(json.dumps({"tree": tree, **counts, "digest": found.root_digest.hex(), "mismatches": wrong}))
        return Exit.FAILED if wrong else Exit.OK
    for node in wrong:
        console.print(f"#{node['node_id']} is not what was written: {node['what']}", style="red", markup=False)
    erased = f", {found.redacted_count} of them erased" if found.redacted_count else ""
    verdict = f"{len(wrong)} are not what was written" if wrong else "every hash holds"
    said = f"{tree}: {found.node_count} nodes{erased}; {verdict}; digest {found.root_digest.hex()}"
    console.print(said, soft_wrap=True, highlight=False, markup=False)
    return Exit.FAILED if wrong else Exit.OK


async def _write(memory: MemoryClient, tree: str, file: IO[bytes]) -> int:
    size = 0
    async for piece in memory.export_tree(tree):
        size += file.write(piece)
    return size


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := file.read(_READ_BYTES):
        yield piece


def freeze(door: MemoryDoor, tree: str, as_json: bool, console: Console) -> Exit:
    """Move a tree into an object file."""
    frozen = door.ask(lambda memory: memory.freeze_tree(tree))
    if as_json:
        console.print_json(json.dumps({"tree": tree, "frozen": frozen}))
    elif frozen:
        console.print(f"{tree} is cold now; whoever touches it brings it back")
    else:
        console.print(f"{tree} stays: it changed meanwhile, has tasks for workers, or a time to live")
    return Exit.OK if frozen else Exit.FAILED
