"""`katsura tree diff|explain|export|import|verify` as a person types them, over a real memory process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.cli.exit import Exit
from katsura.cli.main import run
from katsura.sdk.memory import step
from katsura.sdk.sync import Katsura

Typed = Callable[..., str]


@pytest.fixture
def typed(memory_key: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types `katsura tree WORDS...` and gives what it printed; a failure prints to standard error."""

    def type_(*words: str, status: Exit = Exit.OK) -> str:
        environment = {"KATSURA_MEMORY_ADDRESS": memory_key[0], "KATSURA_API_KEY": memory_key[1]}
        assert run(["tree", *words], environment) == status
        said = capsys.readouterr()
        return said.out if status is Exit.OK else said.err

    return type_


@pytest.fixture
def trip(katsura: Katsura, request: pytest.FixtureRequest) -> str:
    """Steps 1, 2 in summary 3; slot 4; step 5 abandoned with hint 6; step 7 on branch b2; failed summary 8."""
    name, run_, memory = f"trip-{request.node.name[:60]}", katsura.run, katsura.memory
    run_(memory.create_tree(tree_id=name, goal="Book a room in Kyoto", pins=["at most 450 USD"]))
    run_(memory.grow(name, [step("user", "Find a room."), step("assistant", "H-7: 900 USD")]))
    run_(memory.compress(name))
    run_(memory.set_slot(name, "city", "Kyoto"))
    run_(memory.grow(name, [step("assistant", "Booked H-7.")]))
    run_(memory.revise(name, restore_after=2, reason="too dear"))
    run_(memory.grow(name, [step("assistant", "H-8: 90 USD")]))
    run_(memory.compress(name, summary=tree_pb.SummaryBody(text="Paid 777 USD for H-99.")))
    return name


def test_explain_tells_of_every_node_why_it_is_in_the_context_or_not(typed: Typed, trip: str) -> None:
    whole = typed("explain", trip)
    for said in ("goal and pins", "#3 summary", "#4 slot", "#6 hint", "#7 assistant", "summary #3 stands for them"):
        assert said in whole
    assert "steps up to #2" in whole
    because = {node: typed("explain", trip, str(node)) for node in range(1, 9)}
    for node in (3, 4, 6, 7):
        assert "is in the context of b2, with" in because[node]
    for node in (1, 2):
        assert f"step #{node} is not in the context of b2: summary #3 stands for steps 1 to 2" in because[node]
    assert "b2 does not go through it, it was made on main; hint #6 tells why that was left" in because[5]
    assert "its check failed" in because[8]
    assert "h-99" in because[8]
    said = json.loads(typed("explain", trip, "7", "--json"))
    assert (said["included"], said["branch"], said["node_id"]) == (True, "b2", 7)


def test_watch_prints_commits_of_trees_named_and_labelled(typed: Typed, katsura: Katsura) -> None:
    run_, memory = katsura.run, katsura.memory
    for name, labels in (("wa", {"team": "w"}), ("wb", {"team": "v"}), ("wc", {})):
        run_(memory.create_tree(tree_id=name, labels=labels))
    run_(memory.grow("wc", [step("user", "x"), step("user", "y")]))
    said = typed("watch", "wc", "--label", "team=w", "--count", "3").splitlines()
    assert sorted(said) == ["wa 1 tree created on main", "wc 1 tree created on main", "wc 2 grown on main #1 #2"]
    (line,) = typed("watch", "wa", "--count", "1", "--json").splitlines()
    assert (json.loads(line)["treeId"], json.loads(line)["kind"]) == ("wa", "EVENT_KIND_TREE_CREATED")
    run_(memory.delete_tree("wb"))
    assert "does not exist" in typed("watch", "wb", status=Exit.FAILED)
    with pytest.raises(SystemExit):
        typed("watch", "--label", "team")


def test_explain_follows_roll_ups_down_to_their_steps(typed: Typed, katsura: Katsura) -> None:
    run_, memory = katsura.run, katsura.memory
    policy = tree_pb.TreePolicy(rollup_fanout=2)
    run_(memory.create_tree(tree_id="rolled", policy=policy))
    for number in range(5):
        run_(memory.grow("rolled", [step("user", f"question {number}"), step("assistant", f"answer {number}")]))
        run_(memory.compress("rolled"))
    nodes = run_(memory.list_nodes("rolled", page_size=100)).nodes
    rollups = [node.node_id for node in nodes if node.summary.level]
    parts = [part for node in nodes for part in node.summary.parts]
    assert rollups
    said = [json.loads(typed("explain", "rolled", str(n), "--json")) for n in (1, *parts)]
    assert not any(each["included"] for each in said)
    assert "stands for steps 1 to " in said[0]["why"]
    assert [each["why"] for each in said[1:] if "stands for" not in each["why"]] == []
    assert "a summary stands for them" not in typed("explain", "rolled")


def test_diff_shows_what_each_branch_has_alone(typed: Typed, trip: str, katsura: Katsura) -> None:
    katsura.run(katsura.memory.set_slot(trip, "hotel", "H-8", branch="b2"))
    said = typed("diff", trip, "main")
    assert "b2 and main part after #2" in said
    assert (
        said.index("- only b2: 1 step\n") < said.index("#7 assistant H-8: 90 USD") < said.index("+ only main: 1 step")
    )
    assert said.index("~ slot hotel") < said.index("- b2: H-8") < said.index("+ main: not set")
    assert json.loads(typed("diff", trip, "main", "--json"))["common_node"] == "2"


def test_a_tree_goes_out_and_in_again_with_its_hashes(
    typed: Typed, trip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "trip.jsonl"
    assert f"{trip} is in {file}" in typed("export", trip, "-o", str(file))
    assert [path.name for path in tmp_path.iterdir()] == ["trip.jsonl"]
    assert "choose another with --name" in typed("import", str(file), status=Exit.FAILED)
    copy = json.loads(typed("import", str(file), "--name", f"{trip}-copy", "--json"))
    digest = json.loads(typed("verify", trip, "--json"))["digest"]
    assert copy["digest"] == digest
    assert f"every hash holds; digest {digest}" in typed("verify", copy["tree"])
    piped = io.TextIOWrapper(io.BytesIO(file.read_bytes()))
    monkeypatch.setattr("sys.stdin", piped)
    assert f"{trip}-piped has 8 nodes and 2 branches" in typed("import", "-", "--name", f"{trip}-piped")


def test_failures_say_what_to_do(typed: Typed, trip: str, tmp_path: Path) -> None:
    for words in (("explain", "nope"), ("verify", "nope"), ("diff", "nope", "main"), ("export", "nope")):
        assert "`katsura tree list` shows" in typed(*words, status=Exit.FAILED)
    assert f"`katsura tree show {trip}` shows" in typed("diff", trip, "nope", status=Exit.FAILED)
    assert f"`katsura tree show {trip}` shows" in typed("explain", trip, "99", status=Exit.FAILED)
    missing = str(tmp_path / "nope")
    assert "cannot read" in typed("import", missing, status=Exit.USAGE)
    assert "cannot write" in typed("export", trip, "-o", f"{missing}/x", status=Exit.FAILED)
    assert "No such" in typed("export", trip, "-o", f"{missing}/x", status=Exit.FAILED)
    assert "does not answer" in typed("verify", trip, "--memory", f"unix:{missing}", status=Exit.FAILED)


def test_whose_trees_they_are_must_be_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tree", "verify", "x", "--memory", "127.0.0.1:1"], {}) == Exit.FAILED
    assert "katsura key create" in capsys.readouterr().err
    assert run(["tree", "verify", "x", "--data", str(tmp_path)], {}) == Exit.NOT_RUNNING
