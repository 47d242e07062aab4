"""The data folder: who owns it, what runs from it, and what outlives a run.

    DATA/lock        flock held by the `katsura up` that owns the folder
    DATA/run.json    what runs: pids, addresses, the shared secret (mode 0600); removed at the end of a run
    DATA/store/      append-only file of the embedded server: every session and tree
    DATA/hints/      the same for a hints server of its own
    DATA/logs/       one file per process

Sockets live in a short folder of their own, because a unix socket's path has at most 107 bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from katsura.cli.exit import NotRunningError, RunningError
from katsura.domain.errors import PermissionDeniedError, Reason, ResourceExhaustedError

ROOM_BYTES_MIN = 1 << 20
"""With less room than this on its disk, a data folder counts as full."""
LOG_BYTES_MAX = 8 << 20
"""A log longer than this at the start of a process is set aside as `NAME.log.1`."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process, as its supervisor sees it. `started`: start time in clock ticks since boot, which tells a process
    from a later one with the same pid."""

    name: str
    role: str
    pid: int | None
    address: str
    state: str
    restarts: int
    started: int | None = None
    last_end: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What runs from a data folder."""

    pid: int
    started: int | None
    url: str
    version: str
    run_dir: str
    store_url: str
    hints_url: str
    durability: str
    token: str = field(repr=False)
    processes: tuple[ProcessRecord, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read what `to_json` wrote; fields of other versions are read past."""
        raw: dict[str, Any] = json.loads(text)
        raw["processes"] = tuple(ProcessRecord(**_known(ProcessRecord, p)) for p in raw.get("processes", ()))
        return cls(**_known(cls, raw))

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=1)


class DataFolder:
    """Paths and ownership of one data folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs = root / "logs"
        self._run_file = root / "run.json"
        self._lock_file = root / "lock"

    def create(self) -> None:
        """Make the folder and its parts, readable by the owner only.

        Raises:
            PermissionDeniedError: we may not write there. ResourceExhaustedError: the disk is full.
        """
        try:
            for folder in (self.root, self.logs):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / ".write").write_text("")
            (self.root / ".write").unlink()
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise PermissionDeniedError(
                f"cannot write to the data folder {self.root}: {error.strerror}; choose another with --data"
            ) from error
        except OSError as error:
            raise ResourceExhaustedError(f"cannot write to the data folder {self.root}: {error.strerror}") from error

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder for a run.

        Raises:
            RunningError: another supervisor owns it; the message says where it serves.
        """
        with self._lock_file.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunningError(self._who_runs()) from None
            yield

    def is_owned(self) -> bool:
        """Whether a supervisor runs from this folder now."""
        if not self._lock_file.exists():
            return False
        with self._lock_file.open() as held:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def read_run(self) -> RunRecord | None:
        """What the current or the last run wrote, if it is there."""
        try:
            return RunRecord.from_json(self._run_file.read_text("utf-8"))
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return None

    def write_run(self, record: RunRecord) -> None:
        """Replace the record at once, readable by the owner only: it holds a secret.

        Raises:
            ResourceExhaustedError: the disk takes no more; the record before this one stays.
        """
        partial = self._run_file.with_suffix(".partial")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(record.to_json())
            partial.replace(self._run_file)
        except OSError as error:
            raise self._full(str(error.strerror)) from error

    def require_room(self) -> None:
        """Raises ResourceExhaustedError where the disk is so full that the store will soon fail to write."""
        free = shutil.disk_usage(self.root).free
        if free < ROOM_BYTES_MIN:
            raise self._full(f"{free >> 10} KiB are free")

    def forget_run(self) -> None:
        """Remove the record and the sockets of a run that has ended."""
        record = self.read_run()
        if record is not None and Path(record.run_dir).name.startswith(_RUN_PREFIX):
            shutil.rmtree(record.run_dir, ignore_errors=True)
        self._run_file.unlink(missing_ok=True)

    def log_of(self, name: str) -> Path:
        """Where the process `name` writes its log."""
        return self.logs / f"{name}.log"

    def open_log(self, name: str) -> int:
        """Open the log of a process for appending and return its descriptor; a long one is set aside first."""
        path = self.log_of(name)
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def tail(self, name: str, lines: int = 12) -> str:
        """The last lines of a process's log."""
        try:
            with self.log_of(name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _full(self, why: str) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"cannot write to the data folder {self.root}: {why}; nothing can be kept until there is room again",
            reason=Reason.DISK_FULL,
        )

    def _who_runs(self) -> str:
        record = self.read_run()
        if record is None:
            return f"another `katsura up` is starting from {self.root}; wait for it, or choose another --data"
        return (
            f"katsura is running already from {self.root}: {record.url} (pid {record.pid}); "
            "stop it with Ctrl-C there, or choose another --data"
        )


_RUN_PREFIX = "katsura-"


def make_run_dir(environ: Mapping[str, str]) -> Path:
    """A new private folder for sockets: the shortest of the places that the machine offers."""
    places = [
        place for place in (environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()) if os.access(place, os.W_OK)
    ]
    folder = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX, dir=min(places, key=len, default=None)))
    (folder / "shm").mkdir(mode=0o700)
    return folder


def default_root(environ: Mapping[str, str]) -> Path:
    """`$KATSURA_DATA`, else `katsura` in the user's data folder."""
    if environ.get("KATSURA_DATA"):
        return Path(environ["KATSURA_DATA"])
    base = environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "katsura"


def running(root: Path) -> RunRecord:
    """What runs from a data folder.

    Raises:
        NotRunningError: nothing does.
    """
    folder = DataFolder(root.expanduser().resolve())
    record = folder.read_run()
    if record is None or not folder.is_owned():
        raise NotRunningError(f"nothing runs from {folder.root}; start it with `katsura up`, or name another --data")
    return record


def start_ticks(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None if there is none (field 22 of /proc/PID/stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    rest = stat.rpartition(")")[2].split()
    return None if rest[0] == "Z" else int(rest[19])


def left_alive(record: RunRecord) -> list[ProcessRecord]:
    """Processes of an earlier run that still exist."""
    return [
        process
        for process in record.processes
        if process.pid is not None and process.started is not None and start_ticks(process.pid) == process.started
    ]


def _known(kind: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {key: value for key, value in raw.items() if key in names}
