"""A Valkey server whose power can be cut: what it wrote and did not sync is gone.

The server runs for real, on a real folder, but for one thing: its `fsync` and `fdatasync` calls are answered by `Disk`
in this process (Linux's seccomp user notification: no root, no compiler, no change of the server). At each of them
`Disk` takes over the bytes that the file then has. A power cut kills the server and puts the folder back to exactly
that, as a careful disk under a pessimistic file system would:

- bytes of a file: those written before its last sync; of the rest nothing, or, `torn`, a prefix of random length;
- names: a file that was created, renamed or removed is so only once its directory was synced.

Not emulated: disks that lie about a sync, sectors written out of order, bit rot. Folders are durable once made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import random
import select
import socket
import stat
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from katsura.testing.store import EmbeddedStore

# The kernel's numbers by machine: AUDIT_ARCH, fsync, fdatasync, seccomp.
_KERNEL: Final = {"x86_64": (0xC000003E, 74, 75, 317), "aarch64": (0xC00000B7, 82, 83, 277)}
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_*
_NOTICE, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")  # struct seccomp_notif, seccomp_notif_resp
_TAIL_BYTES: Final = 1 << 16
"""Files are append-only, but for the tail that a server cuts off when it loads a torn one: so much is compared."""

_LAUNCHER: Final = """
import ctypes, os, socket, struct, sys
arch, fsync, fdatasync, seccomp = map(int, sys.argv[2:6])
libc = ctypes.CDLL(None, use_errno=True)
LOAD, EQUAL, ANSWER, ALLOW, NOTIFY = 0x20, 0x15, 0x06, 0x7FFF0000, 0x7FC00000
rules = [(LOAD, 0, 0, 4), (EQUAL, 0, 4, arch), (LOAD, 0, 0, 0), (EQUAL, 1, 0, fsync), (EQUAL, 0, 1, fdatasync),
         (ANSWER, 0, 0, NOTIFY), (ANSWER, 0, 0, ALLOW)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_void_p)]
libc.prctl(38, 1, 0, 0, 0)
listener = libc.syscall(seccomp, 1, 8, ctypes.byref(Filter(len(rules), ctypes.addressof(program))))
if listener < 0:
    sys.exit("seccomp: " + os.strerror(ctypes.get_errno()))
with socket.socket(fileno=int(sys.argv[1])) as parent:
    socket.send_fds(parent, [b"L"], [listener])
os.close(listener)
os.execv(sys.argv[6], sys.argv[6:])
"""
"""Becomes the server: no-new-privileges, a filter that hands two system calls to whoever holds its listener, exec."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What a power cut took: unsynced bytes of append-only files, and how many bytes of those a torn tail kept."""

    unsynced_bytes: int
    kept_bytes: int


class Disk:
    """What of a folder would be there after a power cut. What it holds at first is durable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.syncs = 0
        """Syncs of files, not of directories, so far."""
        self._stalling, self._stalled = threading.Event(), threading.Event()
        self._names: dict[Path, int] = {}
        self._content: dict[int, bytearray] = {}
        self._held: dict[int, int] = {}
        """Inode -> a descriptor, so that its number names no other file while we know it."""
        for path in (folder, *folder.rglob("*")):
            self._sync(path)
        self.syncs = 0

    def synced(self, pid: int, descriptor: int) -> bool:
        """A process syncs one of its descriptors. Whether that ever ends: not on a disk that stalls."""
        if self._stalling.is_set():
            self._stalled.set()
            return False
        self._sync(Path(f"/proc/{pid}/fd/{descriptor}"))
        return True

    def stall(self, limit_s: float) -> None:
        """From now on no sync ends; wait until one has begun."""
        self._stalling.set()
        self._stalled.wait(limit_s)

    def cut(self, torn: random.Random | None) -> Lost:
        """Put the folder back to what is durable; nobody writes to it any more."""
        unsynced = kept = 0
        files: dict[Path, bytes] = {}
        for path, inode in self._names.items():
            durable = bytes(self._content.get(inode, b""))
            tail = _read(self._held[inode], len(durable))
            unsynced += len(tail)
            tail = tail[: torn.randint(0, len(tail))] if torn else b""
            kept += len(tail)
            files[path] = durable + tail
        for path in self.folder.rglob("*"):
            if path.is_file():
                path.unlink()
        for path, content in files.items():
            path.write_bytes(content)
        self.close()
        return Lost(unsynced, kept)

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                self._sync_names(Path(os.path.realpath(path)))
            elif stat.S_ISREG(status.st_mode):
                self.syncs += 1
                self._hold(status.st_ino, path)
                known = self._content.get(status.st_ino, bytearray())
                tail = max(0, len(known) - _TAIL_BYTES)
                if _read(descriptor, tail, len(known)) != known[tail:]:
                    known = bytearray()
                known += _read(descriptor, len(known), status.st_size)
                self._content[status.st_ino] = known
        finally:
            os.close(descriptor)

    def _sync_names(self, directory: Path) -> None:
        now: dict[Path, int] = {}
        for entry in os.scandir(directory):
            if entry.is_file(follow_symlinks=False):
                path = Path(entry.path)
                now[path] = entry.inode()
                self._hold(entry.inode(), path)
        self._names = {path: inode for path, inode in self._names.items() if path.parent != directory} | now

    def _hold(self, inode: int, path: Path) -> None:
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)


class PowerStore(EmbeddedStore):
    """An `EmbeddedStore` on a `Disk`. `kill` is a death of the process, `power_cut` one of the machine.

    Raises:
        RuntimeError: at start, where the kernel has no seccomp user notification (Linux 5.0) or forbids it.
    """

    def __init__(self, appendfsync: str = "always", settings: dict[str, str] | None = None) -> None:
        super().__init__(appendfsync, settings)
        self.data = self.folder / "data"
        self.data.mkdir()
        self._settings["dir"] = str(self.data)
        self._disk = Disk(self.data)
        self._thread: threading.Thread | None = None

    @property
    def syncs(self) -> int:
        """Syncs of files that the server made since the power was switched on."""
        return self._disk.syncs

    def power_cut(self, torn: random.Random | None = None, *, in_sync: bool = False) -> Lost:
        """Kill the server and take what was not synced. `start` switches the power on again.

        Args:
            torn: draws how much of an unsynced tail is on the disk nevertheless; None: nothing.
            in_sync: let it fall while the server waits for a sync, if one begins within a second.
        """
        if in_sync:
            self._disk.stall(1.0)
        self.kill()
        lost = self._disk.cut(torn)
        self._disk = Disk(self.data)
        return lost

    def kill(self) -> None:
        """`kill -9`: the kernel lives on and keeps what was written."""
        super().kill()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        self._disk.close()
        super().close()

    def _spawn(self, command: list[str], log: int) -> subprocess.Popen[bytes]:
        numbers = _KERNEL.get(platform.machine())
        if sys.platform != "linux" or numbers is None:
            raise RuntimeError(f"power cuts need Linux on {' or '.join(_KERNEL)}")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            launcher = [sys.executable, "-ISc", _LAUNCHER, str(theirs.fileno()), *map(str, numbers), *command]
            process = subprocess.Popen(launcher, stdout=log, stderr=log, pass_fds=[theirs.fileno()])  # noqa: S603
            theirs.close()
            _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        if not listeners:
            process.wait()
            raise RuntimeError(f"no power cuts here: {(self.folder / 'log').read_text(errors='replace')}")
        self._thread = threading.Thread(target=_serve, args=(listeners[0], self._disk), daemon=True)
        self._thread.start()
        return process


def _serve(listener: int, disk: Disk) -> None:
    """Answer syncs until the last process behind `listener` is gone."""
    with os.fdopen(listener, "rb", buffering=0):
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            ((_, event),) = poll.poll()
            if not event & select.POLLIN:
                return
            with contextlib.suppress(OSError):  # it died while it waited: its sync never happened
                _answer(listener, disk)


def _answer(listener: int, disk: Disk) -> None:
    notice = bytearray(_NOTICE.size)
    fcntl.ioctl(listener, _RECEIVE, notice)
    number, pid, _, _, _, _, descriptor, *_ = _NOTICE.unpack(notice)
    if disk.synced(pid, descriptor):
        fcntl.ioctl(listener, _SEND, _ANSWER.pack(number, 0, 0, 0))


def _read(descriptor: int, begin: int, end: int | None = None) -> bytes:
    """Bytes of a file from `begin` to `end`, or to its end."""
    end = os.fstat(descriptor).st_size if end is None else end
    pieces = []
    while begin < end and (piece := os.pread(descriptor, end - begin, begin)):
        pieces.append(piece)
        begin += len(piece)
    return b"".join(pieces)
