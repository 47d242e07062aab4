"""The supervisor over real processes: a small child of our own contract, and the real embedded Valkey."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from katsura.cli.core.fleet import Fleet, Phase
from katsura.cli.core.layout import ProcessSpec, Role, valkey_args
from katsura.cli.data import DataFolder, make_run_dir, start_ticks
from katsura.cli.supervisor import Supervisor, answers_ping
from katsura.manifests.stores import Durability

CHILD = """
import json, os, select, signal, sys
mode = os.environ.get("CHILD_MODE", "serve")
if mode == "crash":
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else (lambda *_: sys.exit(0)))
print("serving", os.environ["CHILD_NAME"], flush=True)
os.write(int(os.environ["KATSURA_READY_FD"]), json.dumps({"address": "here", "pid": os.getpid()}).encode() + b"\\n")
supervisor = int(os.environ["KATSURA_SUPERVISOR_FD"])
while True:
    select.select([supervisor], [], [])
    if not os.read(supervisor, 1):
        os._exit(70)
"""


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    (tmp_path / "child_process.py").write_text(CHILD)
    folder = DataFolder(tmp_path / "data")
    folder.create()
    return folder


@pytest.fixture
def run_dir() -> Iterator[Path]:
    folder = make_run_dir(os.environ)
    yield folder
    shutil.rmtree(folder)


def child(name: str, role: Role = Role.MEMORY, mode: str = "serve", grace_s: float = 20.0) -> ProcessSpec:
    env = {"CHILD_NAME": name, "CHILD_MODE": mode}
    return ProcessSpec(name, role, "child_process", f"unix:/{name}", env, grace_s=grace_s)


def store(data: DataFolder, run_dir: Path) -> ProcessSpec:
    socket = f"{run_dir}/store.sock"
    args = valkey_args(socket, str(data.root / "store"), Durability.RELAXED)
    return ProcessSpec("store", Role.STORE, "", f"unix:{socket}", args=args)


class Watch:
    """Remembers what was said and lets a test wait for a state of the fleet."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.fleet = Fleet({})
        self._changed = asyncio.Event()

    def say(self, text: str, trouble: bool) -> None:
        self.said.append(text)

    def change(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._changed.set()

    async def until(self, holds: Callable[[Fleet], bool]) -> Fleet:
        async with asyncio.timeout(60):
            while not holds(self.fleet):
                self._changed.clear()
                await self._changed.wait()
        return self.fleet


@asynccontextmanager
async def running(data: DataFolder, *specs: ProcessSpec) -> AsyncIterator[tuple[Supervisor, Watch]]:
    watch = Watch()
    environ = {**os.environ, "PYTHONPATH": str(data.root.parent), "KATSURA_STRAY": "1"}
    supervisor = Supervisor(specs, data, environ)
    task = asyncio.create_task(supervisor.run(watch.say, watch.change))
    try:
        yield supervisor, watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [r for r in supervisor.records() if r.pid and start_ticks(r.pid) == r.started and r.started] == []


async def test_a_killed_process_is_started_again_and_a_stop_leaves_none(data: DataFolder) -> None:
    async with running(data, child("memory-0"), child("gateway", Role.GATEWAY)) as (supervisor, watch):
        fleet = await watch.until(lambda f: bool(f.children) and f.all_ready)
        first = fleet.children["memory-0"].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        fleet = await watch.until(lambda f: f.children["memory-0"].restarts == 1 and f.all_ready)
        assert fleet.children["memory-0"].pid != first
        assert watch.said == ["memory-0 ended by SIGKILL; starting it again in 0.5 s", "memory-0 is back"]
        supervisor.ask_stop()
        fleet = await watch.until(lambda f: f.ended)
        assert {c.last_end for c in fleet.children.values()} == {"ended with status 0"}
    assert data.tail("memory-0").splitlines() == ["serving memory-0"] * 2


async def test_a_process_that_does_not_listen_is_killed_after_its_grace(data: DataFolder) -> None:
    async with running(data, child("memory-0", mode="deaf", grace_s=0.1)) as (supervisor, watch):
        await watch.until(lambda f: bool(f.children) and f.all_ready)
        supervisor.ask_stop()
        fleet = await watch.until(lambda f: f.ended)
        assert fleet.children["memory-0"].last_end == "ended by SIGKILL"


async def test_a_second_wish_ends_everything_at_once(data: DataFolder) -> None:
    async with running(data, child("memory-0", mode="deaf", grace_s=3600)) as (supervisor, watch):
        await watch.until(lambda f: bool(f.children) and f.all_ready)
        supervisor.ask_stop()
        supervisor.ask_stop()
        await watch.until(lambda f: f.ended)


async def test_a_process_that_never_gets_ready_is_given_up_with_its_name(data: DataFolder) -> None:
    async with running(data, child("memory-0", mode="crash")) as (_, watch):
        fleet = await watch.until(lambda f: f.ended)
        assert fleet.failure == "memory-0 ended with status 3, 4 times before it was ever ready"


async def ask(socket: str, command: bytes, lines: int) -> list[bytes]:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(command + b"\r\n")
        return [await reader.readline() for _ in range(lines)]
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_log_that_cannot_be_opened_is_told_and_ends_nothing_else(data: DataFolder) -> None:
    (data.logs / "memory-0.log").mkdir()
    async with running(data, child("memory-0"), child("gateway", Role.GATEWAY)) as (_, watch):
        fleet = await watch.until(lambda f: "cannot start memory-0: Is a directory" in watch.said)
        assert not fleet.ended


async def test_the_embedded_store_keeps_its_data_over_a_kill(data: DataFolder, run_dir: Path) -> None:
    socket = f"{run_dir}/store.sock"
    async with running(data, store(data, run_dir)) as (_, watch):
        fleet = await watch.until(lambda f: bool(f.children) and f.all_ready)
        assert await ask(socket, b"SET a 1", 1) == [b"+OK\r\n"]
        pid = fleet.children["store"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await watch.until(lambda f: f.children["store"].restarts == 1 and f.children["store"].phase is Phase.READY)
        assert await ask(socket, b"GET a", 2) == [b"$1\r\n", b"1\r\n"]
    assert not await answers_ping(socket)


SUPERVISE = """
import asyncio, json, os, sys
from pathlib import Path
from katsura.cli.core.layout import ProcessSpec, Role
from katsura.cli.data import DataFolder
from katsura.cli.supervisor import Supervisor
specs = [ProcessSpec(**{**s, "role": Role(s["role"]), "args": tuple(s["args"])}) for s in json.loads(sys.argv[2])]
def change(fleet):
    if fleet.all_ready:
        print(json.dumps([[r.name, r.pid, r.started] for r in supervisor.records()]), flush=True)
supervisor = Supervisor(specs, DataFolder(Path(sys.argv[1])), os.environ)
asyncio.run(supervisor.run(lambda *_: None, change))
"""


def test_kill_9_of_the_supervisor_leaves_no_process(data: DataFolder, run_dir: Path) -> None:
    """The supervisor is a process of its own here; its children must notice that it is gone by themselves."""
    specs = [store(data, run_dir), child("memory-0"), child("experts-0", Role.EXPERTS)]
    raw = json.dumps([asdict(spec) for spec in specs])
    environ = {**os.environ, "PYTHONPATH": str(data.root.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(data.root), raw], env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            rows = json.loads(process.stdout.readline())
            assert len(rows) == 3
        finally:
            process.kill()
    for _, pid, started in rows:
        if start_ticks(pid) == started:
            with suppress(ProcessLookupError):
                # Readable when the process has ended; the suite's own limit ends a wait that would be for ever.
                select.select([os.pidfd_open(pid)], [], [], 60)
    assert [name for name, pid, started in rows if start_ticks(pid) == started] == []
