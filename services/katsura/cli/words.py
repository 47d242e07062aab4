"""How a command is declared: its name, its help, and the function that carries it out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

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
    parser.set_defaults(command=command)
    return parser


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
