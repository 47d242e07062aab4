import pytest

from katsura.domain.errors import DataLossError
from katsura.domain.kv_events import KvCleared, KvRemoved, KvStored, pack_events, unpack_events, unpack_hashes

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


def test_events_have_one_form_in_bytes() -> None:
    packed = pack_events((KvStored(b"", (A,)), KvRemoved((B,)), KvCleared()))
    assert packed.hex() == "0102000000" + "00" * 16 + "01" * 16 + "0201000000" + "02" * 16 + "0300000000"


def test_events_come_back_as_they_were() -> None:
    events = (KvStored(A, (B, C)), KvStored(b"", ()), KvRemoved(()), KvCleared(), KvRemoved((A, C)))
    assert unpack_events(pack_events(events)) == events
    assert unpack_events(b"") == ()


@pytest.mark.parametrize("cut", [1, 4, 5, 20, 36])
def test_events_cut_short_are_refused(cut: int) -> None:
    with pytest.raises(DataLossError):
        unpack_events(pack_events((KvStored(A, (B,)),))[:cut])


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(DataLossError, match="operation 9"):
        unpack_events(bytes([9, 0, 0, 0, 0]))


def test_hashes_side_by_side_are_told_apart() -> None:
    assert unpack_hashes(A + B) == (A, B)
    with pytest.raises(DataLossError):
        unpack_hashes(A + b"x")
