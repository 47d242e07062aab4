"""What a field may hold."""

from __future__ import annotations

import pytest

from katsura.manifests.rules import ManifestError, Problem, camel, parse_quantity


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("1024", 1024), ("1k", 1000), ("1Ki", 1024), ("1.5Mi", 1_572_864), ("2Gi", 2**31), ("1T", 10**12)],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, count: int) -> None:
    assert parse_quantity(text) == count


@pytest.mark.parametrize("text", ["", "Mi", "-1", "1 Mi", "1mi", "1KB", "0x10", "1e3"])
def test_what_is_not_a_quantity_is_none(text: str) -> None:
    assert parse_quantity(text) is None


def test_field_names_are_camel_case_in_yaml() -> None:
    assert [camel(name) for name in ("ffn", "page_tokens", "drain_timeout_seconds")] == [
        "ffn",
        "pageTokens",
        "drainTimeoutSeconds",
    ]


def test_an_error_lists_problems_by_file_and_line() -> None:
    error = ManifestError(
        [Problem("b", 9, 1, "x", "bad"), Problem("b", 2, 1, "", "worse"), Problem("a", 1, 1, "y", "odd")]
    )
    assert str(error).splitlines() == ["b:2: worse", "b:9: x: bad", "a:1: y: odd"]
    assert error.code == "INVALID_ARGUMENT"
