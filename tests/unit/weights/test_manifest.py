from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from katsura.domain.errors import NotFoundError
from katsura.weights.manifest import Manifest, record_of, weights_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def with_manifest(folder: Path) -> Manifest:
    files = {name: record_of(folder / name) for name in ("config.json", "model.safetensors")}
    manifest = Manifest("file:///x", "/x", "folder-1", files, {"a": (1, 2)})
    manifest.write(folder)
    return manifest


def test_a_manifest_is_read_as_it_was_written(folder: Path) -> None:
    assert Manifest.read(folder) is None
    assert with_manifest(folder) == Manifest.read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}', '{"format": 1, "source": "x"}', "\x00"])
def test_a_malformed_manifest_is_none(text: str, folder: Path) -> None:
    (folder / "katsura.json").write_text(text)
    assert Manifest.read(folder) is None


def test_the_digest_is_the_same_with_and_without_a_manifest(folder: Path) -> None:
    bare = weights_digest(folder)
    with_manifest(folder)
    assert weights_digest(folder) == bare
    assert len(bare) == 32


def test_the_digest_comes_from_the_manifest_while_its_files_look_unchanged(folder: Path) -> None:
    with_manifest(folder)
    text = json.loads((folder / "katsura.json").read_text())
    text["files"]["model.safetensors"]["sha256"] = "0" * 64
    bare = weights_digest(folder)
    (folder / "katsura.json").write_text(json.dumps(text))
    assert weights_digest(folder) != bare
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert weights_digest(folder) == bare


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_digest_follows_every_file_that_decides_numbers(name: str, folder: Path) -> None:
    before = weights_digest(folder)
    (folder / name).write_bytes(b"other")
    assert weights_digest(folder) != before


def test_the_digest_ignores_what_decides_no_number(folder: Path) -> None:
    before = weights_digest(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    assert weights_digest(folder) == before


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a model folder"):
        weights_digest(tmp_path)
