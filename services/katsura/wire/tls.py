"""TLS of the data plane: both ends show a certificate of the installation's own authority.

Members are reached by the address in their lease, which changes with every pod, so it is the authority that is checked
and not the name; nobody else holds a certificate of it.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def server_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """For `tcp.listen`: a client without a certificate of `authority` is refused."""
    return _context(ssl.PROTOCOL_TLS_SERVER, certificate, key, authority)


def client_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """For `tcp.connect`: a server without a certificate of `authority` is refused."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, certificate, key, authority)


def _context(protocol: int, certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    return context
