"""What the pages say can be typed and followed: commands, options, make targets, links."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from katsura.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
Commands = dict[tuple[str, ...], set[str]]


def commands_of(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Commands:
    """Every command with its options."""
    found: Commands = {words: {option for action in parser._actions for option in action.option_strings}}
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name, below in action.choices.items():
                found |= commands_of(below, (*words, name))
    return found


COMMANDS = commands_of(build_parser({}))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def typed(page: str) -> Iterator[str]:
    """What a page shows in code: lines of blocks, and spans."""
    for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```$", page, re.S | re.M):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page, flags=re.S | re.M))


def words_of(line: str) -> list[str]:
    """The words of a command of ours in a line, up to a comment, a pipe or the end of `$(...)`."""
    found = re.search(r"(?:^|\$\(|[|&] |\s)katsura ([^|;&)#<>]*)", line.strip())
    if found is None or not re.match(r"^(?:\$ |eval |[A-Z_]+=\S+ |.*\| )?\"?(?:\$\()?katsura ", line.strip()):
        return []
    return shlex.split(re.sub(r"[\[\]]", " ", found[1].replace('"', " ").replace("...", " ").replace("'", " ")))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_a_page_shows_exists(path: Path) -> None:
    unknown = []
    for line in typed(path.read_text("utf-8")):
        words = words_of(line)
        words = words[: words.index("--")] if "--" in words else words  # the rest is another program's
        at: tuple[str, ...] = ()
        while words and (*at, words[0]) in COMMANDS:
            at = (*at, words.pop(0))
        options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        says_what = not words or words[0].startswith("-") or not any(command[:-1] == at for command in COMMANDS)
        if words_of(line) and (not at or not says_what or not options <= COMMANDS[at]):
            unknown.append(line)
    assert unknown == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_that_a_page_shows_exists(path: Path) -> None:
    said = [line.strip() for line in typed(path.read_text("utf-8"))]
    assert {m[1] for line in said if (m := re.match(r"(?:\$ )?make ([a-z-]+)", line))} <= TARGETS


def anchors_of(page: str) -> set[str]:
    """The names by which headings can be linked to."""
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.S | re.M)
    titles = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text("utf-8"))):
            broken.append(link)
    assert broken == []


def test_every_file_that_contributors_are_sent_to_exists() -> None:
    named = re.findall(r"`([a-z_]+(?:/[a-z_0-9.]+)+/?)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert named
    places = (ROOT, ROOT / "services" / "katsura")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
