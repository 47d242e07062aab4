"""What may be typed after `katsura plan` and `katsura calibrate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from katsura.cli.exit import Exit
from katsura.cli.words import leaf
from katsura.domain.errors import FailedPreconditionError

_PLAN = """\
Reads ModelDeployments, MemoryStores, Agents, AcceleratorProfiles, Nodes, Pods and ResourceSlices, as YAML or JSON.
It needs no cluster and applies nothing. More, and what its numbers are worth: docs/placement.md

examples:
  katsura plan -f deploy/samples/clusters/mixed-gpus.yaml
  kubectl get nodes,pods -A -o json | katsura plan -f - -f model.yaml
  katsura plan -f cluster.yaml --what-if nodes:L4=+2 --what-if demand:chat=x2
  katsura plan -f cluster.yaml --json > current.json
  katsura plan -f cluster.yaml --against current.json --dry-run

exit status: 0 all is served; 6 not all can be (the plan says what is in the way); 2 wrong use or input; 1 failed
"""
_CALIBRATE = """\
Times a running `katsura up` (or any OpenAI-compatible server) at several batches; about a minute.

examples:
  katsura up -f model.yaml                                       in another terminal
  katsura calibrate -f model.yaml --device cpu --units 1
  katsura calibrate -f model.yaml --device L4 --table times.csv  measured already
  katsura plan -f cluster.yaml -f model.yaml --calibration calibration.json
"""


def add_plan(commands: Any) -> None:
    """`katsura plan`."""
    parser = leaf(commands, "plan", "place models on nodes by cost, and explain the plan", _plan, epilog=_PLAN)
    _add_inputs(parser, "cluster or manifest, - for standard input; may be repeated", "config.json of a model")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--objective",
        choices=("cost", "energy", "latency", "throughput"),
        default="cost",
        help="what to make small: dollars, watts, seconds of one request of each model; or large: the factor by which "
        "all demand may grow (default: %(default)s)",
    )
    asked.add_argument("--budget", type=float, metavar="USD", help="most dollars per hour")
    asked.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="CHANGE",
        help="also solve with nodes:DEVICE=+2, price:DEVICE=0.5, demand:NAME=x2, itl:NAME=80 or ttft:NAME=900 "
        "(+2 adds, -2 takes away, x2 multiplies, 2 sets); may be repeated",
    )
    asked.add_argument("--against", type=Path, metavar="PLAN", help="change this plan (from --json) only where it pays")
    asked.add_argument(
        "--dry-run", action="store_true", help="with --against: print the changes only; nothing is ever applied"
    )
    _add_knowledge(parser.add_argument_group("what is known"))
    search = parser.add_argument_group("how long to search")
    search.add_argument(
        "--gap", type=float, help="stop when this close to the bound (default: 0.005; 0.01 with --against)"
    )
    search.add_argument("--seconds", type=float, help="stop after this long (default: 10; 4 with --against)")
    search.add_argument("--seed", type=int, default=1, help="of the search (default: 1)")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--json", action="store_true", help="print a PlacementPlan as JSON")
    out.add_argument("--schema", action="store_true", help="print the JSON schema of --json, and nothing else")
    out.add_argument("--svg", type=Path, metavar="FILE", help="draw the plan and its cost against its times")
    out.add_argument("--png", type=Path, metavar="FILE", help="the same picture as PNG")


def _add_knowledge(known: Any) -> None:
    known.add_argument(
        "--confidence",
        type=float,
        choices=(0.5, 0.9),
        default=0.9,
        help="part of measured points that lay below the time that an objective is held against (default: 0.9)",
    )
    known.add_argument("--calibration", type=Path, metavar="FILE", help="coefficients that `katsura calibrate` wrote")
    known.add_argument("--points", type=Path, metavar="CSV", help="measured points: interpolate between them")
    known.add_argument(
        "--trials", type=Path, metavar="CSV", help="ask for up to 4 configurations to be timed, and plan with the times"
    )
    known.add_argument(
        "--extrapolate", action="store_true", help="guess, and say so, more than 4x beyond what was measured"
    )
    known.add_argument(
        "--pairs", action="store_true", help="also plan prefill and decode apart, which our engine does not run yet"
    )
    known.add_argument(
        "--pipelines",
        action="store_true",
        help="also cut by layers what fits otherwise (what does not is always tried); our engine does not run it",
    )


def add_calibrate(commands: Any) -> None:
    """`katsura calibrate`."""
    parser = leaf(
        commands, "calibrate", "time what runs, and write coefficients for plans", _calibrate, epilog=_CALIBRATE
    )
    _add_inputs(parser, "the ModelDeployment that runs", "config.json of the model")
    parser.add_argument("--device", default="", help="catalogue device it runs on, such as cpu or H100")
    parser.add_argument("--units", type=int, default=1, help="accelerators or cores of one replica (default: 1)")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="server to time (default: %(default)s)")
    parser.add_argument("--api-key", default="", metavar="KEY", help="API key, where it wants one")
    parser.add_argument(
        "--table", type=Path, metavar="CSV", help="read times instead: batch,prompt,output,itl_ms,ttft_ms"
    )
    parser.add_argument(
        "--trials", type=Path, metavar="CSV", help="time the next row of this table of `katsura plan --trials` instead"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("calibration.json"),
        metavar="FILE",
        help="where to write; devices that are in it stay (default: %(default)s)",
    )


def _add_inputs(parser: argparse.ArgumentParser, files: str, config: str) -> None:
    parser.add_argument("-f", "--file", type=Path, action="append", default=[], help=files)
    parser.add_argument("--config", action="append", default=[], metavar="NAME=FILE", help=f"{config}, by deployment")


def _plan(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    try:
        from katsura.cli.plan import PlanOptions, print_schema, run_plan
    except ModuleNotFoundError as error:
        raise _lacking(error) from error

    if a.schema:
        return print_schema(out)
    options = PlanOptions(
        files=tuple(a.file),
        objective=a.objective,
        budget_usd=a.budget,
        confidence=a.confidence,
        gap=a.gap if a.gap is not None else 0.005 if a.against is None else 0.01,
        seconds=a.seconds if a.seconds is not None else 10.0 if a.against is None else 4.0,
        seed=a.seed,
        calibration=a.calibration,
        extrapolate=a.extrapolate,
        pairs=a.pairs,
        pipelines=a.pipelines,
        configs=tuple(a.config),
        what_if=tuple(a.what_if),
        against=a.against,
        dry_run=a.dry_run,
        as_json=a.json,
        svg=a.svg,
        png=a.png,
        trials=a.trials,
        points=a.points,
    )
    return run_plan(options, environ, out)


def _calibrate(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    try:
        from katsura.cli.calibrate import CalibrateOptions, calibrate
    except ModuleNotFoundError as error:
        raise _lacking(error) from error

    options = CalibrateOptions(
        tuple(a.file), a.device, a.out, a.url, a.api_key, a.table, a.units, tuple(a.config), a.trials
    )  # fmt: skip
    return calibrate(options, environ, out)


def _lacking(error: ModuleNotFoundError) -> FailedPreconditionError:
    return FailedPreconditionError(f"{error.name} is missing: pip install 'katsura[plan]'")
