"""`katsura.json`: what a cached model folder says about itself, and the digest made from it.

A start compares sizes and modification times only; a file where they differ is hashed, and so is everything when
somebody asks for it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from katsura.domain.errors import DataLossError, NotFoundError, Reason
from katsura.domain.units import MIB

MANIFEST_NAME = "katsura.json"
FORMAT = 1
"""Version of this file's own layout; another one is made again."""

_BLOCK_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file as it was written: size in bytes, modification time in ns, SHA-256 in hex."""

    size_bytes: int
    mtime_ns: int
    sha256: str

    def looks_like(self, path: Path) -> bool:
        """Whether `path` still has this size and modification time (its bytes are not read)."""
        try:
            now = path.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size_bytes, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of `katsura.json`.

    Attributes:
        source: the source's URI; resolved: what it turned out to be (a wheel's file name, a path).
        converter: name and version of the code that wrote the folder; another version makes it again.
        origin: file name to (size, mtime ns) of a `file://` source, to notice that it changed.
        files: every other file of the folder.
    """

    source: str
    resolved: str
    converter: str
    files: Mapping[str, FileRecord]
    origin: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `folder/katsura.json` durably and in one step."""
        partial = folder / f".{MANIFEST_NAME}.partial"
        with partial.open("w", encoding="utf-8") as out:
            json.dump({"format": FORMAT, **asdict(self)}, out, indent=2, sort_keys=True)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(folder / MANIFEST_NAME)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of `folder`; `None` where there is none, or none of this format."""
        try:
            raw = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                return None
            return cls(
                source=raw["source"],
                resolved=raw["resolved"],
                converter=raw["converter"],
                files={name: FileRecord(**record) for name, record in raw["files"].items()},
                origin={name: (size, mtime) for name, (size, mtime) in raw["origin"].items()},
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def changed(self, folder: Path) -> list[str]:
        """Names of files whose size or modification time differ from the record, or which are gone."""
        return sorted(name for name, record in self.files.items() if not record.looks_like(folder / name))

    def corrupt(self, folder: Path, names: list[str], hashed: Callable[[int], None]) -> list[str]:
        """Those of `names` whose bytes differ from the record; `hashed` is told bytes as they are read."""
        return [n for n in names if not (folder / n).is_file() or sha256_of(folder / n, hashed) != self.files[n].sha256]


def sha256_of(path: Path, hashed: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file in hex; `hashed` is told the size of each block."""
    digest = hashlib.sha256()
    with path.open("rb") as data:
        while block := data.read(_BLOCK_BYTES):
            digest.update(block)
            hashed(len(block))
    return digest.hexdigest()


def record_of(path: Path, sha256: str | None = None, hashed: Callable[[int], None] = lambda _: None) -> FileRecord:
    """The record of a file as it is now; its SHA-256 is read from the bytes unless the writer knows it already."""
    sha256 = sha256 or sha256_of(path, hashed)
    now = path.stat()
    return FileRecord(now.st_size, now.st_mtime_ns, sha256)


def weights_digest(folder: Path) -> bytes:
    """32 bytes that name the numbers a model computes with: config.json and every safetensors file.

    Cheap where `katsura.json` still matches the files; what it does not vouch for is hashed here.

    Raises:
        NotFoundError: `folder` holds no config.json or no safetensors file.
    """
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    if not names or not (folder / "config.json").is_file():
        raise NotFoundError(
            f"{folder} is not a model folder: it needs config.json and *.safetensors files",
            reason=Reason.WEIGHTS_UNAVAILABLE,
        )
    manifest = Manifest.read(folder)
    known = manifest.files if manifest is not None else {}
    digest = hashlib.sha256()
    for name in ("config.json", *names):
        record = known.get(name)
        vouched = record is not None and record.looks_like(folder / name)
        sha256 = record.sha256 if record is not None and vouched else sha256_of(folder / name)
        digest.update(f"{name} {sha256}\n".encode())
    return digest.digest()


def corrupt_error(folder: Path, why: str) -> DataLossError:
    """The error for a cached folder that is broken and could not be made again."""
    return DataLossError(
        f"the cached model in {folder} is broken ({why}) and could not be made again; remove the folder or mend the "
        "source, then start again",
        reason=Reason.WEIGHTS_CORRUPT,
        metadata={"folder": str(folder)},
    )
