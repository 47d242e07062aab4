"""Put a model into a folder as a model cache, ready for pods that can neither write there nor reach a network.

    bake_model.py SOURCE FOLDER DTYPE NUMERICS SLICES GROUPS

Beside the weights goes the kernel plan of one revision: all pods of a revision must compute alike, and from a folder
that none of them can write they could not agree on a plan.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from katsura.domain.shape import DType, Numerics, layout_for
from katsura.weights.kernels import ship_plan
from katsura.weights.load import read_config
from katsura.weights.manifest import Manifest, record_of
from katsura.weights.sources import ModelCache, parse_source


def bake(source: str, root: Path, dtype: DType, numerics: Numerics, slices: int, groups: int) -> Path:
    """Returns the model's folder below `root`."""
    folder = ModelCache(root).ensure(parse_source(source))
    manifest = Manifest.read(folder)
    assert manifest is not None
    shape = read_config(folder).shape
    ship_plan(folder, shape, layout_for(shape, slices, groups), dtype, numerics, now=time.perf_counter)
    for name in manifest.files:
        # Layers of an image keep whole seconds; a file whose time changed would be hashed at every start.
        os.utime(folder / name, (int(time.time()),) * 2)
    files = {name: record_of(folder / name, record.sha256) for name, record in manifest.files.items()}
    Manifest(manifest.source, manifest.resolved, manifest.converter, files, manifest.origin).write(folder)
    return folder


if __name__ == "__main__":
    print(bake(sys.argv[1], Path(sys.argv[2]), DType(sys.argv[3]), Numerics(sys.argv[4]), *map(int, sys.argv[5:7])))
