"""The header is read once and believed only as far as it can be checked."""

from __future__ import annotations

import pytest

from katsura.wire.header import (
    CONTROL_BYTES_MAX,
    HEADER_BYTES,
    BadFrameError,
    Header,
    Kind,
    NackReason,
    aligned,
    control,
    read_control,
    read_header,
    write_control,
    write_header,
)


def test_every_field_comes_back() -> None:
    header = Header(
        Kind.DISPATCH, 7, 1, 65535, 65534, 65533, 2**32 - 1, 2**32 - 2, 2**32 - 3, 2**64 - 1, 2**64 - 2,
        b"digest!!", 2**32 - 4, 2**32 - 5, 0,
    )  # fmt: skip
    buffer = memoryview(bytearray(HEADER_BYTES))
    write_header(buffer, header)
    assert read_header(buffer) == header


def test_the_layout_is_fixed_for_ever() -> None:
    buffer = memoryview(bytearray(HEADER_BYTES))
    write_header(buffer, Header(Kind.PARTIAL, incarnation=1, step=2, layer=3, width=4, digest=b"abcdefgh"))
    assert bytes(buffer).hex() == (
        "4b5701040000030000000000000000000000000004000000"
        "01000000000000000200000000000000616263646566676800000000000000000000000008675bc8"
    )


@pytest.mark.parametrize("bit", range(0, HEADER_BYTES * 8, 7))
def test_one_flipped_bit_is_noticed(bit: int) -> None:
    buffer = memoryview(bytearray(HEADER_BYTES))
    write_header(buffer, Header(Kind.DISPATCH, step=12345))
    buffer[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadFrameError):
        read_header(buffer)


def test_a_control_frame_carries_its_body_and_the_identity_of_what_it_answers() -> None:
    asked = Header(Kind.DISPATCH, layer=3, ubatch=1, incarnation=99, step=5)
    buffer = memoryview(bytearray(4096))
    length = write_control(buffer, Kind.NACK, {"reason": NackReason.NOT_LOADED}, asked)
    header = read_header(buffer[:length])
    assert (header.kind, header.incarnation, header.step, header.layer, header.ubatch) == (Kind.NACK, 99, 5, 3, 1)
    assert read_control(buffer[:length], header) == {"reason": "NOT_LOADED"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 60_000])
def test_a_control_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    frame = memoryview(bytearray(HEADER_BYTES + len(body)))
    frame[HEADER_BYTES:] = body
    write_header(frame, Header(Kind.HELLO, body_len=len(body)))
    with pytest.raises(BadFrameError):
        read_control(frame, read_header(frame))


def test_a_control_frame_is_never_long() -> None:
    with pytest.raises(BadFrameError):
        control(Kind.HELLO, {"x": "y" * CONTROL_BYTES_MAX})


def test_sections_begin_on_boundaries() -> None:
    assert [aligned(count) for count in (0, 1, 64, 65)] == [0, 64, 64, 128]
