"""TLS of the data plane: both ends show a certificate of the installation's own authority.

Members are reached by the address in their lease, which changes with every pod, so it is the authority that is checked
and not the name; nobody else holds a certificate of it. The files are read for every handshake: who renews them
restarts nobody.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

Contexts = Callable[[], ssl.SSLContext]
"""Makes the context of one handshake. Raises OSError while the files are being replaced."""


def server_contexts(certificate: Path, key: Path, authority: Path) -> Contexts:
    """For `tcp.listen`: a client without a certificate of `authority` is refused."""
    return _contexts(ssl.PROTOCOL_TLS_SERVER, certificate, key, authority)


def client_contexts(certificate: Path, key: Path, authority: Path) -> Contexts:
    """For `tcp.connect`: a server without a certificate of `authority` is refused."""
    return _contexts(ssl.PROTOCOL_TLS_CLIENT, certificate, key, authority)


def _contexts(protocol: int, certificate: Path, key: Path, authority: Path) -> Contexts:
    make = partial(_context, protocol, certificate, key, authority)
    make()  # files that are no certificate end a process at its start, not at its first client
    return make


def _context(protocol: int, certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    return context
