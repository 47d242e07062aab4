from __future__ import annotations

from katsura.gateway.core.chat_request import Message
from katsura.gateway.core.session_match import Continuation, Path, PathStep, continuation


def said(*texts: str) -> tuple[Message, ...]:
    roles = {"s": "system", "u": "user", "v": "user", "a": "assistant"}
    return tuple(Message(roles[text[0]], text) for text in texts)


def path(branch: str, *steps: tuple[int, str], writable: bool = True) -> Path:
    return Path(branch, writable, tuple(PathStep(node, said(text)[0]) for node, text in steps))


MAIN = path("main", (1, "s1"), (2, "u1"), (3, "a1"), (4, "u2"), (5, "a2"))


def test_what_follows_the_head_is_appended() -> None:
    sent = said("s1", "u1", "a1", "u2", "a2", "u3")
    assert continuation(sent, [MAIN]) == Continuation("main", 5, False, said("u3"))


def test_another_message_forks_at_the_last_equal_one() -> None:
    assert continuation(said("s1", "u1", "a1", "v2"), [MAIN]) == Continuation("main", 3, True, said("v2"))


def test_asking_again_forks_and_appends_nothing() -> None:
    assert continuation(said("s1", "u1", "a1", "u2"), [MAIN]) == Continuation("main", 4, True, ())


def test_a_turn_whose_answer_was_lost_goes_on_where_it_is() -> None:
    cut = Path("main", True, MAIN.steps[:4])
    assert continuation(said("s1", "u1", "a1", "u2"), [cut]) == Continuation("main", 4, False, ())


def test_an_empty_tree_takes_everything() -> None:
    assert continuation(said("s1", "u1"), [path("main")]) == Continuation("main", 0, False, said("s1", "u1"))


def test_a_conversation_of_its_own_forks_at_the_root() -> None:
    assert continuation(said("v1"), [MAIN]) == Continuation("main", 0, True, said("v1"))


def test_the_longest_path_wins() -> None:
    other = path("b2", (1, "s1"), (2, "u1"), (3, "a1"), (6, "v2"), (7, "a3"))
    sent = said("s1", "u1", "a1", "v2", "a3", "u4")
    assert continuation(sent, [MAIN, other]) == Continuation("b2", 7, False, said("u4"))


def test_among_equals_a_branch_that_ends_there_is_continued() -> None:
    forked = path("b2", (1, "s1"), (2, "u1"), (3, "a1"))
    assert continuation(said("s1", "u1", "a1", "v2"), [MAIN, forked]) == Continuation("b2", 3, False, said("v2"))


def test_an_abandoned_branch_is_never_appended_to() -> None:
    left = path("main", (1, "s1"), (2, "u1"), writable=False)
    assert continuation(said("s1", "u1", "u9"), [left]) == Continuation("main", 2, True, said("u9"))
    restored = path("b2", (1, "s1"), (2, "u1"))
    assert continuation(said("s1", "u1", "u9"), [left, restored]) == Continuation("b2", 2, False, said("u9"))


def test_a_role_is_part_of_what_must_be_equal() -> None:
    sent = (Message("user", "s1"),)
    assert continuation(sent, [MAIN]).at_node == 0
