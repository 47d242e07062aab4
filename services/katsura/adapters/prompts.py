"""What a language model is asked when it summarises or checks, and how its answer is read. Pure.

Answers are lines with a word in front (`SUMMARY:`, `FACT:`, `VERDICT:`), which small models manage where JSON fails
them. What cannot be read is an error, never a guess: an unread verdict is no verdict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as memory_pb
from katsura.api.memory.v1 import work_service_pb2 as pb

Message = dict[str, str]
"""`role` and `content`, as the chat API takes them."""

_SUMMARISE: Final = """\
You write the memory of an agent. Summarise the steps below for an agent that will go on without having seen them.
Quote names, ids, amounts and dates exactly as they stand; say nothing that the steps do not say.
Answer with these lines only, one item each, as many as are needed:
SUMMARY: what happened, in a few sentences
FACT: something to remember
DECISION: something that was decided
ARTIFACT: a file, a link or an id that was made"""
_CHECK: Final = """\
You check the memory of an agent. Below are the steps that happened and a summary of them.
FAIL it if it says something that the steps do not say, or leaves out what the agent needs to go on; else PASS it.
Answer with two lines only:
VERDICT: PASS or FAIL
NOTE: why, in one sentence"""
_LABELS: Final = {"SUMMARY": "text", "FACT": "facts", "DECISION": "decisions", "ARTIFACT": "artifacts"}
_LINE: Final = re.compile(r"[\s*#-]*(SUMMARY|FACT|DECISION|ARTIFACT)S?[*:\s]*:[*\s]*(.*)", re.IGNORECASE)
_VERDICT: Final = re.compile(r"VERDICT\W+(PASS|FAIL)\b", re.IGNORECASE)
_NOTE: Final = re.compile(r"NOTE\W+(.*)", re.IGNORECASE)
_NOTE_CHARS: Final = 500
_STEP_CHARS_MIN: Final = 200
_MARK: Final = " […] "


def summarise_messages(work: pb.ClaimedWork, steps: Sequence[tree_pb.Node], chars: int) -> list[Message]:
    """The question for a summary; the steps are shortened in the middle to about `chars` characters together."""
    parts = [_task(work), f"Steps:\n{_steps(steps, chars)}"]
    if work.item.reason:
        parts.append(f"The last summary was refused: {work.item.reason}")
    return [{"role": "system", "content": _SUMMARISE}, {"role": "user", "content": "\n\n".join(parts)}]


def mend_messages(asked: Sequence[Message], answer: str, findings: Sequence[str]) -> list[Message]:
    """The question again, after an answer that the validators refused."""
    found = "\n".join(f"- {finding}" for finding in findings)
    again = f"That was refused:\n{found}\nWrite it again without these mistakes, in the same form."
    return [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": again}]


def check_messages(work: pb.ClaimedWork, steps: Sequence[tree_pb.Node], chars: int) -> list[Message]:
    """The question for a verdict."""
    body = work.summary.summary.summary_body
    lists = (("Facts", body.facts), ("Decisions", body.decisions), ("Artifacts", body.artifacts))
    said = [body.text, *(f"{title}: {'; '.join(items)}" for title, items in lists if items)]
    text = "\n\n".join((_task(work), f"Steps:\n{_steps(steps, chars)}", "Summary:\n" + "\n".join(said)))
    return [{"role": "system", "content": _CHECK}, {"role": "user", "content": text}]


def summary_from(answer: str) -> tree_pb.SummaryBody:
    """A summary as a model wrote it; without any label the whole answer is its text.

    Raises:
        ValueError: it says nothing.
    """
    found: dict[str, list[str]] = {field: [] for field in _LABELS.values()}
    last = ""
    for line in answer.splitlines():
        labelled = _LINE.match(line)
        if labelled:
            last = _LABELS[labelled[1].upper()]
            found[last].append(labelled[2].strip())
        elif last == "text" and line.strip():
            found["text"].append(line.strip())
    text = "\n".join(filter(None, found["text"])) if last else answer.strip()
    if not text:
        raise ValueError("the model's answer holds no summary")
    lists = {field: list(filter(None, found[field])) for field in ("facts", "decisions", "artifacts")}
    return tree_pb.SummaryBody(text=text, **lists)


def verdict_from(answer: str, validator: str) -> memory_pb.ExternalVerdict:
    """A verdict as a model wrote it, in the name of `validator`.

    Raises:
        ValueError: it does not say PASS or FAIL, or says both.
    """
    spoken = {word.upper() for word in _VERDICT.findall(answer)}
    if len(spoken) != 1:
        raise ValueError("the model's answer holds no verdict")
    note = _NOTE.search(answer)
    return memory_pb.ExternalVerdict(
        validator=validator,
        fidelity=tree_pb.VERDICT_PASS if spoken == {"PASS"} else tree_pb.VERDICT_FAIL,
        note=note[1].strip()[:_NOTE_CHARS] if note else "",
    )


def _task(work: pb.ClaimedWork) -> str:
    lines = [f"Goal: {work.goal}"] if work.goal else []
    lines += [f"Constraint: {pin}" for pin in work.pins]
    lines += [f"Still owed from before: {owed}" for owed in work.open_obligations]
    return "\n".join(lines) or "No goal is stated."


def _steps(steps: Sequence[tree_pb.Node], chars: int) -> str:
    most = max(_STEP_CHARS_MIN, chars // max(1, len(steps)))
    return "\n".join(f"[{node.node_id}] {node.step.role}: {_shortened(_said(node.step), most)}" for node in steps)


def _said(step: tree_pb.Step) -> str:
    call = f"{step.tool_call.name}({step.tool_call.arguments_json}) " if step.HasField("tool_call") else ""
    return call + step.content


def _shortened(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    half = (chars - len(_MARK)) // 2
    return text[:half] + _MARK + text[-half:]
