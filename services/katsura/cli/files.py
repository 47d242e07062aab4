"""Files that are named on the command line: read whole or refused, replaced whole or left as they were."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from katsura.domain.errors import InvalidArgumentError, Reason, ResourceExhaustedError
from katsura.domain.units import MIB, human_bytes

T = TypeVar("T")
_BYTES_MOST: Final = 256 * MIB
"""Ten times the Nodes of a cluster of five thousand; a file without an end must not take all memory."""
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """The text of a file, `-` for standard input: UTF-8, or UTF-16 that says so (what PowerShell's `>` writes).

    Raises:
        InvalidArgumentError: it cannot be read, is no text, or is too long.
    """
    try:
        raw = _read(path)
    except OSError as error:
        raise InvalidArgumentError(f"{path}: cannot be read: {error.strerror}", field="file") from error
    if len(raw) > _BYTES_MOST:
        raise InvalidArgumentError(
            f"{path}: longer than {human_bytes(_BYTES_MOST)}, which no manifest or table is", field="file"
        )
    try:
        return raw.decode("utf-16" if raw.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"{path}: no text in UTF-8 (byte {error.start + 1} is none); name a file of YAML, JSON or CSV", field="file"
        ) from error


def _read(path: Path) -> bytes:
    if str(path) != "-":
        with path.open("rb") as file:
            return file.read(_BYTES_MOST + 1)
    return b"" if sys.stdin is None else sys.stdin.buffer.read(_BYTES_MOST + 1)


def naming(path: Path, read: Callable[[], T]) -> T:
    """What `read` makes of the file at `path`; what is wrong with it names the file."""
    try:
        return read()
    except InvalidArgumentError as error:
        said = str(error)
        raise InvalidArgumentError(
            said if said.startswith(str(path)) else f"{path}: {said}", field=error.field
        ) from error


def write_file(path: Path, content: str | bytes, field: str) -> None:
    """Put `content` (text in UTF-8) at `path`; a file that stands there is replaced by the whole of it or stays.

    Raises:
        InvalidArgumentError: nothing can be written there.
        ResourceExhaustedError: the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)
    except OSError as error:
        said = f"{path}: cannot be written: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhaustedError(
                f"{said}; free some space or name another place", reason=Reason.DISK_FULL
            ) from error
        raise InvalidArgumentError(said, field=field) from error


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


@contextmanager
def alone(path: Path, field: str) -> Iterator[None]:
    """Read `path` and write it without another `katsura` doing so between.

    Raises:
        InvalidArgumentError: its folder is not there.
    """
    try:
        # The folder, and not the file: that is another one after each write.
        folder = os.open(path.resolve().parent, os.O_RDONLY)
    except OSError as error:
        raise InvalidArgumentError(f"{path}: cannot be written: {error.strerror}", field=field) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
