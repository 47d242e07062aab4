"""Picks a transport: shared memory where the peer's socket can be seen, TCP otherwise, and says which and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from katsura.domain.errors import InvalidArgumentError, KatsuraError
from katsura.wire import shm, tcp
from katsura.wire.tls import Contexts
from katsura.wire.transport import Channel, ChannelRetiredError, Limits

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a member's data plane listens: `shm:<socket path>` or `tcp:<host>:<port>`."""

    transport: str
    address: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read the form that leases and tables carry."""
        transport, _, rest = text.partition(":")
        host, _, port = rest.rpartition(":")
        if transport == "shm" and rest:
            return cls("shm", rest)
        if transport == "tcp" and host and port.isdecimal() and 0 < int(port) < 65536:
            return cls("tcp", host.strip("[]"), int(port))
        raise InvalidArgumentError(f"{text!r} is no data-plane endpoint; use shm:<path> or tcp:<host>:<port>")


def connect(
    endpoints: Sequence[str],
    hello: Mapping[str, Any],
    limits: Limits,
    timeout_s: float,
    tls: Contexts | None = None,
) -> tuple[Channel, str]:
    """The first channel that works, shm before tcp, and a sentence that says how it was chosen.

    Raises ChannelRetiredError naming what was wrong with each endpoint.
    """
    deadline_s = time.monotonic() + timeout_s
    failures: list[str] = []
    for endpoint in sorted(map(Endpoint.parse, endpoints), key=lambda each: each.transport != "shm"):
        left_s = max(0.001, deadline_s - time.monotonic())
        try:
            channel = _open(endpoint, hello, limits, left_s, tls)
        except KatsuraError as error:
            failures.append(f"{endpoint.transport}: {error.message}")
            continue
        how = f"{endpoint.transport} to {endpoint.address}" + (f" ({'; '.join(failures)})" if failures else "")
        (_log.warning if failures else _log.info)("data plane: %s", how)
        return channel, how
    raise ChannelRetiredError("no data-plane endpoint works: " + ("; ".join(failures) or "none is published"))


def _open(
    endpoint: Endpoint, hello: Mapping[str, Any], limits: Limits, timeout_s: float, tls: Contexts | None
) -> Channel:
    if endpoint.transport == "tcp":
        return tcp.connect(endpoint.address, endpoint.port, hello, limits, timeout_s, tls)
    if not Path(endpoint.address).is_socket():
        raise ChannelRetiredError(f"{endpoint.address} is not on this machine")
    return shm.connect(endpoint.address, hello, limits, timeout_s)
