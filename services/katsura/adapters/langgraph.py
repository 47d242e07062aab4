"""LangGraph's checkpointer on a memory service.

    with Katsura("127.0.0.1:7001", api_key=key) as katsura:
        graph = builder.compile(checkpointer=KatsuraSaver(katsura))

Every thread is a tree that `katsura tree` draws. Values are serialised by LangGraph's own serializer without its pickle
fallback; a list that grows is stored as what was added. Going on from an old checkpoint, or two writers on one thread,
make lines of their own: what was accepted last is the newest, and nothing is overwritten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from katsura.adapters.captions import caption
from katsura.adapters.checkpoints import Key, Record
from katsura.adapters.messages import encoded
from katsura.adapters.ropes import Body, Value, plain
from katsura.adapters.threads import Threads
from katsura.domain.errors import InvalidArgumentError, KatsuraError
from katsura.sdk.blocking import at_once
from katsura.sdk.sync import Katsura

T = TypeVar("T")
Strategy = Literal["keep_latest", "delete"]


class KatsuraSaver(BaseCheckpointSaver[int]):
    """Checkpoints of LangGraph threads as trees of one tenant; both the sync and the async face, in any event loop.

    Args:
        katsura: a connected client; close it after the saver's last call.
        serde: another serializer than LangGraph's msgpack one, for instance its encrypting one.
    """

    def __init__(self, katsura: Katsura, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde or JsonPlusSerializer(pickle_fallback=False))
        # Whoever serialises in another way may not want the store to read values: no line says what they are then.
        self._readable = type(self.serde) is JsonPlusSerializer
        self._katsura = katsura
        self._threads = Threads(katsura.memory)
        self._here = self._threads.here(katsura.memory_here) if katsura.memory_here else None

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or the newest of its namespace."""
        return self._katsura.run(self._get_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first; without `config` those of all threads."""

        async def collect() -> Sequence[CheckpointTuple]:
            return [item async for item in self._list(config, filter, before, limit)]

        yield from self._katsura.run(collect())

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint as the child of the one that `config` names."""
        if self._here is None:
            return self._katsura.run(self._put(self._threads, config, checkpoint, metadata, new_versions))
        return at_once(self._put(self._here, config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Keep a task's writes beside its checkpoint."""
        if self._here is None or not self._here.knows(_key(config), config["configurable"]["checkpoint_id"]):
            self._katsura.run(self._put_writes(self._threads, config, writes, task_id, task_path))
            return
        at_once(self._put_writes(self._here, config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """Drop a thread and everything in it."""
        self._katsura.run(self._threads.delete(str(thread_id)))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of runs, in every thread. What later checkpoints still show stays in them."""
        self._katsura.run(self._delete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy every line, checkpoint and pending write; ALREADY_EXISTS where the target does."""
        self._katsura.run(self._threads.copy(str(source_thread_id), str(target_thread_id)))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep the newest checkpoint of each namespace, or nothing; what it is rebuilt from stays."""
        self._katsura.run(self._prune(thread_ids, strategy))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What ancestors wrote to channels since their last stored value; deleted ancestors that are needed count."""
        return self._katsura.run(self._history(config, channels))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`get_tuple`, without blocking."""
        return await self._there(self._get_tuple(config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """`list`, without blocking."""
        found = self._list(config, filter, before, limit)
        while True:
            item = await self._there(_next(found))
            if item is None:
                return
            yield item

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`put`, without blocking."""
        return await self._there(self._put(self._threads, config, checkpoint, metadata, new_versions))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """`put_writes`, without blocking."""
        await self._there(self._put_writes(self._threads, config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        """`delete_thread`, without blocking."""
        await self._there(self._threads.delete(str(thread_id)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`delete_for_runs`, without blocking."""
        await self._there(self._delete_for_runs(run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`copy_thread`, without blocking."""
        await self._there(self._threads.copy(str(source_thread_id), str(target_thread_id)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """`prune`, without blocking."""
        await self._there(self._prune(thread_ids, strategy))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """`get_delta_channel_history`, without blocking."""
        return await self._there(self._history(config, channels))

    def get_next_version(self, current: int | None, channel: None) -> int:
        """Versions count up; a number is shorter than the random tails that savers use who overwrite."""
        return 1 if current is None else int(current) + 1

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """`work` on the client's loop: one channel serves every loop and thread of the program."""
        return await asyncio.wrap_future(self._katsura.start(work))

    async def _put(
        self,
        threads: Threads,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        key = _key(config)
        body = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        kept = get_serializable_checkpoint_metadata(config, metadata)
        try:
            await threads.put(
                key,
                checkpoint["id"],
                get_checkpoint_id(config) or "",
                str(kept.get("run_id", "")),
                self.serde.dumps_typed(body),
                self.serde.dumps_typed(kept),
                checkpoint["channel_versions"],
                new_versions,
                checkpoint["channel_values"],
                self._encoded,
                caption(kept, checkpoint["channel_values"], new_versions) if self._readable else "",
            )
        except KatsuraError as error:
            threads.missed(key, checkpoint["id"], error)
            raise
        return _config(key, checkpoint["id"])

    def _encoded(self, value: Any, before: Body | None) -> Value:
        return encoded(self.serde, value, before) if self._readable else plain(*self.serde.dumps_typed(value), before)

    async def _put_writes(
        self,
        threads: Threads,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
    ) -> None:
        chosen = {
            WRITES_IDX_MAP.get(channel, index): (channel, self.serde.dumps_typed(value))
            for index, (channel, value) in enumerate(writes)
        }
        checkpoint_id = config["configurable"]["checkpoint_id"]
        items = [(index, *write) for index, write in chosen.items()]
        await threads.put_writes(_key(config), checkpoint_id, task_id, task_path, items)

    async def _get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        record = await self._threads.get(_key(config), get_checkpoint_id(config) or "")
        return None if record is None else await self._tuple(record)

    async def _list(
        self,
        config: RunnableConfig | None,
        wanted: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> AsyncIterator[CheckpointTuple]:
        threads = [_key(config).thread] if config else await self._threads.threads()
        namespace = config["configurable"].get("checkpoint_ns") if config else None
        only = get_checkpoint_id(config) if config else None
        for thread in threads:
            start = await self._threads.get(_key(before), get_checkpoint_id(before) or "") if before else None
            async for record in self._threads.listed(thread, namespace, start.node_id if start else 0):
                if limit is not None and limit <= 0:
                    return
                metadata = self.serde.loads_typed(record.metadata)
                if only and record.checkpoint_id != only:
                    continue
                if any(metadata.get(name) != value for name, value in (wanted or {}).items()):
                    continue
                limit = None if limit is None else limit - 1
                yield await self._tuple(record)

    async def _tuple(self, record: Record) -> CheckpointTuple:
        values, writes = await self._threads.values(record)
        checkpoint = cast(dict[str, Any], self.serde.loads_typed(record.body))
        checkpoint["channel_values"] = {name: self.serde.loads_typed(value) for name, value in values.items()}
        return CheckpointTuple(
            config=_config(record.key, record.checkpoint_id),
            checkpoint=cast(Checkpoint, checkpoint),
            metadata=self.serde.loads_typed(record.metadata),
            parent_config=_config(record.key, record.parent_id) if record.parent_id else None,
            pending_writes=[(write.task, write.channel, self.serde.loads_typed(value)) for write, value in writes],
        )

    async def _history(self, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        collected: dict[str, list[PendingWrite]] = {name: [] for name in channels}  # newest first
        found: dict[str, DeltaChannelHistory] = {}
        target = await self._threads.get(_key(config), get_checkpoint_id(config) or "") if channels else None
        if target is not None:
            async for record in self._threads.chain(target.key, target.checkpoint_id):
                values, writes = await self._threads.values(record)
                for write, value in reversed(writes):
                    if write.channel in collected and write.channel not in found:
                        item = (write.task, write.channel, self.serde.loads_typed(value))
                        collected[write.channel].append(item)
                for name in collected.keys() & values.keys() - found.keys():
                    seed = self.serde.loads_typed(values[name])
                    found[name] = {"writes": collected[name][::-1], "seed": seed}
                if len(found) == len(collected):
                    break
        return {name: found.get(name) or {"writes": items[::-1]} for name, items in collected.items()}

    async def _delete_for_runs(self, run_ids: Sequence[str]) -> None:
        runs = set(map(str, run_ids)) - {""}
        for thread in await self._threads.threads() if runs else []:
            records = [record async for record in self._threads.listed(thread)]
            doomed = [r for r in records if r.run_id in runs]
            await self._drop(thread, records, doomed)

    async def _prune(self, thread_ids: Sequence[str], strategy: str) -> None:
        if strategy not in ("keep_latest", "delete"):
            raise InvalidArgumentError(f"strategy: {strategy!r} is not one of keep_latest, delete", field="strategy")
        for thread in map(str, thread_ids):
            if strategy == "delete":
                await self._threads.delete(thread)
                continue
            records = [record async for record in self._threads.listed(thread)]
            newest: dict[str, Record] = {}
            for record in records:
                best = newest.setdefault(record.key.namespace, record)
                if (record.line, record.node_id) > (best.line, best.node_id):
                    newest[record.key.namespace] = record
            await self._drop(thread, records, [r for r in records if newest[r.key.namespace] is not r])

    async def _drop(self, thread: str, records: Sequence[Record], doomed: Sequence[Record]) -> None:
        """Delete `doomed`, less what the others among `records` are rebuilt from."""
        gone = {record.node_id for record in doomed}
        needed: set[int] = set()
        for record in records if doomed else ():
            if record.node_id in gone:
                continue
            needed |= record.nodes()
            delta = self.serde.loads_typed(record.metadata).get("counters_since_delta_snapshot") or {}
            missing = delta.keys() - record.channels.keys()
            if missing:
                async for ancestor in self._threads.chain(record.key, record.checkpoint_id):
                    needed |= {ancestor.node_id} | ancestor.nodes()
                    missing -= ancestor.channels.keys()
                    if not missing:
                        break
        if doomed:
            await self._threads.drop(thread, doomed, needed)


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)


def _key(config: RunnableConfig) -> Key:
    found = config["configurable"]
    return Key(str(found["thread_id"]), str(found.get("checkpoint_ns") or ""))


def _config(key: Key, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": key.thread, "checkpoint_ns": key.namespace, "checkpoint_id": checkpoint_id}}
