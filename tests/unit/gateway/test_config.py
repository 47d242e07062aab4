from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.gateway.config import GatewayConfig

NEEDED = {
    "KATSURA_MEMORY_ADDRESS": "unix:/m",
    "KATSURA_ROUTER_ADDRESSES": "unix:/r0, unix:/r1",
    "KATSURA_STORE_URL": "unix:///s",
    "KATSURA_INTERNAL_TOKEN": "token",
}


def test_what_is_needed_is_enough() -> None:
    config = GatewayConfig.from_env({**NEEDED, "HOME": "/"})
    assert config.router_addresses == ("unix:/r0", "unix:/r1")
    assert config.http_address == ("127.0.0.1", 8080)
    assert config.allow_keyless is False
    assert "token" not in repr(config)


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as failure:
        GatewayConfig.from_env({"KATSURA_BODY_BYTES_MAX": "big", "KATSURA_ROUTER_ADRESSES": "x"})
    for name in ("KATSURA_MEMORY_ADDRESS", "KATSURA_BODY_BYTES_MAX", "KATSURA_ROUTER_ADRESSES", "KATSURA_STORE_URL"):
        assert name in failure.value.message


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "10.1.2.3:80", "example.org:80", "[::]:80"])
def test_keyless_requests_need_a_loopback_address(listen: str) -> None:
    with pytest.raises(InvalidArgumentError, match="KATSURA_ALLOW_KEYLESS"):
        GatewayConfig.from_env({**NEEDED, "KATSURA_HTTP_LISTEN": listen, "KATSURA_ALLOW_KEYLESS": "true"})
    assert GatewayConfig.from_env({**NEEDED, "KATSURA_HTTP_LISTEN": listen}).http_listen == listen


@pytest.mark.parametrize("listen", ["8080", "127.0.0.1:http", "127.0.0.1:99999", ":80"])
def test_an_address_is_host_and_port(listen: str) -> None:
    with pytest.raises(InvalidArgumentError, match="KATSURA_HTTP_LISTEN"):
        GatewayConfig.from_env({**NEEDED, "KATSURA_HTTP_LISTEN": listen})


def test_an_address_may_be_of_the_sixth_version() -> None:
    config = GatewayConfig.from_env({**NEEDED, "KATSURA_HTTP_LISTEN": "[::1]:0", "KATSURA_ALLOW_KEYLESS": "true"})
    assert config.http_address == ("::1", 0)


def test_a_gateway_needs_a_router() -> None:
    with pytest.raises(InvalidArgumentError, match="KATSURA_ROUTER_ADDRESSES"):
        GatewayConfig.from_env({**NEEDED, "KATSURA_ROUTER_ADDRESSES": ","})
