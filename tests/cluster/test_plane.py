"""The control plane of these tests: what happens around its start must not make them red."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from katsura.testing import kube
from katsura.testing.kube import ControlPlane


def test_a_port_that_somebody_took_meanwhile_is_no_reason_not_to_start(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, asked = kube._free_port, list[int]()
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        theirs.listen()

        def hasty() -> int:
            asked.append(free() if asked else theirs.getsockname()[1])
            return asked[-1]

        monkeypatch.setattr(kube, "_free_port", hasty)
        with ControlPlane(tmp_path / "plane", plane.binaries) as made:
            assert made.ask("GET", "/readyz").status_code == 200
    assert len(asked) == 6, "three ports a start, and two starts"
