"""What AIConfigurator (its measured mode, in its own environment) says about the same points, and which it refuses."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from placing.points import CONFIGS, Row

VERSION = "0.12.0"
SAMPLE, SAMPLE_APART = 300, 100
"""Measurements, aggregated and disaggregated: it takes seconds for each."""
SHIPPED = {model: config.replace("--", "/") for model, config in CONFIGS.items()}
SCRIPT = Path(__file__).resolve().parents[1] / "peers" / "aiconfigurator_points.py"


def setup(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", f"aiconfigurator=={VERSION}"], check=True)


def sample(rows: Sequence[Row], many: int, mode: str = "agg") -> list[Row]:
    """`many` measurements of one mode (that say how many workers share their load), each once, drawn by a hash of the
    id; those of one engine together."""
    once = {r.measured: r for r in rows if r.mode == mode and (mode == "agg" or r.workers_known)}
    drawn = sorted(once.values(), key=lambda r: hashlib.sha256(f"aic {r.id}".encode()).hexdigest())[:many]
    return sorted(drawn, key=lambda r: (r.system, r.backend, r.model, r.id))


def question(r: Row) -> dict[str, Any]:
    """The row in its words. It knows three versions of each engine; the current one stands for all."""
    layout = r.layout
    asked: dict[str, Any] = {
        "model_path": SHIPPED.get(r.model_path, r.model_path),
        "system_name": r.system,
        "backend_name": r.backend,
        "isl": r.load.prompt,
        "osl": r.load.output,
        "batch_size": max(1, round(r.batch / layout.data)),
        "tp_size": layout.tensor,
        "attention_dp_size": layout.data,
        "moe_ep_size": layout.experts,
        "moe_tp_size": max(1, layout.devices // layout.experts),
    }
    quantised = {"gemm_quant_mode": r.modes[0], "moe_quant_mode": r.modes[1]}
    if r.mode == "disagg":
        asked["mode"] = "static_gen"  # decoding by itself, as our terms are for these rows
    return {**asked, **{name: mode for name, mode in quantised.items() if mode}}


def ask(rows: Sequence[Row], folder: Path) -> dict[str, dict[str, Any]]:
    """Answers by row id; those that were given before are read again (`answers.jsonl` in its folder)."""
    kept = folder / "answers.jsonl"
    known = dict(json.loads(line) for line in kept.read_text().splitlines()) if kept.exists() else {}
    keys = {r.id: json.dumps(question(r), sort_keys=True) for r in rows}
    fresh = [key for key in dict.fromkeys(keys.values()) if key not in known]
    if fresh:
        command = [folder / "bin" / "python", SCRIPT]
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer,
            kept.open("a") as file,
        ):
            assert peer.stdin
            assert peer.stdout
            for n, key in enumerate(fresh):
                print(key, file=peer.stdin, flush=True)
                known[key] = json.loads(peer.stdout.readline())
                print(json.dumps([key, known[key]]), file=file, flush=True)
                print(f"AIConfigurator {n + 1}/{len(fresh)}", end="\r", file=sys.stderr, flush=True)
            peer.stdin.close()
    return {row_id: known[key] for row_id, key in keys.items()}
