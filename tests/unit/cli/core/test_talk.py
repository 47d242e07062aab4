"""What a line of `katsura chat` means."""

from __future__ import annotations

import pytest

from katsura.cli.core.talk import ForkAt, GoTo, Quit, ReviseTo, Say, ShowHelp, ShowTree, Typed, parse


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("", None),
        ("   ", None),
        (" hello there ", Say("hello there")),
        ("//etc/hosts is a file", Say("/etc/hosts is a file")),
        ("/tree", ShowTree()),
        ("/fork", ForkAt(None)),
        ("/fork 7", ForkAt(7)),
        ("/fork #7", ForkAt(7)),
        ("/go main.2", GoTo("main.2")),
        ("/revise 4 too vague, try again", ReviseTo(4, "too vague, try again")),
        ("/revise #0 start over", ReviseTo(0, "start over")),
        ("/help", ShowHelp()),
        ("/quit", Quit()),
        ("/exit", Quit()),
        ("/fork seven", ShowHelp("/fork seven")),
        ("/fork 7 8", ShowHelp("/fork 7 8")),
        ("/revise 4", ShowHelp("/revise 4")),
        ("/revise why", ShowHelp("/revise why")),
        ("/go", ShowHelp("/go")),
        ("/tree x", ShowHelp("/tree x")),
        ("/trees", ShowHelp("/trees")),
    ],
)
def test_a_line_is_a_message_or_a_command(line: str, typed: Typed | None) -> None:
    assert parse(line) == typed
