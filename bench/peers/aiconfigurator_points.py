"""AIConfigurator as a line server: keyword arguments of `cli_estimate` in, times or the refusal out. Own venv.

A row that it refuses is asked again without the published quantisation (it then reads the model's own), and then in its
mode that fills what was not measured by formulas; `how` says which of these answered.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints is no answer
    logging.disable(logging.CRITICAL)
    from aiconfigurator.cli.api import cli_estimate

    for line in sys.stdin:
        began = time.perf_counter()
        asked = json.loads(line)
        mode = asked.pop("mode", "agg")
        inferred = {name: value for name, value in asked.items() if not name.endswith("quant_mode")}
        answer: dict[str, object] = {}
        for how, arguments in (
            ("measured", asked),
            ("measured", inferred),
            ("hybrid", {**asked, "database_mode": "HYBRID"}),
            ("hybrid", {**inferred, "database_mode": "HYBRID"}),
        ):
            try:
                found = cli_estimate(mode=mode, **arguments)
                answer = {"how": how, "tpot_s": found.tpot / 1e3, "ttft_s": found.ttft / 1e3}
                break
            except Exception as error:  # noqa: BLE001 - whatever it cannot answer is a row that it does not cover
                answer = answer or {"refused": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps({**answer, "took_s": time.perf_counter() - began}), file=answers, flush=True)


if __name__ == "__main__":
    main()
