"""The one door to the solver (HiGHS): a mixed-integer program in, values with a proven bound out.

`program` builds what goes in. One thread and a fixed seed, so that the same program gives the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np

from katsura.domain.errors import InternalError
from katsura.placement.problem import Effort

INFINITY = float("inf")
TIME_LIMIT = "time limit reached"
"""How a search ended whose seconds were spent."""


@dataclass(slots=True)
class Program:
    """min cost @ x subject to row_low <= A x <= row_high, low <= x <= high; built row by row."""

    names: list[str] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    row_names: list[str] = field(default_factory=list)
    row_low: list[float] = field(default_factory=list)
    row_high: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    indices: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def variable(self, name: str, cost: float, low: float, high: float, integer: bool = False) -> int:
        """Add a variable and return its index."""
        for held, value in zip((self.names, self.cost, self.low, self.high), (name, cost, low, high), strict=True):
            held.append(value)  # type: ignore[attr-defined]
        self.integer.append(integer)
        return len(self.names) - 1

    def row(self, name: str, terms: dict[int, float], low: float = -INFINITY, high: float = INFINITY) -> int:
        """Add low <= sum of terms <= high and return the row's index."""
        self.row_names.append(name)
        self.row_low.append(low)
        self.row_high.append(high)
        kept = sorted((i, v) for i, v in terms.items() if v)
        self.indices += [i for i, _ in kept]
        self.values += [v for _, v in kept]
        self.starts.append(len(self.indices))
        return len(self.row_names) - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """Values of all variables (None where none were found), a lower bound on any, how it ended, its time."""

    values: tuple[float, ...] | None
    objective: float
    bound: float
    ended: str
    seconds: float = 0.0


class Relaxed:
    """The linear relaxation of a program, kept to be asked again: each answer starts from the basis of the last one."""

    def __init__(self, program: Program) -> None:
        self._program, self._model = program, _model(program, relaxed=True)

    def ask(self, high: Mapping[int, float] | None = None) -> tuple[Answer, Mapping[str, float]]:
        """The optimum, which bounds every integer solution, with the reduced cost of each variable.

        Args:
            high: upper limits of variables by index, instead of the program's own, for this question only.
        """
        program, model = self._program, self._model
        self._limit(high or {})
        began = model.getRunTime()
        model.run()
        status = model.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            answer: Answer = Answer(None, INFINITY, INFINITY, str(model.modelStatusToString(status)))
            duals: Mapping[str, float] = {}
        else:
            solution, value = model.getSolution(), model.getInfo().objective_function_value
            answer = Answer(tuple(solution.col_value), value, value, "optimal", model.getRunTime() - began)
            duals = dict(zip(program.names, solution.col_dual, strict=True))
        self._limit({i: program.high[i] for i in high or {}})
        return answer, duals

    def _limit(self, high: Mapping[int, float]) -> None:
        if high:
            indices = np.array(list(high), np.int32)
            low = np.array([self._program.low[i] for i in high], float)
            self._model.changeColsBounds(len(high), indices, low, np.array(list(high.values()), float))


def relax(program: Program) -> tuple[Answer, Mapping[str, float]]:
    """The linear relaxation of a program that is asked once (`Relaxed.ask`)."""
    return Relaxed(program).ask()


def solve(
    program: Program, effort: Effort, start: Sequence[float] | None = None, enough: float | None = None
) -> Answer:
    """The best integer solution within `effort`.

    Args:
        start: one to improve on, ignored where it is infeasible.
        enough: an objective that is good enough to stop at, where a bound is known from elsewhere.
    """
    model = _model(program, relaxed=False)
    if enough is not None:
        model.setOptionValue("objective_target", enough)
    model.setOptionValue("mip_rel_gap", effort.gap)
    if effort.nodes is not None:
        model.setOptionValue("mip_max_nodes", effort.nodes)
    if effort.seconds is not None:
        model.setOptionValue("time_limit", effort.seconds)
    model.setOptionValue("random_seed", effort.seed)
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = list(start)
        model.setSolution(solution)
    model.run()
    info, status = model.getInfo(), model.getModelStatus()
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    values = tuple(model.getSolution().col_value) if found else None
    bound = info.mip_dual_bound if any(program.integer) else info.objective_function_value
    objective = info.objective_function_value if found else INFINITY
    return Answer(values, objective, bound, str(model.modelStatusToString(status)).lower(), model.getRunTime())


def _model(program: Program, relaxed: bool) -> highspy.Highs:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.names), len(program.row_names)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = (np.array(v, float) for v in (program.cost, program.low, program.high))
    lp.row_lower_, lp.row_upper_ = np.array(program.row_low, float), np.array(program.row_high, float)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.array(program.starts, np.int32)
    lp.a_matrix_.index_ = np.array(program.indices, np.int32)
    lp.a_matrix_.value_ = np.array(program.values, float)
    if not relaxed:
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[flag] for flag in program.integer]
    model: highspy.Highs = highspy.Highs()  # type: ignore[no-untyped-call]
    model.setOptionValue("output_flag", False)
    model.setOptionValue("threads", 1)
    if model.passModel(lp) == highspy.HighsStatus.kError:
        raise InternalError("the solver refused the placement program; please report the manifests that made it")
    return model
