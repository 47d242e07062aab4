"""Checkpoints as nodes of a tree: what a saver reads and writes, without LangGraph's types.

A thread is a tree; a checkpoint is a step; a namespace is a chain of branches (`main`, `main.2`, ...), a new one for
each time that somebody went on from elsewhere than its tip. Values of channels are ropes over the blobs of steps;
pending writes are attachments beside their checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import ormsgpack

from katsura.adapters.ropes import Piece, Rope, placed
from katsura.api.memory.v1 import memory_pb2 as pb
from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import checked_name

CHUNK_BYTES: Final = 512 * 1024
"""Most bytes of values beside a checkpoint, and of one node that holds nothing else: a step takes 1 MiB in all."""
WRITE_BYTES: Final = 16 * 1024
"""Pending writes of a task that are longer together are kept in nodes of their own."""
NAMESPACE, CHECKPOINT, RUN = "langgraph.ns", "langgraph.checkpoint", "langgraph.run"
"""Attributes of a checkpoint's step."""
THREAD: Final = "langgraph.thread"
"""Label of a tree."""
VALUES: Final = "katsura.values"
"""Task of the attachment that holds a blob."""
HIDDEN: Final = "katsura.hidden"
"""Task of the attachment that marks a deleted checkpoint whose bytes others still need."""
VALUES_BRANCH: Final = "values"
"""Branch of nodes that hold nothing but bytes."""

Typed = tuple[str, bytes]
"""What a serializer made: type and bytes."""


class Key(NamedTuple):
    """One namespace of one thread."""

    thread: str
    namespace: str

    @property
    def tree(self) -> str:
        """Id of the thread's tree: readable where the thread's name allows it."""
        name = f"langgraph.{self.thread}"
        try:
            return checked_name(name, "thread_id")
        except InvalidArgumentError:
            return "langgraph-sha256." + hashlib.sha256(self.thread.encode()).hexdigest()

    def branch(self, line: int) -> str:
        """Name of the namespace's line, counted from 1."""
        name = "ns-" + hashlib.sha256(self.namespace.encode()).hexdigest()[:32] if self.namespace else "main"
        return name if line == 1 else f"{name}.{line}"

    def step_id(self, checkpoint_id: str) -> str:
        """The client step id of a checkpoint."""
        return f"{self.namespace}|{checkpoint_id}"


class Channel(NamedTuple):
    """A channel's version and value."""

    version: str | int | float
    rope: Rope


class Write(NamedTuple):
    """A pending write of a task; `number` is negative for LangGraph's special channels."""

    task: str
    number: int
    path: str
    channel: str
    rope: Rope
    inline: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A checkpoint as it is stored.

    Attributes:
        node_id: its step; `branch` is where that was made.
        parent_id: checkpoint before it, "" for none.
        body: the checkpoint without its channel values.
        blob: bytes beside it, which its own and later ropes point into.
        hidden: whether it was deleted, and is kept only for the bytes that others need.
        run_id: run that made it, "" for none: beside the metadata, which may be of another program's serializer.
    """

    key: Key
    checkpoint_id: str
    parent_id: str
    node_id: int
    branch: str
    body: Typed
    metadata: Typed
    channels: Mapping[str, Channel]
    writes: tuple[Write, ...] = ()
    blob: bytes = field(default=b"", repr=False)
    hidden: bool = False
    run_id: str = ""

    @property
    def line(self) -> int:
        """Which of its namespace's lines it is on."""
        return int(self.branch[len(self.key.branch(1)) + 1 :] or 1)

    def nodes(self) -> set[int]:
        """Other nodes that hold its bytes."""
        ropes = [channel.rope for channel in self.channels.values()] + [write.rope for write in self.writes]
        return {node for rope in ropes for node in rope.nodes()} - {self.node_id}


def step_of(
    key: Key, checkpoint_id: str, parent_id: str, body: Typed, metadata: Typed, channels: Mapping[str, Channel]
) -> pb.Step:
    """A checkpoint's step, without its blob; pieces at node 0 are those of that blob."""
    packed = {
        "p": parent_id,
        "b": body,
        "m": metadata,
        "c": {name: [c.version, *_packed(c.rope)] for name, c in channels.items()},
    }
    return pb.Step(
        client_step_id=key.step_id(checkpoint_id),
        kind=pb.STEP_KIND_NOTE,
        role="system",
        provenance=pb.PROVENANCE_SYSTEM,
        attributes={NAMESPACE: key.namespace, CHECKPOINT: checkpoint_id},
        opaque=ormsgpack.packb(packed),
    )


def values_of(data: bytes) -> pb.Attachment:
    """A blob beside a step."""
    return pb.Attachment(task=VALUES, media_type="application/octet-stream", data=data)


def blob_of(node: pb.Node) -> bytes:
    """The blob beside a step."""
    return next((item.data for item in node.step.attachments if item.task == VALUES), b"")


def record_of(thread: str, node: pb.Node) -> Record | None:
    """The checkpoint that a node holds; None where it holds none, or was erased."""
    checkpoint_id = node.step.attributes.get(CHECKPOINT)
    if not checkpoint_id or node.redacted:
        return None
    packed = ormsgpack.unpackb(node.step.opaque)
    return Record(
        key=Key(thread, node.step.attributes[NAMESPACE]),
        checkpoint_id=checkpoint_id,
        parent_id=packed["p"],
        node_id=node.node_id,
        branch=node.birth_branch,
        body=(packed["b"][0], packed["b"][1]),
        metadata=(packed["m"][0], packed["m"][1]),
        channels={name: Channel(version, _rope(rope, node.node_id)) for name, (version, *rope) in packed["c"].items()},
        writes=tuple(_write(item) for item in node.attachments if item.task != HIDDEN),
        blob=blob_of(node),
        hidden=any(item.task == HIDDEN for item in node.attachments),
        run_id=node.step.attributes.get(RUN, ""),
    )


def own_ropes(channels: Mapping[str, Channel], node_id: int) -> dict[str, Channel]:
    """`channels` once the node of the blob that was written is known."""

    def found(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        return tuple(piece if piece.node else piece._replace(node=node_id) for piece in pieces)

    return {name: Channel(c.version, c.rope._replace(pieces=found(c.rope.pieces))) for name, c in channels.items()}


def moved(channels: Mapping[str, Channel], nodes: list[int]) -> dict[str, Channel]:
    """`channels` with the blob that was written cut into chunks at `nodes`."""
    return {
        name: Channel(c.version, c.rope._replace(pieces=placed(c.rope.pieces, nodes, CHUNK_BYTES)))
        for name, c in channels.items()
    }


def rebased(step: pb.Step, at: Mapping[int, int]) -> pb.Step:
    """A step for another tree, where node n is node `at[n]`."""
    if CHECKPOINT not in step.attributes:
        return step
    packed = ormsgpack.unpackb(step.opaque)
    packed["c"] = {name: [c[0], *_packed(_mapped(_rope(c[1:], 0), at))] for name, c in packed["c"].items()}
    copy = pb.Step()
    copy.CopyFrom(step)
    copy.opaque = ormsgpack.packb(packed)
    return copy


def rebased_write(item: pb.Attachment, at: Mapping[int, int]) -> pb.Attachment:
    """What lies beside a checkpoint, for another tree."""
    if item.task == HIDDEN:
        return item
    write = _write(item)
    return attachment_of(write._replace(rope=_mapped(write.rope, at)))


def attachment_of(write: Write) -> pb.Attachment:
    """A pending write beside its checkpoint."""
    data = ormsgpack.packb([write.path, write.channel, write.inline, *_packed(write.rope)])
    return pb.Attachment(task=write.task, index=write.number, media_type="application/msgpack", data=data)


def _write(item: pb.Attachment) -> Write:
    path, channel, inline, *rope = ormsgpack.unpackb(item.data)
    return Write(item.task, item.index, path, channel, _rope(rope, 0), inline)


def _mapped(rope: Rope, at: Mapping[int, int]) -> Rope:
    return rope._replace(pieces=tuple(piece._replace(node=at[piece.node]) for piece in rope.pieces))


def _packed(rope: Rope) -> list[Any]:
    return [rope.kind, rope.head, [list(piece) for piece in rope.pieces]]


def _rope(packed: list[Any], own: int) -> Rope:
    kind, head, pieces = packed
    return Rope(kind, head, tuple(Piece(node or own, offset, length) for node, offset, length in pieces))
