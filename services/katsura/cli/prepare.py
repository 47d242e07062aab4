"""Makes a model ready in a process of its own, so that Ctrl-C ends a download at once and its memory is given back.

    python -m katsura.cli.prepare PARENT_PID SOURCE CACHE_ROOT [verify]

The child writes one JSON object per line: `{"stage", "done", "total"}`, `{"say"}`, and at the end `{"folder"}` or
`{"error"}`. `prepare` starts it and hands what it says to a `Progress`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from katsura.cli.tether import end_with_parent
from katsura.domain.errors import BY_CODE, InternalError, KatsuraError, Reason
from katsura.weights.progress import Progress, Stage

_REPORT_EVERY_S = 0.1


async def prepare(source: str, cache_root: Path, progress: Progress, *, verify: bool = False) -> Path:
    """Return the folder of `source` in the model cache, making it first where needed.

    Raises:
        KatsuraError: what `weights.sources.ModelCache.ensure` raises, with the same class and reason.
    """
    command = [sys.executable, "-m", "katsura.cli.prepare", str(os.getpid()), source, str(cache_root)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *(["verify"] if verify else []),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.ensure_future(process.stderr.read())
    try:
        async for line in process.stdout:
            folder = _hear(json.loads(line), progress)
            if folder is not None:
                return folder
        status = await process.wait()
        trouble = (await errors).decode("utf-8", "replace").strip().splitlines()[-1:]
        raise InternalError(f"preparing {source} ended with status {status}: {''.join(trouble)}")
    finally:
        # The whole session: a download in the middle must not go on behind our back.
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        errors.cancel()


def _hear(said: dict[str, object], progress: Progress) -> Path | None:
    match said:
        case {"folder": str(folder)}:
            return Path(folder)
        case {"say": str(text)}:
            progress.say(text)
        case {"stage": str(stage), "done": int(done), "total": total}:
            progress.advance(Stage(stage), done, total if isinstance(total, int) else None)
        case {"error": str(message), "code": str(code), "reason": str(reason)}:
            raise BY_CODE[code](message, reason=Reason(reason))
    return None


class _Teller:
    """Writes progress as JSON lines, at most ten a second per stage."""

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._told_s = 0.0

    def advance(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
        now_s = time.monotonic()
        if stage is self._stage and now_s - self._told_s < _REPORT_EVERY_S and done_bytes != total_bytes:
            return
        self._stage, self._told_s = stage, now_s
        tell(stage=stage.value, done=done_bytes, total=total_bytes)

    def say(self, message: str) -> None:
        tell(say=message)


def tell(**fields: object) -> None:
    """Write one line for the parent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main(parent_pid: int, source: str, cache_root: str, verify: bool) -> None:
    """The child: prepare and tell."""
    # A download is a process of its own below us; the parent-death signal must reach it too.
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    if not end_with_parent(parent_pid):
        return
    from katsura.weights.sources import ModelCache, parse_source

    try:
        folder = ModelCache(Path(cache_root)).ensure(parse_source(source), _Teller(), verify=verify)
    except KatsuraError as error:
        tell(error=error.message, code=error.code, reason=error.reason.value)
    else:
        tell(folder=str(folder))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:] == ["verify"])
