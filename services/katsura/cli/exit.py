"""What the exit status of `katsura` means; scripts may rely on it."""

from __future__ import annotations

from enum import IntEnum

from katsura.domain.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, KatsuraError


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


class NotRunningError(FailedPreconditionError):
    """The command needs a running `katsura up`."""


class RunningError(AlreadyExistsError):
    """Another `katsura up` owns the data folder."""


class PortTakenError(AlreadyExistsError):
    """Somebody else listens on our port."""


def exit_of(error: KatsuraError) -> Exit:
    """The exit status of an error."""
    match error:
        case NotRunningError():
            return Exit.NOT_RUNNING
        case PortTakenError():
            return Exit.PORT_TAKEN
        case RunningError():
            return Exit.ALREADY_RUNNING
        case InvalidArgumentError():
            return Exit.USAGE
        case _:
            return Exit.FAILED
