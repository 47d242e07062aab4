from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from safetensors.numpy import load_file

from katsura.domain.errors import DataLossError, ResourceExhaustedError, UnimplementedError
from katsura.model.config import parse_config
from katsura.weights import space
from katsura.weights.gguf import convert, unpermuted
from katsura.weights.progress import SILENT, Stage


def converted(path: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    convert(path, folder, SILENT)
    return folder


@pytest.mark.parametrize("quant", [Quant.F32, Quant.F16, Quant.BF16, Quant.Q4_0, Quant.Q4_1, Quant.Q5_0, Quant.Q8_0])
def test_every_tensor_comes_out_as_the_checkpoint_had_it(quant: Quant, tiny_gguf: Any, tmp_path: Path) -> None:
    model = tiny_gguf(tmp_path / "m.gguf", quant)
    loaded = load_file(converted(model.path, tmp_path) / "model.safetensors")
    assert loaded.keys() == model.expected.keys()
    for name, value in model.expected.items():
        assert np.array_equal(loaded[name], value), name


def test_the_configuration_is_one_that_the_model_room_reads(tiny_gguf: Any, tmp_path: Path) -> None:
    folder = converted(tiny_gguf(tmp_path / "m.gguf").path, tmp_path)
    config = parse_config(json.loads((folder / "config.json").read_text()))
    shape = config.shape
    assert (shape.hidden_size, shape.head_count, shape.kv_head_count, shape.head_size) == (64, 4, 2, 16)
    assert (shape.ffn_size, shape.layer_count, shape.context_length) == (96, 2, 128)
    assert (config.norm_eps, config.rope.theta, config.tied_embeddings) == (1e-5, 100000.0, True)
    assert (config.bos_id, config.eos_ids) == (1, (0,))


def test_an_untied_head_is_kept(tiny_gguf: Any, tmp_path: Path) -> None:
    folder = converted(tiny_gguf(tmp_path / "m.gguf", tied=False).path, tmp_path)
    assert "lm_head.weight" in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_digest_of_the_weights_is_known_from_writing_them(tiny_gguf: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    known = convert(tiny_gguf(tmp_path / "m.gguf").path, folder, SILENT)
    data = (folder / "model.safetensors").read_bytes()
    assert known == {"model.safetensors": hashlib.sha256(data).hexdigest()}


def test_progress_ends_at_its_total(tiny_gguf: Any, tmp_path: Path) -> None:
    class Last:
        seen: tuple[Stage, int, int | None]

        def advance(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
            self.seen = (stage, done_bytes, total_bytes)

        def say(self, message: str) -> None:
            raise AssertionError(message)

    model, last = tiny_gguf(tmp_path / "m.gguf"), Last()
    folder = tmp_path / "out"
    folder.mkdir()
    convert(model.path, folder, last)
    total = sum(value.nbytes for value in model.expected.values())
    assert last.seen == (Stage.CONVERT, total, total)


def test_unpermuting_keeps_each_head_apart() -> None:
    # Two heads of four rows, as llama.cpp stores them: first half and second half in turns.
    stored = np.array([[0], [2], [1], [3], [10], [12], [11], [13]], np.float32)
    assert unpermuted(stored, 2).ravel().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


@pytest.mark.parametrize("keep", [0, 3, 40, 4000, -100])
def test_a_file_cut_short_is_data_loss(keep: int, tiny_gguf: Any, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf").path
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataLossError):
        converted(path, tmp_path)


def test_a_file_without_a_tokenizer_is_data_loss(tiny_gguf: Any, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf").path
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.merges", b"tokenizer.ggml.merged"))
    with pytest.raises(DataLossError, match=r"tokenizer\.ggml\.merges"):
        converted(path, tmp_path)


def test_scaled_rope_is_refused_by_name(tiny_gguf: Any, tmp_path: Path) -> None:
    with pytest.raises(UnimplementedError, match=r"rope\.scaling\.type"):
        converted(tiny_gguf(tmp_path / "m.gguf", rope_scaling="yarn").path, tmp_path)


def test_a_disk_too_small_is_refused_before_a_byte_is_written(
    tiny_gguf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_gguf(tmp_path / "m.gguf")
    usage = space.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceExhaustedError, match="KATSURA_MODEL_CACHE"):
        converted(model.path, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
