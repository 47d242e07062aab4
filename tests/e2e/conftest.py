"""`katsura up` as a person runs it: the command, its output, its signals."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, Self

import pytest

from katsura.testing.tiny_chat import save_tiny_chat

KATSURA = (sys.executable, "-m", "katsura.cli.main")
START_LIMIT_S = 150.0

MANIFEST = """\
apiVersion: katsura.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: tiny}}
spec:
  model: {{source: "file://{folder}", contextTokens: 256}}
  topology: {topology}
  ffn: {{slices: 8, groups: 4}}
  kv: {{bytes: 16Mi}}
  drainTimeoutSeconds: 5
---
apiVersion: katsura.dev/v1alpha1
kind: MemoryStore
metadata: {{name: default}}
spec: {{durability: {durability}}}
"""


@dataclass
class Up:
    """One `katsura up` (or another command that serves). Its lines can be waited for; it ends with the block."""

    words: Sequence[str]
    data: Path
    environ: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("KATSURA_") or k == "KATSURA_MODEL_CACHE"}
        self.process = subprocess.Popen(
            [*KATSURA, *self.words, "--data", str(self.data)],
            env={**environ, "COLUMNS": "200", **self.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.needles = {str(self.data)}
        self._queue: Queue[str | None] = Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Its children notice the end by themselves; that is what the product promises.
        self.process.kill()
        self.process.wait()
        self._reader.join()
        wait_gone(*self.needles)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self.process.stdout.close()
        self._queue.put(None)

    def until(self, pattern: str) -> str:
        """The next line that matches; fails with everything that was said if there is none."""
        while (line := self._queue.get(timeout=START_LIMIT_S)) is not None:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        pytest.fail(f"{pattern!r} was never said; what was:\n{''.join(self.lines)}\n{self.logs()}")

    def up(self) -> Self:
        """Wait until it serves."""
        self.until("Katsura is up")
        self.until("curl")
        self.needles.add(str(self.run["run_dir"]))
        return self

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_LIMIT_S)

    @property
    def run(self) -> dict[str, Any]:
        """What `run.json` says."""
        found: dict[str, Any] = json.loads((self.data / "run.json").read_text())
        return found

    @property
    def url(self) -> str:
        """Where it serves."""
        return str(self.run["url"])

    def pid_of(self, name: str) -> int:
        """Process id of one of its processes."""
        return int(next(p["pid"] for p in self.run["processes"] if p["name"] == name))

    def logs(self) -> str:
        """The end of every log, for a failure."""
        parts = [f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in (self.data / "logs").glob("*.log")]
        return "\n".join(parts)


def processes_of(*needles: str) -> list[int]:
    """Every process whose command line or environment names one of these folders."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(needle.encode() in known for needle in needles):
                found.append(int(entry.name))
    return found


def wait_gone(*needles: str, limit_s: float = 60.0) -> None:
    """Wait until no process of these folders is left; fail if one stays."""
    for pid in processes_of(*needles):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([descriptor], [], [], limit_s)
        os.close(descriptor)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"process {pid} outlived its supervisor by {limit_s:g} s")


@pytest.fixture
def katsura(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end; `--data` is the test's unless it is said."""

    def run(*words: str, stdin: str = "", data: Path | None = None) -> subprocess.CompletedProcess[str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("KATSURA_") or k == "KATSURA_MODEL_CACHE"}
        environ |= {"KATSURA_DATA": str(data or tmp_path / "data"), "COLUMNS": "200"}
        environ |= {"KATSURA_MODEL_CACHE": str(tmp_path / "models")}
        return subprocess.run([*KATSURA, *words], env=environ, input=stdin, capture_output=True, text=True, timeout=200)

    return run


@pytest.fixture
def command() -> Callable[..., tuple[int, str]]:
    """Run a command that serves and ends by itself, on the models that every run shares."""

    def run(*words: str, data: Path) -> tuple[int, str]:
        with Up(words, data) as one:
            one.until("everything has ended|katsura doctor")
            return one.process.wait(START_LIMIT_S), "".join(one.lines)

    return run


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_chat(folder)
    return folder


@pytest.fixture
def manifest(tmp_path: Path, tiny_folder: Path) -> Callable[..., Path]:
    """A manifest that serves the tiny model."""

    def write(topology: str = "Split", durability: str = "relaxed") -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(MANIFEST.format(folder=tiny_folder, topology=topology, durability=durability))
        return path

    return write


@pytest.fixture
def serve(tmp_path: Path, manifest: Callable[..., Path]) -> Iterator[Callable[..., Up]]:
    """Start `katsura up` on the tiny model; everything ends with the test."""
    started: list[Up] = []

    def start(*words: str, data: Path | None = None, **kind: str) -> Up:
        command = ("up", "-f", str(manifest(**kind)), "--port", "0", *words)
        made = Up(command, data or tmp_path / "data", {"KATSURA_MODEL_CACHE": str(tmp_path / "models")}).__enter__()
        started.append(made)
        return made

    yield start
    # The last one first: an earlier one may have shared its data folder.
    for one in reversed(started):
        one.__exit__()
