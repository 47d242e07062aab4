from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from katsura.domain.errors import DataLossError, NotFoundError
from katsura.text.tokenizer import Tokenizer


def defined(added: list[dict[str, Any]]) -> bytes:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocab = {"a": 0} | {token["content"]: index for index, token in enumerate(added, 1)}
    return json.dumps(
        {
            "added_tokens": [{"id": index, **flags, **token} for index, token in enumerate(added, 1)],
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        }
    ).encode()


def test_text_comes_back(byte_level: Tokenizer) -> None:
    text = "hello <|im_end|> Paris 🎉"
    ids = byte_level.encode(text)
    assert byte_level.decode(ids, skip_special_tokens=False) == text
    assert byte_level.decode(ids) == "hello  Paris 🎉"


def test_special_tokens_are_parsed_but_never_added_unasked(sentence_piece: Tokenizer, byte_level: Tokenizer) -> None:
    assert byte_level.encode("<|im_start|>") == [byte_level.id_of("<|im_start|>")]
    assert byte_level.encode("") == []
    assert sentence_piece.id_of("<s>") not in sentence_piece.encode("hello")


def test_eos_and_special_ids(byte_level: Tokenizer) -> None:
    assert byte_level.eos_ids == (byte_level.id_of("<|im_end|>"),)
    assert byte_level.special_ids == {byte_level.id_of(t) for t in ("<|end|>", "<|im_start|>", "<|im_end|>")}
    assert byte_level.id_of("no such token") is None


def test_the_bytes_of_tokens_join_to_the_text(byte_level: Tokenizer) -> None:
    text = "naïve 日本語 🎉 <|im_end|>\n"
    assert b"".join(byte_level.token_bytes(i) for i in byte_level.encode(text)) == text.encode()


def test_an_id_without_a_token_stands_for_nothing(byte_level: Tokenizer) -> None:
    padding = byte_level.vocab_size + 3
    assert byte_level.token_bytes(padding) == b""
    assert byte_level.decode([padding]) == ""


@pytest.mark.parametrize(
    ("added", "boundaries"),
    [
        ([{"content": "<a>"}, {"content": "<b>"}], ("<a>", "<b>")),
        ([{"content": "<a>", "lstrip": True}, {"content": "<b>", "rstrip": True}], ()),
        ([{"content": "<a>", "single_word": True}, {"content": "<b>", "normalized": True}], ()),
        ([{"content": "<a>"}, {"content": "<a><b>"}], ("<a><b>",)),
        ([{"content": "x<"}, {"content": "<a>"}], ("x<",)),
        ([{"content": "aa"}], ()),
    ],
)
def test_text_is_cut_only_beside_tokens_that_nothing_can_swallow(
    added: list[dict[str, Any]], boundaries: tuple[str, ...]
) -> None:
    assert Tokenizer(defined(added)).boundaries == boundaries


def test_a_folder_says_what_ends_an_answer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(defined([{"content": "<s>"}, {"content": "</s>"}, {"content": "<t>"}]))
    assert Tokenizer.from_folder(tmp_path).eos_ids == ()
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert Tokenizer.from_folder(tmp_path).eos_ids == (3,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    assert Tokenizer.from_folder(tmp_path).eos_ids == (2, 3)


def test_a_folder_without_a_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("definition", [b"", b"{}", b"\xff", b"[]"])
def test_a_malformed_definition_is_data_loss(definition: bytes) -> None:
    with pytest.raises(DataLossError):
        Tokenizer(definition)


def test_a_malformed_neighbour_is_data_loss(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(defined([]))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataLossError, match=r"tokenizer_config\.json"):
        Tokenizer.from_folder(tmp_path)
