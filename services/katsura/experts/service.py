"""The RPC process's side of a member: follows the tables, keeps the lease, and tells the compute process what to hold.

hints store --- tables ---> reconcile --- Load, Free ---> compute process
            <-- lease  ---     ^     <--- Done, Report ---
                               |
servicer --- Load, Unload -----+
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable

from katsura.domain.errors import (
    FailedPreconditionError,
    InternalError,
    KatsuraError,
    ResourceExhaustedError,
    UnavailableError,
)
from katsura.domain.ids import Epoch, Incarnation, InstanceId
from katsura.domain.leases import NO_EPOCH, GroupRange, MemberLease, revision_id
from katsura.domain.shape import Numerics
from katsura.domain.tables import ExpertTables
from katsura.experts import messages
from katsura.experts.config import MemberConfig
from katsura.experts.core.residency import Key, Residency, decide, is_placed, keys_of, ranges_of
from katsura.state.hints import HEARTBEAT_S, HintStore, Role
from katsura.telemetry import log, metrics, names, trace
from katsura.wire.header import WIRE_VERSION
from katsura.wire.pipe import AsyncPipe, PeerDiedError

_LOG = log.get(__name__)
_FRAMES = metrics.counter(names.MEMBER_FRAMES, "Frames by what became of them.", ("outcome",))
_SECONDS = metrics.counter(names.MEMBER_FRAME_SECONDS, "Seconds spent computing frames.")
_BYTES = metrics.gauge(names.MEMBER_LOADED_BYTES, "Bytes of weights held.")
_INCARNATION_BITS = 63
_LOAD_KEYS = 8
"""Groups per Load command: between two of them the lease shows progress, and a newer table is noticed."""
_WATCH_S = 5.0
_RETRY_S = 1.0


class MemberService:
    """One member, seen from its RPC process.

    Args:
        config: its configuration.
        pipe: to the compute process; `begin` must have been awaited on it.
        hello: what the compute process found out.
        incarnation: this life, as told to the compute process.
        store: hints store; None: no lease and no tables.
    """

    def __init__(
        self,
        config: MemberConfig,
        pipe: AsyncPipe,
        hello: messages.Hello,
        incarnation: Incarnation,
        store: HintStore | None,
    ) -> None:
        self.config = config
        self.hello = hello
        self.incarnation = incarnation
        self.revision_id = revision_id(hello.weights_digest, config.dtype, config.numerics, hello.layout, WIRE_VERSION)
        self.member_id = InstanceId(config.serve.instance_id)
        self.address = ""
        self.loaded: frozenset[Key] = frozenset()
        self.loaded_bytes = 0
        self.clients = 0
        self.draining = False
        self.serving_epoch = self.prepared_epoch = self._fused_epoch = NO_EPOCH
        self._start_ms = time.time_ns() // 1_000_000
        self._pipe, self._store = pipe, store
        self._calls: dict[int, asyncio.Future[messages.Done]] = {}
        self._numbers = itertools.count(1)
        self._asked: frozenset[Key] = frozenset()
        self._freeing: frozenset[Key] = frozenset()
        self._lost = False
        self._tables = ExpertTables(config.deployment, self.revision_id)
        self._changed = asyncio.Event()
        self._alone = asyncio.Event()
        self._alone.set()
        self.placed = asyncio.Event()
        """Set for good once the table in force counts on this life (`residency.is_placed`)."""
        self.drained = asyncio.Event()
        """Set once it has been drained: nobody needs it any more."""
        if store is None:
            self.placed.set()
        self._tasks: set[asyncio.Task[None]] = set()

    # Work that goes on beside the calls

    async def listen(self) -> None:
        """Take what the compute process says, until it is gone. Raises UnavailableError."""
        try:
            async for message in self._pipe:
                self._take(messages.read(message))
        except PeerDiedError as error:
            self._lost = True
            self._alone.set()
            for call in self._calls.values():
                if not call.done():
                    call.set_exception(_compute_died())
            raise UnavailableError(f"the compute process died ({error.message}); this process ends too") from error

    async def follow_tables(self) -> None:
        """Note every new table."""
        if self._store is None:
            return
        version = ""
        while True:
            try:
                found = await self._store.wait_expert_tables(
                    self.config.deployment, self.revision_id, version, _WATCH_S
                )
            except UnavailableError:
                await asyncio.sleep(_RETRY_S)  # the heartbeat says so
                continue
            if found.version != version:
                version, self._tables = found.version, found.value
                self._changed.set()

    async def reconcile(self) -> None:
        """Hold what tables and Load calls want, and say so."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = self._wanted()
            if not wanted.load:
                await self._fuse()
            await self._say(wanted.prepared_epoch, wanted.serving_epoch)
            only = self.hello.fingerprint if self.config.numerics is Numerics.INVARIANT else ""
            if is_placed(self._tables, self.member_id, self.incarnation, only, self.loaded):
                self.placed.set()
            if free := frozenset(wanted.free) - self._freeing:
                self._freeing |= free
                self._spawn(self._free(free))
            if wanted.load:
                await self._load(wanted.load[:_LOAD_KEYS])

    async def heartbeat(self) -> None:
        """Refresh the lease. Raises ConflictError when another life of this member has it."""
        reachable = True
        while self._store is not None:
            try:
                await self._store.put_member(self.lease())
                reachable = True
            except UnavailableError as error:
                if reachable:
                    _LOG.warning("cannot refresh the lease; serving on by the last table", why=error.message)
                reachable = False
            await asyncio.sleep(HEARTBEAT_S)

    # Calls

    async def load(self, groups: Iterable[GroupRange]) -> None:
        """Hold these too, whatever the tables say, until `unload`. ResourceExhaustedError, OutOfRangeError."""
        keys = keys_of(groups)
        self._held(await self._ask(lambda call: messages.Load(call, ranges_of(keys))))
        self._asked |= keys

    async def unload(self, groups: Iterable[GroupRange]) -> None:
        """Free these. FailedPreconditionError if the committed table names one."""
        keys = keys_of(groups)
        committed = ExpertTables(self.config.deployment, self.revision_id, committed=self._tables.committed)
        named = keys.intersection(self._decide(committed, frozenset(), frozenset()).load)
        if named:
            raise FailedPreconditionError(
                f"the table of epoch {self.serving_epoch} names {len(named)} of these groups, the first is "
                f"{min(named)}; drain the member instead"
            )
        self._asked -= keys
        free = keys.intersection(self._wanted().free)
        if free:
            await self._free(free)

    async def probe(self, groups: Iterable[GroupRange]) -> tuple[messages.Digest, ...]:
        """Digests of canary outputs, by ascending (layer, group). FailedPreconditionError if one is not loaded."""
        return (await self._ask(lambda call: messages.Probe(call, tuple(groups)))).digests

    async def drain(self, timeout_s: float) -> None:
        """Ask for a table without us, wait until no shard is connected (`timeout_s` 0: without bound), then refuse."""
        self.draining = True
        await self._say(self.prepared_epoch, self.serving_epoch, force=True)
        try:
            await asyncio.wait_for(self._alone.wait(), timeout_s or None)
        except TimeoutError:
            _LOG.warning("shards still use this member; refusing their frames from now on", shards=self.clients)
        await self._ask(messages.Drain)
        self.drained.set()

    async def leave(self) -> None:
        """Give the lease back."""
        if self._store is not None:
            try:
                await self._store.drop_lease(Role.MEMBER, self.member_id, self.incarnation)
            except UnavailableError as error:
                _LOG.warning("could not give the lease back; it runs out by itself", why=error.message)

    def lease(self) -> MemberLease:
        """What this member says of itself."""
        hello = self.hello
        return MemberLease(
            instance_id=self.member_id,
            incarnation=self.incarnation,
            start_ms=self._start_ms,
            deployment=self.config.deployment,
            revision_id=self.revision_id,
            numerics=self.config.numerics,
            layer_count=hello.layer_count,
            layout=hello.layout,
            group_bytes=hello.group_bytes,
            address=self.address,
            data_endpoints=hello.data_endpoints,
            capacity_bytes=hello.capacity_bytes,
            fingerprint=hello.fingerprint,
            loaded_bytes=self.loaded_bytes,
            loaded=ranges_of(self.loaded),
            unit_cost_s=hello.unit_cost_s,
            token_cost_s=hello.token_cost_s,
            prepared_epoch=self.prepared_epoch,
            serving_epoch=self.serving_epoch,
            draining=self.draining,
        )

    # Inside

    def _wanted(self) -> Residency:
        return self._decide(self._tables, self.loaded - self._freeing, self._asked)

    def _decide(self, tables: ExpertTables, loaded: frozenset[Key], asked: frozenset[Key]) -> Residency:
        room = self.hello.capacity_bytes // self.hello.group_bytes
        return decide(tables, self.member_id, self.incarnation, loaded, asked, room)

    async def _load(self, keys: tuple[Key, ...]) -> None:
        try:
            self._held(await self._ask(lambda call: messages.Load(call, ranges_of(keys))))
        except UnavailableError:
            raise
        except ResourceExhaustedError as error:
            if not self._freeing:  # else there is room soon, and `_free` comes back to it
                _LOG.error("no room for what the table gives this member; it is not acknowledged", why=error.message)
            return
        except KatsuraError as error:
            _LOG.error("cannot load what the table gives this member; it is not acknowledged", why=error.message)
            return
        self._changed.set()

    async def _fuse(self) -> None:
        """Before a table is acknowledged: prepare for the frames that it will bring."""
        newest = self._tables.prepared or self._tables.committed
        mine = newest.of(self.member_id, self.incarnation) if newest is not None else None
        if newest is not None and mine is not None and newest.epoch != self._fused_epoch:
            await self._ask(lambda call: messages.Fuse(call, mine.primary))
            self._fused_epoch = newest.epoch

    async def _free(self, keys: frozenset[Key]) -> None:
        epoch = self._tables.committed.epoch if self._tables.committed else NO_EPOCH
        done = await self._ask(lambda call: messages.Free(call, ranges_of(keys), epoch))
        self._freeing -= keys
        self._held(done)
        self._changed.set()

    async def _say(self, prepared: Epoch, serving: Epoch, force: bool = False) -> None:
        if (prepared, serving) == (self.prepared_epoch, self.serving_epoch) and not force:
            return
        if serving > self.serving_epoch:
            await self._pipe.send(messages.write(messages.Serve(serving)))
            _LOG.info("serving", epoch=serving, groups=len(self.loaded))
        self.prepared_epoch, self.serving_epoch = prepared, serving
        if self._store is not None:
            try:
                await self._store.put_member(self.lease())
            except UnavailableError:
                return  # the next heartbeat says it

    def _held(self, done: messages.Done) -> None:
        self.loaded, self.loaded_bytes = keys_of(done.loaded), done.loaded_bytes
        _BYTES.set(done.loaded_bytes)

    async def _ask(self, make: Callable[[int], messages.Message]) -> messages.Done:
        if self._lost:
            raise _compute_died()
        call = next(self._numbers)
        future: asyncio.Future[messages.Done] = asyncio.get_running_loop().create_future()
        self._calls[call] = future
        try:
            await self._pipe.send(messages.write(make(call)))
            return await future
        finally:
            del self._calls[call]

    def _take(self, message: messages.Message) -> None:
        match message:
            case messages.Done(call):
                if call in self._calls and not self._calls[call].done():
                    self._calls[call].set_result(message)
            case messages.Failed(call):
                if call in self._calls and not self._calls[call].done():
                    self._calls[call].set_exception(message.error())
            case messages.Report():
                self._note(message)
            case _:
                raise InternalError(f"the compute process said {type(message).__name__}, which is not for us")

    def _note(self, report: messages.Report) -> None:
        self.clients = report.clients
        if self.clients:
            self._alone.clear()
        else:
            self._alone.set()
        _FRAMES.labels("answered").inc(report.frames)
        _FRAMES.labels("refused").inc(report.nacks)
        _SECONDS.inc(report.seconds)
        for step in report.steps:
            attributes: trace.Attributes = {
                names.MEMBER: self.member_id,
                names.STEP: step.step,
                names.TOKEN_COUNT: step.tokens,
            }
            trace.record(names.SPAN_EXPERT_FRAME, step.begin_ns, step.end_ns, attributes, parent=step.trace)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def draw_incarnation() -> Incarnation:
    """A new life."""
    return Incarnation(secrets.randbits(_INCARNATION_BITS))


async def begin(pipe: AsyncPipe, incarnation: Incarnation) -> messages.Hello:
    """Tell a new compute process which life it is, and wait for what it finds out. Raises what stopped it."""
    await pipe.send(messages.write(messages.Start(incarnation)))
    first = messages.read(await pipe.receive())
    if isinstance(first, messages.Failed):
        raise first.error()
    if not isinstance(first, messages.Hello):
        raise InternalError(f"the compute process began with {type(first).__name__}")
    return first


def _compute_died() -> UnavailableError:
    return UnavailableError("the member's compute process died")
