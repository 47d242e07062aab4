"""`katsura plan`: read manifests and nodes, solve, and say who goes where and why."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from katsura.cli.exit import Exit
from katsura.cli.files import alone, naming, read_text, write_file
from katsura.cli.raster import png
from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError
from katsura.domain.units import MIB
from katsura.manifests.cluster import Cluster, read_cluster
from katsura.manifests.kinds import ModelDeployment
from katsura.manifests.problem import Options, build_problem, check_devices
from katsura.manifests.reader import suggestion
from katsura.manifests.rules import ManifestError
from katsura.placement import calibration, catalogue
from katsura.placement.card import published, read_card
from katsura.placement.configurations import explain_trials, read_trials, standings, with_runs, write_trials
from katsura.placement.document import document, read_current, schema
from katsura.placement.explain import explain, explain_change, explain_tightened, explain_what_if
from katsura.placement.picture import draw
from katsura.placement.plan import Plan
from katsura.placement.planner import hold_agents, plan, plan_for_agents
from katsura.placement.problem import Effort, Objective, Problem
from katsura.placement.replan import change_document, replan
from katsura.placement.tables import read_points, with_points
from katsura.placement.whatif import changed, outcome_document
from katsura.weights.sources import ModelCache, default_cache_root, parse_source

_SEED_MOST: Final = 2**31 - 1
"""Of the solver."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What may be said on the command line. `seconds` bounds the search; `seed` and `gap` decide its result.

    Raises:
        InvalidArgumentError: a number that cannot be meant.
    """

    files: tuple[Path, ...]
    objective: str = "cost"
    budget_usd: float | None = None
    confidence: float = 0.9
    gap: float = 0.005
    seconds: float | None = 10.0
    nodes: int | None = None
    seed: int = 1
    calibration: Path | None = None
    extrapolate: bool = False
    pairs: bool = False
    pipelines: bool = False
    configs: tuple[str, ...] = ()
    what_if: tuple[str, ...] = ()
    against: Path | None = None
    dry_run: bool = False
    as_json: bool = False
    svg: Path | None = None
    png: Path | None = None
    trials: Path | None = None
    points: Path | None = None

    def __post_init__(self) -> None:
        for name, value in {"seconds": self.seconds, "budget": self.budget_usd}.items():
            if value is not None and not 0 < value < math.inf:
                raise InvalidArgumentError(f"--{name} {value:g}: expected a number above 0", field=name)
        if not 0 <= self.gap < 1:
            raise InvalidArgumentError(f"--gap {self.gap:g}: expected a number from 0 to below 1", field="gap")
        if not 0 <= self.seed <= _SEED_MOST:
            raise InvalidArgumentError(f"--seed {self.seed}: expected a number from 0 to {_SEED_MOST}", field="seed")
        if self.dry_run and self.against is None:
            raise InvalidArgumentError(
                "--dry-run prints what would change of a plan; name it: --against PLAN (from --json)", field="dry-run"
            )
        if self.files.count(Path("-")) > 1:
            raise InvalidArgumentError("-f -: standard input can be read once only", field="file")


def run_plan(options: PlanOptions, environ: Mapping[str, str], console: Console) -> Exit:
    """Print a plan, or what would change; `UNHEALTHY` where not everything can be served."""
    problem = read_problem(options, environ)
    if options.points is not None:
        problem = _with_points(problem, options.points)
    trials = ""
    if options.trials is not None:
        problem, trials = _try(problem, options.trials)
    with _interruptible():
        made, solved, answer, said = _answer(options, problem)
    picture = draw(made, solved) if options.svg or options.png else ""
    if options.svg is not None:
        write_file(options.svg, picture, "svg")
    if options.png is not None:
        write_file(options.png, png(picture), "png")
    if options.as_json:
        console.print_json(json.dumps(answer))
    else:
        console.print(Text("\n\n".join(filter(None, (*said, trials)))), soft_wrap=True)
    return Exit.OK if made.kept else Exit.UNHEALTHY


def _answer(options: PlanOptions, problem: Problem) -> tuple[Plan, Problem, dict[str, Any], list[str]]:
    """The plan, the problem that it answers, the document of `--json`, and the same in words."""
    # What is asked beside it is checked before the first search.
    changes = [(text, changed(problem, text)) for text in options.what_if]
    effort = Effort(options.gap, options.nodes, options.seconds, options.seed)
    if options.against is None:
        solved, made = plan_for_agents(problem, effort)
        answer = document(made, problem)
        said = [explain(made, solved), explain_tightened(problem, solved)]
    else:
        against = options.against
        current = naming(against, lambda: read_current(read_text(against)))
        solved, change = hold_agents(
            problem, lambda asked: replan(asked, effort, current, explain=False), lambda c: c.plan
        )
        change = change.explained()
        made = change.plan
        answer = document(made, problem)
        answer["status"]["change"] = change_document(change)
        whole = "" if options.dry_run else explain(made, solved)
        said = [whole, explain_tightened(problem, solved), explain_change(change)]
    if changes:
        others = [(text, plan(changed(solved, text), effort, explain=False)) for text, _ in changes]
        said += (explain_what_if(text, made, other) for text, other in others)
        answer["status"]["whatIf"] = [outcome_document(text, made, other) for text, other in others]
    return made, solved, answer, said


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the process at once, as it does any other: the solver hears nobody before it has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _try(problem: Problem, path: Path) -> tuple[Problem, str]:
    """The problem in which settled trials count, the table grown by what to run next, and what to say about it."""
    with alone(path, "trials"):
        known = read_trials(read_text(path), str(path)) if path.exists() else ()
        found = naming(path, lambda: standings(problem, known))
        asked = [s.next for s in found if s.next is not None and s.next not in known]
        if asked or not path.exists():
            write_file(path, write_trials((*known, *asked)), "trials")
    return with_runs(problem, known, found), explain_trials(found, str(path))


def _with_points(problem: Problem, path: Path) -> Problem:
    text = read_text(path)
    points = read_points(text, str(path))
    rows = Counter(timed.device for _, timed in points)
    _check_devices(problem, path, text, rows)
    here = {device.name for c in problem.classes for device in (c.device or c.core, c.core)}
    unused = tuple(
        f"{path}: {count} row{'s' * (count > 1)} of {device}, which no node here has"
        for device, count in sorted(rows.items())
        if device not in here
    )
    return with_points(replace(problem, unknown=(*problem.unknown, *unused)), points, str(path))


def _check_devices(problem: Problem, path: Path, text: str, named: Iterable[str]) -> None:
    """Raise where a file names a device that neither the catalogue nor the cluster knows: it would be passed over."""
    known = {*catalogue.built_in().devices, *(c.device.name for c in problem.classes if c.device)}
    known |= {c.core.name for c in problem.classes}
    for name in named:
        if name not in known:
            line = next(number for number, row in enumerate(text.splitlines(), 1) if name in row)
            raise InvalidArgumentError(f"{path}:{line}: no device {name!r}{suggestion(name, known)}", field="device")


def print_schema(console: Console) -> Exit:
    """Print the JSON schema of `--json`."""
    console.print_json(json.dumps(schema()))
    return Exit.OK


def read_problem(options: PlanOptions, environ: Mapping[str, str]) -> Problem:
    """The problem that the files and options state.

    Raises:
        InvalidArgumentError: a file cannot be read or is wrong, or there is nothing to place, or nowhere.
        FailedPreconditionError: a model's sizes are not known here.
    """
    if not options.files:
        raise InvalidArgumentError("name the cluster and what to place: katsura plan -f cluster.yaml -f model.yaml")
    cluster = read_files(options.files)
    check_devices(cluster, catalogue.built_in())
    known, mine = calibration.built_in(), options.calibration
    if mine is not None:
        text = read_text(mine)
        measured = naming(mine, lambda: calibration.read_devices(text))
        known = known.merged(measured)
    if options.extrapolate:
        known = known.extrapolating()
    asked = Options(
        Objective(options.objective),
        options.budget_usd,
        options.confidence,
        pairs=options.pairs,
        pipelines=options.pipelines or None,
    )
    configs = configs_of(cluster, options.configs, environ)
    try:
        problem = build_problem(cluster, configs, catalogue.built_in(), known, asked)
    except FailedPreconditionError as error:
        # What a live cluster lacks for a while, files lack until somebody writes it.
        raise InvalidArgumentError(str(error), field=error.field) from error
    if mine is not None:
        _check_devices(problem, mine, text, measured)
    return problem


def read_files(paths: Sequence[Path]) -> Cluster:
    """What the files hold.

    Raises:
        InvalidArgumentError: with every problem, by file and line.
    """
    files = [(str(path), read_text(path)) for path in paths]
    try:
        return read_cluster(files)
    except ManifestError:
        # JSON is read fast and without its lines. Where it is wrong it is read again, as the YAML that it is too.
        read_cluster([(name, f"--- {text}" if _is_short_json(text) else text) for name, text in files])
        raise


def _is_short_json(text: str) -> bool:
    return text.startswith("{") and len(text) < MIB and "\t" not in text


def configs_of(cluster: Cluster, said: Sequence[str], environ: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Each deployment's `config.json`: as said (`NAME=FILE`), its published card, or the folder of its source."""
    names = [d.metadata.name for d in cluster.bundle.deployments]
    files: dict[str, str] = {}
    for entry in said:
        name, equals, file = entry.partition("=")
        if not equals or name not in names:
            raise InvalidArgumentError(
                f"--config {entry}: expected DEPLOYMENT=FILE, of {', '.join(names) or 'no deployment at all'}",
                field="config",
            )
        files[name] = file
    return {
        d.metadata.name: _config(cluster, d, files.get(d.metadata.name), environ) for d in cluster.bundle.deployments
    }


def _config(
    cluster: Cluster, deployment: ModelDeployment, file: str | None, environ: Mapping[str, str]
) -> Mapping[str, Any]:
    name, model = deployment.metadata.name, deployment.spec.model
    if file is not None:
        return _parsed(Path(file))
    if model.card is not None:
        if model.card not in published():
            where = cluster.where("ModelDeployment", name, "spec.model.card") or f"{name}: "
            raise InvalidArgumentError(
                f"{where}no published card {model.card!r} (its config.json may be named instead: --config "
                f"{name}=config.json){suggestion(model.card, published())}",
                field="spec.model.card",
            )
        return published()[model.card]
    source = parse_source(model.source)
    cached = {m.uri: m.folder for m in ModelCache(default_cache_root(environ)).entries()}
    folder = (
        Path(model.source.removeprefix("file://")) if model.source.startswith("file://") else cached.get(source.uri)
    )
    if folder is None or not (folder / "config.json").exists():
        where = cluster.where("ModelDeployment", name, "spec.model.source") or f"{name}: "
        raise FailedPreconditionError(
            f"{where}the sizes of {model.source} are not known here. Get it (katsura model pull {model.source}), set "
            f"spec.model.card, or name its config.json: --config {name}=config.json",
            field="spec.model.source",
        )
    return _parsed(folder / "config.json")


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(read_text(path))
    except ValueError as error:
        raise InvalidArgumentError(f"{path}: not JSON: {error}", field="config") from error
    if not isinstance(config, Mapping):
        raise InvalidArgumentError(f"{path}: a config.json holds an object", field="config")
    naming(path, lambda: read_card(config))
    return config
