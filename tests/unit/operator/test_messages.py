"""What crosses between the operator and its solver: everything, and nothing else."""

from __future__ import annotations

from dataclasses import fields

from katsura_operator.core.desire import Desired
from katsura_operator.core.messages import Question, read_answer, snapshot_of, write_answers
from katsura_operator.core.objects import key_of
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Sample


def thing(kind: str, name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "n"}}


def test_every_field_of_what_is_decided_crosses() -> None:
    seen = {key_of(obj): obj for obj in (thing("Pod", f"p{i}") for i in range(9))}
    objects = list(seen.values())
    desired = Desired()
    for number, each in enumerate(fields(Desired)):
        match each.name:
            case "plan":
                desired.plan = thing("PlacementPlan", "plan-000001")
            case "statuses":
                desired.statuses = [(objects[0], {"status": {"x": None}})]
            case "seeds" | "keep" | "events":
                setattr(desired, each.name, [thing("Service", each.name)])
            case _:
                setattr(desired, each.name, [objects[number % 9], objects[8]])
    read = Desired()
    for line in write_answers(desired):
        assert "\n" not in line
        read_answer(line, read, seen)
    assert read == desired
    assert read.statuses[0][0] is objects[0]


def test_a_question_reads_as_it_was_written() -> None:
    settings = Settings("n", "s:1", "e:1", pull_secrets=("a", "b"), nodes_observed=True, overcommit=2.0)
    samples = (
        Sample("n/chat", "r", "node", 2, 1.5, 0.01, 2.5, 300.0),
        Sample("n/b", "r", "other", 0, 8.0, 0.02, 4.0, 9.0),
    )
    question = Question(settings, "2026-11-21T12:00:00Z", "it\nended", 3, (("Pod", "n", "a"),), samples, ("u1", "u2"))
    assert Question.read(question.write()) == question
    assert "\n" not in question.write()


def test_loose_objects_are_a_snapshot_by_kind() -> None:
    made = snapshot_of([thing("Pod", "b"), thing("Node", "x"), thing("Pod", "a")], "now")
    assert {kind: len(found) for kind, found in made.objects.items()} == {"Pod": 2, "Node": 1}
