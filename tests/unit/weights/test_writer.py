from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from katsura.domain.errors import InternalError
from katsura.weights.writer import F32Writer


def test_what_is_written_tensor_by_tensor_is_a_safetensors_file(tmp_path: Path) -> None:
    path, rng = tmp_path / "m.safetensors", np.random.default_rng(0)
    tensors = {
        "b": rng.random((3, 5), np.float32),
        "a": rng.random(7, np.float32),
        "empty": np.zeros((0, 2), np.float32),
    }
    with F32Writer(path, {name: value.shape for name, value in tensors.items()}) as writer:
        for name, value in tensors.items():
            writer.write(name, value)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(np.array_equal(loaded[name], value) for name, value in tensors.items())
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert writer.tensor_bytes == 4 * (15 + 7)


def test_a_transposed_view_is_written_in_its_own_order(tmp_path: Path) -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with F32Writer(tmp_path / "m.safetensors", {"t": (3, 2)}) as writer:
        writer.write("t", value)
    assert np.array_equal(load_file(tmp_path / "m.safetensors")["t"], value)


@pytest.mark.parametrize(("name", "shape"), [("b", (2,)), ("a", (3,))])
def test_a_tensor_that_was_not_announced_is_our_bug(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(InternalError), F32Writer(tmp_path / "m", {"a": (2,)}) as writer:
        writer.write(name, np.zeros(shape, np.float32))


def test_a_missing_tensor_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="not written"), F32Writer(tmp_path / "m", {"a": (2,)}):
        pass
