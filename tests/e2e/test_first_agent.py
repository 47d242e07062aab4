"""docs/first-agent.md, block by block as a newcomer types it, on a real `katsura up`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("up")
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "first-agent.md"


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """Language, text, and the last file that was named before, of each fenced block that has a language."""
    end = 0
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.S | re.M):
        named = re.findall(r"`(\w+\.py)`", page[end : found.start()])
        yield found[1], found[2], named[-1] if named else ""
        end = found.end()


def as_pattern(text: str) -> str:
    """What the page prints, where ` … ` at the place of a number or digest is anything."""
    return re.sub(r"(?<=digest )…|(?<=: )…(?= bytes)", r"\\S+", re.escape(text).replace(r"\ ", " "))


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], str]:
    """A shell in a folder of its own, with `katsura` and `python` on its path as in an activated environment."""
    tools, folder = tmp_path / "bin", tmp_path / "work"
    tools.mkdir()
    folder.mkdir()
    for name, words in (("python", ""), ("katsura", "-m katsura.cli.main ")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (tools / name).chmod(0o755)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("KATSURA_")}
    environ |= {"PATH": f"{tools}:{environ['PATH']}", "KATSURA_DATA": str(tmp_path / "data"), "COLUMNS": "120"}
    (folder / ".profile").write_text("")

    def run(script: str) -> str:
        whole = f"set -e\n. ./.profile\n{script}"
        done = subprocess.run(
            ["bash", "-c", whole], cwd=folder, env=environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def test_the_page_that_teaches_says_what_happens(
    serve: Callable[..., Any], shell: Callable[[str], str], tmp_path: Path
) -> None:
    page = PAGE.read_text("utf-8")
    assert 'eval "$(katsura key create --tenant me --env)"' in page
    serve(topology="Unified").up()
    folder = tmp_path / "work"
    (folder / ".profile").write_text(shell("katsura key create --tenant me --env"))
    said = ""
    for language, text, name in blocks(page):
        match language:
            case "python":
                (folder / name).write_text(text, "utf-8")
            case "sh":
                said = shell(text)
            case "text":
                assert re.fullmatch(as_pattern(text), said), (
                    f"the page says\n{text}\nand this is what was said:\n{said}"
                )
    assert (folder / "trip.svg").read_text("utf-8") == (DOCS / "first-agent.svg").read_text("utf-8"), (
        "`katsura tree show` draws another picture: make docs/first-agent.svg anew as the page says"
    )
