"""Objects: named bytes outside the store, written once. Cold trees are kept in them.

`FolderObjects` keeps them in a folder, which several memory processes share as a volume. Another place (S3, say) is
another class with these three methods; what must hold is that `put` returns only when the object is there to stay.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from katsura.domain.errors import DataLossError, InternalError, Reason

_CHUNK_BYTES: Final = 1 << 20


class ObjectStore(Protocol):
    """Where objects are kept."""

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> str:
        """Write an object whole, or not at all; the digest of its bytes, once a power cut cannot take it away."""
        ...

    def get(self, name: str) -> AsyncIterator[bytes]:
        """The bytes of an object, in pieces. Raises DataLossError where it is gone."""
        ...

    async def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...


class FolderObjects:
    """Objects as files of a folder, on a file system that keeps what it has synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> str:
        """Write a file beside its place, sync it, move it there, and sync the folders."""
        path = self._path(name)
        await asyncio.to_thread(self._make_folder, path.parent)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        digest = blake2b(digest_size=32)
        try:
            file = await asyncio.to_thread(unfinished.open, "wb")
            try:
                async for piece in pieces:
                    digest.update(piece)
                    await asyncio.to_thread(file.write, piece)
                await asyncio.to_thread(_sync, file)
            finally:
                file.close()
            await asyncio.to_thread(_move, unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return digest.hexdigest()

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """The file in pieces."""
        try:
            file = await asyncio.to_thread(self._path(name).open, "rb")
        except FileNotFoundError as error:
            raise DataLossError(
                f"the object {name!r} of a cold tree is not in {self._folder}; mount the folder that it was written to",
                reason=Reason.UNSPECIFIED,
                metadata={"object": name},
            ) from error
        with file:
            while piece := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield piece

    async def delete(self, name: str) -> None:
        """Remove the file."""
        path = self._path(name)
        await asyncio.to_thread(path.unlink, missing_ok=True)

    def _path(self, name: str) -> Path:
        if any(part in ("", ".", "..") or part.startswith(".") for part in name.split("/")):
            raise InternalError(f"{name!r} is no name of an object")
        return self._folder / name

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        while True:  # a new folder lasts when the one that it is in was synced
            _sync_folder(folder)
            if folder in (self._folder, folder.parent):
                return
            folder = folder.parent


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _move(source: Path, target: Path) -> None:
    source.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
