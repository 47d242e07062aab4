"""A tiny dense model and a tiny mixture of experts, each in four groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from katsura.experts.groups import Groups, Holdings
from katsura.testing.members import holdings_of
from katsura.testing.tiny import save_tiny
from katsura.weights.reader import Checkpoint


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    return {family: save_tiny(root / family, family).folder for family in ("llama", "mixtral")}


@pytest.fixture(params=["llama", "mixtral"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def holdings(folders: dict[str, Path], family: str) -> Holdings:
    return holdings_of(folders[family], slices=4, groups=2)


@pytest.fixture
def groups(holdings: Holdings) -> Groups:
    """Everything loaded."""
    loaded = Groups(holdings, Checkpoint(holdings.folder))
    for layer in range(holdings.config.shape.layer_count):
        for group in range(holdings.layout.group_count):
            loaded.load((layer, group))
    return loaded
