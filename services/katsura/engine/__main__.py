"""`python -m katsura.engine`: attention and experts in one process pair (topology Unified)."""

from __future__ import annotations

import os

from katsura.attention.serve import run_shard
from katsura.rpc.serve import run_process

if __name__ == "__main__":
    run_process(lambda: run_shard("engine", "katsura.engine.worker", os.environ, has_pool=False))
