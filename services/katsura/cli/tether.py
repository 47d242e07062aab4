"""Ties a process that knows nothing of our pipes to the life of the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> bool:
    """Have the kernel send this process SIGTERM when its parent dies, however; also after an `exec`.

    Args:
        parent_pid: who started us, as it said: it may be dead before we ask.

    Returns:
        Whether the parent lives. On a system without the parent-death signal, only that.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() == parent_pid
