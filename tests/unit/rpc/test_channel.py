import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.rpc.channel import is_local, open_channel


@pytest.mark.parametrize("address", ["unix:/run/x.sock", "127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_local_addresses_need_no_tls(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize("address", ["10.0.0.1:1", "memory.katsura.svc:1", "0.0.0.0:1"])
def test_an_address_off_this_machine_is_refused_without_tls(address: str) -> None:
    assert not is_local(address)
    with pytest.raises(InvalidArgumentError, match="KATSURA_TLS_CERT"):
        open_channel(address)
