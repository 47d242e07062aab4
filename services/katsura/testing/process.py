"""A real process of ours for tests: started as the supervisor starts it, found by its ready line, killed at will."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from katsura.testing.store import EmbeddedStore

_START_LIMIT_S = 60.0


class ServedProcess:
    """`python -m <module>` with a supervisor pipe and a ready pipe. It ends with the block, however that ends.

    Args:
        module: for instance `katsura.router`.
        environment: KATSURA_ variables besides the two pipes.
        log_path: where its standard error goes.
    """

    def __init__(self, module: str, environment: Mapping[str, str], log_path: Path) -> None:
        self.module = module
        self.environment = dict(environment)
        self.log_path = log_path
        self.address = ""
        self._process: Process | None = None
        self._supervisor_fd = -1

    async def start(self) -> Self:
        """Start it and wait until it says that it is ready."""
        alive_read, self._supervisor_fd = os.pipe()
        ready_read, ready_write = os.pipe()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KATSURA_")}
        pipes = {"KATSURA_SUPERVISOR_FD": str(alive_read), "KATSURA_READY_FD": str(ready_write)}
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                env=kept | self.environment | pipes,
                pass_fds=(alive_read, ready_write),
                stderr=log,
            )
        os.close(alive_read)
        os.close(ready_write)
        try:
            self.address = json.loads(await asyncio.wait_for(_line(ready_read), _START_LIMIT_S))["address"]
        except (ValueError, TimeoutError) as error:
            await self.kill()
            raise RuntimeError(f"{self.module} did not start:\n{self.log_path.read_text(errors='replace')}") from error
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "the process has not been started"
        return self._process.pid

    async def kill(self) -> None:
        """`kill -9`, and wait until it is dead."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> int:
        """SIGTERM, and its exit status."""
        return await self._end(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait until it ends by itself; its exit status."""
        assert self._process is not None, "the process has not been started"
        status = await self._process.wait()
        await self._end(signal.SIGKILL)
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal (SIGSTOP, SIGCONT)."""
        os.kill(self.pid, number)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.kill()

    async def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        status = await process.wait()
        os.close(self._supervisor_fd)
        return status


def memory_process(
    store: EmbeddedStore, token: str, log_path: Path, more: Mapping[str, str] | None = None, name: str = "memory"
) -> ServedProcess:
    """The memory service on `store`, for internal callers with `token`.

    Args:
        more: variables besides. name: of its socket, in the store's folder.
    """
    environment = {
        "KATSURA_LISTEN": f"unix:{store.folder}/{name}.sock",
        "KATSURA_STORE_URL": store.url,
        "KATSURA_INTERNAL_TOKEN": token,
    }
    return ServedProcess("katsura.memory", {**environment, **(more or {})}, log_path)


async def _line(descriptor: int) -> bytes:
    """The first line of a pipe; what came before its end where there is none."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        return await reader.readline()
    finally:
        transport.close()
