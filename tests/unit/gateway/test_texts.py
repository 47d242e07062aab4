from __future__ import annotations

from pathlib import Path

import pytest

from katsura.domain.errors import NotFoundError
from katsura.gateway.core.chat_request import Message
from katsura.gateway.core.prompt import Part
from katsura.gateway.texts import Texts
from katsura.testing.tiny_chat import save_tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_tokenizer(tmp_path)
    return tmp_path


async def test_parts_tokenised_alone_are_the_prompt_tokenised_whole(folder: Path) -> None:
    text = await Texts().of(str(folder), "d")
    messages = [Message("user", "hi"), Message("assistant", "ho"), Message("user", "hé")]
    prompt = await text.prompt([Part(message, node) for node, message in enumerate(messages, 1)])
    assert list(prompt.token_ids) == text.tokenizer.encode("".join(text.pieces(messages)))
    assert prompt.opening == "<|im_start|>assistant\n"
    assert prompt.to_attach.keys() == {1, 2, 3}
    again = await text.prompt([Part(m, n, prompt.to_attach[n]) for n, m in enumerate(messages, 1)])
    assert (again.token_ids, again.to_attach) == (prompt.token_ids, {})


async def test_an_answers_piece_is_what_a_later_prompt_shows(folder: Path) -> None:
    text = await Texts().of(str(folder), "d")
    assert text.answer_piece("ho") == "<|im_start|>assistant\nho<|im_end|>\n"
    assert text.stop_token_ids == {text.tokenizer.id_of("<|im_end|>")}


async def test_a_model_is_loaded_once_and_a_failure_is_not_remembered(tmp_path: Path) -> None:
    texts = Texts()
    with pytest.raises(NotFoundError):
        await texts.of(str(tmp_path), "d")
    save_tiny_tokenizer(tmp_path)
    found = await texts.of(str(tmp_path), "d")
    assert await texts.of(str(tmp_path), "d") is found
    assert await texts.of(str(tmp_path), "other") is not found
