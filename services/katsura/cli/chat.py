"""`katsura chat`: a conversation whose memory is a tree, with the place in it always in sight."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from katsura.cli.client import Gateway, Message, Position, SessionTree
from katsura.cli.core import talk
from katsura.cli.exit import Exit
from katsura.cli.tree import drawing, owner_of
from katsura.domain.errors import FailedPreconditionError, KatsuraError, NotFoundError


def chat(
    gateway: Gateway, session: str, branch: str, model: str, system: str, temperature: float, console: Console
) -> Exit:
    """Talk until the person ends it.

    Args:
        session: to go on with, made if it is new; empty makes one with a name of its own.
        branch: to go on with; empty: the default one.
        model: to ask; empty: the first that is served.
        system: first message of a new session.
        temperature: how freely answers are drawn, 0 to 2.
    """
    with gateway:
        place = open_session(gateway, session, branch)
        talker = Talker(gateway, model or first_model(gateway), place, temperature, console)
        if system and not place.node_id:
            talker.opening = (("system", system),)
        console.print(Text(f"{talker.model} at {gateway.url}; /help explains the commands", "dim"))
        while talker.turn():
            pass
        console.print(Text(f"go on later with: katsura chat {talker.place.session}", "dim"))
    return Exit.OK


def open_session(gateway: Gateway, session: str, branch: str = "") -> Position:
    """Where to go on: the head of a branch of a session that is made if need be."""
    try:
        tree = gateway.tree(session) if session else gateway.tree(gateway.make_session())
    except NotFoundError:
        tree = gateway.tree(gateway.make_session(session))
    return _head(tree, branch or tree.default_branch)


def first_model(gateway: Gateway) -> str:
    """The first model that is served.

    Raises:
        FailedPreconditionError: none is.
    """
    models = gateway.models()
    if not models:
        raise FailedPreconditionError(f"{gateway.url} serves no model yet; `katsura status` says what is missing")
    return models[0]


class Talker:
    """One conversation: where it is, and what each line does."""

    def __init__(self, gateway: Gateway, model: str, place: Position, temperature: float, console: Console) -> None:
        self.model = model
        self.place = place
        self.opening: tuple[Message, ...] = ()
        """Messages that go before the next one: a new session's system message."""
        self._gateway = gateway
        self._temperature = temperature
        self._console = console

    def turn(self) -> bool:
        """Read a line and do what it says; False at the end. Errors are told, the conversation goes on."""
        prompt = Text.assemble(("[", "dim"), self.place.session, " ", (self.place.branch, "bold"))
        prompt.append(f" #{self.place.node_id}").append("] ", "dim")
        try:
            typed = talk.parse(self._console.input(prompt))
        except EOFError:
            self._console.print()
            return False
        if isinstance(typed, talk.Quit):
            return False
        try:
            if typed is not None:
                self._do(typed)
        except KatsuraError as error:
            self._console.print(Text(error.message, "red"), soft_wrap=True)
        except KeyboardInterrupt:
            # Leaving the stream cancels the answer; where the branch stands now, only the tree can tell.
            self._console.print(Text(" (stopped)", "dim"))
            self.place = _head(self._gateway.tree(self.place.session), self.place.branch)
        return True

    def _do(self, typed: talk.Typed) -> None:
        match typed:
            case talk.Say(text):
                self.say(text)
            case talk.ShowTree():
                tree = self._gateway.tree(self.place.session)
                self._console.print(drawing(tree, self._console.width, self.place.node_id))
            case talk.ForkAt(node):
                self.fork(self.place.node_id if node is None else node)
            case talk.GoTo(branch):
                self.place = _head(self._gateway.tree(self.place.session), branch)
            case talk.ReviseTo(node, why):
                self.revise(node, why)
            case talk.ShowHelp(wrong):
                self._console.print((f"not understood: {wrong}\n" if wrong else "") + talk.HELP, markup=False)

    def say(self, text: str) -> None:
        """Send a message and stream the answer."""
        messages = (*self.opening, ("user", text))
        answer = self._gateway.ask(self.model, messages, self.place, self._write, temperature=self._temperature)
        self.opening = ()
        self._write("\n")
        self.place = answer.position
        if answer.finish_reason == "length":
            self._console.print(Text("(the answer was cut: no room is left)", "dim"))

    def fork(self, node: int) -> None:
        """Go on after a step on a new branch."""
        session = self.place.session
        branch = owner_of(self._gateway.tree(session), node) if node else self.place.branch
        made = self._gateway.fork(session, branch, node)
        self.place = Position(session, made.name, made.head)

    def revise(self, node: int, why: str) -> None:
        """Leave this branch and go on after a step."""
        session = self.place.session
        revised = self._gateway.revise(session, self.place.branch, self.place.node_id, node, why)
        self.place = Position(session, revised.branch.name, revised.branch.head)
        for excerpt in revised.standing:
            self._console.print(f"still stands in the world: {excerpt}", style="yellow", markup=False)

    def _write(self, text: str) -> None:
        # Not through rich: its markup and wrapping have no business with what a model says.
        self._console.file.write(text)
        self._console.file.flush()


def _head(tree: SessionTree, branch: str) -> Position:
    return Position(tree.session, branch, tree.head_of(branch))
