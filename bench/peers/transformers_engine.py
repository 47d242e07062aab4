"""Hugging Face transformers as a line server: `{"prompts": [[ids]], "new": n}` in, times out. Runs in its own venv."""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import torch
import transformers


class Clock:
    """A logits processor that only notes when each step's logits were there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: Any, scores: Any) -> Any:
        self.times.append(time.perf_counter())
        return scores


def main(folder: str, dtype: str) -> None:
    """Load, say so, answer requests until the input ends."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
    print(json.dumps({"ready": f"transformers {transformers.__version__}, torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ids = torch.tensor(request["prompts"])
        clock = Clock()
        begin = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request["new"],
                min_new_tokens=request["new"],
                do_sample=False,
                logits_processor=[clock],
            )
        end = time.perf_counter()
        times = [moment - begin for moment in clock.times]
        print(json.dumps({"seconds": end - begin, "times": [times] * len(request["prompts"])}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
