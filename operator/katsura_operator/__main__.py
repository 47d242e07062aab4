"""The operator process: candidate until it leads, then watches and passes until it must not any more.

Whatever ends (a watch, the loop, the lease) ends the process: it comes back as a candidate with nothing in its head.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from katsura.domain.errors import KatsuraError
from katsura.telemetry import log, metrics, names, setup
from katsura_operator.authority import Authority
from katsura_operator.config import Certificates, OperatorConfig
from katsura_operator.core.objects import PROFILE
from katsura_operator.core.pods import GRPC
from katsura_operator.drain import GrpcDrainer
from katsura_operator.execute import Executor
from katsura_operator.health import serve
from katsura_operator.kube import connect
from katsura_operator.leader import Leader
from katsura_operator.loop import Loop
from katsura_operator.reconcile import Reconciler
from katsura_operator.solver import Solver
from katsura_operator.survey import GrpcAsker, Survey
from katsura_operator.watch import Watch

_LOG = log.get(__name__)
_LEADS = metrics.gauge(names.OPERATOR_LEADS, "Whether this process may write.")
_SILENT_S: Final = 300.0
"""A loop without a pass for so long, and for two decisions, is dead."""


async def operate(config: OperatorConfig) -> None:
    """Serve until SIGTERM.

    Raises:
        KatsuraError: the API server, or the leadership was lost.
    """
    settings = config.settings_with_calibration()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with TemporaryDirectory(prefix="katsura-") as folder:
        async with connect(config.kubeconfig) as door, connect(config.kubeconfig) as lease_door:
            leader = Leader(lease_door, settings.namespace, config.identity)
            door.fence = leader.fence
            drainer = GrpcDrainer(config.internal_token, Path(folder))
            given = config.certificates is Certificates.GIVEN
            authority = Authority(door, settings.namespace, Path(folder), given=given)
            executor = Executor(door, drainer, GRPC)
            solver = Solver(settings, config.solve_limit_s)
            survey = Survey(GrpcAsker(config.internal_token, Path(folder), GRPC), config.resync_s)
            reconciler = Reconciler(
                *(door, executor, authority, solver, settings, config.namespaces), sampled=survey.note, odd=survey.odd
            )
            passes = Loop(reconciler.run, config.resync_s)

            async def watch() -> None:
                nodes, profiles = settings.nodes_observed, await reconciler.may_read(PROFILE)
                await Watch(config.namespaces, passes.ask, config.identity, nodes=nodes, profiles=profiles).run()

            def alive() -> str:
                silent_s = time.monotonic() - passes.beat_s
                dead = leader.leads and silent_s > _SILENT_S + 2 * config.solve_limit_s
                return f"no pass for {silent_s:.0f} s" if dead else ""

            def ready() -> str:
                _LEADS.set(leader.leads)
                return passes.last_error or ("" if leader.known else "the API server has not answered yet")

            async with serve(config.listen, alive, ready):
                try:
                    if await _first(stop.wait(), leader.win()):
                        return
                    passes.beat_s = time.monotonic()
                    looks = (survey.run(),) if config.internal_token else ()
                    await _first(stop.wait(), leader.hold(), watch(), passes.run(), *looks)
                finally:
                    await solver.close()
                    await drainer.close()
                    await leader.give_back()


async def _first(stopped: Coroutine[Any, Any, Any], *work: Coroutine[Any, Any, Any]) -> bool:
    """Run until one ends, end the others; whether it was `stopped`. What another one raised is raised."""
    tasks = [asyncio.ensure_future(c) for c in (stopped, *work)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return tasks[0] in done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Read the environment and operate; an error of ours ends it with one plain line and status 1."""
    gc.freeze()  # what was imported stays: each full collection would look through it, for a tenth of a second
    setup.configure("operator", os.environ.get("KATSURA_OPERATOR_IDENTITY", "operator"), os.environ)
    try:
        asyncio.run(operate(OperatorConfig.from_env(os.environ)))
    except KatsuraError as error:
        _LOG.error(error.message)
        sys.exit(1)


if __name__ == "__main__":
    main()
