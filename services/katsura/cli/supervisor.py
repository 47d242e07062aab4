"""Carries out what `core.fleet` decides: processes, pipes, signals, timers.

Every child runs in a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone and the order of
ending is ours. Each inherits the read end of one pipe whose write end only this process holds: when it dies, however,
the pipe ends and so do they. A ready child writes one JSON line on a pipe of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from katsura.cli.core.fleet import (
    Action,
    BecameReady,
    Child,
    Ended,
    Event,
    Fleet,
    Kill,
    Say,
    Start,
    Started,
    StopAsked,
    Terminate,
    Tick,
    advance,
)
from katsura.cli.core.layout import ProcessSpec, Role
from katsura.cli.data import DataFolder, ProcessRecord, start_ticks

_STORE_POLL_S = 0.05


class Supervisor:
    """Runs the processes of one layout until it is asked to stop or gives up.

    Args:
        specs: what to run.
        data: where logs go.
        http_fd: listening socket that the gateway inherits, or None: it outlives restarts of the gateway.
        environ: environment that children inherit; its KATSURA_ variables are not, each child gets its own.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        data: DataFolder,
        environ: Mapping[str, str],
        http_fd: int | None = None,
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._data = data
        self._environ = {key: value for key, value in environ.items() if not key.startswith("KATSURA_")}
        # One torch thread per process unless somebody said otherwise: more would fight over the same cores.
        self._environ.setdefault("OMP_NUM_THREADS", "1")
        self._http_fd = http_fd
        self._on_say: Callable[[str, bool], None] = lambda text, trouble: None
        self._on_change: Callable[[Fleet], None] = lambda fleet: None
        self._alive = self._tether = -1  # the two ends of the pipe that ties children to us; made by `run`
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._processes: dict[str, Process] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self.fleet = Fleet.of(
            Child(spec.name, spec.stage, spec.rank, grace_s=spec.grace_s) for spec in self._specs.values()
        )

    def ask_stop(self) -> None:
        """End everything in order; asked again, at once."""
        self._events.put_nowait(StopAsked())

    def records(self) -> tuple[ProcessRecord, ...]:
        """What runs now, for `run.json`."""
        return tuple(
            ProcessRecord(
                name=child.name,
                role=self._specs[child.name].role.value,
                pid=child.pid,
                address=child.address or self._specs[child.name].address,
                state=child.phase.value,
                restarts=child.restarts,
                started=start_ticks(child.pid) if child.pid is not None else None,
                last_end=child.last_end,
            )
            for child in self.fleet.children.values()
        )

    async def run(self, on_say: Callable[[str, bool], None], on_change: Callable[[Fleet], None]) -> None:
        """Start everything, keep it running, return when all has ended; `fleet.failure` says if it was not by wish.

        Args:
            on_say: told every sentence for the person (text, trouble).
            on_change: told after every event.
        """
        self._on_say, self._on_change = on_say, on_change
        self._alive, self._tether = os.pipe()
        loop = asyncio.get_running_loop()
        try:
            self._events.put_nowait(Tick())
            while not self.fleet.ended:
                due_s = self.fleet.due_s
                wait_s = None if due_s is None else max(0.0, due_s - loop.time())
                try:
                    event = await asyncio.wait_for(self._events.get(), wait_s)
                except TimeoutError:
                    event = Tick()
                await self._take(event, loop.time())
        finally:
            await self._end_all()
            os.close(self._tether)
            os.close(self._alive)

    async def _take(self, event: Event, now_s: float) -> None:
        self.fleet, actions = advance(self.fleet, event, now_s)
        for action in actions:
            await self._do(action, now_s)
        self._on_change(self.fleet)

    async def _do(self, action: Action, now_s: float) -> None:
        match action:
            case Start(name):
                await self._start(name, now_s)
            case Terminate(name) if name in self._processes:
                self._processes[name].terminate()
            case Kill(name) if name in self._processes:
                self._processes[name].kill()
            case Say(text, trouble):
                self._on_say(text, trouble)

    async def _start(self, name: str, now_s: float) -> None:
        spec = self._specs[name]
        ready, tell_ready = os.pipe()
        inherited = self._inherited(spec, tell_ready)
        log = -1
        try:
            log = self._data.open_log(name)
            process = await asyncio.create_subprocess_exec(
                *self._command(spec),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._environ, **spec.env, **{name: str(number) for name, number in inherited.items()}},
                pass_fds=tuple(inherited.values()),
                start_new_session=True,
            )
        except OSError as error:
            os.close(ready)
            self._on_say(f"cannot start {name}: {error.strerror}", True)
            self._events.put_nowait(Ended(name, 127))
            return
        finally:
            os.close(tell_ready)
            if log >= 0:
                os.close(log)
        self._processes[name] = process
        self.fleet, _ = advance(self.fleet, Started(name, process.pid), now_s)
        self._watch(self._watch_end(name, process))
        if spec.role.is_store:
            os.close(ready)
            self._watch(self._watch_store(spec, process))
        else:
            self._watch(self._watch_ready(name, process, ready))

    def _command(self, spec: ProcessSpec) -> tuple[str, ...]:
        if spec.role.is_store:
            Path(spec.args[spec.args.index("--dir") + 1]).mkdir(parents=True, exist_ok=True, mode=0o700)
            return (sys.executable, "-m", "katsura.cli.embedded", str(os.getpid()), *spec.args)
        return (sys.executable, "-m", spec.module)

    def _inherited(self, spec: ProcessSpec, tell_ready: int) -> dict[str, int]:
        """Descriptors that a process gets, by the variable that tells it the number."""
        if spec.role.is_store:
            return {}
        pipes = {"KATSURA_SUPERVISOR_FD": self._alive, "KATSURA_READY_FD": tell_ready}
        if spec.role is Role.GATEWAY and self._http_fd is not None:
            pipes["KATSURA_HTTP_FD"] = self._http_fd
        return pipes

    def _watch(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _watch_end(self, name: str, process: Process) -> None:
        status = await process.wait()
        if self._processes.get(name) is process:
            del self._processes[name]
        self._events.put_nowait(Ended(name, status))

    async def _watch_ready(self, name: str, process: Process, ready: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ready, "rb", buffering=0)
        )
        try:
            async for line in reader:
                said = json.loads(line)
                if self._processes.get(name) is process:
                    self._events.put_nowait(BecameReady(name, str(said.get("address", ""))))
        except ValueError:
            self._on_say(f"{name} wrote a ready line that is not JSON", True)
        finally:
            transport.close()

    async def _watch_store(self, spec: ProcessSpec, process: Process) -> None:
        path = spec.address.removeprefix("unix:")
        while self._processes.get(spec.name) is process:
            if await answers_ping(path):
                self._events.put_nowait(BecameReady(spec.name, spec.address))
                return
            await asyncio.sleep(_STORE_POLL_S)

    async def _end_all(self) -> None:
        """Whatever happened above: no process stays."""
        for process in list(self._processes.values()):
            process.kill()
        while self._processes:
            await asyncio.gather(*(process.wait() for process in list(self._processes.values())))
            await asyncio.sleep(0)
        for task in list(self._watchers):
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)


async def answers_ping(socket_path: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at a unix socket is up and has loaded its data."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(socket_path), timeout_s)
    except (OSError, TimeoutError):
        return False
    try:
        writer.write(b"PING\r\n")
        return (await asyncio.wait_for(reader.readline(), timeout_s)).startswith(b"+PONG")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
