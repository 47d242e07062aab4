"""`katsura doctor`: gathers facts about this machine and what runs on it; `core.checks` says what they mean."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from katsura.cli.core import checks
from katsura.cli.core.checks import Finding, Verdict
from katsura.cli.data import DataFolder, RunRecord, left_alive
from katsura.cli.embedded import server_binary
from katsura.cli.exit import Exit
from katsura.cli.health import probe_all
from katsura.cli.up import listen
from katsura.domain.errors import KatsuraError

_PACKAGES = (
    "fastapi", "gguf", "grpcio", "grpcio-health-checking", "hiredis", "httpx", "jinja2", "numpy", "protobuf", "redis",
    "safetensors", "tokenizers", "torch", "uvicorn", "uvloop",
)  # fmt: skip
_MARKS = {Verdict.GOOD: ("✓", "green"), Verdict.WARN: ("!", "yellow"), Verdict.BAD: ("✗", "red")}


def doctor(data: Path, port: int, redis_url: str, environ: Mapping[str, str], as_json: bool, console: Console) -> Exit:
    """Print every check; UNHEALTHY if one is bad."""
    folder = DataFolder(data.expanduser().resolve())
    return show([*_machine(), *_folders(folder, environ), *_running(folder, port, redis_url)], as_json, console)


def show(findings: Sequence[Finding], as_json: bool, console: Console) -> Exit:
    """Print findings; UNHEALTHY if one is bad."""
    if as_json:
        rows = [{"check": f.check, "verdict": f.verdict, "what": f.what, "mend": f.mend} for f in findings]
        console.print_json(json.dumps(rows))
    else:
        table = Table.grid(padding=(0, 2))
        for finding in findings:
            mark, style = _MARKS[finding.verdict]
            what = Text(finding.what)
            if finding.mend:
                what.append(f"\n→ {finding.mend}", "bold")
            table.add_row(Text(mark, style), finding.check, what)
        console.print(table)
    return Exit.UNHEALTHY if any(f.verdict is Verdict.BAD for f in findings) else Exit.OK


def _machine() -> Iterator[Finding]:
    yield checks.python(sys.version_info[:3])
    yield checks.packages({name: _version(name) for name in _PACKAGES})
    binary = server_binary()
    yield checks.embedded_server(str(binary) if binary else None)
    flags = frozenset(
        word for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features")) for word in line.split()
    )
    yield checks.cpu(len(os.sched_getaffinity(0)), flags)
    yield checks.kernels((resources.files("katsura") / "native" / "kernels.so").is_file(), flags)
    available = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")), None)
    if available is not None:
        yield checks.memory(int(available) * 1024)
    yield checks.files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _folders(folder: DataFolder, environ: Mapping[str, str]) -> Iterator[Finding]:
    trouble = ""
    try:
        folder.create()
    except KatsuraError as error:
        trouble = error.message
    yield checks.data_folder(str(folder.root), trouble)
    try:
        from katsura.weights.manifest import Manifest
        from katsura.weights.sources import ModelCache, default_cache_root
    except ImportError:
        return  # `packages` has said so
    cache = ModelCache(default_cache_root(environ))
    models = cache.entries()
    existing = next(path for path in (cache.root, *cache.root.parents) if path.exists())
    yield checks.disk(str(existing), shutil.disk_usage(existing).free, bool(models))
    for model in models:
        manifest = Manifest.read(model.folder)
        broken = (
            manifest.corrupt(model.folder, sorted(manifest.files), lambda _: None) if manifest else ["katsura.json"]
        )
        yield checks.model(model.uri, broken)


def _running(folder: DataFolder, port: int, redis_url: str) -> Iterator[Finding]:
    record, owned = folder.read_run(), folder.is_owned()
    left = len(left_alive(record)) if record and not owned else 0
    yield checks.run(owned, record is not None, left, str(folder.root))
    if record is None or not owned:
        yield checks.port(port, _is_taken(port), ours=False)
        if redis_url:
            yield from asyncio.run(_store("store", redis_url, asked=""))
        return
    yield checks.port(int(record.url.rpartition(":")[2]), taken=True, ours=True)
    yield from asyncio.run(_store("store", redis_url or record.store_url, record.durability))
    if record.hints_url != record.store_url:
        yield from asyncio.run(_store("hints", record.hints_url, "none"))
    yield from asyncio.run(_processes(folder, record))


async def _processes(folder: DataFolder, record: RunRecord) -> list[Finding]:
    healths = await probe_all(record)
    return [
        checks.process(p.name, h.good, f"{h.state}: {h.why}", p.restarts, p.last_end, str(folder.log_of(p.name)))
        for p, h in zip(record.processes, healths, strict=True)
    ]


async def _store(name: str, url: str, asked: str) -> list[Finding]:
    from katsura.state.connect import Store, translated

    try:
        store = await Store.open(url, wait_s=2.0)
    except KatsuraError as error:
        return checks.store(name, asked, error.message, {})
    settings = {"promise": store.durability.name.lower(), **store.settings}
    try:
        with translated(url):
            info = await store.client.info("server")
            settings["version"] = str(info.get("valkey_version") or info.get("redis_version", ""))
            log = await store.client.info("persistence")
            settings["aof_last_bgrewrite_status"] = str(log.get("aof_last_bgrewrite_status", "ok"))
    except KatsuraError:
        pass  # INFO may be forbidden: what was not seen is not judged
    finally:
        await store.close()
    return checks.store(name, asked, "", settings)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_taken(port: int) -> bool:
    try:
        listen("127.0.0.1", port).close()
    except KatsuraError:
        return True
    return False


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []
