import pytest

from katsura.domain import errors
from katsura.rpc import status


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: kind.__name__)
def test_every_error_class_has_a_canonical_status(kind: type[errors.KatsuraError]) -> None:
    made = status.to_status(kind("what happened"))
    assert made.code == status.CODES[kind.code].value[0]
    assert made.message == "what happened"
    assert len(made.details) == 1
