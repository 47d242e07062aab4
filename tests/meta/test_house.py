"""The house rules of CONTRIBUTING.md as tests: limits, mirrors, charters, fresh generated code."""

from __future__ import annotations

import ast
import filecmp
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from katsura.cli.main import build_parser
from katsura.domain.errors import Reason

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "services" / "katsura"
OPERATOR = ROOT / "operator" / "katsura_operator"
FUNCTION_LINES_MAX, FILE_LINES_MAX = 70, 600
# The line limit is ruff's (E501).
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


def python_files(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in files if PACKAGE / "api" not in path.parents and "__pycache__" not in path.parts)


SOURCES = python_files("services", "operator", "protos")
ALL = [*SOURCES, *python_files("tests", "bench", "examples")]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_file_is_longer_than_the_limit() -> None:
    long = {name_of(path): len(path.read_text().splitlines()) for path in ALL}
    assert {name: count for name, count in long.items() if count > FILE_LINES_MAX} == {}


def test_no_function_is_longer_than_the_limit() -> None:
    long = [
        f"{name_of(path)}:{function.lineno} {function.name}"
        for path in ALL
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_every_package_has_a_charter_and_nothing_else() -> None:
    for path in (*PACKAGE.rglob("__init__.py"), *OPERATOR.rglob("__init__.py")):
        if PACKAGE / "api" in path.parents:
            continue
        body = ast.parse(path.read_text()).body
        assert body, f"{name_of(path)}: no charter"
        assert isinstance(body[0], ast.Expr), f"{name_of(path)}: begins with something other than its charter"
        # The SDK is the only package whose names are taken from the package itself.
        if path.parent.name not in ("sdk", "testing"):
            assert len(body) == 1, f"{name_of(path)}: a charter is all that an __init__ holds"


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name_of(path) for path in SOURCES if path.stem in BANNED_NAMES] == []


def test_source_roots_and_tests_are_not_packages() -> None:
    stray = [
        *(ROOT / "tests").rglob("__init__.py"),
        *ROOT.glob("operator/__init__.py"),
        *ROOT.glob("services/__init__.py"),
    ]
    assert [name_of(path) for path in stray] == []


def test_every_unit_test_mirrors_a_module() -> None:
    orphans = []
    for path in (ROOT / "tests" / "unit").rglob("test_*.py"):
        relative = path.relative_to(ROOT / "tests" / "unit")
        stem = relative.stem.removeprefix("test_")
        top, *rest = relative.parent.parts
        room = OPERATOR.joinpath(*rest) if top == "operator" else PACKAGE / relative.parent
        candidates = [room / f"{stem}.py", room / stem / "__init__.py", room / "core" / f"{stem}.py"]
        if not any(candidate.exists() for candidate in candidates):
            orphans.append(str(relative))
    assert orphans == []


def test_no_import_hides_from_the_layers_contract() -> None:
    hidden = [
        name_of(path) for path in SOURCES if re.search(r"importlib\.import_module|__import__\(", path.read_text())
    ]
    assert hidden == []


def test_no_pickle_anywhere() -> None:
    guilty = [
        name_of(path)
        for path in SOURCES
        if re.search(r"^\s*(import|from) (pickle|marshal|shelve)\b", path.read_text(), re.M)
    ]
    assert guilty == []


def test_no_test_sleeps() -> None:
    guilty = []
    for path in python_files("tests"):
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\btime\.sleep\(|asyncio\.sleep\((?!0\))", line):
                guilty.append(f"{name_of(path)}:{number}")
    assert guilty == []


def test_no_machine_path_is_written_down() -> None:
    pattern = re.compile(r"(^|[^\w.])/(work|farm|root|tmp/bash_jobs)/")
    files = [path for path in ALL if path != Path(__file__)]
    files += [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    assert [name_of(path) for path in files if pattern.search(path.read_text())] == []


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    generator, docs = str(ROOT / "protos" / "generate.py"), tmp_path / "docs"
    command = [sys.executable, generator, "--out", str(tmp_path), "--docs", str(docs)]
    subprocess.run(command, check=True, capture_output=True)
    pairs = [(tmp_path / "katsura" / "api", PACKAGE / "api", "*.py*"), (docs, ROOT / "docs" / "api", "*.md")]
    for made, kept, kind in pairs:
        names = {path.relative_to(made) for path in made.rglob(kind) if "__pycache__" not in path.parts}
        assert names == {path.relative_to(kept) for path in kept.rglob(kind) if "__pycache__" not in path.parts}
        _, different, broken = filecmp.cmpfiles(made, kept, [str(name) for name in names], shallow=False)
        assert (different, broken) == ([], []), "run `make protos` and commit the output"


def test_the_api_reference_names_only_reasons_that_exist_and_links_to_what_is_there() -> None:
    pages = {path.name: path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")}
    said = {name for text in pages.values() for pair in re.findall(r"\b[A-Z_]{5,} / ((?:[A-Z_]+(?:, )?)+)", text)
            for name in pair.split(", ") if name}  # fmt: skip
    assert said
    assert said <= set(Reason.__members__)
    headings = {name: re.findall(r"^#+ (.+)$", text, re.M) for name, text in pages.items()}
    assert [name for name, titles in headings.items() if len(set(titles)) < len(titles)] == []
    for name, text in pages.items():
        for page, anchor in re.findall(r"\]\(([a-z]+\.md)?(?:#([a-z]+))?\)", text):
            assert not anchor or anchor in {title.lower() for title in headings[page or name]}, (name, page, anchor)


def test_the_readme_names_only_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^\s*(?:\$ )?make ([a-z-]+)", readme, re.M)) <= targets
    said = set(re.findall(r"^\s*(?:\$ )?katsura ([a-z]+)|`katsura ([a-z]+)", readme, re.M))
    actions = build_parser({})._actions
    commands = next(action.choices for action in actions if isinstance(action.choices, dict))
    assert {name for pair in said for name in pair if name} <= set(commands)


@pytest.mark.parametrize("wanted", ["torch==2.13.0", "protobuf==", "grpcio=="])
def test_constraints_pin_what_ci_tested(wanted: str) -> None:
    assert wanted in (ROOT / "constraints.txt").read_text()
