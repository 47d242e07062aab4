"""What the facts of `katsura doctor` mean."""

from __future__ import annotations

import pytest

from katsura.cli.core import checks
from katsura.cli.core.checks import Finding, Verdict
from katsura.domain.units import GIB

GOOD, WARN, BAD = Verdict.GOOD, Verdict.WARN, Verdict.BAD
SOUND = {
    "version": "9.1.2", "promise": "strict", "appendonly": "yes", "appendfsync": "always", "maxmemory": "0",
    "maxmemory-policy": "x",
}  # fmt: skip
RELAXED, CACHE = {"promise": "relaxed", "appendfsync": "everysec"}, {"promise": "cache", "appendonly": "no"}


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (checks.python((3, 11, 0)), GOOD),
        (checks.python((3, 10, 9)), BAD),
        (checks.packages({"torch": "2", "redis": "6"}), GOOD),
        (checks.packages({"torch": None, "redis": "6"}), BAD),
        (checks.embedded_server("/x"), GOOD),
        (checks.embedded_server(None), WARN),
        (checks.disk("/d", GIB, model_cached=True), GOOD),
        (checks.disk("/d", GIB, model_cached=False), BAD),
        (checks.memory(4 * GIB), GOOD),
        (checks.memory(GIB), WARN),
        (checks.cpu(2, frozenset(("avx2", "fma"))), GOOD),
        (checks.cpu(2, frozenset(("asimd",))), GOOD),
        (checks.cpu(2, frozenset()), WARN),
        (checks.kernels(True, frozenset(("avx2",))), GOOD),
        (checks.kernels(True, frozenset(("asimd",))), WARN),
        (checks.kernels(False, frozenset(("avx2",))), WARN),
        (checks.files(1024), GOOD),
        (checks.files(256), WARN),
        (checks.data_folder("/d", ""), GOOD),
        (checks.data_folder("/d", "cannot write"), BAD),
        (checks.port(8080, taken=False, ours=False), GOOD),
        (checks.port(8080, taken=True, ours=True), GOOD),
        (checks.port(8080, taken=True, ours=False), BAD),
        (checks.model("pypi://x", []), GOOD),
        (checks.model("pypi://x", ["model.safetensors"]), BAD),
        (checks.process("memory-0", True, "", 0, "", "/log"), GOOD),
        (checks.process("memory-0", True, "", 2, "ended by SIGKILL", "/log"), WARN),
        (checks.process("memory-0", False, "unreachable", 0, "", "/log"), BAD),
        (checks.run(True, True, 0, "/d"), GOOD),
        (checks.run(False, False, 0, "/d"), GOOD),
        (checks.run(False, True, 0, "/d"), WARN),
        (checks.run(False, True, 2, "/d"), BAD),
    ],
)
def test_a_fact_has_a_verdict_and_what_is_not_good_says_how_to_mend_it(finding: Finding, verdict: Verdict) -> None:
    assert finding.verdict is verdict
    assert finding.what
    assert bool(finding.mend) is (verdict is not GOOD)


def test_missing_packages_are_named() -> None:
    assert checks.packages({"b": None, "a": None, "c": "1"}).what == "not installed: a, b"


@pytest.mark.parametrize(
    ("asked", "change", "verdicts"),
    [
        ("strict", {}, [GOOD, GOOD, GOOD]),
        ("strict", {"version": "6.2.14"}, [BAD, GOOD, GOOD]),
        ("strict", RELAXED, [GOOD, BAD, GOOD]),
        ("relaxed", RELAXED, [GOOD, GOOD, GOOD]),
        ("relaxed", CACHE, [GOOD, BAD, GOOD]),
        ("cache", CACHE, [GOOD, GOOD, GOOD]),
        ("", RELAXED, [GOOD, GOOD, GOOD]),
        ("", CACHE, [GOOD, WARN, GOOD]),
        ("strict", {"aof_last_bgrewrite_status": "err"}, [GOOD, GOOD, WARN, GOOD]),
        ("strict", {"maxmemory": "100", "maxmemory-policy": "allkeys-lru"}, [GOOD, GOOD, BAD]),
        ("cache", {"maxmemory": "100", "maxmemory-policy": "allkeys-lru"}, [GOOD, GOOD, GOOD]),
        ("strict", {"maxmemory": "100", "maxmemory-policy": "noeviction"}, [GOOD, GOOD, GOOD]),
    ],
)
def test_a_store_keeps_what_is_asked_of_it_and_never_evicts_trees(
    asked: str, change: dict[str, str], verdicts: list[Verdict]
) -> None:
    findings = checks.store("store", asked, "", SOUND | change)
    assert [f.verdict for f in findings] == verdicts
    assert all(bool(f.mend) is (f.verdict is not GOOD) for f in findings)


def test_hints_may_evict_and_what_was_not_seen_is_not_judged() -> None:
    assert len(checks.store("hints", "none", "", SOUND)) == 1
    assert [f.check for f in checks.store("store", "strict", "", {"version": "8.0"})] == ["store"]


def test_a_store_that_does_not_answer_is_bad_and_nothing_else_is_said() -> None:
    (finding,) = checks.store("store", "strict", "connection refused", {})
    assert (finding.verdict, finding.what) == (BAD, "connection refused")
