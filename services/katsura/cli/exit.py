"""What the exit status of `katsura` means; scripts may rely on it."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses."""

    OK = 0
    FAILED = 1
    """Something went wrong; the message says what."""
    USAGE = 2
    """The command line, a manifest or an input is wrong; nothing was started."""
    ALREADY_RUNNING = 3
    """Another `katsura up` owns the data folder; the message says where it serves."""
    PORT_TAKEN = 4
    """Somebody else listens on the port."""
    NOT_RUNNING = 5
    """The command needs a running `katsura up` and there is none."""
    UNHEALTHY = 6
    """Everything was asked, and something is not well (`status`, `doctor`)."""
    INTERRUPTED = 130
    """Ctrl-C before anything was done."""
