"""How much a member may hold where nobody says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from katsura.experts.worker import free_bytes


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [(None, None, 8 << 30), ("max", "5", 8 << 30), ("1000000", "400000", 600_000), ("1000", "4000", 0)],
)
def test_the_smaller_of_machine_and_container_counts(
    tmp_path: Path, limit: str | None, used: str | None, expected: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n")
    for name, text in (("memory.max", limit), ("memory.current", used)):
        if text is not None:
            (tmp_path / name).write_text(text + "\n")
    assert free_bytes(meminfo, tmp_path) == expected
