"""Ropes give back what went in, and store each byte only a few times."""

from __future__ import annotations

import ormsgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.adapters.ropes import Blob, Piece, Rope, common_prefix, extended, head_length, placed, plain, shared

values = st.lists(st.binary(max_size=40), max_size=40)


class Versions:
    """Versions of one value, each written to a node of its own."""

    def __init__(self) -> None:
        self.blobs: dict[int, bytes] = {}
        self.rope: Rope | None = None
        self.body = b""

    def put(self, data: bytes) -> Rope:
        blob = Blob()
        rope = extended(plain("msgpack", data, self.body), blob, self.rope)
        node = len(self.blobs) + 1
        (self.blobs[node],) = blob.chunks(1 << 30) or [b""]
        self.rope = rope._replace(pieces=placed(rope.pieces, [node], 1 << 30))
        self.body = data[len(rope.head) :]
        return self.rope

    def read(self, rope: Rope) -> bytes:
        return rope.head + rope.body(self.blobs)


@settings(deadline=None, derandomize=True)
@given(st.lists(values, max_size=12))
def test_every_version_reads_back_as_it_was_written(versions: list[list[bytes]]) -> None:
    store, written = Versions(), list[tuple[Rope, bytes]]()
    for value in versions:
        data = ormsgpack.packb(value)
        written.append((store.put(data), data))
    assert all(store.read(rope) == data for rope, data in written)


def test_a_list_that_grows_has_few_pieces_and_stores_each_byte_a_few_times() -> None:
    store, items = Versions(), list[str]()
    for number in range(3000):
        items.append(f"{number:0200}")
        rope = store.put(ormsgpack.packb(items))
    assert store.read(rope) == ormsgpack.packb(items)
    assert len(rope.pieces) <= 32
    assert sum(map(len, store.blobs.values())) <= 5 * 3000 * 203


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=64), st.binary(max_size=64))
def test_the_common_prefix_is_the_longest(one: bytes, other: bytes) -> None:
    length = common_prefix(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == min(len(one), len(other))


@settings(deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=200), st.integers(1, 50))
def test_pieces_of_a_blob_lie_in_the_chunks_that_took_them(data: bytes, size: int) -> None:
    blob = Blob()
    pieces = [*blob.add(b"before"), *blob.add(data)]
    chunks = blob.chunks(size)
    nodes = list(range(1, len(chunks) + 1))
    rope = Rope("bytes", b"", placed(pieces[1:], nodes, size))
    assert rope.body(dict(zip(nodes, chunks, strict=True))) == data


def test_only_the_head_of_a_msgpack_array_is_kept_apart() -> None:
    assert [head_length("msgpack", ormsgpack.packb([0] * n)) for n in (0, 15, 16, 65536)] == [1, 1, 3, 5]
    assert head_length("msgpack", ormsgpack.packb({"a": 1})) == 0
    assert head_length("bytes", b"\x91") == head_length("msgpack", b"") == 0


def test_what_is_shared_ends_inside_a_piece_where_the_values_part() -> None:
    assert shared([Piece(1, 0, 10), Piece(2, 0, 10)], 13, 100) == (Piece(1, 0, 10), Piece(2, 0, 3))
