"""The installation's own certificate authority: made once, renewed in time, with overlap.

Secret `katsura-ca` (own namespace, mounted by nobody) holds the authority, `katsura-tls` (every served namespace) what
pods mount: one certificate for the name `katsura.internal`, its key, and the authorities to believe. A new authority is
believed for a month before anything is signed by it, and the old one until it runs out, so that pods that have not
seen it yet and pods that have always understand each other.

Where somebody else keeps `katsura-tls` (cert-manager), only that of the own namespace is read, for our own calls.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from katsura.rpc.channel import TLS_NAME
from katsura_operator.core.objects import SECRET, Object, make
from katsura_operator.core.pods import TLS_SECRET
from katsura_operator.kube import Kube

CA_SECRET: Final = "katsura-ca"
_CA_DAYS, _CA_RENEW_DAYS, _LEAF_DAYS, _LEAF_RENEW_DAYS, _BELIEVED_DAYS = 3650, 730, 365, 120, 30
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    @property
    def parsed(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(self.certificate)


class Authority:
    """Keeps both Secrets. Reads and writes them by name only."""

    def __init__(self, kube: Kube, namespace: str, folder: Path | None = None, *, given: bool = False) -> None:
        """`folder`: gets what pods mount too, for calls of our own. `given`: somebody else makes and renews it."""
        self._kube, self._namespace, self._folder, self._given = kube, namespace, folder, given

    async def keep(self, namespaces: Sequence[str], now: str) -> None:
        """Make or renew what is due. Processes read renewed files by themselves: nobody restarts for them."""
        if not namespaces:
            return
        if self._given:
            self._show(_content(await self._kube.get(SECRET, self._namespace, TLS_SECRET)))
            return
        moment = datetime.fromisoformat(now).astimezone(UTC)
        ours = await self._kube.get(SECRET, self._namespace, CA_SECRET)
        authorities = authorities_of(ours)
        kept = renew_authorities(authorities, moment)
        if kept != authorities:
            await self._write(ours, self._namespace, CA_SECRET, secret_of(kept))
        mounted: dict[str, bytes] | None = None
        for namespace in dict.fromkeys((self._namespace, *namespaces)):
            seen = await self._kube.get(SECRET, namespace, TLS_SECRET)
            content = _content(seen)
            if mounted is None:
                mounted = renew_leaf(content, kept, moment)
            if content != mounted:
                await self._write(seen, namespace, TLS_SECRET, mounted)
        assert mounted is not None
        self._show(mounted)

    def _show(self, content: dict[str, bytes]) -> None:
        if self._folder is not None:
            for name, value in content.items():
                (self._folder / name).write_bytes(value)

    async def _write(self, seen: Object | None, namespace: str, name: str, content: dict[str, bytes]) -> None:
        body = make(SECRET, namespace, name, labels={}, owner_of=None)
        if seen is not None:
            body["metadata"]["uid"] = seen["metadata"]["uid"]
            body["metadata"]["resourceVersion"] = seen["metadata"]["resourceVersion"]
        body["data"] = {key: base64.b64encode(value).decode() for key, value in content.items()}
        if seen is None:
            await self._kube.create(body)
        else:
            await self._kube.apply(body)


def _content(secret: Object | None) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in ((secret or {}).get("data") or {}).items()}


def authorities_of(secret: Object | None) -> tuple[Pair, ...]:
    """Authorities of Secret `katsura-ca`, newest first."""
    data = _content(secret)
    pairs = [(f"ca{i}.crt", f"ca{i}.key") for i in range(len(data) // 2)]
    return tuple(Pair(data[c], data[k]) for c, k in pairs if c in data and k in data)


def secret_of(authorities: Sequence[Pair]) -> dict[str, bytes]:
    """Content of Secret `katsura-ca`."""
    return {
        name: value
        for i, pair in enumerate(authorities)
        for name, value in ((f"ca{i}.crt", pair.certificate), (f"ca{i}.key", pair.key))
    }


def renew_authorities(authorities: Sequence[Pair], now: datetime) -> tuple[Pair, ...]:
    """Those still to believe, with a new one in front where the newest has less than two years left."""
    alive = [pair for pair in authorities if pair.parsed.not_valid_after_utc > now]
    if alive and alive[0].parsed.not_valid_after_utc - now > timedelta(days=_CA_RENEW_DAYS):
        return tuple(alive)
    return (make_authority(now), *alive)


def renew_leaf(content: dict[str, bytes], authorities: Sequence[Pair], now: datetime) -> dict[str, bytes]:
    """What pods mount: `content` where it is good for four more months and believes the right authorities."""
    believed = b"".join(pair.certificate for pair in authorities)
    if set(content) == {"ca.crt", "tls.crt", "tls.key"}:
        leaf = Pair(content["tls.crt"], content["tls.key"]).parsed
        signed = any(leaf.issuer == pair.parsed.subject for pair in authorities)
        if signed and leaf.not_valid_after_utc - now > timedelta(days=_LEAF_RENEW_DAYS):
            return {**content, "ca.crt": believed}
    long_enough = timedelta(days=_BELIEVED_DAYS)
    old = [pair for pair in authorities if now - pair.parsed.not_valid_before_utc > long_enough]
    leaf_pair = issue((old or list(authorities))[0], now)
    return {"tls.crt": leaf_pair.certificate, "tls.key": leaf_pair.key, "ca.crt": believed}


def make_authority(now: datetime) -> Pair:
    """A new authority for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"katsura authority {serial % 10**8:08}")])
    made = _builder(name, name, key, now, _CA_DAYS, serial).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    usage = {"key_cert_sign": True, "crl_sign": True, "digital_signature": False}
    return _signed(made.add_extension(_usage(**usage), critical=True), key, key)


def issue(authority: Pair, now: datetime) -> Pair:
    """A certificate of every process of ours, for both ends of a connection."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(authority.key, None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TLS_NAME)])
    made = _builder(name, authority.parsed.subject, key, now, _LEAF_DAYS, x509.random_serial_number())
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    made = (
        made.add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_NAME)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(key_cert_sign=False, crl_sign=False, digital_signature=True), critical=True)
    )
    return _signed(made, key, signer)


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, now: datetime, days: int, serial: int) -> Any:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, key_cert_sign: bool, crl_sign: bool, digital_signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(builder: Any, key: Any, signer: Any) -> Pair:
    certificate = builder.sign(signer, hashes.SHA256()).public_bytes(_PEM)
    form = serialization.PrivateFormat.PKCS8
    return Pair(certificate, key.private_bytes(_PEM, form, serialization.NoEncryption()))
