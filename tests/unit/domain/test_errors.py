import re
from pathlib import Path

from katsura.domain import errors


def test_every_leaf_has_a_code_of_its_own_and_stands_in_the_drawing() -> None:
    drawing = errors.__doc__ or ""
    for code, kind in errors.BY_CODE.items():
        assert kind.code == code
        assert re.search(rf"{kind.__name__}\s+\d+ {code}", drawing), kind.__name__


def test_every_reason_is_used_somewhere() -> None:
    package = Path(errors.__file__).parents[1]
    text = "\n".join(path.read_text() for path in package.rglob("*.py") if "api" not in path.parts)
    unused = [reason.name for reason in errors.Reason if f"Reason.{reason.name}" not in text]
    assert unused == []


def test_an_error_keeps_what_it_was_told() -> None:
    error = errors.ConflictError("moved", metadata={"head": "7"}, retry_after_s=0.5)
    assert (error.reason, error.metadata, error.retry_after_s, str(error)) == (
        errors.Reason.HEAD_MOVED,
        {"head": "7"},
        0.5,
        "moved",
    )
