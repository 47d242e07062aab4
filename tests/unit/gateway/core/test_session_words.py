from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError, KatsuraError, NotFoundError, Reason
from katsura.domain.ids import TenantId, TreeId
from katsura.gateway.core.session_words import session_words
from katsura.state.trees import TreeRef, refusal

REF = TreeRef(TenantId("t"), TreeId("s1"))


def told(error: KatsuraError) -> KatsuraError:
    with pytest.raises(KatsuraError) as failure, session_words("s1", "at_node"):
        raise error
    assert failure.value is error
    return error


@pytest.mark.parametrize(
    ("reason", "details", "field"),
    [
        ("TREE_NOT_FOUND", (), "session_id"),
        ("TREE_EXISTS", (), "id"),
        ("BRANCH_NOT_FOUND", ("b",), "branch"),
        ("BRANCH_EXISTS", ("b",), "name"),
        ("NODE_NOT_FOUND", ("7",), "at_node"),
        ("BAD_BOUNDARY", ("7",), "at_node"),
        ("HEAD_MOVED", ("3", "main"), "expected_head"),
    ],
)
def test_a_refusal_of_the_tree_names_the_field_of_the_request(
    reason: str, details: tuple[str, ...], field: str
) -> None:
    error = told(refusal(REF, reason, *details))
    assert error.field == field
    assert error.reason is Reason[reason]
    assert not {"tree_id", "new_branch"} & set(error.message.split())


def test_what_is_no_matter_of_trees_stays_as_it_is() -> None:
    error = told(InvalidArgumentError("goal: too long", field="goal"))
    assert (error.message, error.field) == ("goal: too long", "goal")


def test_an_unknown_session_and_a_name_that_cannot_be_one_read_the_same() -> None:
    error = told(NotFoundError("tree 's1' does not exist", reason=Reason.TREE_NOT_FOUND, field="tree_id"))
    assert error.message == "there is no session 's1'"
