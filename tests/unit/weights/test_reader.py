from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from katsura.domain.errors import DataLossError, InvalidArgumentError, NotFoundError
from katsura.model.families.tensors import TensorSlice
from katsura.weights.reader import Checkpoint

MATRIX = torch.arange(48, dtype=torch.float32).reshape(6, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"w": MATRIX, "v": MATRIX[0].bfloat16()}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (TensorSlice("w", (6, 8)), MATRIX),
        (TensorSlice("w", (2, 8), rows=(2, 4)), MATRIX[2:4]),
        (TensorSlice("w", (6, 3), cols=(5, 8)), MATRIX[:, 5:8]),
        (TensorSlice("w", (1, 2), rows=(5, 6), cols=(0, 2)), MATRIX[5:6, 0:2]),
        (TensorSlice("v", (8,)), MATRIX[0].bfloat16()),
    ],
)
def test_a_slice_is_that_part_of_the_tensor_and_its_bytes_are_counted(
    piece: TensorSlice, expected: torch.Tensor, folder: Path
) -> None:
    with Checkpoint(folder) as checkpoint:
        tensor = checkpoint(piece)
        assert checkpoint.bytes_read == {piece.name: expected.nbytes}
    assert torch.equal(tensor, expected)
    assert tensor.dtype == expected.dtype


def test_shards_are_found_by_the_index(tmp_path: Path) -> None:
    save_file({"a": MATRIX}, tmp_path / "model-1.safetensors")
    save_file({"b": MATRIX + 1}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names() == ["a", "b"]
        assert torch.equal(checkpoint(TensorSlice("b", (6, 8))), MATRIX + 1)


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}',
              '{"weight_map": {"a": "/x.safetensors"}}', '{"weight_map": {"a": "x.bin"}}', '{"weight_map": 1}']
)  # fmt: skip
def test_an_index_that_is_malformed_or_leads_elsewhere_is_refused(index: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(DataLossError):
        Checkpoint(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(NotFoundError, match=r"gone\.safetensors"):
        Checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_a_file_cut_short_is_data_loss(keep: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataLossError):
        Checkpoint(folder)


def test_a_header_that_claims_more_than_the_file_holds_is_data_loss(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(DataLossError):
        Checkpoint(folder)


def test_a_tensor_that_is_missing_or_of_another_shape_or_type_is_data_loss(folder: Path) -> None:
    save_file({"i": torch.zeros(4, dtype=torch.int8)}, folder / "more.safetensors")
    with Checkpoint(folder) as checkpoint:
        for piece in (TensorSlice("x", (1,)), TensorSlice("w", (6, 9)), TensorSlice("i", (4,))):
            with pytest.raises(DataLossError, match=piece.name):
                checkpoint(piece)
        assert checkpoint.bytes_read == {}


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidArgumentError, match="pickled"):
        Checkpoint(tmp_path)


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Checkpoint(tmp_path)


def test_tensors_outlive_the_open_files(folder: Path) -> None:
    with Checkpoint(folder) as checkpoint:
        tensor = checkpoint(TensorSlice("w", (6, 8)))
    (folder / "model.safetensors").unlink()
    assert torch.equal(tensor, MATRIX)
