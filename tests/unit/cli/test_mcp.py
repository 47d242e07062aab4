"""`katsura mcp` says what is missing before it becomes the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from katsura.cli.exit import NotRunningError
from katsura.cli.mcp import mcp
from katsura.domain.errors import UnauthenticatedError


def test_it_needs_a_memory_service_and_a_key(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        mcp(tmp_path, "", "key", [], {})
    with pytest.raises(NotRunningError):
        mcp(tmp_path, "", "", ["--http", "0"], {})
    with pytest.raises(UnauthenticatedError, match="katsura key create"):
        mcp(tmp_path, "127.0.0.1:7001", "", [], {})
