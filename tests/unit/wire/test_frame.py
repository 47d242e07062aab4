"""Frames come back as they were written, and nothing else is ever accepted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.wire.frame import (
    Dispatch,
    FrameId,
    GroupSums,
    Partial,
    Routes,
    decode_dispatch,
    decode_partial,
    dispatch_bytes,
    encode_dispatch,
    encode_partial,
    partial_bytes,
)
from katsura.wire.header import HEADER_BYTES, BadFrameError, Kind, read_header, write_header

ID = FrameId(incarnation=2**63 - 1, step=2**40, layer=29, ubatch=3)
DIGEST = bytes(range(32))
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ragged(n_tokens: int = 5) -> Routes:
    """Token 0 uses two units of group 1; token 3 uses none; group 4 has no routes."""
    rows, units = [0, 0, 2, 1, 4], [2, 3, 3, 10, 11]
    return Routes(
        torch.tensor(rows, dtype=torch.int32),
        torch.tensor(units, dtype=torch.int32),
        torch.linspace(0.1, 0.9, 5),
        ends=(3, 3, 5),
    )


def dispatch(hidden: torch.Tensor, groups: tuple[int, ...], routes: Routes | None, trace: bytes = b"") -> memoryview:
    buffer = memoryview(bytearray(1 << 16))
    n_routes = 0 if routes is None else len(routes.rows)
    length = encode_dispatch(
        buffer, ID, groups, hidden, routes, digest=DIGEST, epoch=7, deadline_us=10**15, trace=trace, replay=True
    )
    assert length == dispatch_bytes(*hidden.shape, hidden.dtype, len(groups), n_routes, bool(trace))
    return buffer[:length]


def decoded(frame: memoryview) -> Dispatch | Partial:
    header = read_header(frame)
    return decode_partial(frame, header) if header.kind is Kind.PARTIAL else decode_dispatch(frame, header)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trace", [b"", TRACE])
def test_a_uniform_dispatch_comes_back(dtype: torch.dtype, trace: bytes) -> None:
    hidden = torch.randn(3, 40).to(dtype)
    got = decoded(dispatch(hidden, (0, 5), None, trace))
    assert isinstance(got, Dispatch)
    assert (got.id, got.groups, got.routes, got.trace, got.replay) == (ID, (0, 5), None, trace, True)
    assert torch.equal(got.hidden, hidden)
    assert got.hidden.dtype is dtype
    assert (got.header.epoch, got.header.digest, got.header.time_us) == (7, DIGEST[:8], 2**32 - 1)


def test_a_routed_dispatch_comes_back_with_its_ragged_routes() -> None:
    routes = ragged()
    got = decoded(dispatch(torch.randn(5, 8), (1, 4, 5), routes, TRACE))
    assert isinstance(got, Dispatch)
    assert got.routes is not None
    assert got.routes.ends == routes.ends
    for field in ("rows", "units", "weights"):
        assert torch.equal(getattr(got.routes, field), getattr(routes, field))
    assert [got.routes.span(index) for index in range(3)] == [slice(0, 3), slice(3, 3), slice(3, 5)]


def test_hidden_is_a_view_of_the_buffer_and_aligned() -> None:
    frame = dispatch(torch.zeros(2, 16), (0,), None)
    got = decoded(frame)
    assert isinstance(got, Dispatch)
    frame[-4:] = b"\x00\x00\x80\x3f"
    assert got.hidden[1, 15] == 1.0
    start = got.hidden.data_ptr() - torch.frombuffer(frame, dtype=torch.uint8).data_ptr()
    assert start % 64 == 0


def test_a_uniform_partial_answers_the_dispatch() -> None:
    asked = decoded(dispatch(torch.randn(3, 8), (2, 6), None, TRACE))
    assert isinstance(asked, Dispatch)
    sums = [torch.randn(3, 8), torch.randn(3, 8)]
    buffer = memoryview(bytearray(4096))
    parts = [GroupSums(group, None, each) for group, each in zip((2, 6), sums, strict=True)]
    length = encode_partial(buffer, asked, parts, member_us=123)
    assert length == partial_bytes(6, 8, 2, uniform=True)
    got = decoded(buffer[:length])
    assert isinstance(got, Partial)
    assert (got.id, got.header.time_us, got.header.epoch) == (ID, 123, 7)
    assert [part.group for part in got.parts] == [2, 6]
    assert all(torch.equal(part.sums, each) and part.rows is None for part, each in zip(got.parts, sums, strict=True))


def test_a_routed_partial_names_the_row_of_every_sum() -> None:
    asked = decoded(dispatch(torch.randn(5, 8), (1, 4, 5), ragged()))
    assert isinstance(asked, Dispatch)
    rows = [torch.tensor(each, dtype=torch.int32) for each in ([0, 2], [], [1, 4])]
    parts = [GroupSums(group, at, torch.randn(len(at), 8)) for group, at in zip((1, 4, 5), rows, strict=True)]
    buffer = memoryview(bytearray(4096))
    got = decoded(buffer[: encode_partial(buffer, asked, parts, member_us=1)])
    assert isinstance(got, Partial)
    for part, want in zip(got.parts, parts, strict=True):
        assert part.group == want.group
        assert part.rows is not None
        assert torch.equal(part.rows, want.rows)  # type: ignore[arg-type]
        assert torch.equal(part.sums, want.sums)


def patched(**changes: int) -> memoryview:
    """A routed frame whose header lies, with a checksum that fits the lie."""
    frame = dispatch(torch.randn(5, 8), (1, 4, 5), ragged())
    header = read_header(frame)
    write_header(frame, header._replace(**changes))
    return frame


@pytest.mark.parametrize(
    "changes",
    [
        {"n_tokens": 0}, {"n_tokens": 4}, {"n_tokens": 2**32 - 1}, {"width": 0}, {"width": 9}, {"width": 2**32 - 1},
        {"n_groups": 0}, {"n_groups": 2}, {"n_groups": 65535}, {"n_routes": 0}, {"n_routes": 4},
        {"n_routes": 2**32 - 1}, {"dtype": 1}, {"dtype": 77}, {"flags": 2}, {"flags": 4}, {"flags": 8},
        {"body_len": 0}, {"body_len": 2**32 - 1},
    ],
)  # fmt: skip
def test_a_header_that_contradicts_the_body_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(BadFrameError):
        decoded(patched(**changes))


@pytest.mark.parametrize(
    ("routes", "wrong"),
    [
        ({"rows": [0, 0, 2, 1, 5]}, "row outside"),
        ({"rows": [-1, 0, 2, 1, 4]}, "row outside"),
        ({"rows": [2, 0, 0, 1, 4]}, "ascending"),
        ({"units": [2, 3, 3, -10, 11]}, "negative unit"),
        ({"weights": [0.1, float("nan"), 0.1, 0.1, 0.1]}, "finite"),
        ({"ends": (3, 2, 5)}, "partition"),
        ({"ends": (3, 3, 4)}, "partition"),
    ],
)
def test_routes_that_make_no_sense_are_refused(routes: dict[str, list[float]], wrong: str) -> None:
    good = ragged()
    ints = {name: torch.tensor(routes[name], dtype=torch.int32) for name in ("rows", "units") if name in routes}
    bad = Routes(
        ints.get("rows", good.rows),
        ints.get("units", good.units),
        torch.tensor(routes["weights"]) if "weights" in routes else good.weights,
        tuple(int(end) for end in routes.get("ends", good.ends)),
    )
    with pytest.raises(BadFrameError, match=wrong):
        decoded(dispatch(torch.randn(5, 8), (1, 4, 5), bad))


def test_groups_out_of_order_are_refused() -> None:
    with pytest.raises(BadFrameError, match="ascending"):
        decoded(dispatch(torch.randn(2, 8), (3, 3), None))


FRAMES = [
    bytes(dispatch(torch.ones(5, 8), (1, 4, 5), ragged(), TRACE)),
    bytes(dispatch(torch.ones(3, 4), (0, 2), None)),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FRAMES),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.integers(-100, 100),
    st.booleans(),
)
def test_bent_bytes_are_refused_or_read_within_bounds(
    frame: bytes, bends: list[tuple[int, int]], resize: int, mend_checksum: bool
) -> None:
    bent = bytearray(frame + bytes(max(0, resize)))[: len(frame) + resize]
    for where, value in bends:
        bent[where % len(bent)] = value
    view = memoryview(bent)
    if mend_checksum and len(view) >= HEADER_BYTES:
        mend(view)
    try:
        got = decoded(view)
    except BadFrameError:
        return
    assert isinstance(got, Dispatch | Partial)
    if isinstance(got, Dispatch):
        assert got.hidden.shape == (got.header.n_tokens, got.header.width)
        if got.routes is not None:
            got.hidden.index_select(0, got.routes.rows)


def mend(frame: memoryview) -> None:
    """Give the bent header a checksum that fits, so that the checks behind it are reached."""
    import zlib

    frame[60:64] = zlib.crc32(frame[:60]).to_bytes(4, "little")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(BadFrameError):
        decoded(memoryview(noise))
