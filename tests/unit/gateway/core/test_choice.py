from __future__ import annotations

from collections.abc import Iterable

import pytest

from katsura.gateway.core.choice import Choice, Drawn, Finish, Piece
from katsura.text.stops import StopStrings

EOS = 0
WORDS = {1: b"Hel", 2: b"lo", 3: b" wor", 4: b"ld", 5: b"\xf0\x9f", 6: b"\x98\x80", 7: b"END"}


class Bytes:
    """A byte-level decoder over `WORDS`."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, ids: Iterable[int]) -> str:
        self._held += b"".join(WORDS[index] for index in ids)
        try:
            text = self._held.decode()
        except UnicodeDecodeError:
            return ""
        self._held = b""
        return text

    def finish(self) -> str:
        return self._held.decode(errors="replace")


def choice(*stops: str) -> Choice:
    return Choice(Bytes(), StopStrings(stops), frozenset({EOS}))


def drawn(*ids: int) -> list[Drawn]:
    return [Drawn(index, -0.5) for index in ids]


def ids_of(piece: Piece) -> list[int]:
    return [token.token_id for token in piece.tokens]


def test_text_comes_with_its_tokens() -> None:
    answer = choice()
    piece = answer.push(drawn(1, 2))
    assert (piece.text, ids_of(piece)) == ("Hello", [1, 2])
    assert answer.token_ids == [1, 2]


def test_an_unfinished_character_is_held_with_its_tokens() -> None:
    answer = choice()
    assert answer.push(drawn(5)) == Piece("")
    piece = answer.push(drawn(6))
    assert (piece.text, ids_of(piece)) == ("😀", [5, 6])


def test_a_stop_token_is_remembered_and_not_shown() -> None:
    answer = choice()
    piece = answer.push(drawn(1, EOS))
    assert (piece.text, ids_of(piece)) == ("Hel", [1])
    assert answer.end(Finish.STOP) == Piece("")
    assert answer.token_ids == [1, EOS]
    assert answer.finish is Finish.STOP


def test_a_stop_string_ends_the_answer_and_hides_what_follows() -> None:
    answer = choice("lo wo")
    assert answer.push(drawn(1)).text == "He"
    piece = answer.push(drawn(2, 3, 4))
    assert piece.text == "l"
    assert answer.text == "Hel"
    assert answer.finish is Finish.STOP
    assert answer.token_ids == [1, 2, 3]
    assert answer.push(drawn(4)) == Piece("")
    assert answer.end(Finish.LENGTH) == Piece("")
    assert answer.finish is Finish.STOP


def test_tokens_behind_a_stop_string_are_not_reported() -> None:
    answer = choice("END")
    piece = answer.push(drawn(1, 7, 4))
    assert (piece.text, ids_of(piece)) == ("Hel", [1])


def test_what_was_held_for_a_stop_string_is_shown_at_the_end() -> None:
    answer = choice("Hello!")
    assert answer.push(drawn(1, 2)) == Piece("")
    piece = answer.end(Finish.LENGTH)
    assert (piece.text, ids_of(piece)) == ("Hello", [1, 2])
    assert answer.finish is Finish.LENGTH


def test_a_torn_character_at_the_end_becomes_the_replacement_character() -> None:
    answer = choice()
    answer.push(drawn(5))
    piece = answer.end(Finish.LENGTH)
    assert (piece.text, ids_of(piece)) == ("\ufffd", [5])


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_how_tokens_are_batched_changes_nothing(cut: int) -> None:
    ids = [1, 2, 3, 4, 5, 6]
    answer = choice("zz")
    pieces = [answer.push(drawn(*ids[at : at + cut])) for at in range(0, len(ids), cut)]
    pieces.append(answer.end(Finish.LENGTH))
    assert "".join(piece.text for piece in pieces) == "Hello world😀" == answer.text
    assert [index for piece in pieces for index in ids_of(piece)] == ids
