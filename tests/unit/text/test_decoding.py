from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from katsura.text.decoding import IncrementalDecoder
from katsura.text.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    return [*(decoder.push([index]) for index in ids), decoder.finish()]


@settings(deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_pieces_of_any_ids_join_to_the_whole_decoding(byte_level: Tokenizer, data: DataObject, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, byte_level.vocab_size - 1), max_size=40))
    assert "".join(pieces(byte_level, ids, skip=skip)) == byte_level.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_no_piece_of_real_text_shows_a_replacement_character(byte_level: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "")
    shown = pieces(byte_level, byte_level.encode(text), skip=False)
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd▁"), max_size=40))
def test_word_marks_and_byte_fallback_come_out_as_one_text(sentence_piece: Tokenizer, text: str) -> None:
    ids = sentence_piece.encode(text)
    shown = pieces(sentence_piece, ids)
    assert "".join(shown) == sentence_piece.decode(ids)
    assert not any("\ufffd" in piece for piece in shown)


def test_a_character_over_several_tokens_is_held_until_it_is_whole(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("€")
    assert len(ids) == 3
    assert pieces(byte_level, ids) == ["", "", "€", ""]


def test_an_unfinished_character_is_replaced_at_the_end_only(byte_level: Tokenizer) -> None:
    assert pieces(byte_level, byte_level.encode("€")[:2]) == ["", "", "\ufffd"]


def test_bytes_that_never_become_text_do_not_hold_the_stream(sentence_piece: Tokenizer) -> None:
    broken = sentence_piece.id_of("<0xFF>")
    assert broken is not None
    assert "\ufffd" in "".join(pieces(sentence_piece, [broken] * 40)[:-1])


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_only_when_wanted(byte_level: Tokenizer, skip: bool) -> None:
    shown = "".join(pieces(byte_level, byte_level.encode("hi<|im_end|>"), skip=skip))
    assert shown == ("hi" if skip else "hi<|im_end|>")
