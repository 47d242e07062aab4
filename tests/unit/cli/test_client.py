"""What the gateway's answers become."""

from __future__ import annotations

import httpx
import pytest

from katsura.cli.client import Answer, Gateway, Position, SessionTree, _error
from katsura.cli.core.outline import TreeBranch, TreeNode
from katsura.domain.errors import (
    ConflictError,
    InternalError,
    InvalidArgumentError,
    KatsuraError,
    NotFoundError,
    UnavailableError,
)

TREE = {
    "id": "s1",
    "default_branch": "main",
    "branches": [
        {"name": "main", "state": "abandoned", "head": 2, "fork_node": 0, "parent_branch": None},
        {"name": "b", "state": "active", "head": 1, "fork_node": 1, "parent_branch": "main", "label": "b?"},
    ],
    "nodes": [
        {"id": 1, "parent_id": 0, "type": "step", "kind": "message", "role": "user", "content": "hi"},
        {"id": 2, "parent_id": 1, "type": "step", "kind": "observation", "role": "", "content": "seen"},
        {"id": 3, "parent_id": 0, "type": "summary", "content": "short", "covers": [1, 2], "status": "valid"},
        {"id": 5, "parent_id": 0, "type": "summary", "content": "wrong", "covers": [1, 1], "status": "failed"},
        {"id": 4, "parent_id": 9, "type": "hint", "content": "why", "abandoned_branch": "main", "restored_after": 1},
    ],
}


def test_a_tree_is_read_with_summaries_and_hints_after_the_step_they_follow() -> None:
    tree = SessionTree.read(TREE)
    assert tree.branches == (TreeBranch("main", 2, 0, "", "abandoned"), TreeBranch("b", 1, 1, "main", label="b?"))
    assert tree.nodes == (
        TreeNode(1, 0, "step", "user", "hi"),
        TreeNode(2, 1, "step", "observation", "seen"),
        TreeNode(3, 2, "summary", "summary of #1 to #2", "short"),
        TreeNode(5, 1, "summary", "summary of #1 to #1, failed", "wrong"),
        TreeNode(4, 1, "hint", "hint from main", "why"),
    )


def test_the_head_of_a_branch_is_known_and_of_another_is_not() -> None:
    tree = SessionTree.read(TREE)
    assert tree.head_of("b") == 1
    with pytest.raises(NotFoundError, match="no branch 'c'; it has main, b"):
        tree.head_of("c")


def test_chunks_add_up_to_an_answer_with_its_place() -> None:
    said: list[str] = []
    answer = Answer(Position("s", "main", 1), "", 0, 0, 0)
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}
    kept = {"session_id": "s", "branch": "main.1", "node_id": 3}
    for chunk in (
        {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "He"}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "llo"}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": "stop", "katsura": kept}]},
        {"choices": [], "usage": usage},
    ):
        answer = answer.heard(chunk, said.append)
    assert said == ["He", "llo"]
    assert answer == Answer(Position("s", "main.1", 3), "stop", 7, 5, 2)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidArgumentError),
        (404, NotFoundError),
        (409, ConflictError),
        (503, UnavailableError),
        (418, InternalError),
    ],
)
def test_an_error_keeps_its_message_and_field(status: int, kind: type[KatsuraError]) -> None:
    body = {"error": {"message": "no such model", "type": "x", "param": "model", "code": "model_not_found"}}
    error = _error(httpx.Response(status, json=body))
    assert type(error) is kind
    assert (error.message, error.field) == ("no such model", "model")


def test_an_answer_that_is_not_ours_is_told_as_it_is() -> None:
    request = httpx.Request("GET", "http://h/v1/models")
    error = _error(httpx.Response(502, text="<html>bad gateway</html>", request=request))
    assert error.message == "http://h/v1/models answered 502: <html>bad gateway</html>"


def test_a_gateway_that_is_not_there_is_said_with_its_address() -> None:
    with Gateway("http://127.0.0.1:1/v1/") as gateway, pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1 "):
        gateway.models()
