from __future__ import annotations

import json

import pytest

from katsura.attention import messages
from katsura.attention.core import intake
from katsura.attention.core.plan import Admitted, Ended, Failed, Finish, Load, Opened, SequenceView
from katsura.attention.core.sequence import Owner, Program
from katsura.attention.messages import Done, Drawn, Pool, Report, Sampling, Timing
from katsura.domain.errors import InternalError, NotFoundError, Reason
from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.leases import GroupRange
from katsura.domain.shape import FfnLayout, ModelShape
from katsura.domain.tables import Assignment, ExpertTable

OWNER = Owner("t", bytes(range(32)))
PROGRAM = Program("p", "tree", "main", 3)
TABLE = ExpertTable(
    DeploymentName("d"),
    "r",
    Epoch(4),
    3,
    FfnLayout(8, 4),
    (Assignment(InstanceId("m"), Incarnation(9), 0, ("shm:/s",), "f", (GroupRange(0, 3, (0, 1)),), ()),),
)
REQUEST = intake.Generate(
    1, OWNER, PROGRAM, "", ("a", "b"), (1, 2), 9, (2,), 1.5, (intake.Resumed((4,), False), intake.Resumed((), True))
)


@pytest.mark.parametrize(
    "command",
    [
        messages.Start(2**62),
        messages.Open(1, "r", OWNER, PROGRAM, "s", (1, 2, 3), 2.5, 9.0),
        messages.Generate(REQUEST, Sampling(temperature=0.5, bias_ids=(3,), bias_values=(-1.5,)), "00-ab-cd-01"),
        messages.Fork(1, "r", OWNER, "s", ("a",), 7, 9.0),
        messages.Truncate(1, OWNER, "s", 7),
        messages.Delete(1, OWNER, "s"),
        messages.DropPages(1, OWNER, (b"x" * 16,), True),
        messages.Cancel(1),
        messages.Drain(True),
        messages.Snapshot(),
        messages.Tables(TABLE),
        messages.Tables(None),
    ],
    ids=lambda command: type(command).__name__,
)
def test_a_command_arrives_as_it_was_sent(command: messages.Command) -> None:
    sent = json.loads(json.dumps(messages.write_command(command)))
    assert messages.read_command(sent) == command


def test_a_report_arrives_as_it_was_sent() -> None:
    view = SequenceView("s", PROGRAM, 9, 8, 4, 1.5)
    report = Report(
        answers=(
            Drawn(1, 2, 3, Finish.STOP, -0.5, ((3, -0.5), (4, -1.0))),
            Drawn(1, 2, 3, None),
            Admitted(1, 10, 8),
            Ended(1, 0, Finish.EVICTED),
            Opened(2, (view,)),
            Done(3, 7),
        ),
        load=Load(1, 2, 3, 4, 5, 6, 7),
        batch=(4, b"\x01\x02"),
        snapshot=(4, (b"a" * 16, b"b" * 16)),
        timing=Timing(1, 2, 0.5, 0.25, 0.125, 3, 4, 5),
        pool=Pool(3, "group 1", {"m": "shm"}, 2),
        paused="why",
    )
    assert messages.read_report(json.loads(json.dumps(messages.write_report(report)))) == report
    assert messages.read_report(messages.write_report(Report())) == Report()


def test_an_error_keeps_its_class_reason_field_and_facts() -> None:
    error = NotFoundError("gone", reason=Reason.SEQUENCE_NOT_FOUND, field="f", metadata={"a": "b"}, retry_after_s=1.5)
    (answer,) = messages.read_report(messages.write_report(Report((Failed(1, error),)))).answers
    assert isinstance(answer, Failed)
    back = answer.error
    assert isinstance(back, NotFoundError)
    assert (back.message, back.reason, back.field, back.metadata, back.retry_after_s) == (
        "gone",
        Reason.SEQUENCE_NOT_FOUND,
        "f",
        {"a": "b"},
        1.5,
    )


def test_a_greeting_says_what_is_served_or_why_nothing_is() -> None:
    hello = messages.Hello(bytes(32), ModelShape("llama", 3, 48, 6, 2, 8, 64, 0, 0, 199, 512), FfnLayout(8, 4), 512, 64)
    assert messages.read_hello(messages.write_hello(hello)) == hello
    with pytest.raises(NotFoundError, match="no weights"):
        messages.read_hello(messages.write_failure(NotFoundError("no weights")))


def test_an_unknown_answer_is_our_bug() -> None:
    with pytest.raises(InternalError):
        messages.read_report({"answers": [["?", 1]]})
