"""The exit status of every kind of failure."""

from __future__ import annotations

import pytest

from katsura.cli.exit import Exit, NotRunningError, PortTakenError, RunningError, exit_of
from katsura.domain.errors import AlreadyExistsError, InvalidArgumentError, KatsuraError, UnavailableError
from katsura.manifests.rules import ManifestError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ManifestError([]), Exit.USAGE),
        (InvalidArgumentError("x"), Exit.USAGE),
        (PortTakenError("x"), Exit.PORT_TAKEN),
        (RunningError("x"), Exit.ALREADY_RUNNING),
        (AlreadyExistsError("x"), Exit.FAILED),
        (NotRunningError("x"), Exit.NOT_RUNNING),
        (UnavailableError("x"), Exit.FAILED),
    ],
)
def test_every_kind_of_failure_has_its_status(error: KatsuraError, status: Exit) -> None:
    assert exit_of(error) is status
