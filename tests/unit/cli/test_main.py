"""The command line: what may be typed, and the status of every way it can end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from katsura.cli.exit import Exit
from katsura.cli.main import build_parser, run

COMMANDS = [
    "up", "status", "doctor", "chat", "tree list", "tree show", "tree fork", "tree revise", "tree diff",
    "tree explain", "tree export", "tree import", "tree verify", "demo", "mcp",
    "model list", "model pull", "key create", "key list", "key revoke", "version", "plan", "calibrate", "crds",
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_explains_itself(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser({}).parse_args([*words.split(), "--help"])
    assert ended.value.code == 0
    assert f"usage: katsura {words}" in capsys.readouterr().out


def test_the_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser({}).parse_args(["--help"])
    said = capsys.readouterr().out
    for example in ("katsura up", "katsura chat", "katsura tree show", "katsura doctor", "exit status:"):
        assert example in said


@pytest.mark.parametrize("words", [[], ["fly"], ["up", "--port", "70000"], ["up", "--port", "x"], ["tree"]])
def test_wrong_use_is_status_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(words, {})
    assert ended.value.code == Exit.USAGE
    assert "usage: katsura" in capsys.readouterr().err


def test_an_unknown_option_is_answered_by_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["plan", "--bugdet", "10", "--whatif=nodes:L4=2"], {})
    assert ended.value.code == Exit.USAGE
    said = capsys.readouterr().err
    assert "usage: katsura plan" in said
    assert "--bugdet 10 --whatif=nodes:L4=2; did you mean --budget, --what-if?" in said


def test_a_full_disk_under_the_output_is_a_failure_and_no_traceback() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "katsura.cli.main", "plan", "--schema"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert ended.returncode == Exit.FAILED
    assert ended.stderr == "not everything could be written: No space left on device\n"


def test_a_failure_is_told_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--data", str(tmp_path)], {}) == Exit.NOT_RUNNING
    said = capsys.readouterr()
    assert said.out == ""
    assert "nothing runs from" in said.err


def test_a_manifest_that_is_wrong_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.yaml").write_text("apiVersion: katsura.dev/v1alpha1\nkind: ModelDeploymnt\n")
    status = run(["up", "--data", str(tmp_path / "d"), "-f", str(tmp_path / "m.yaml")], {})
    assert status == Exit.USAGE
    assert "m.yaml:2: kind: no kind 'ModelDeploymnt' in group katsura.dev; did you mean \"ModelDeployment\"?" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "d").exists()


def test_the_data_folder_comes_from_the_environment() -> None:
    assert build_parser({"KATSURA_DATA": "/k"}).parse_args(["status"]).data == Path("/k")
