import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import checked_name


@pytest.mark.parametrize("name", ["a", "trip-1", "A.b_c:9", "x" * 128])
def test_plain_names_pass(name: str) -> None:
    assert checked_name(name, "tree_id") == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "ü", "x" * 129, "a\n"])
def test_other_names_are_refused_and_the_field_is_named(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        checked_name(name, "tree_id")
    assert caught.value.field == "tree_id"
