from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from katsura.cli.files import alone, naming, read_text, write_file
from katsura.domain.errors import InvalidArgumentError, ResourceExhaustedError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_as_editors_and_shells_write_it(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes("name: Zürich".encode(encoding))
    assert read_text(file) == "name: Zürich"


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"none\.yaml: cannot be read: No such file or directory$"):
        read_text(tmp_path / "none.yaml")
    with pytest.raises(InvalidArgumentError, match="cannot be read: Is a directory"):
        read_text(tmp_path)
    binary = tmp_path / "weights.bin"
    binary.write_bytes(b"ab\x9c")
    with pytest.raises(InvalidArgumentError, match=r"byte 3 is none\); name a file of YAML, JSON or CSV"):
        read_text(binary)


def test_a_file_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("katsura.cli.files._BYTES_MOST", 100)
    with pytest.raises(InvalidArgumentError, match="/dev/zero: longer than 100"):
        read_text(Path("/dev/zero"))


def test_standard_input_is_utf_8_and_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ü".encode()), "ascii"))
    assert read_text(Path("-")) == "ü"
    monkeypatch.setattr(sys, "stdin", None)
    assert read_text(Path("-")) == ""


def test_what_is_wrong_in_a_file_names_it_once() -> None:
    def wrong(said: str) -> None:
        raise InvalidArgumentError(said, field="f")

    for said in ("no JSON", "a.json: no JSON"):
        with pytest.raises(InvalidArgumentError, match=r"^a\.json: no JSON$"):
            naming(Path("a.json"), lambda said=said: wrong(said))


def test_a_file_is_replaced_whole_with_its_mode_and_through_its_link(tmp_path: Path) -> None:
    file, link = tmp_path / "a.csv", tmp_path / "link.csv"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_file(link, "new ü", "trials")
    assert file.read_text("utf-8") == "new ü"
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "link.csv"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceExhaustedError, match="/dev/full: cannot be written: No space left"):
        write_file(Path("/dev/full"), "text", "svg")
    file = tmp_path / "a.csv"
    file.write_text("old")
    real = Path.write_bytes

    def half(path: Path, data: bytes) -> None:
        real(path, data[:2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(ResourceExhaustedError, match="free some space"):
        write_file(file, "new", "trials")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written: No such file or directory"):
        write_file(tmp_path / "none" / "a.svg", "x", "svg")
    with (
        pytest.raises(InvalidArgumentError, match="cannot be written: No such file or directory"),
        alone(tmp_path / "none" / "a.csv", "trials"),
    ):
        pass


def test_one_waits_for_the_other(tmp_path: Path) -> None:
    file, order = tmp_path / "a.csv", []

    def second() -> None:
        with alone(file, "trials"):
            order.append("second")

    thread = threading.Thread(target=second)
    with alone(file, "trials"):
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
