from __future__ import annotations

import pytest

from katsura.domain.ids import TreeId
from katsura.gateway.core.response_ids import parse_response_id, response_id, tree_id_for_responses


@pytest.mark.parametrize("tree", ["t", "my-tree.1:x", "r0123"])
def test_a_stored_response_leads_back_to_its_tree(tree: str) -> None:
    assert parse_response_id(response_id("abc1", TreeId(tree))) == (tree, "abc1")


@pytest.mark.parametrize(
    "text", ["", "resp_", "resp_abc", "resp_-a", "resp_t-", "resp_t-ä", "chatcmpl-1", "resp_t-a b"]
)
def test_other_texts_lead_nowhere(text: str) -> None:
    assert parse_response_id(text) is None


def test_a_response_that_is_not_stored_leads_nowhere() -> None:
    assert parse_response_id(response_id("abc1", None)) is None


def test_trees_for_responses_have_names() -> None:
    assert tree_id_for_responses("abc") == "rabc"
