from __future__ import annotations

import errno
from pathlib import Path

import pytest

from katsura.domain.errors import Reason, ResourceExhaustedError
from katsura.weights.space import full_disk_named, require_space


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_how_much_is_needed_and_where(code: int, tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceExhaustedError, match=r"2\.0 MiB are needed") as caught,
        full_disk_named(tmp_path, 2**21),
    ):
        raise OSError(code, "full")
    assert caught.value.reason is Reason.DISK_FULL
    assert str(tmp_path) in caught.value.message


def test_other_faults_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk_named(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_room_that_is_there_is_not_complained_about(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(ResourceExhaustedError):
        require_space(tmp_path, 1 << 62)
