"""A full disk, said plainly: how much is needed, and where."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from katsura.domain.errors import Reason, ResourceExhaustedError
from katsura.domain.units import human_bytes

_FULL = {errno.ENOSPC, errno.EDQUOT}


def disk_full(folder: Path, needed_bytes: int | None) -> ResourceExhaustedError:
    """The error for a disk that cannot take `needed_bytes` more (`None`: unknown) under `folder`."""
    free = shutil.disk_usage(folder).free
    need = f"{human_bytes(needed_bytes)} are needed" if needed_bytes is not None else "more is needed"
    return ResourceExhaustedError(
        f"the disk under {folder} is full: {need}, {human_bytes(free)} are free; free some space there or choose "
        "another place with KATSURA_MODEL_CACHE",
        reason=Reason.DISK_FULL,
        metadata={"folder": str(folder), "needed_bytes": str(needed_bytes or ""), "free_bytes": str(free)},
    )


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise before the work begins if `folder`'s disk cannot take `needed_bytes`."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise disk_full(folder, needed_bytes)


@contextmanager
def full_disk_named(folder: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" from inside the block into `disk_full`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise disk_full(folder, needed_bytes) from error
