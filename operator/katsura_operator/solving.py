"""The solver's process: decides what it is asked, and holds nothing but what it was told and what follows from that.

    python -m katsura_operator.solving < questions > answers        (`solver.Solver` starts it)

One thread listens, so that the end of the input, which is the end of the operator, ends this process in the middle of
a solve too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from queue import SimpleQueue
from typing import BinaryIO, Final

from katsura.placement.patterns import Memo
from katsura_operator.core.decision import decide
from katsura_operator.core.messages import Key, Question, snapshot_of, write_answers, write_failure
from katsura_operator.core.objects import Object, key_of
from katsura_operator.core.poison import Refusal, fault

_NICE: Final = 5
"""Where cores are short, whoever renews the lease goes first."""


def serve(lines: SimpleQueue[bytes], answers: BinaryIO) -> None:
    """Answer for ever."""
    known: dict[Key, Object] = {}
    memo, poison = Memo(), dict[str, Refusal]()
    while True:
        question = Question.read(lines.get())
        for key in question.gone:
            known.pop(key, None)
        for _ in range(question.fresh):
            obj = json.loads(lines.get())
            known[key_of(obj)] = obj
        seen = snapshot_of(known.values(), question.now, question.samples, question.odd)
        try:
            desired = decide(seen, question.settings, question.trouble, memo=memo, poison=poison)
            lines_out = list(write_answers(desired))
        except Exception as error:  # noqa: BLE001  # told in conditions by whoever asked, and here
            traceback.print_exc()
            lines_out = [write_failure(fault(error))]
        for line in lines_out:
            answers.write(line.encode() + b"\n")
        answers.write(b"\n")
        answers.flush()


def listen(questions: BinaryIO, lines: SimpleQueue[bytes]) -> None:
    """Hand on line by line; end the process at the end of the input."""
    for line in questions:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Answer until the input ends. What libraries print goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=listen, args=(sys.stdin.buffer, lines), daemon=True).start()
    serve(lines, answers)


if __name__ == "__main__":
    main()
