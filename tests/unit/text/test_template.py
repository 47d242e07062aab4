from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.domain.errors import DataLossError, InvalidArgumentError, NotFoundError, OutOfRangeError, Reason
from katsura.text.template import ChatTemplate
from katsura.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
HOISTING = (
    "{{ messages[-1]['content'] }}{% for message in messages[:-1] %}<|im_start|>{{ message['content'] }}{% endfor %}"
)


def chat(*contents: str) -> list[dict[str, Any]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(contents)]


def test_special_tokens_and_the_generation_prompt_reach_the_template(byte_level: Tokenizer) -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}{{ add_generation_prompt }}", byte_level)
    assert template.render(chat("x")) == "<|im_start|>xTrue"
    assert template.render(chat("x"), add_generation_prompt=False) == "<|im_start|>xFalse"


def test_the_environment_is_the_one_templates_are_written_for(byte_level: Tokenizer) -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.index == 2 %}{% break %}{% endif %}\n{{ m | tojson }}\n{% endfor %}\n"
        "{% generation %}said{% endgeneration %} {{ strftime_now('%Y') }}"
    )
    template = ChatTemplate(source, byte_level, now=lambda: datetime(2031, 1, 1))
    assert template.render([{"b": "<é>", "a": 1}, {}]) == '{"b": "<é>", "a": 1}\nsaid 2031'


@pytest.mark.parametrize("source", ["{{ raise_exception('no') }}", "{{ 1 + 'a' }}", "{{ x.y.z }}", "{{ 1 / 0 }}"])
def test_a_refusal_of_the_template_is_an_error_of_the_messages(source: str, byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ChatTemplate(source, byte_level).render(chat("x"))
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception.__globals__['json'] }}",
     "{{ messages[0].update({}) }}", "{{ 'a' * 10**9 }}", "{{ 'a' * 99999999 }}",
     "{% for i in range(10**7) %}{% endfor %}", "{{ cycler.__init__.__globals__ }}"],
)  # fmt: skip
def test_a_template_cannot_leave_its_sandbox(source: str, byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError):
        ChatTemplate(source, byte_level).render(chat("x"))


def test_output_is_bounded(byte_level: Tokenizer) -> None:
    template = ChatTemplate("{% for i in range(1000) %}xxxxxxxxxx{% endfor %}", byte_level, max_chars=5000)
    with pytest.raises(OutOfRangeError, match="5000"):
        template.render([])


def test_only_plain_data_reaches_a_template(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match="PosixPath"):
        ChatTemplate(CHATML, byte_level).render([{"role": "user", "content": Path("/x")}])


def test_a_template_without_tools_refuses_them(byte_level: Tokenizer) -> None:
    template = ChatTemplate(CHATML, byte_level)
    assert not template.supports_tools
    with pytest.raises(InvalidArgumentError) as caught:
        template.render(chat("x"), tools=[{"type": "function"}])
    assert (caught.value.field, caught.value.reason) == ("tools", Reason.UNSUPPORTED_FIELD)
    assert template.render(chat("x"), tools=[]) == template.render(chat("x"))


def test_a_template_with_tools_shows_them(byte_level: Tokenizer) -> None:
    template = ChatTemplate("{% if tools %}{{ tools | tojson }}{% endif %}", byte_level)
    assert template.supports_tools
    assert template.render([], tools=[{"name": "f"}]) == '[{"name": "f"}]'


def test_a_template_that_does_not_compile_is_data_loss(byte_level: Tokenizer) -> None:
    with pytest.raises(DataLossError):
        ChatTemplate("{% if %}", byte_level)


@pytest.mark.parametrize("form", ["text", "list", "file"])
def test_the_template_of_a_folder_is_found(form: str, tmp_path: Path, byte_level: Tokenizer) -> None:
    with pytest.raises(NotFoundError, match="chat template"):
        ChatTemplate.from_folder(tmp_path, byte_level)
    if form == "file":
        (tmp_path / "chat_template.jinja").write_text("T")
    else:
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "T"}]
        config = json.dumps({"chat_template": "T" if form == "text" else named})
        (tmp_path / "tokenizer_config.json").write_text(config)
    assert ChatTemplate.from_folder(tmp_path, byte_level).render([]) == "T"


def test_segments_are_a_preamble_the_messages_and_the_prompt(byte_level: Tokenizer) -> None:
    template = ChatTemplate(CHATML, byte_level)
    preamble, *messages, prompt = template.render_segments(chat("hi", "hello"))
    assert preamble == "<|im_start|>system\nBe kind<|im_end|>\n"
    assert messages == ["<|im_start|>user\nhi<|im_end|>\n", "<|im_start|>assistant\nhello<|im_end|>\n"]
    assert prompt == "<|im_start|>assistant\n"
    assert template.render_segments([{"role": "system", "content": "s"}])[0] == ""
    assert template.render_segments([]) == ["", "<|im_start|>assistant\n"]


def test_a_message_keeps_its_segment_when_others_change(byte_level: Tokenizer) -> None:
    template = ChatTemplate(CHATML, byte_level)
    one = template.render_segments(chat("a", "b", "c"))
    other = template.render_segments(chat("a", "b", "c", "d", "e"), add_generation_prompt=False)
    assert other[: len(one) - 1] == one[:-1]


def test_messages_without_a_safe_cut_join_the_next_one(sentence_piece: Tokenizer) -> None:
    template = ChatTemplate(MISTRAL, sentence_piece)
    segments = template.render_segments(chat("q1", "a1", "q2"))
    # [/INST] is ordinary text there, so a question and its answer cannot be parted; nor can SentencePiece be cut
    # after a special token, where a text of its own would gain a word mark.
    assert segments == ["", "", "", "<s>[INST] q1 [/INST]a1</s>[INST] q2 [/INST]", ""]


def test_a_byte_level_tokenizer_can_also_be_cut_after_a_special_token(byte_level: Tokenizer) -> None:
    segments = ChatTemplate(MISTRAL, byte_level).render_segments(chat("q1", "a1", "q2"))
    assert segments == ["", "", "<|im_start|>[INST] q1 [/INST]a1<|im_end|>", "[INST] q2 [/INST]", ""]


CONTENT = st.text(max_size=8) | st.sampled_from(["", " ", "\n", "  12", "<|im_end|>", "<|im", "_start|>", "hello "])


@pytest.mark.parametrize("source", [CHATML, MISTRAL, HOISTING], ids=["chatml", "mistral", "hoisting"])
@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
@settings(deadline=None)
@given(contents=st.lists(CONTENT, min_size=1, max_size=5), prompt=st.booleans())
def test_segments_join_to_the_render_and_their_ids_to_its_ids(
    request: pytest.FixtureRequest, source: str, kind: str, contents: list[str], prompt: bool
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    template, messages = ChatTemplate(source, tokenizer), chat(*contents)
    whole = template.render(messages, add_generation_prompt=prompt)
    segments = template.render_segments(messages, add_generation_prompt=prompt)
    assert len(segments) == len(messages) + 2
    assert "".join(segments) == whole
    assert [i for segment in segments for i in tokenizer.encode(segment)] == tokenizer.encode(whole)
