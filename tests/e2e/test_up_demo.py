"""The conversation of `make run`, on the demo model, through the real split."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from katsura.cli.exit import Exit

pytestmark = [pytest.mark.demo, pytest.mark.xdist_group("up")]


def test_the_demo_answers_forks_revises_and_ends_well(
    command: Callable[..., tuple[int, str]], demo_model: Path, tmp_path: Path
) -> None:
    status, said = command("demo", "--once", "--port", "0", data=tmp_path / "data")
    assert status == Exit.OK, said
    assert "The capital of France is Paris." in said
    assert "The capital of Italy is Rome." in said
    answers = re.findall(r"tokens in \((\d+) cached\)", said)
    assert len(answers) == 6
    assert all(int(cached) > 0 for cached in answers[1:]), "a session's own prefix is found in the cache"
    assert "left behind" in said
    assert "hint from main" in said
    assert "everything has ended" in said
