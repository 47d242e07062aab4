"""The demo model's own tokenizer and template on generated conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from katsura.domain.errors import InvalidArgumentError
from katsura.text.decoding import IncrementalDecoder
from katsura.text.template import ChatTemplate
from katsura.text.tokenizer import Tokenizer

pytestmark = pytest.mark.demo

AWKWARD = [
    "",
    " ",
    "\n\n",
    "  12",
    "1\n",
    "<|im_end|>",
    "<|im_start|>user\n",
    "<|im",
    "_end|>",
    "|>",
    "<repo_name>",
    "é🎉",
]
CONTENT = st.lists(st.text(max_size=12) | st.sampled_from(AWKWARD), max_size=4).map("".join)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENT})
CHAT = st.lists(MESSAGE, max_size=6)


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Tokenizer:
    return Tokenizer.from_folder(demo_model)


@pytest.fixture(scope="module")
def template(demo_model: Path, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.from_folder(demo_model, tokenizer)


@pytest.fixture(scope="module")
def reference(demo_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_model)


@settings(max_examples=300, deadline=None)
@given(messages=CHAT, prompt=st.booleans())
def test_segments_join_to_the_prompt_and_their_ids_to_its_ids(
    tokenizer: Tokenizer, template: ChatTemplate, messages: list[dict[str, str]], prompt: bool
) -> None:
    whole = template.render(messages, add_generation_prompt=prompt)
    segments = template.render_segments(messages, add_generation_prompt=prompt)
    assert "".join(segments) == whole
    assert [i for segment in segments for i in tokenizer.encode(segment)] == tokenizer.encode(whole)
    assert len(segments) == len(messages) + 2
    assert all(messages[i]["content"] in segment for i, segment in enumerate(segments[1:-1]))


@settings(max_examples=100, deadline=None)
@given(messages=CHAT.filter(bool), prompt=st.booleans())
def test_the_prompt_is_the_one_that_transformers_renders(
    reference: Any, template: ChatTemplate, messages: list[dict[str, str]], prompt: bool
) -> None:
    theirs = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert template.render(messages, add_generation_prompt=prompt) == theirs


def test_the_default_system_message_is_a_segment_of_its_own(template: ChatTemplate) -> None:
    preamble, question, prompt = template.render_segments([{"role": "user", "content": "hi"}])
    assert preamble.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert (question, prompt) == ("<|im_start|>user\nhi<|im_end|>\n", "<|im_start|>assistant\n")


def test_the_template_cannot_show_tools_and_says_so(template: ChatTemplate) -> None:
    assert not template.supports_tools
    with pytest.raises(InvalidArgumentError, match="tools"):
        template.render([{"role": "user", "content": "hi"}], tools=[{"type": "function"}])


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=30))
def test_any_ids_stream_to_what_they_decode_to(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = IncrementalDecoder(tokenizer)
    assert "".join([*(decoder.push([i]) for i in ids), decoder.finish()]) == tokenizer.decode(ids)
