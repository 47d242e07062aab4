"""How a command is declared: its name, its help, and the function that carries it out."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Console

from katsura.cli.exit import Exit

Command = Callable[[argparse.Namespace, Mapping[str, str], Console], Exit]
"""Takes what was typed, the environment and the console."""


def leaf(
    commands: Any, name: str, help_text: str, command: Command, *parents: argparse.ArgumentParser, epilog: str = ""
) -> argparse.ArgumentParser:
    """A command below `commands` (what `add_subparsers` gave) with the options of `parents`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog=epilog,
        parents=list(parents),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command, parser=parser)
    return parser


def refuse(parser: argparse.ArgumentParser, words: Sequence[str]) -> NoReturn:
    """End with what may have been meant by options that a command has not."""
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    near = [m for word in words for m in difflib.get_close_matches(word.partition("=")[0], known, n=1)]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    parser.error(f"unrecognized arguments: {' '.join(words)}{hint}")


def group(commands: Any, name: str, help_text: str, epilog: str = "") -> Any:
    """A word that takes another word after it: `katsura NAME WHAT`."""
    parser = commands.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(metavar="WHAT", required=True)
