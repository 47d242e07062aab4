"""`katsura plan`: read manifests and nodes, solve, and say who goes where and why."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from katsura.cli.exit import Exit
from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from katsura.manifests.cluster import Cluster, read_cluster
from katsura.manifests.kinds import ModelDeployment
from katsura.manifests.problem import Options, build_problem, check_devices
from katsura.placement import calibration, catalogue
from katsura.placement.card import published, read_card
from katsura.placement.configurations import explain_trials, read_trials, standings, with_runs, write_trials
from katsura.placement.document import document, read_current, schema
from katsura.placement.explain import explain, explain_change, explain_tightened, explain_what_if
from katsura.placement.picture import draw
from katsura.placement.planner import hold_agents, plan, plan_for_agents
from katsura.placement.problem import Effort, Objective, Problem
from katsura.placement.replan import replan
from katsura.placement.tables import read_points, with_points
from katsura.placement.whatif import changed
from katsura.weights.sources import ModelCache, default_cache_root, parse_source

T = TypeVar("T")


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
    trials: Path | None = None
    points: Path | None = None

    def __post_init__(self) -> None:
        numbers = {"gap": self.gap, "seconds": self.seconds, "budget": self.budget_usd}
        for name, value in numbers.items():
            if value is not None and not (0 <= value < math.inf and (value or name == "gap")):
                wanted = "0 or more" if name == "gap" else "above 0"
                raise InvalidArgumentError(f"--{name} {value:g}: expected a number {wanted}", field=name)


def run_plan(options: PlanOptions, environ: Mapping[str, str], console: Console) -> Exit:
    """Print a plan, or what would change; `UNHEALTHY` where not everything can be served."""
    problem = read_problem(options, environ)
    if options.points is not None:
        problem = with_points(problem, read_points(read_text(options.points), str(options.points)), str(options.points))
    trials = ""
    if options.trials is not None:
        problem, trials = _try(problem, options.trials)
    effort = Effort(options.gap, options.nodes, options.seconds, options.seed)
    if options.against is None:
        solved, made = plan_for_agents(problem, effort)
        said = [explain(made, solved), explain_tightened(problem, solved)]
    else:
        against = options.against
        current = naming(against, lambda: read_current(read_text(against)))
        solved, change = hold_agents(
            problem, lambda asked: replan(asked, effort, current, explain=False), lambda c: c.plan
        )
        change = change.explained()
        made = change.plan
        whole = "" if options.dry_run else explain(made, solved)
        said = [whole, explain_tightened(problem, solved), explain_change(change)]
    for text in options.what_if:
        other = plan(changed(solved, text), effort, explain=False)
        said.append(explain_what_if(text, made, other))
    said.append(trials)
    if options.svg is not None:
        _write(options.svg, draw(made, solved), "svg")
    if options.as_json:
        console.print_json(json.dumps(document(made, problem)))
    else:
        console.print(Text("\n\n".join(filter(None, said))), soft_wrap=True)
    return Exit.OK if made.kept else Exit.UNHEALTHY


def _try(problem: Problem, path: Path) -> tuple[Problem, str]:
    """The problem in which settled trials count, the table grown by what to run next, and what to say about it."""
    known = read_trials(read_text(path), str(path)) if path.exists() else ()
    found = standings(problem, known)
    asked = [s.next for s in found if s.next is not None and s.next not in known]
    _write(path, write_trials((*known, *asked)), "trials")
    return with_runs(problem, known, found), explain_trials(found, str(path))


def print_schema(console: Console) -> Exit:
    """Print the JSON schema of `--json`."""
    console.print_json(json.dumps(schema()))
    return Exit.OK


def naming(path: Path, read: Callable[[], T]) -> T:
    """What `read` makes of the file at `path`; what is wrong with it names the file."""
    try:
        return read()
    except InvalidArgumentError as error:
        said = str(error)
        raise InvalidArgumentError(
            said if said.startswith(str(path)) else f"{path}: {said}", field=error.field
        ) from error


def _write(path: Path, text: str, field: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidArgumentError(f"{path}: cannot be written: {error}", field=field) from error


def read_problem(options: PlanOptions, environ: Mapping[str, str]) -> Problem:
    """The problem that the files and options state.

    Raises:
        InvalidArgumentError: a file cannot be read or is wrong.
        FailedPreconditionError: a model's sizes are not known here, or there is nothing to place.
    """
    if not options.files:
        raise InvalidArgumentError("name the cluster and what to place: katsura plan -f cluster.yaml -f model.yaml")
    cluster = read_cluster([(str(path), read_text(path)) for path in options.files])
    check_devices(cluster, catalogue.built_in())
    known = calibration.built_in()
    if options.calibration is not None:
        path = options.calibration
        known = known.merged(naming(path, lambda: calibration.read_devices(read_text(path))))
    if options.extrapolate:
        known = known.extrapolating()
    asked = Options(
        Objective(options.objective),
        options.budget_usd,
        options.confidence,
        pairs=options.pairs,
        pipelines=options.pipelines or None,
    )
    return build_problem(cluster, configs_of(cluster, options.configs, environ), catalogue.built_in(), known, asked)


def read_text(path: Path) -> str:
    """The text of a file, `-` for standard input."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path}: cannot be read: {error}", field="file") from error


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
            raise NotFoundError(
                f"{where}no published card {model.card!r}; known: {', '.join(published())}. Or name its config.json: "
                f"--config {name}=config.json",
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
