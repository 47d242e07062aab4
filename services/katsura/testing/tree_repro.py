"""A seeded life that breaks, run again: `python -m katsura.testing.tree_repro SEED` tells how, and with how little.

It lives on the in-memory twin. Operations are left out one by one for as long as it breaks in the same place.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from katsura.state.trees import Limits
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.tree_life import Operation
from katsura.testing.tree_lives import life_of, live


def breaks(operations: Sequence[Operation]) -> str:
    """Where a life breaks, and how; "" where it does not."""
    try:
        asyncio.run(live(TwinTreeStore(Limits()), list(operations)))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).parent == Path(__file__).parent]
        return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}: {error}"
    return ""


def shortest(operations: Sequence[Operation]) -> list[Operation]:
    """Operations of a life that breaks, without those that it does not take, and without the cuts."""
    how, left = _place(operations), list(operations)
    for i in reversed(range(len(left))):
        for fewer in ([*left[:i], *left[i + 1 :]], [*left[:i], left[i]._replace(cut=0), *left[i + 1 :]]):
            if fewer != left and _place(fewer) == how:
                left = fewer
                break
    return left


def _place(operations: Sequence[Operation]) -> str:
    return breaks(operations).partition(": ")[0]


def main(arguments: Sequence[str]) -> int:
    """Run the lives of the seeds named; how many break."""
    broken = 0
    for seed in map(int, arguments):
        operations = life_of(seed)
        how = breaks(operations)
        broken += bool(how)
        sys.stdout.write(f"seed {seed}: {how or 'holds'}\n")
        for operation in shortest(operations) if how else ():
            sys.stdout.write(f"  {operation}\n")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
