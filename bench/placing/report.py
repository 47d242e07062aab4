"""Rows of results: printed as they are found, and kept for `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WIDTH = 78


class Report:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        ours: float,
        unit: str,
        goal: float | None = None,
        more_is_better: bool = True,
        peer: float | None = None,
        peer_name: str = "",
        quiet: bool = False,
    ) -> None:
        holds = None if goal is None else (ours >= goal if more_is_better else ours <= goal)
        ratio = None if peer is None or not ours else (ours / peer if more_is_better else peer / ours)
        if not quiet:
            against = f"  {peer_name} {peer:.4g}" if peer is not None else ""
            verdict = "" if holds is None else ("  holds" if holds else f"  DOES NOT HOLD (goal {goal:g})")
            print(f"{name:{_WIDTH}} {ours:.4g} {unit}{against}{verdict}", flush=True)
        row = {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit}
        self.rows.append({**row, "ratio": ratio, "goal": goal, "holds": holds})

    def errors(
        self, name: str, found: Mapping[str, float], goal: float | None = None, peer: Mapping[str, float] | None = None
    ) -> None:
        def shown(e: Mapping[str, float]) -> str:
            return f"median {e['median']:6.1%}  MAPE {e['mape']:6.1%}  Spearman {e['spearman']:.3f}"

        print(f"{name:{_WIDTH}} n={found['rows']:5.0f}  {shown(found)}{'  | peer ' + shown(peer) if peer else ''}")
        of_peer = None if peer is None else peer["median"]
        peer_name = "AIConfigurator" if peer else ""
        self.add(name, found["median"], "median absolute error", goal, False, of_peer, peer_name, quiet=True)

    def missing(self, name: str, peer: str, why: str) -> None:
        print(f"{name:{_WIDTH}} {peer}: missing ({why})")
        empty = dict.fromkeys(("ours", "peer", "unit", "ratio", "goal", "holds"))
        self.rows.append({"name": name, **empty, "peer_name": f"{peer}: missing ({why})"})
