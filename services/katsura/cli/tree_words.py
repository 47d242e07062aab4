"""What may be typed after `katsura tree`, and which function each word calls."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from katsura.cli.exit import Exit
from katsura.cli.words import Command, group, leaf
from katsura.domain.errors import NotFoundError

if TYPE_CHECKING:
    from katsura.cli.direct import MemoryDoor

_EXAMPLES = """\
examples:
  katsura tree list                             every session and thread, newest first
  katsura tree show trip                        its branches and steps; --svg trip.svg makes a picture
  katsura tree diff trip b2                     what the default branch and b2 each have alone
  katsura tree explain trip                     what the next prompt holds, and what was left out
  katsura tree explain trip 7                   why step 7 is in it, or is not
  katsura tree fork trip 4                      go on after step 4 on a new branch
  katsura tree revise trip 4 "it was too dear"  the same, leaving the rest behind with a hint
  katsura tree export trip -o trip.jsonl        the whole tree as a file
  katsura tree import trip.jsonl --name copy    the same tree again: same numbers, same hashes
  katsura tree verify trip                      compute every hash again
  katsura tree freeze trip                      out of the store, until somebody touches it
  katsura tree watch --label team=a             commits of trees with a label, as they come
  katsura tree usage                            nodes, bytes and cost by agent, beside the quotas

list, show, fork and revise ask the gateway (--url); the other words ask the memory service itself
(--memory). Both are found through --data; a key says whose trees they are.
"""


def add_tree(
    commands: Any, data: argparse.ArgumentParser, remote: argparse.ArgumentParser, key: argparse.ArgumentParser,
    as_json: argparse.ArgumentParser, environ: Mapping[str, str],
) -> None:  # fmt: skip
    """Declare `katsura tree` and every word that may follow it."""
    tree = group(commands, "tree", "see, compare, move, check and change trees", _EXAMPLES)
    _add_sessions(tree, (data, remote, key, as_json))
    direct = argparse.ArgumentParser(add_help=False)
    direct.add_argument(
        "--memory",
        default=environ.get("KATSURA_MEMORY_ADDRESS", ""),
        metavar="ADDRESS",
        help="memory service (default: $KATSURA_MEMORY_ADDRESS or the one of --data)",
    )
    diff = _leaf(
        tree, "diff", "tell what two branches each have that the other has not", _diff, data, direct, key, as_json
    )
    _add_name(diff)
    diff.add_argument("other", help="branch to compare with")
    diff.add_argument("--branch", default="", help="the one branch (default: the tree's default branch)")
    explain = _leaf(
        tree, "explain", "say what is in the context of a branch, what is not, and why", _explain, data, direct, key,
        as_json,
    )  # fmt: skip
    _add_name(explain)
    explain.add_argument("node", nargs="?", type=int, help="ask about one node: its number in `tree show`")
    explain.add_argument("--branch", default="", help="branch to assemble (default: the tree's default branch)")
    explain.add_argument("--budget", type=int, default=4000, metavar="TOKENS", help="(default: %(default)s)")
    export = _leaf(tree, "export", "write a whole tree down", _export, data, direct, key)
    _add_name(export)
    export.add_argument("-o", "--out", type=Path, default=Path("-"), metavar="FILE", help="(default: standard output)")
    imported = _leaf(tree, "import", "make a tree from what export wrote", _import, data, direct, key, as_json)
    imported.add_argument("file", type=Path, help="the archive; - is standard input")
    imported.add_argument("--name", default="", help="name of the new tree (default: the one it had)")
    freeze = _leaf(
        tree, "freeze", "move a tree into an object file until it is touched", _freeze, data, direct, key, as_json
    )
    _add_name(freeze)
    usage = _leaf(tree, "usage", "tell what trees take, and what each agent cost", _usage, data, direct, key, as_json)
    usage.add_argument("tree", nargs="?", default="", help="one tree (default: all of the key's, counted anew)")
    verify = _leaf(tree, "verify", "compute every hash of a tree again", _verify, data, direct, key, as_json)
    _add_name(verify)
    watch = _leaf(tree, "watch", "print commits of trees as they come", _watch, data, direct, key, as_json)
    watch.add_argument("tree", nargs="*", help="names of trees")
    watch.add_argument(
        "--label", action="append", default=[], type=_label, metavar="KEY=VALUE", help="and all trees that have it"
    )
    watch.add_argument("--from-now", action="store_true", help="leave out what was committed before")
    watch.add_argument("--count", type=int, default=0, metavar="N", help="end after N commits")


def _leaf(tree: Any, name: str, help_text: str, command: Command, *parents: argparse.ArgumentParser) -> Any:
    """A word after `katsura tree`, whose failures tell where to look for what is not there."""

    def advised(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
        try:
            return command(a, environ, out)
        except NotFoundError as error:
            if "`katsura" in error.message:
                raise
            there = (
                "list` shows those of this key"
                if re.search("does not exist|there is no session", error.message)
                else f"show {a.tree}` shows what it has"
            )
            raise NotFoundError(f"{error.message}; `katsura tree {there}") from error

    return leaf(tree, name, help_text, advised, *parents)


def _add_sessions(tree: Any, options: tuple[argparse.ArgumentParser, ...]) -> None:
    listing = _leaf(tree, "list", "list trees, newest first", _list, *options)
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="at most N, 1 to 100 (default: 20)")
    show = _leaf(tree, "show", "draw a tree", _show, *options)
    _add_name(show)
    show.add_argument(
        "--last", type=int, default=200, metavar="N", help="the last N steps of each branch (default: 200; 0: all)"
    )
    show.add_argument("--svg", type=Path, metavar="FILE", help="draw it into a file instead")
    fork = _leaf(tree, "fork", "begin a new branch at a step", _fork, *options)
    _add_name(fork)
    fork.add_argument("node", type=int, help="step after which the branch begins; its number in `tree show`")
    fork.add_argument("--branch", default="", help="name of the new branch")
    revise = _leaf(tree, "revise", "go back to a step and leave a hint for the next try", _revise, *options)
    _add_name(revise)
    revise.add_argument("node", type=int, help="last step that is kept; 0 keeps nothing")
    revise.add_argument("hint", help="what to do differently")
    revise.add_argument("--branch", default="", help="branch to leave (default: the tree's default branch)")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tree", help="its name: the session's, or langgraph.THREAD")


def _list(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli import tree
    from katsura.cli.client import gateway_of

    return tree.list_sessions(gateway_of(a.url, a.data, a.api_key), a.limit, a.json, out)


def _show(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli import tree
    from katsura.cli.client import gateway_of

    return tree.show(gateway_of(a.url, a.data, a.api_key), a.tree, a.last, a.svg, a.json, out)


def _fork(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli import tree
    from katsura.cli.client import gateway_of

    return tree.fork(gateway_of(a.url, a.data, a.api_key), a.tree, a.node, a.branch, a.json, out)


def _revise(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli import tree
    from katsura.cli.client import gateway_of

    return tree.revise(gateway_of(a.url, a.data, a.api_key), a.tree, a.branch, a.node, a.hint, a.json, out)


def _diff(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.difference import diff

    return diff(_door(a, environ), a.tree, a.other, a.branch, a.json, out)


def _explain(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.explain import explain

    return explain(_door(a, environ), a.tree, a.node, a.branch, a.budget, a.json, out)


def _export(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.archive import export_tree

    return export_tree(_door(a, environ), a.tree, a.out, out)


def _import(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.archive import import_tree

    return import_tree(_door(a, environ), a.file, a.name, a.json, out)


def _freeze(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.archive import freeze

    return freeze(_door(a, environ), a.tree, a.json, out)


def _usage(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.usage import usage

    return usage(_door(a, environ), a.tree, a.json, out)


def _verify(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.archive import verify

    return verify(_door(a, environ), a.tree, a.json, out)


def _watch(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.watch import watch

    return watch(_door(a, environ), a.tree, dict(a.label), a.count, a.from_now, a.json, out)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _door(a: argparse.Namespace, environ: Mapping[str, str]) -> MemoryDoor:
    from katsura.cli.direct import MemoryDoor, tls_files

    return MemoryDoor(a.data, a.memory, a.api_key, tls_files(environ))
