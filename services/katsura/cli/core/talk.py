"""What a person types into `katsura chat`: a message, or a command that begins with a slash."""

from __future__ import annotations

from dataclasses import dataclass

HELP = """\
/tree                draw the session's tree
/fork [N]            new branch after step N (default: here) and go on there
/go BRANCH           go on at the end of a branch
/revise N WHY        leave this branch, go on after step N with a hint of why
/help, /quit         this; the end (Ctrl-D too)"""


@dataclass(frozen=True, slots=True)
class Say:
    """A message to the model."""

    text: str


@dataclass(frozen=True, slots=True)
class ShowTree:
    """Draw the tree."""


@dataclass(frozen=True, slots=True)
class ForkAt:
    """New branch after a step; None: after the last one."""

    node: int | None


@dataclass(frozen=True, slots=True)
class GoTo:
    """Go on at the end of a branch."""

    branch: str


@dataclass(frozen=True, slots=True)
class ReviseTo:
    """Leave the branch and go on after `node`."""

    node: int
    why: str


@dataclass(frozen=True, slots=True)
class ShowHelp:
    """Explain the commands; `wrong` says what was not understood."""

    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Quit:
    """End the chat."""


Typed = Say | ShowTree | ForkAt | GoTo | ReviseTo | ShowHelp | Quit


def parse(line: str) -> Typed | None:
    """What a line means; None for an empty one. A line that begins with two slashes is a message with one."""
    text = line.strip()
    if not text.startswith("/") or text.startswith("//"):
        return Say(text.removeprefix("/") if text.startswith("//") else text) if text else None
    word, _, rest = text[1:].partition(" ")
    rest = rest.strip()
    number, _, why = rest.partition(" ")
    node = _node(number)
    match word:
        case "tree" if not rest:
            return ShowTree()
        case "fork" if not rest or (node is not None and not why):
            return ForkAt(node)
        case "go" if rest:
            return GoTo(rest)
        case "revise" if node is not None and why.strip():
            return ReviseTo(node, why.strip())
        case "help":
            return ShowHelp()
        case "quit" | "exit":
            return Quit()
        case _:
            return ShowHelp(text)


def _node(text: str) -> int | None:
    plain = text.removeprefix("#")
    return int(plain) if plain.isascii() and plain.isdigit() else None
