"""`katsura calibrate`: time a running deployment (or read a table of times) and write its device's coefficients.

Any OpenAI-compatible server can be timed; ours is the one that plans are made for. The file goes to
`katsura plan --calibration`. With `--trials` it times the one configuration that `katsura plan --trials` asked for.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
from rich.console import Console

from katsura.cli.exit import Exit
from katsura.cli.files import alone, naming, read_text, write_file
from katsura.cli.plan import configs_of, read_files
from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from katsura.domain.shape import DType
from katsura.manifests.demand import Demand, demands
from katsura.manifests.kinds import ModelDeployment
from katsura.placement import calibration, catalogue
from katsura.placement.calibration import coefficients_as_json
from katsura.placement.card import read_card
from katsura.placement.catalogue import cores_of
from katsura.placement.configurations import read_trials, write_trials
from katsura.placement.cost import BF16, F32, Coefficients, Layout, Load, decode_terms
from katsura.placement.measured import Measurement, learn, read_table

GRID = ((1, 12), (1, 96), (2, 12), (4, 12), (4, 48), (8, 12))
"""(requests at once, numbers in each prompt) that are timed: some five tokens each, seconds on one slow core."""
_OUTPUT_TOKENS = 32
_ROUNDS = 3
"""Answers that each of the requests of a trial draws, one after the other; the first is not counted."""
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """What may be said on the command line. `units` are accelerators or cores of one replica.

    Raises:
        InvalidArgumentError: no units.
    """

    files: tuple[Path, ...]
    device: str
    out: Path
    url: str = ""
    api_key: str = ""
    table: Path | None = None
    units: int = 1
    configs: tuple[str, ...] = ()
    trials: Path | None = None

    def __post_init__(self) -> None:
        if self.units < 1:
            raise InvalidArgumentError(f"--units {self.units}: expected 1 or more", field="units")


def calibrate(options: CalibrateOptions, environ: Mapping[str, str], console: Console) -> Exit:
    """Measure or read, fit, write the file and say how well it fits."""
    cluster = read_files(options.files)
    if len(cluster.bundle.deployments) != 1:
        raise InvalidArgumentError("name the one ModelDeployment that is measured (-f)", field="file")
    deployment = cluster.bundle.deployments[0]
    if options.trials is not None:
        return _run_trial(options, options.trials, deployment, demands(cluster.bundle), console)
    if not options.device:
        raise InvalidArgumentError("name the catalogue device that it runs on: --device cpu", field="device")
    config = configs_of(cluster, options.configs, environ)[deployment.metadata.name]
    card = read_card(config, deployment.metadata.name)
    # What can be wrong is found before the minute of timing.
    base = catalogue.built_in().named(options.device)
    beside = _known(options.out)
    if options.table is not None:
        table = options.table
        measured = naming(table, lambda: read_table(read_text(table)))
    else:
        measured = asyncio.run(_measure_url(options, deployment, console))
    device = cores_of(base, options.units, 2.0**40) if base.is_cpu else base
    layout = Layout() if base.is_cpu else Layout(options.units)
    precision = BF16 if deployment.spec.dtype is DType.BF16 else F32
    prior = calibration.built_in().of(base)
    found = learn(measured, card, device, precision, layout, prior, datetime.now(UTC).date().isoformat())
    _write(options.out, {**beside, options.device: found})
    for m in measured:
        terms = decode_terms(card, device, precision, layout, m.batch, Load(m.prompt, m.output))
        predicted = found.step_s(terms.decoding)
        console.print(
            f"batch {m.batch:3}  prompt {m.prompt:5}: {m.itl_s * 1e3:.1f} ms measured, {predicted * 1e3:.1f} ms fitted",
            highlight=False,
        )
    console.print(f"wrote {options.out}; use it: katsura plan --calibration {options.out}", highlight=False)
    return Exit.OK


def _run_trial(
    options: CalibrateOptions,
    path: Path,
    deployment: ModelDeployment,
    asked: Mapping[str, Demand],
    console: Console,
) -> Exit:
    """Time the first row of the table that waits for it, and write it down."""
    name = deployment.metadata.name
    waiting = [t for t in read_trials(read_text(path), str(path)) if t.deployment == name and t.itl_s is None]
    if not waiting:
        raise FailedPreconditionError(
            f"{path}: no trial of {name} waits to be run; ask for one: katsura plan --trials {path}", field="trials"
        )
    trial, load = waiting[0], asked[name].load
    console.print(f"{name}: {trial.what}, as it runs at {options.url}", highlight=False)
    itl_s = asyncio.run(_time_trial(options, name, trial.batch, load))
    with alone(path, "trials"):
        # Minutes have gone by: what others have written since stays.
        now = read_trials(read_text(path), str(path))
        ran = replace(trial, itl_s=itl_s)
        whole = [ran if t == trial else t for t in now] if trial in now else [*now, ran]
        write_file(path, write_trials(whole), "trials")
    console.print(f"{itl_s * 1e3:.1f} ms between tokens; what now: katsura plan --trials {path}", highlight=False)
    return Exit.OK


async def _time_trial(options: CalibrateOptions, model: str, batch: int, load: Load) -> float:
    async with _client(options) as client:
        return await steady_itl_s(client, model, batch, load)


async def steady_itl_s(client: httpx.AsyncClient, model: str, batch: int, load: Load) -> float:
    """Median mean time between tokens with `batch` requests open all the time, each followed by the next.

    Prompts are of `load`'s length, and begin alike as far as its `cached_share` says.

    Raises:
        UnavailableError: the server does not answer, or answers without tokens.
    """
    per_word = max(1.0, (await _ask(client, model, 64, 0, 2)).prompt / 64)
    words = max(1, round(load.prompt / per_word))
    alike = round(words * load.cached_share)

    async def asker(number: int) -> list[float]:
        times = []
        for turn in range(_ROUNDS):
            a = await _ask(client, model, words, 1 + number * _ROUNDS + turn, load.output, alike)
            times.append((a.times[-1] - a.times[0]) / (len(a.times) - 1))
        return times[1:]

    made = await asyncio.gather(*(asker(number) for number in range(batch)))
    return statistics.median(t for times in made for t in times)


def _known(path: Path) -> dict[str, Coefficients]:
    """Devices that the file has already: they are kept. Raises InvalidArgumentError where it could not be written."""
    if path.exists():
        return naming(path, lambda: dict(calibration.read_devices(read_text(path))))
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"{path}: cannot be written: there is no folder {path.parent}", field="out")
    return {}


def _write(path: Path, devices: Mapping[str, Coefficients]) -> None:
    text = json.dumps({"devices": {name: coefficients_as_json(c) for name, c in devices.items()}}, indent=1)
    write_file(path, text + "\n", "out")


def _client(options: CalibrateOptions) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=options.url, headers=headers, timeout=_TIMEOUT_S, limits=limits)


async def _measure_url(
    options: CalibrateOptions, deployment: ModelDeployment, console: Console
) -> tuple[Measurement, ...]:
    async with _client(options) as client:
        return await measure(client, deployment.metadata.name, GRID, console)


async def measure(
    client: httpx.AsyncClient, model: str, grid: Sequence[tuple[int, int]], console: Console
) -> tuple[Measurement, ...]:
    """Time `model` behind `client` at every point of `grid`, after one request that warms it up.

    Raises:
        UnavailableError: the server does not answer, or answers without tokens.
    """
    await _ask(client, model, 16, 0)
    made = []
    for serial, (batch, words) in enumerate(grid, 1):
        console.print(f"{batch} at once, prompts of {words} words", style="dim", highlight=False)
        answers = await asyncio.gather(*(_ask(client, model, words, 100 * serial + i) for i in range(batch)))
        made.append(
            Measurement(
                batch=batch,
                prompt=round(statistics.median(a.prompt for a in answers)),
                output=round(statistics.median(len(a.times) for a in answers)),
                itl_s=statistics.median((a.times[-1] - a.times[0]) / (len(a.times) - 1) for a in answers),
                ttft_s=statistics.median(a.times[0] - a.begun for a in answers),
            )
        )
    return tuple(made)


@dataclass(frozen=True, slots=True)
class _Answer:
    begun: float
    times: tuple[float, ...]
    prompt: int


async def _ask(
    client: httpx.AsyncClient, model: str, words: int, serial: int, output: int = _OUTPUT_TOKENS, alike: int = 0
) -> _Answer:
    """One streamed answer. Prompts differ from their `alike`th word on, so that no more of them is held already."""
    text = " ".join(f"{(serial if i >= alike else 0) * 7919 + i * 104729 % 9973}" for i in range(words))
    body = {
        "model": model,
        "stream": True,
        "max_tokens": output,
        "temperature": 0,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": f"Count on from these numbers and never stop: {text}"}],
    }
    begun, times, prompt = time.perf_counter(), [], words
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if any(c.get("delta", {}).get("content") for c in event.get("choices", ())):
                    times.append(time.perf_counter())
                prompt = (event.get("usage") or {}).get("prompt_tokens", prompt)
    except (httpx.HTTPError, ValueError) as error:
        raise UnavailableError(
            f"{client.base_url} cannot be timed: {str(error) or type(error).__name__}; is `katsura up` running?"
        ) from error
    if len(times) < 2:
        raise UnavailableError(f"{client.base_url} answered {len(times)} tokens; at least 2 are needed to time one")
    return _Answer(begun, tuple(times), int(prompt))
