from __future__ import annotations

import pytest

from katsura.manifests.stores import server_of


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache.example:6379/0",
        "redis://cache.example",
        "redis://cache.example/",
        "rediss://ann:secret@CACHE.example:6379/0?ssl_ca_certs=/ca.crt",
        "valkey://cache.example:6379?db=0",
    ],
)
def test_one_database_has_one_name_whoever_asks_and_how(url: str) -> None:
    assert server_of(url) == "cache.example:6379/0"


def test_databases_and_servers_are_told_apart_and_a_socket_is_its_path() -> None:
    urls = ["redis://h/1", "redis://h/2", "redis://h:6380/1", "redis://g/1", "unix:///run/v.sock", "unix:///run/v?db=1"]
    assert [server_of(url) for url in urls] == [
        *("h:6379/1", "h:6379/2", "h:6380/1", "g:6379/1", "/run/v.sock/0", "/run/v/1"),
    ]


@pytest.mark.parametrize("url", ["redis://ann:secret@host:port/0", "redis://ann:secret@[::1/0"])
def test_what_is_no_url_is_its_own_text_without_who_asks(url: str) -> None:
    assert server_of(url) == url.removeprefix("redis://ann:secret@")
