from __future__ import annotations

import base64
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from katsura.rpc.channel import TLS_NAME
from katsura.testing.apiserver import ApiServer, TwinKube
from katsura_operator.authority import Authority, Pair, authorities_of, renew_authorities, renew_leaf, secret_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def signer_of(leaf: Pair, authorities: tuple[Pair, ...]) -> int:
    for index, authority in enumerate(authorities):
        if authority.parsed.subject == leaf.parsed.issuer:
            key = authority.parsed.public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(leaf.parsed.signature, leaf.parsed.tbs_certificate_bytes, ec.ECDSA(SHA256()))
            return index
    raise AssertionError("signed by nobody we believe")


def leaf_of(content: dict[str, bytes]) -> Pair:
    return Pair(content["tls.crt"], content["tls.key"])


def test_a_first_authority_signs_a_certificate_for_the_one_name() -> None:
    authorities = renew_authorities((), NOW)
    content = renew_leaf({}, authorities, NOW)
    names = leaf_of(content).parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [TLS_NAME]
    assert signer_of(leaf_of(content), authorities) == 0


def test_what_is_good_is_kept() -> None:
    authorities = renew_authorities((), NOW)
    content = renew_leaf({}, authorities, NOW)
    later = NOW + timedelta(days=200)
    assert renew_authorities(authorities, later) == authorities
    assert renew_leaf(content, authorities, later) == content


def test_a_certificate_is_renewed_four_months_before_its_end() -> None:
    authorities = renew_authorities((), NOW)
    content = renew_leaf({}, authorities, NOW)
    assert renew_leaf(content, authorities, NOW + timedelta(days=246)) != content


def test_a_new_authority_is_believed_before_it_signs_and_the_old_one_until_its_end() -> None:
    first = renew_authorities((), NOW)
    content = renew_leaf({}, first, NOW)
    late = NOW + timedelta(days=3650 - 700)
    both = renew_authorities(first, late)
    assert both[1:] == first
    rotated = renew_leaf(content, both, late)
    assert rotated["ca.crt"] == both[0].certificate + both[1].certificate
    assert signer_of(leaf_of(rotated), both) == 1, "pods that know only the old authority still understand"
    month = late + timedelta(days=300)
    assert signer_of(leaf_of(renew_leaf(rotated, both, month)), both) == 0
    assert renew_authorities(both, NOW + timedelta(days=3700)) == both[:1]


def test_the_secret_reads_back_as_it_was_written() -> None:
    pairs = renew_authorities((), NOW)
    data = {k: base64.b64encode(v).decode() for k, v in secret_of(pairs).items()}
    assert authorities_of({"data": data}) == pairs
    assert authorities_of(None) == ()


@pytest.mark.parametrize("given", [True, False])
async def test_what_somebody_else_keeps_is_read_and_never_written(tmp_path: Path, given: bool) -> None:
    server = ApiServer()
    data = {name: base64.b64encode(name.encode()).decode() for name in ("tls.crt", "tls.key", "ca.crt")}
    theirs = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "katsura-tls"}, "data": data}
    server.apply("/api/v1/namespaces/own/secrets/katsura-tls", theirs)
    before = server.writes
    folder = tmp_path if given else None
    authority = Authority(TwinKube(server), "own", folder, given=given)
    if not given:  # what it would do with such a Secret if it were its own
        server.objects.clear()
    await authority.keep(["own", "other"], "2026-11-21T12:00:00Z")
    assert (server.writes == before) is given
    assert sorted(os.listdir(tmp_path)) == ["ca.crt", "tls.crt", "tls.key"] * given


async def test_a_secret_that_nobody_has_made_yet_holds_nothing_up(tmp_path: Path) -> None:
    authority = Authority(TwinKube(ApiServer()), "own", tmp_path, given=True)
    await authority.keep(["own"], "2026-11-21T12:00:00Z")
    assert os.listdir(tmp_path) == []
