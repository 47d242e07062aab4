"""The conversation of `katsura demo` and `make run`, over HTTP as any client would hold it.

Three questions, a fork that asks something else at an earlier point, a revise that goes back with a hint, and one more
turn; then the tree. Every answer is drawn greedily, so the same model says the same again. The session is called
`demo`, and `demo-2` where there is one already.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import count

from rich.console import Console
from rich.text import Text

from katsura.cli.chat import first_model, open_session
from katsura.cli.client import Gateway, Position
from katsura.cli.tree import drawing
from katsura.domain.errors import AlreadyExistsError, InternalError

FIRST = ("What is the capital of France?", "Which river flows through Paris?", "Name a famous museum in Paris.")
FORKED = "What is the capital of Italy?"
HINT = "The museum is closed today."
REVISED = "Name a famous tower in Paris."
LAST = "How tall is it?"
ANSWER_TOKENS_MAX = 64


def demo(url: str, console: Console) -> str:
    """Hold the conversation with the gateway at `url`, print it, and give the session's name.

    Raises:
        KatsuraError: what the gateway answered, or that an answer is empty or was not kept.
    """
    with Gateway(url) as gateway:
        return _Conversation(gateway, first_model(gateway), console).hold()


def new_session(gateway: Gateway) -> str:
    """Make a session with the first of the names `demo`, `demo-2`, ... that is free."""
    for number in count(1):
        with suppress(AlreadyExistsError):
            return gateway.make_session("demo" if number == 1 else f"demo-{number}")
    raise AssertionError("unreachable")


class _Conversation:
    def __init__(self, gateway: Gateway, model: str, console: Console) -> None:
        self._gateway = gateway
        self._model = model
        self._console = console
        self._place = open_session(gateway, new_session(gateway))

    def hold(self) -> str:
        first = self._ask(FIRST[0])
        second = self._ask(FIRST[1])
        third = self._ask(FIRST[2])
        self._note(f"fork after #{first.node_id}: the same beginning, another question")
        made = self._gateway.fork(first.session, first.branch, first.node_id, "italy")
        self._place = Position(first.session, made.name, made.head)
        self._ask(FORKED)
        self._note(f"revise {third.branch} to #{second.node_id}: {HINT}")
        revised = self._gateway.revise(third.session, third.branch, third.node_id, second.node_id, HINT)
        self._place = Position(third.session, revised.branch.name, revised.branch.head)
        self._ask(REVISED)
        self._note("and on")
        self._ask(LAST)
        self._console.print()
        tree = self._gateway.tree(self._place.session)
        self._console.print(drawing(tree, self._console.width, self._place.node_id))
        self._console.print()
        return self._place.session

    def _ask(self, question: str) -> Position:
        prompt = Text.assemble(("[", "dim"), (self._place.branch, "bold"), f" #{self._place.node_id}", ("] ", "dim"))
        self._console.print(prompt.append(question, "cyan"), soft_wrap=True)
        said: list[str] = []
        turn = [("user", question)]
        answer = self._gateway.ask(
            self._model, turn, self._place, said.append, max_tokens=ANSWER_TOKENS_MAX, temperature=0.0
        )
        text = "".join(said).strip()
        if not text or answer.position.node_id <= self._place.node_id:
            raise InternalError(f"the answer to {question!r} is empty, or was not kept in the tree")
        counts = f"{answer.prompt_tokens} tokens in ({answer.cached_tokens} cached), {answer.completion_tokens} out"
        self._console.print(Text(text, "green").append(f"  {counts}", "dim"), soft_wrap=True)
        self._place = answer.position
        return answer.position

    def _note(self, text: str) -> None:
        self._console.print(Text(f"-- {text}", "dim"))
