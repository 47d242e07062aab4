"""`katsura plan` on the samples, word for word. The search stops on its gap or node count, never on time.

After a wanted change: `python tests/golden/test_plans.py` writes the files anew; read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from katsura.manifests.cluster import read_cluster
from katsura.manifests.problem import Options, build_problem
from katsura.placement import calibration, catalogue
from katsura.placement.card import published
from katsura.placement.explain import explain, explain_tightened
from katsura.placement.planner import plan_for_agents
from katsura.placement.problem import Effort

SAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "samples" / "clusters"
PLANS = Path(__file__).parent / "plans"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.yaml"))


def render(name: str) -> str:
    path = SAMPLES / f"{name}.yaml"
    cluster = read_cluster([(path.name, path.read_text())])
    configs = {d.metadata.name: published()[d.spec.model.card or ""] for d in cluster.bundle.deployments}
    options = Options(pipelines=None)  # as `katsura plan` asks
    problem = build_problem(cluster, configs, catalogue.built_in(), calibration.built_in(), options)
    solved, made = plan_for_agents(problem, Effort(gap=0.02, nodes=40, seconds=None))
    return f"{explain(made, solved)}\n\n{explain_tightened(problem, solved)}".rstrip() + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_of_a_sample_reads_as_it_did(name: str) -> None:
    assert render(name) == (PLANS / f"{name}.txt").read_text()


def test_every_golden_plan_has_a_sample() -> None:
    assert sorted(path.stem for path in PLANS.glob("*.txt")) == NAMES


if __name__ == "__main__":
    for sample in NAMES:
        (PLANS / f"{sample}.txt").write_text(render(sample))
