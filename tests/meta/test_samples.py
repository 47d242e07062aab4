"""Every sample is what it says: it can be read, laid out, and explains itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from katsura.cli.core.layout import Place, lay_out
from katsura.cli.up import read_bundle

SAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "samples").glob("*.yaml"))
PLACE = Place("/run/k", "/data", "127.0.0.1:8080", "token")


def test_there_are_samples() -> None:
    assert {"demo", "unified", "replicated", "custom"} <= {path.stem for path in SAMPLES}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_can_be_served_and_begins_by_saying_what_it_is(sample: Path) -> None:
    bundle = read_bundle((sample,))
    layout = lay_out(bundle, PLACE, {d.metadata.name: "/m" for d in bundle.deployments})
    assert layout.processes
    assert sample.read_text("utf-8").startswith("# ")


def test_the_demo_sample_is_what_is_served_without_a_file() -> None:
    assert read_bundle(()) == read_bundle((next(path for path in SAMPLES if path.stem == "demo"),))
