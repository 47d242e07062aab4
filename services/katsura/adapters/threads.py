"""Threads of checkpoints in the memory service: placing, reading, listing, copying and deleting them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

from katsura.adapters import checkpoints as stored
from katsura.adapters.checkpoints import CHUNK_BYTES, Channel, Key, Record, Typed, Write
from katsura.adapters.company import HOLD_S, Company, Offer
from katsura.adapters.ropes import Blob, Body, Rope, Value, extended, placed
from katsura.api.memory.v1 import memory_contents_pb2 as contents_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    KatsuraError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from katsura.sdk.memory import EMPTY_ROOT, MemoryClient

_LAST_MAX: Final = 64
"""Namespaces whose newest values are remembered, so that the next version need not read them back."""
_RECORDS_MAX: Final = 1024
_ARRIVAL_S: Final = 30.0
"""Longest that a pending write waits for its checkpoint: LangGraph sends both at once."""
_BROKEN_S: Final = 1.0
"""The same where one before it could not be stored."""
_CHUNKS_A_GROW: Final = 4
_BATCH: Final = 256
_PAGE: Final = 8


class Threads:
    """Checkpoints by thread, namespace and id: for one event loop, and for threads (`here`). It keeps nothing that is
    not in the trees.

    Args:
        memory: client of the tenant.
    """

    def __init__(self, memory: MemoryClient) -> None:
        self._memory = memory
        self._last: OrderedDict[Key, tuple[Record, Mapping[str, Body]]] = OrderedDict()
        self._records: OrderedDict[tuple[Key, str], Record] = OrderedDict()
        self._lines: dict[Key, int] = {}
        self._awaited: dict[tuple[Key, str], asyncio.Future[Record]] = {}
        self._broken: OrderedDict[Key, KatsuraError] = OrderedDict()
        self._lock = threading.Lock()
        self._company = Company()
        self._settled: Callable[[Future[bool], float | None], Awaitable[bool]] = _settled_on_loop

    def here(self, memory: MemoryClient) -> Threads:
        """The same threads for callers that block: `put`, and `put_writes` beside what is known, work `at_once`.

        Args:
            memory: client of the tenant whose calls block.
        """
        same = copy.copy(self)
        same._memory, same._settled = memory, _settled_here
        return same

    def knows(self, key: Key, checkpoint_id: str) -> bool:
        """Whether a checkpoint's place is remembered."""
        return (key, checkpoint_id) in self._records

    def missed(self, key: Key, checkpoint_id: str, error: KatsuraError) -> None:
        """A checkpoint could not be stored. Those after it may never come (LangGraph's `durability="async"` puts none
        of them, and goes on with the graph): until one does, writes wait for theirs `_BROKEN_S` only, and so do those
        that wait already."""
        with self._lock:
            self._broken[key] = error
            if len(self._broken) > _LAST_MAX:
                self._broken.popitem(last=False)
            waiting = {at: self._awaited.pop(at) for at in list(self._awaited) if at[0] == key}
        for (_, awaited), future in waiting.items():
            said = error if awaited == checkpoint_id else _BrokenBeforeError()
            future.get_loop().call_soon_threadsafe(_arrived, future, said)

    async def put(
        self,
        key: Key,
        checkpoint_id: str,
        parent_id: str,
        run_id: str,
        body: Typed,
        metadata: Typed,
        versions: Mapping[str, str | int | float],
        changed: Iterable[str],
        values: Mapping[str, Any],
        encode: Callable[[Any, Body | None], Value],
        text: str = "",
    ) -> None:
        """Store a checkpoint after `parent_id` ("": none). Only what `changed` says, or is new, is serialised.

        `text` is what people see of it.
        A parent that is not the newest tip of its namespace begins a new line: nothing that others wrote is touched.
        """
        with self._lock:
            self._broken.pop(key, None)
        parent = await self._record(key, parent_id) if parent_id else None
        last, bodies = self._last.pop(key, (None, {}))  # taken: serialising the next version uses them up
        if last is None or parent is None or last.node_id != parent.node_id:
            bodies = {}
        known, fresh = dict(parent.channels) if parent else {}, set(changed)
        blob, channels, new_bodies = Blob(), dict[str, Channel](), dict[str, Body]()
        for name, version in versions.items():
            before = known.get(name)
            if before is not None and before.version == version and name not in fresh:
                channels[name] = before
                if name in bodies:
                    new_bodies[name] = bodies[name]
            elif name in values:
                value = encode(values[name], bodies.get(name))
                rope = extended(value, blob, before.rope if name in bodies and before else None)
                channels[name], new_bodies[name] = Channel(version, rope), value.body
        if blob.size > CHUNK_BYTES:
            channels = stored.moved(channels, await self._spill(key.tree, key.thread, blob))
            blob = Blob()
        step = stored.step_of(key, checkpoint_id, parent_id, body, metadata, channels)
        step.content = text or f"checkpoint {checkpoint_id}"
        if run_id:
            step.attributes[stored.RUN] = run_id
        step.attachments.extend(stored.values_of(chunk) for chunk in blob.chunks(CHUNK_BYTES))
        offers = self._company.take(key, parent_id) if parent else []
        node_id, branch = await self._place(key, step, parent, offers)
        owned = stored.own_ropes(channels, node_id)
        done = Record(key, checkpoint_id, parent_id, node_id, branch, body, metadata, owned, run_id=run_id)
        self._remember(done, new_bodies)

    async def put_writes(
        self, key: Key, checkpoint_id: str, task: str, path: str, writes: Sequence[tuple[int, str, Typed]]
    ) -> None:
        """Put a task's writes (index, channel, value) beside its checkpoint: the first stay, negative indices replace.

        Raises:
            NotFoundError: there is no such checkpoint, and none came while this waited, or it could not be stored.
        """
        record = await self._record(key, checkpoint_id) or await self._arrival(key, checkpoint_id)
        for special in (False, True):
            chosen = [write for write in writes if (write[0] < 0) == special]
            if not chosen:
                continue
            try:
                found = await self._kept(key, task, path, chosen, stored.WRITE_BYTES)
                if special or not await self._went_along(record, found):
                    await self._attach(record, found, special)
            except ResourceExhaustedError:  # the writes of many tasks together: keep only places beside the checkpoint
                found = await self._kept(key, task, path, chosen, 0)
                await self._attach(record, found, special)

    async def _went_along(self, record: Record, writes: Sequence[Write]) -> bool:
        """Whether the checkpoint that came next took the writes with it."""
        newest, _ = self._last.get(record.key, (None, None))
        if newest is None or newest.node_id != record.node_id or len(writes) > _BATCH:
            return False  # the next checkpoint is on its way already
        items = [stored.attachment_of(write) for write in writes]
        offer = self._company.offer(record.key, record.checkpoint_id, items)
        if offer is None:
            return False
        try:
            return await self._settled(offer.stored, HOLD_S)
        except TimeoutError:
            return not self._company.withdraw(offer) and await self._settled(offer.stored, None)
        except asyncio.CancelledError:
            self._company.withdraw(offer)
            raise

    async def _attach(self, record: Record, writes: Sequence[Write], replace_old: bool) -> None:
        for at in range(0, len(writes), _BATCH):
            batch = [stored.attachment_of(write) for write in writes[at : at + _BATCH]]
            await self._memory.put_attachments(record.key.tree, record.node_id, batch, replace=replace_old)

    async def get(self, key: Key, checkpoint_id: str = "") -> Record | None:
        """A checkpoint, or the newest of its namespace: the one that was accepted last."""
        if not checkpoint_id:
            return await self._newest(key)
        record = await self._found(key, checkpoint_id)
        return None if record is None or record.hidden else record

    async def chain(self, key: Key, checkpoint_id: str) -> AsyncIterator[Record]:
        """The checkpoints before one, newest first, those included that were deleted but are needed."""
        record = await self._found(key, checkpoint_id)
        while record is not None and record.parent_id:
            record = await self._found(key, record.parent_id)
            if record is not None:
                yield record

    async def listed(self, thread: str, namespace: str | None = None, before: int = 0) -> AsyncIterator[Record]:
        """Checkpoints of a thread, newest first, from before a node (0: all)."""
        wanted = None if namespace is None else {stored.NAMESPACE: namespace}
        tree = Key(thread, "").tree
        while True:
            try:
                page = await self._memory.list_nodes(tree, before_node=before, attributes=wanted)
            except NotFoundError:
                return
            for record in (stored.record_of(thread, node) for node in page.nodes):
                if record is not None and not record.hidden:
                    yield record
            before = page.next_before_node
            if not before:
                return

    async def threads(self) -> list[str]:
        """Every thread, newest first."""
        found: list[str] = []
        token = ""
        while True:
            page = await self._memory.list_trees(page_size=500, page_token=token)
            found += [tree.labels[stored.THREAD] for tree in page.trees if stored.THREAD in tree.labels]
            token = page.next_page_token
            if not token:
                return found

    async def values(self, record: Record) -> tuple[dict[str, Typed], list[tuple[Write, Typed]]]:
        """The values of a checkpoint's channels and of its pending writes, in LangGraph's order of writes."""
        blobs = {record.node_id: record.blob} | await self._blobs(record)
        bodies = {name: channel.rope.body(blobs) for name, channel in record.channels.items()}
        self._remember(record, bodies)
        channels = {name: (c.rope.kind, c.rope.head + bodies[name]) for name, c in record.channels.items()}
        writes = sorted(record.writes, key=lambda w: (w.path, w.task, w.number))
        return channels, [(w, (w.rope.kind, w.inline or w.rope.head + w.rope.body(blobs))) for w in writes]

    async def delete(self, thread: str) -> None:
        """Drop a thread."""
        self._forget(thread)
        try:
            await self._memory.delete_tree(Key(thread, "").tree)
        except NotFoundError:
            return

    async def drop(self, thread: str, doomed: Sequence[Record], needed: set[int]) -> None:
        """Erase checkpoints; those among `needed`, whose bytes others use, are only hidden until the thread goes."""
        self._forget(thread)
        tree = Key(thread, "").tree
        mark = tree_pb.Attachment(task=stored.HIDDEN)
        for record in doomed:
            if record.node_id in needed:
                await self._memory.put_attachments(tree, record.node_id, [mark])
        held = {node for record in doomed for node in record.nodes() | {record.node_id}}
        checkpoints = {record.node_id for record in doomed}
        alone = {n.node_id for n in await self._nodes(tree, sorted(held)) if n.birth_branch == stored.VALUES_BRANCH}
        gone = sorted((checkpoints | alone) - needed)
        for at in range(0, len(gone), _BATCH):
            await self._memory.redact(tree, gone[at : at + _BATCH])

    async def copy(self, source: str, target: str) -> None:
        """Copy a thread: every line, checkpoint, value and pending write.

        Raises:
            AlreadyExistsError: there is a thread `target`; nothing was changed.
        """
        nodes: list[tree_pb.Node] = []
        before = 0
        while True:
            try:
                page = await self._memory.list_nodes(Key(source, "").tree, before_node=before)
            except NotFoundError:
                return
            nodes += page.nodes
            before = page.next_before_node
            if not before:
                break
        newest = (await self._memory.get_tree(Key(source, "").tree)).tree.default_branch
        await self._create(target)
        try:
            await self._regrow(Key(target, "").tree, nodes[::-1])
            await self._memory.update_tree(Key(target, "").tree, default_branch=newest)
        except BaseException:
            await self.delete(target)
            raise

    async def _regrow(self, tree: str, nodes: Sequence[tree_pb.Node]) -> None:
        at, heads, births = {0: 0}, {"main": 0}, {0: ""}
        for node in nodes:
            parent = at[node.parent_id]
            at[node.node_id] = parent  # an erased node is passed over
            if not node.HasField("step") or node.redacted:
                continue
            branch = node.birth_branch
            if branch not in heads:
                await self._memory.fork(tree, branch=births[parent], at_node=parent or EMPTY_ROOT, new_branch=branch)
                heads[branch] = parent
            step = stored.rebased(node.step, at)
            grown = await self._memory.grow(
                tree, [step], branch=branch, expected_head=heads[branch], dedupe=pb.DEDUPE_ALWAYS_NEW
            )
            at[node.node_id] = heads[branch] = grown.node_ids[0]
            births[grown.node_ids[0]] = branch
        for node in nodes:  # last: a write may point to nodes that were made after its own
            extras = [stored.rebased_write(item, at) for item in node.attachments if not node.redacted]
            for start in range(0, len(extras), _BATCH):
                await self._memory.put_attachments(tree, at[node.node_id], extras[start : start + _BATCH])

    async def _place(
        self, key: Key, step: tree_pb.Step, parent: Record | None, offers: Sequence[Offer]
    ) -> tuple[int, str]:
        """Append a checkpoint at the tip of its namespace's newest line, or on a new line; its node and branch."""
        head = parent.node_id if parent else 0
        try:
            line = self._lines.get(key) or (await self._newest_line(key))[0]
            if line and (parent is None or parent.line == line):
                try:
                    return await self._append(key, line, step, head, offers)
                except (ConflictError, FailedPreconditionError, NotFoundError):  # somebody else went on, or deleted it
                    line = (await self._newest_line(key))[0]
        finally:
            for offer in offers:
                if not offer.stored.done():
                    offer.stored.set_result(False)
        while True:
            line += 1
            try:
                await self._fork(key, line, parent)
                return await self._append(key, line, step, head)
            except (AlreadyExistsError, ConflictError):
                continue

    async def _append(
        self, key: Key, line: int, step: tree_pb.Step, head: int, offers: Sequence[Offer] = ()
    ) -> tuple[int, str]:
        branch = key.branch(line)
        beside = [contents_pb.PutAttachmentsRequest(node_id=head, attachments=offer.writes) for offer in offers]
        grown = await self._memory.grow(
            key.tree, [step], branch=branch, expected_head=head, dedupe=pb.DEDUPE_ALWAYS_NEW, beside=beside
        )
        for offer, put in zip(offers, grown.put_beside, strict=False):  # a service that knows it not says nothing
            offer.stored.set_result(put)
        self._lines[key] = line
        return grown.node_ids[0], branch

    async def _fork(self, key: Key, line: int, parent: Record | None) -> None:
        if parent is None and line == 1 and not key.namespace:
            await self._create(key.thread, ok_if_there=True)
            return
        source, at = (parent.branch, parent.node_id) if parent else ("main", EMPTY_ROOT)
        await self._fork_or_create(key, source, at, key.branch(line))
        if not key.namespace:  # for people only: what others take for the tree's branch is what the thread goes on from
            await self._memory.update_tree(key.tree, default_branch=key.branch(line))

    async def _fork_or_create(self, key: Key, source: str, at: int, name: str) -> None:
        try:
            await self._memory.fork(key.tree, branch=source, at_node=at, new_branch=name)
        except NotFoundError:
            if at != EMPTY_ROOT:
                raise
            await self._create(key.thread, ok_if_there=True)
            await self._memory.fork(key.tree, branch=source, at_node=at, new_branch=name)

    async def _create(self, thread: str, ok_if_there: bool = False) -> None:
        key = Key(thread, "")
        try:
            await self._memory.create_tree(tree_id=key.tree, goal="", labels={stored.THREAD: thread})
        except AlreadyExistsError:
            if not ok_if_there:
                raise

    async def _spill(self, tree: str, thread: str, blob: Blob) -> list[int]:
        """Keep bytes in nodes of their own, which no line passes through; their ids, one per chunk."""
        nodes: list[int] = []
        steps = [
            tree_pb.Step(kind=tree_pb.STEP_KIND_NOTE, role="system", attachments=[stored.values_of(chunk)])
            for chunk in blob.chunks(CHUNK_BYTES)
        ]
        for at in range(0, len(steps), _CHUNKS_A_GROW):
            batch = steps[at : at + _CHUNKS_A_GROW]
            try:
                grown = await self._grow_values(tree, batch)
            except NotFoundError:
                with contextlib.suppress(AlreadyExistsError):  # another writer made it just now
                    await self._fork_or_create(Key(thread, ""), "main", EMPTY_ROOT, stored.VALUES_BRANCH)
                grown = await self._grow_values(tree, batch)
            nodes += grown.node_ids
        return nodes

    async def _grow_values(self, tree: str, steps: Sequence[tree_pb.Step]) -> pb.GrowResponse:
        return await self._memory.grow(tree, steps, branch=stored.VALUES_BRANCH, dedupe=pb.DEDUPE_ALWAYS_NEW)

    async def _kept(
        self, key: Key, task: str, path: str, writes: Sequence[tuple[int, str, Typed]], inline_bytes: int
    ) -> list[Write]:
        """Writes as they lie beside a checkpoint; those of more bytes together in nodes of their own."""
        if sum(len(data) for _, _, (_, data) in writes) <= inline_bytes:
            return [Write(task, n, path, name, Rope(kind, b"", ()), data) for n, name, (kind, data) in writes]
        blob = Blob()
        pieces = [blob.add(data) for _, _, (_, data) in writes]
        nodes = await self._spill(key.tree, key.thread, blob)
        ropes = (placed(each, nodes, CHUNK_BYTES) for each in pieces)
        return [
            Write(task, n, path, name, Rope(kind, b"", rope), b"")
            for (n, name, (kind, _)), rope in zip(writes, ropes, strict=True)
        ]

    async def _newest_line(self, key: Key) -> tuple[int, pb.GetPathResponse | None]:
        """The namespace's newest line (0: none) and its newest steps."""
        line = self._lines.get(key, 1)
        tip, later = await self._path(key, line), await self._path(key, line + 1)
        if tip is None and line > 1:  # the thread was deleted, and perhaps begun anew
            self._lines.pop(key)
            return await self._newest_line(key)
        while later is not None:
            line, tip, later = line + 1, later, await self._path(key, line + 2)
        if tip is None:
            return 0, None
        self._lines[key] = line
        return line, tip

    async def _newest(self, key: Key) -> Record | None:
        line, page = await self._newest_line(key)
        while line:
            while page is not None:
                own = [node for node in page.nodes if node.birth_branch == key.branch(line)]
                for node in reversed(own):
                    record = stored.record_of(key.thread, node)
                    if record is not None and not record.hidden:
                        return record
                on = page.next_end_node if len(own) == len(page.nodes) else 0
                page = await self._path(key, line, on) if on else None
            line -= 1  # everything on it was deleted, or its writer died before its first step
            page = await self._path(key, line) if line else None
        return None

    async def _path(self, key: Key, line: int, end_node: int = 0) -> pb.GetPathResponse | None:
        try:
            size = _PAGE if end_node else 1
            return await self._memory.get_path(key.tree, branch=key.branch(line), end_node=end_node, page_size=size)
        except NotFoundError:
            return None

    async def _record(self, key: Key, checkpoint_id: str) -> Record | None:
        """Where a checkpoint is; what is remembered will do."""
        return self._records.get((key, checkpoint_id)) or await self._found(key, checkpoint_id)

    async def _found(self, key: Key, checkpoint_id: str) -> Record | None:
        try:
            found = await self._memory.find_steps(key.tree, [key.step_id(checkpoint_id)])
        except NotFoundError:
            return None
        records = [stored.record_of(key.thread, step.node) for step in found]
        return next((record for record in records if record is not None), None)

    async def _arrival(self, key: Key, checkpoint_id: str) -> Record:
        with self._lock:
            known = self._records.get((key, checkpoint_id))
            if known is not None:  # it came while the service was asked for it
                return known
            broken = self._broken.get(key)
            future = self._awaited.setdefault((key, checkpoint_id), asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(_ARRIVAL_S if broken is None else _BROKEN_S):
                return await asyncio.shield(future)
        except _BrokenBeforeError:
            return await self._arrival(key, checkpoint_id)
        except TimeoutError:
            self._awaited.pop((key, checkpoint_id), None)
            if broken is not None and self._broken.get(key) is not broken:  # the thread goes on: wait in earnest
                return await self._arrival(key, checkpoint_id)
            why = "put it first" if broken is None else f"the one before it could not be stored: {broken.message}"
            raise _without(key, checkpoint_id, why) from broken
        except KatsuraError as error:
            raise _without(key, checkpoint_id, f"it could not be stored: {error.message}") from error

    async def _blobs(self, record: Record) -> dict[int, bytes]:
        wanted = sorted(record.nodes())
        return {node.node_id: stored.blob_of(node) for node in await self._nodes(record.key.tree, wanted)}

    async def _nodes(self, tree: str, wanted: list[int]) -> list[tree_pb.Node]:
        """Nodes by id, in as many answers as they need."""
        found: list[tree_pb.Node] = []
        size = _BATCH
        while len(found) < len(wanted):
            try:
                found += await self._memory.get_nodes(tree, wanted[len(found) : len(found) + size])
            except OutOfRangeError as error:
                size = max(1, int(error.metadata.get("fits", "1")))
        return found

    def _remember(self, record: Record, bodies: Mapping[str, Body]) -> None:
        record = replace(record, blob=b"", writes=())
        with self._lock:
            self._last[record.key] = record, bodies
            self._last.move_to_end(record.key)
            if len(self._last) > _LAST_MAX:
                self._last.popitem(last=False)
            self._records[record.key, record.checkpoint_id] = record
            if len(self._records) > _RECORDS_MAX:
                self._records.popitem(last=False)
            waiting = self._awaited.pop((record.key, record.checkpoint_id), None)
        if waiting is not None:
            waiting.get_loop().call_soon_threadsafe(_arrived, waiting, record)

    def _forget(self, thread: str) -> None:
        with self._lock:
            for key in [key for key in [*self._lines, *self._last] if key.thread == thread]:
                self._lines.pop(key, None)
                self._last.pop(key, None)
            for found in [found for found in self._records if found[0].thread == thread]:
                self._records.pop(found)


class _BrokenBeforeError(Exception):
    """A checkpoint before the one that is awaited could not be stored."""


def _arrived(waiting: asyncio.Future[Record], record: Record | Exception) -> None:
    if waiting.done():
        return
    if isinstance(record, Exception):
        waiting.set_exception(record)
    else:
        waiting.set_result(record)


def _without(key: Key, checkpoint_id: str, why: str) -> NotFoundError:
    what = f"checkpoint_id: thread {key.thread!r} has no checkpoint {checkpoint_id!r}; {why}"
    return NotFoundError(what, field="checkpoint_id")


async def _settled_on_loop(stored: Future[bool], timeout_s: float | None) -> bool:
    async with asyncio.timeout(timeout_s):
        return await asyncio.shield(asyncio.wrap_future(stored))


async def _settled_here(stored: Future[bool], timeout_s: float | None) -> bool:
    return stored.result(timeout_s)
