"""Every message of the pipe comes back as it was."""

from __future__ import annotations

import json

import pytest

from katsura.domain.errors import ResourceExhaustedError
from katsura.domain.leases import GroupRange
from katsura.domain.shape import FfnLayout
from katsura.experts import messages

RANGES = (GroupRange(0, 3, (0, 2)), GroupRange(3, 4, (1,)))
ALL = [
    messages.Start(2**62),
    messages.Load(1, RANGES),
    messages.Fuse(9, RANGES),
    messages.Serve(4),
    messages.Free(2, RANGES, 5),
    messages.Probe(3, ()),
    messages.Drain(4),
    messages.Hello(b"w" * 32, "ab" * 16, 3, FfnLayout(8, 4), 1000, 1e-5, 1e-7, 1 << 40, ("shm:/a", "tcp:h:1")),
    messages.Done(1, RANGES, 12, (messages.Digest(0, 1, b"d" * 16),)),
    messages.Failed.of(2, ResourceExhaustedError("too much")),
    messages.Report(2, 10, 1, 0.25, (messages.TracedStep("00-a-b-01", 1, 2, 3, 4, 5),)),
]


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_pipe(message: messages.Message) -> None:
    assert messages.read(json.loads(json.dumps(messages.write(message)))) == message


def test_an_error_keeps_its_kind_and_its_words() -> None:
    error = messages.Failed.of(1, ResourceExhaustedError("too much")).error()
    assert isinstance(error, ResourceExhaustedError)
    assert error.message == "too much"
