from enum import Enum

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.rpc.env import Env


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def test_values_are_read_with_their_types_and_defaults() -> None:
    env = Env({"KATSURA_A": "x", "KATSURA_N": "3", "KATSURA_C": "blue", "KATSURA_L": "a, b", "KATSURA_F": "true"})
    assert env.text("KATSURA_A") == "x"
    assert env.number("KATSURA_N") == 3
    assert env.choice("KATSURA_C", Colour) is Colour.BLUE
    assert env.names("KATSURA_L") == ("a", "b")
    assert env.flag("KATSURA_F") is True
    assert env.real("KATSURA_R", 1.5) == 1.5
    assert env.descriptor("KATSURA_FD") is None
    env.finish()


def test_all_mistakes_are_reported_together() -> None:
    env = Env({"KATSURA_N": "many", "KATSURA_LISTNE": "x", "OTHER": "y"})
    env.number("KATSURA_N", 1)
    env.text("KATSURA_LISTEN", "")
    env.text("KATSURA_TOKEN")
    with pytest.raises(InvalidArgumentError) as caught:
        env.finish()
    message = caught.value.message
    assert "KATSURA_N: expected a whole number" in message
    assert "KATSURA_TOKEN: required" in message
    assert "KATSURA_LISTNE: unknown variable; did you mean KATSURA_LISTEN?" in message
    assert "OTHER" not in message


def test_bounds_are_part_of_the_type() -> None:
    env = Env({"KATSURA_N": "11"})
    env.number("KATSURA_N", 1, low=1, high=10)
    with pytest.raises(InvalidArgumentError, match="from 1 to 10"):
        env.finish()
