"""`python -m katsura.attention`: an attention shard."""

from __future__ import annotations

import os

from katsura.attention.serve import run_shard
from katsura.rpc.serve import run_process

if __name__ == "__main__":
    run_process(lambda: run_shard("attention", "katsura.attention.worker", os.environ, has_pool=True))
