"""What `katsura up` shows."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from katsura.cli.core.fleet import Child, Fleet, Phase
from katsura.cli.core.layout import Layout
from katsura.cli.data import ProcessRecord, RunRecord
from katsura.cli.narrate import Narrator, typing_here
from katsura.cli.up import read_bundle
from katsura.manifests.stores import Durability
from katsura.weights.progress import Stage

RECORD = RunRecord(
    pid=7,
    started=1,
    url="http://127.0.0.1:8123",
    version="0.1.0",
    run_dir="/r",
    store_url="redis://me:hunter2@host/0",
    hints_url="",
    durability="relaxed",
    token="s3cret",
    processes=(ProcessRecord("memory-0", "memory", 41, "unix:/r/memory-0.sock", "ready", 0),),
)


def narrator() -> tuple[Narrator, io.StringIO]:
    out = io.StringIO()
    return Narrator(Console(file=out, width=100)), out


def test_the_screen_says_what_runs_where_and_how_to_try_it() -> None:
    tell, out = narrator()
    tell.screen(RECORD, Layout((), RECORD.store_url, "", Durability.RELAXED), read_bundle(()))
    said = out.getvalue()
    for part in (
        "http://127.0.0.1:8123/v1",
        "memory-0",
        "41",
        "unix:/r/memory-0.sock",
        "smollm2-135m-instruct",
        "Split",
    ):
        assert part in said
    assert "hunter2" not in said
    assert "s3cret" not in said


def test_the_curl_can_be_copied_as_it_stands() -> None:
    tell, out = narrator()
    tell.screen(RECORD, Layout((), "unix:///s", "", Durability.RELAXED), read_bundle(()))
    lines = out.getvalue().splitlines()
    at = next(i for i, line in enumerate(lines) if "curl " in line)
    assert lines[at].endswith(" \\")
    assert lines[at + 1].strip().startswith("-d '{")
    assert lines[at + 1].endswith("}]}'")


def test_where_others_can_reach_it_the_screen_begins_with_a_key() -> None:
    tell, out = narrator()
    tell.screen(RECORD, Layout((), "unix:///s", "", Durability.RELAXED), read_bundle(()), keyless=False)
    said = out.getvalue()
    assert 'eval "$(katsura key create --tenant me --env)"' in said
    assert '-H "authorization: Bearer $KATSURA_API_KEY" \\' in said


def test_what_is_to_be_typed_works_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, data = tmp_path / "env" / "bin", tmp_path / "my data"
    tools.mkdir(parents=True)
    (tools / "katsura").write_text("#!/bin/sh\n")
    (tools / "katsura").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    monkeypatch.chdir(tmp_path)
    usual = {"KATSURA_DATA": str(data), "PATH": ""}
    assert typing_here(data, usual)("chat") == "env/bin/katsura chat"
    assert typing_here(data, usual | {"PATH": str(tools)})("chat") == "katsura chat"
    assert typing_here(data, {"PATH": str(tools)})("tree list") == f"katsura tree list --data '{data}'"
    monkeypatch.chdir(tools)
    assert typing_here(data, usual)("chat") == "./katsura chat"
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "executable", "/opt/python")
    assert typing_here(data, usual)("chat").endswith("opt/katsura chat")


def test_into_a_file_each_stage_and_each_process_is_told_once() -> None:
    tell, out = narrator()
    with tell.preparing("pypi://x") as progress:
        for done in range(5):
            progress.advance(Stage.DOWNLOAD, done, 5)
        progress.say("mended")
    child = Child("memory-0", 1, 1, phase=Phase.READY)
    with tell.watching():
        for _ in range(3):
            tell.fleet(Fleet.of([child]))
    said = [line.partition("s  ")[2].strip() for line in out.getvalue().splitlines()]
    assert said == ["downloading pypi://x", "mended", "memory-0 is ready"]


def test_a_reader_that_goes_away_does_not_end_what_serves() -> None:
    code = "from katsura.cli.narrate import ServingConsole\ninput()\nc = ServingConsole()\nc.print('a')\nc.print('b')"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.close()
    child.stdin.write(b"go\n")
    child.stdin.close()
    assert child.wait(60) == 0
