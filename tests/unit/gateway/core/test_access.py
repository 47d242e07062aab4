from __future__ import annotations

import pytest

from katsura.gateway.core.access import bearer, is_local_request, is_loopback


@pytest.mark.parametrize(
    ("header", "key"),
    [(None, ""), ("", ""), ("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("abc", "")],
)
def test_a_key_is_what_follows_bearer(header: str | None, key: str) -> None:
    assert bearer(header) == key


def test_loopback_has_several_names() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "example.org", "", "localhost.evil.org"))


@pytest.mark.parametrize(
    ("host", "origin", "local"),
    [
        ("127.0.0.1:8080", None, True),
        ("localhost", "http://localhost:3000", True),
        ("[::1]:8080", None, True),
        ("evil.org:8080", None, False),
        ("127.0.0.1:8080", "https://evil.org", False),
        ("127.0.0.1:8080", "null", False),
        ("", None, False),
    ],
)
def test_a_page_from_elsewhere_is_not_local(host: str, origin: str | None, local: bool) -> None:
    assert is_local_request(host, origin) is local
