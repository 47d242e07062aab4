"""What each of MAGE's operations is worth to an agent that knows only its context: 200 tasks, three ablations.

    python bench/ablations.py --quick      40 tasks
    python bench/ablations.py --json FILE

No language model: `trees/solver.py` says what the scripted agent does and what is assumed of models. Every arm does
the same tasks with the same slips; differences are paired, with 95 % bootstrap intervals over tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from trees.solver import ARMS, Agent, Task

RESAMPLES = 5_000


async def run(tasks: int) -> dict[str, list[float]]:
    """By arm, the share of right subgoals of each task."""
    return {arm: [await Agent(Task.of(seed), arm).solve() for seed in range(tasks)] for arm in ARMS}


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % of the means of resampled tasks (percentile bootstrap, seeded)."""
    drawn = random.Random(1)
    means = sorted(statistics.fmean(drawn.choices(differences, k=len(differences))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def rows_of(shares: dict[str, list[float]]) -> list[dict[str, object]]:
    """One row per measure and arm left out; it holds where the interval is above zero."""
    rows: list[dict[str, object]] = []
    for measure, of in (("subgoals right", lambda share: share), ("tasks solved", lambda share: float(share == 1.0))):
        full = [of(share) for share in shares["all"]]
        for arm in ARMS[1:]:
            without = [of(share) for share in shares[arm]]
            low, high = interval([a - b for a, b in zip(full, without, strict=True)])
            ours, peer = statistics.fmean(full), statistics.fmean(without)
            rows.append(
                {
                    "name": f"{measure}: with {arm}, without",
                    "ours": ours,
                    "peer": peer,
                    "peer_name": f"without {arm}",
                    "unit": "share",
                    "ratio": ours / peer if peer else None,
                    "goal": 0.0,
                    "holds": low > 0,
                    "difference_95": [low, high],
                }
            )
    return rows


def main() -> None:
    """Parse arguments, run, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 tasks")
    parser.add_argument("--setup", action="store_true", help="nothing to set up")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    if arguments.setup:
        return
    rows = rows_of(asyncio.run(run(40 if arguments.quick else 200)))
    for row in rows:
        low, high = row["difference_95"]  # type: ignore[misc]
        verdict = "excludes zero" if row["holds"] else "DOES NOT EXCLUDE ZERO"
        print(f"{row['name']:<44} {row['ours']:.3f} {row['peer']:.3f}  difference {low:+.3f} to {high:+.3f}, {verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
