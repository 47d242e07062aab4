"""What `katsura up` shows: bars while it prepares, a line per process as it comes, one screen at the end.

On a terminal lines replace themselves; into a file each thing is said once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from katsura.cli.core.fleet import Fleet, Phase
from katsura.cli.core.layout import Layout
from katsura.cli.data import RunRecord, default_root
from katsura.domain.units import human_seconds
from katsura.manifests.bundle import Bundle
from katsura.manifests.kinds import Topology
from katsura.weights.progress import Stage

_DOING = {
    Stage.WAIT: "waiting for another process",
    Stage.DOWNLOAD: "downloading",
    Stage.UNPACK: "unpacking",
    Stage.CONVERT: "converting",
    Stage.VERIFY: "verifying",
}
_MARK = {
    Phase.READY: ("●", "green"),
    Phase.STARTING: ("◐", "yellow"),
    Phase.BACKOFF: ("✗", "red"),
    Phase.STOPPING: ("◌", "yellow"),
}


class ServingConsole(Console):
    """A console of a command that serves: when whoever read it is gone it falls silent, and serving goes on."""

    def on_broken_pipe(self) -> None:
        """Say nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Narrator:
    """Tells the person at `console` what happens, with times since the start; `typed` see `typing_here`."""

    def __init__(self, console: Console, typed: Callable[[str], str] = "katsura {}".format) -> None:
        self.console = console
        self.typed = typed
        self.start_s = time.monotonic()
        self._live: Live | None = None
        self._told: dict[str, Phase] = {}

    def say(self, text: str, trouble: bool = False) -> None:
        """One sentence."""
        elapsed = f"{time.monotonic() - self.start_s:6.1f} s  "
        self.console.print(Text(elapsed, "dim").append(text, "red" if trouble else "default"), soft_wrap=True)

    @contextmanager
    def preparing(self, name: str) -> Iterator[Preparation]:
        """Show the bars of one model."""
        said = TextColumn("          {task.description}")
        columns = (said, BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            yield Preparation(self, name, bars)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Show the processes while they start."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, transient=True, refresh_per_second=8) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def fleet(self, fleet: Fleet) -> None:
        """Processes changed."""
        if self._live is not None:
            self._live.update(_lines(fleet))
        for name, child in fleet.children.items():
            if child.phase is Phase.READY and not child.restarts and self._told.get(name) is not Phase.READY:
                self.say(f"{name} is ready")
            self._told[name] = child.phase

    def screen(self, record: RunRecord, layout: Layout, bundle: Bundle, keyless: bool = True) -> None:
        """The one screen that says what runs where, and what to type: a key first, unless requests are `keyless`."""
        took = human_seconds(time.monotonic() - self.start_s)
        out = self.console
        out.print()
        out.print(Text.assemble(("Katsura is up", "bold green"), f" after {took}. Ctrl-C stops everything."))
        out.print()
        facts = Table.grid(padding=(0, 2))
        facts.add_row("URL", Text(f"{record.url}/v1", "bold"))
        for deployment in bundle.deployments:
            spec = deployment.spec
            cut = f", FFN in {spec.ffn.slices} slices" if spec.topology is Topology.SPLIT else ""
            names = " = ".join(deployment.model_names)
            facts.add_row("model", f"{names} ({spec.topology}, {spec.dtype}, {spec.numerics}{cut})")
        facts.add_row("store", f"{_without_password(layout.store_url)} ({layout.durability})")
        out.print(facts)
        out.print()
        out.print(process_table(record))
        out.print()
        if not keyless:
            made = self.typed("key create --tenant me --env")
            out.print("Other machines can reach this address, so every request needs a key. Make one first:")
            out.print(f'  eval "$({made})"', soft_wrap=True, highlight=False)
        out.print(f"Try it in another terminal: {self.typed('chat')}, {self.typed('tree list')}, or", soft_wrap=True)
        out.print(curl_line(record.url, bundle.deployments[0].metadata.name, keyless), soft_wrap=True, highlight=False)
        out.print()


class Preparation:
    """`weights.progress.Progress` of one model, drawn as bars or told as lines."""

    def __init__(self, narrator: Narrator, name: str, bars: Progress) -> None:
        self._narrator = narrator
        self._name = name
        self._bars = bars
        self._tasks: dict[Stage, TaskID] = {}

    def advance(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
        """See `Progress`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(f"{_DOING[stage]} {self._name}", total=total_bytes)
            if self._bars.disable:
                self._narrator.say(f"{_DOING[stage]} {self._name}")
        self._bars.update(self._tasks[stage], completed=done_bytes, total=total_bytes)

    def say(self, message: str) -> None:
        """See `Progress`."""
        self._narrator.say(message)


def process_table(record: RunRecord, health: Sequence[str] = ()) -> Table:
    """Processes with pid and address; `health` adds a column."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("process", "pid", "state", "restarts", "address", *(("health",) if health else ())):
        table.add_column(title, overflow="fold")
    for index, process in enumerate(record.processes):
        good = process.state == Phase.READY
        row: list[str | Text] = [
            process.name,
            str(process.pid or "-"),
            Text(process.state, "green" if good else "red"),
            str(process.restarts),
            process.address,
        ]
        table.add_row(*row, *([health[index]] if health else []))
    return table


def typing_here(root: Path, environ: Mapping[str, str]) -> Callable[[str], str]:
    """How a person types a command of ours here: from their path or not, and for this data folder or the usual one."""
    ours = Path(sys.executable).with_name("katsura")
    root, found = root.expanduser().resolve(), shutil.which("katsura", path=environ.get("PATH"))
    if found and Path(found).resolve() == ours.resolve():
        program = "katsura"
    else:
        program = os.path.join(".", os.path.relpath(ours)) if ours.is_relative_to(Path.cwd()) else str(ours)
        program = program if program.count("/") == 1 else program.removeprefix("./")
    data = "" if root == default_root(environ).expanduser().resolve() else f" --data {shlex.quote(str(root))}"
    return lambda words: f"{program} {words}{data}"


def curl_line(url: str, model: str, keyless: bool) -> str:
    """A request to copy."""
    key = "" if keyless else ' -H "authorization: Bearer $KATSURA_API_KEY"'
    message = '{"role": "user", "content": "What is a fjord?"}'
    body = f'{{"model": "{model}", "temperature": 0, "messages": [{message}]}}'
    return f"  curl {url}/v1/chat/completions -H 'content-type: application/json'{key} \\\n    -d '{body}'"


def _lines(fleet: Fleet) -> Group:
    now = [child for child in fleet.children.values() if child.phase in _MARK and child.phase is not Phase.READY]
    rows = []
    for child in now:
        mark, style = _MARK[child.phase]
        rows.append(Text.assemble("          ", (mark, style), f" {child.name} {child.phase}"))
    return Group(*rows)


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if at else url
