"""The data folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from katsura.cli import data as data_module
from katsura.cli.data import (
    DataFolder,
    ProcessRecord,
    RunRecord,
    default_root,
    left_alive,
    make_run_dir,
    running,
    start_ticks,
)
from katsura.cli.exit import NotRunningError
from katsura.domain.errors import AlreadyExistsError, PermissionDeniedError, ResourceExhaustedError

RECORD = RunRecord(
    pid=7,
    started=1,
    url="http://127.0.0.1:8080",
    version="0.1.0",
    run_dir="/nowhere/katsura-x",
    store_url="unix:///s",
    hints_url="unix:///s",
    durability="relaxed",
    token="s3cret",
    processes=(ProcessRecord("memory-0", "memory", 9, "unix:/m", "ready", 0, 5),),
)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data")
    made.create()
    return made


def test_a_record_is_read_as_it_was_written_and_is_for_the_owner_only(folder: DataFolder) -> None:
    folder.write_run(RECORD)
    assert folder.read_run() == RECORD
    assert (folder.root / "run.json").stat().st_mode & 0o777 == 0o600
    assert folder.root.stat().st_mode & 0o077 == 0


def test_a_full_disk_is_said_and_leaves_the_record_before(folder: DataFolder) -> None:
    folder.write_run(RECORD)
    (folder.root / "run.partial").symlink_to("/dev/full")
    with pytest.raises(ResourceExhaustedError, match="No space left on device"):
        folder.write_run(replace(RECORD, pid=8))
    assert folder.read_run() == RECORD


def test_too_little_room_is_told_before_the_store_fails(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.require_room()
    monkeypatch.setattr(data_module, "ROOM_BYTES_MIN", 1 << 62)
    with pytest.raises(ResourceExhaustedError, match="KiB are free; nothing can be kept"):
        folder.require_room()


def test_a_record_does_not_show_its_secret() -> None:
    assert "s3cret" not in repr(RECORD)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}'])
def test_a_broken_record_is_no_record(folder: DataFolder, text: str) -> None:
    (folder.root / "run.json").write_text(text)
    assert folder.read_run() is None


def test_fields_of_a_later_version_are_read_past() -> None:
    later = RECORD.to_json().replace('"pid": 7', '"pid": 7, "later": 1').replace('"name"', '"later": 1, "name"')
    assert RunRecord.from_json(later) == RECORD


def test_one_supervisor_owns_a_folder_and_another_is_told_where_it_serves(folder: DataFolder) -> None:
    other = DataFolder(folder.root)
    assert not other.is_owned()
    with folder.owned():
        assert other.is_owned()
        with pytest.raises(AlreadyExistsError, match="is starting"), other.owned():
            pass
        folder.write_run(RECORD)
        with pytest.raises(AlreadyExistsError, match=r"http://127\.0\.0\.1:8080 \(pid 7\)"), other.owned():
            pass
    assert not other.is_owned()
    with other.owned():
        pass


def test_the_end_of_a_run_removes_its_record_and_its_sockets(folder: DataFolder) -> None:
    run_dir = make_run_dir({})
    folder.write_run(replace(RECORD, run_dir=str(run_dir)))
    folder.forget_run()
    assert folder.read_run() is None
    assert not run_dir.exists()
    folder.forget_run()


def test_a_folder_that_is_not_ours_is_never_removed(folder: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    folder.write_run(replace(RECORD, run_dir=str(tmp_path / "precious")))
    folder.forget_run()
    assert (tmp_path / "precious").exists()


def test_a_file_in_the_place_of_the_folder_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(PermissionDeniedError, match="cannot write to the data folder"):
        DataFolder(tmp_path / "data").create()


def test_a_long_log_is_set_aside(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "LOG_BYTES_MAX", 4)
    for text in (b"first\n", b"second\n"):
        descriptor = folder.open_log("memory-0")
        os.write(descriptor, text)
        os.close(descriptor)
    assert folder.tail("memory-0") == "second"
    assert (folder.logs / "memory-0.log.1").read_text() == "first\n"
    assert folder.tail("nobody") == ""


def test_only_the_very_same_process_counts_as_left(folder: DataFolder) -> None:
    me = ProcessRecord("me", "memory", os.getpid(), "", "ready", 0, start_ticks(os.getpid()))
    gone = replace(me, pid=2**22 + 1)
    assert left_alive(replace(RECORD, processes=(me, gone, replace(me, started=1), replace(me, pid=None)))) == [me]


def test_the_default_folder_follows_the_environment() -> None:
    assert default_root({"KATSURA_DATA": "/k", "XDG_DATA_HOME": "/x"}) == Path("/k")
    assert default_root({"XDG_DATA_HOME": "/x"}) == Path("/x/katsura")
    assert default_root({}) == Path.home() / ".local" / "share" / "katsura"


def test_without_a_run_there_is_no_status(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with pytest.raises(NotRunningError, match="katsura up"):
        running(tmp_path)
    folder.create()
    folder.write_run(RECORD)
    with pytest.raises(NotRunningError):
        running(tmp_path)
