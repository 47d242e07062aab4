"""Who may come in without a key: nobody but the person at this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def bearer(header: str | None) -> str:
    """The key of an `Authorization` header, empty where it carries none."""
    scheme, _, key = (header or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, without a port) is this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_local_request(host_header: str, origin: str | None) -> bool:
    """Whether a request was meant for this machine by something on it.

    A web page elsewhere can make a browser send requests to 127.0.0.1: by its own name rebound to that address (the
    Host header tells) or across origins (the Origin header tells).
    """
    host = urlsplit(f"//{host_header}").hostname or ""
    return is_loopback(host) and (origin is None or is_loopback(urlsplit(origin).hostname or ""))
