"""Channels to our processes."""

from __future__ import annotations

import ipaddress

import grpc

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.units import MIB
from katsura.rpc.renewal import Pem, RenewedChannel, TlsFiles

MESSAGE_BYTES_MAX = 64 * MIB
TLS_NAME = "katsura.internal"
"""The name in every certificate of an installation. Addresses change with every pod, so it is the authority that is
checked; gRPC wants a name as well, and this is it."""
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
)


def is_local(address: str) -> bool:
    """Whether `address` (`unix:/path` or `host:port`) never leaves this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_channel(address: str, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """A lazy channel: it connects on first use and again by itself after the peer was away.

    Raises:
        InvalidArgumentError: `address` leaves this machine and there is no TLS.
    """
    if tls is not None and not address.startswith("unix:"):
        return RenewedChannel(tls, lambda pem: _secure(address, pem))
    require_local(address)
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def open_blocking_channel(address: str) -> grpc.Channel:
    """A lazy channel to an `address` on this machine, for threads that wait for their calls themselves.

    Raises:
        InvalidArgumentError: `address` leaves this machine.
    """
    require_local(address)
    return grpc.insecure_channel(address, options=_OPTIONS)


def _secure(address: str, pem: Pem) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(pem.authority, pem.key, pem.certificate)
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", TLS_NAME))
    return grpc.aio.secure_channel(address, credentials, options=options)


def require_local(address: str) -> None:
    """Refuse an address that leaves this machine without TLS."""
    if not is_local(address):
        raise InvalidArgumentError(
            f"{address} is not on this machine: set KATSURA_TLS_CERT, KATSURA_TLS_KEY and KATSURA_TLS_CA",
            field="KATSURA_TLS_CERT",
        )
