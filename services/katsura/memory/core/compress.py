"""Compressors: how a segment becomes a summary without a language model.

Each takes the steps of a segment and the summary before it, is deterministic, and quotes only what the segment says
(`quotes`): text is cut between words and pieces are joined by lines. Steps speak of obligations in their attributes:
`obligation` opens one, `closes` closes the one with that text; what is open is carried from summary to summary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from katsura.domain.trees import Node, Step, SummaryBody
from katsura.memory.core.quotes import quotes_of
from katsura.memory.core.tokens import estimate

OPENS: Final = "obligation"
CLOSES: Final = "closes"
DEFAULT_COMPRESSOR: Final = "extractive"
_EDGE_CHARS: Final = 280
_LINE_CHARS: Final = 160
_FACTS_MAX: Final = 24
_TOKENS_MIN, _TOKENS_MAX, _SHARE = 128, 1024, 4

Compressor = Callable[[Sequence[Node], SummaryBody | None], SummaryBody]


def shorten(text: str, chars: int) -> str:
    """`text` on one line, cut between words to at most `chars` characters; it quotes nothing that `text` does not."""
    line = " / ".join(" ".join(filter(None, re.split(r"[ \t]+", part))) for part in text.splitlines())
    if len(line) <= chars:
        return line
    return line[: chars - 1].rpartition(" ")[0] + " …"


def extractive(cover: Sequence[Node], previous: SummaryBody | None) -> SummaryBody:
    """How the segment began and ended, and the lines of it that quote ids, amounts, dates or addresses."""
    steps = _steps(cover)
    edges = [steps[0]] if len(steps) == 1 else [steps[0], steps[-1]]
    text = "\n".join(f"{step.role}: {shorten(_said(step), _EDGE_CHARS)}" for step in edges)
    return bounded(SummaryBody(text, *_extracted(steps, previous)), cover)


def mask_observations(cover: Sequence[Node], previous: SummaryBody | None) -> SummaryBody:
    """Every action, and of each observation only that there was one: node ids lead back to the whole.

    Masking observations about halves the cost at the quality of summaries (The Complexity Trap, arXiv 2508.21433).
    """
    lines = []
    for node in cover:
        step = node.body
        assert isinstance(step, Step), "a cover of level 0 holds steps"
        shown = "(observation masked)" if step.role == "tool" else shorten(_said(step), _LINE_CHARS)
        lines.append(f"step {node.node_id}: {step.role}: {shown}")
    steps = _steps(cover)
    return bounded(SummaryBody("\n".join(lines), *_extracted(steps, previous)), cover)


COMPRESSORS: Final[Mapping[str, Compressor]] = {"extractive": extractive, "mask-observations": mask_observations}


def open_obligations(steps: Iterable[Step], previous: SummaryBody | None) -> tuple[str, ...]:
    """Obligations open after `steps`, oldest first: those carried and those opened, less those closed."""
    found = dict.fromkeys(previous.open_obligations if previous else ())
    for step in steps:
        if opened := step.attributes.get(OPENS):
            found[opened] = None
        found.pop(step.attributes.get(CLOSES, ""), None)
    return tuple(found)


def summary_token_limit(covered_tokens: int) -> int:
    """Most tokens of a summary's body: a quarter of the cover, within bounds; obligations come on top."""
    return min(max(covered_tokens // _SHARE, _TOKENS_MIN), _TOKENS_MAX)


def body_tokens(body: SummaryBody, *, with_obligations: bool = True) -> int:
    """Estimated tokens of a summary's body."""
    lists = (body.facts, body.decisions, body.artifacts, body.open_obligations if with_obligations else ())
    return estimate("\n".join((body.text, *(item for items in lists for item in items))))


def _extracted(
    steps: Sequence[Step], previous: SummaryBody | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Facts, decisions, obligations and artifacts of the steps."""
    facts: dict[str, None] = {}
    artifacts: dict[str, None] = {}
    for step in steps:
        for line in step.content.splitlines():
            quotes = quotes_of(line)
            if quotes.words or quotes.dates or quotes.amounts:
                facts.setdefault(shorten(line, _LINE_CHARS))
            artifacts.update(dict.fromkeys(sorted(word for word in quotes.words if "/" in word)))
    calls = dict.fromkeys(step.tool_call.name for step in steps if step.tool_call)
    decisions = tuple(f"called {name}" for name in calls)
    newest = tuple(facts)[-_FACTS_MAX:]
    return newest, decisions, open_obligations(steps, previous), tuple(artifacts)[-_FACTS_MAX:]


def bounded(body: SummaryBody, cover: Sequence[Node]) -> SummaryBody:
    """`body` without what does not fit the limit: artifacts go first, then the oldest facts, then text."""
    limit = summary_token_limit(sum(node.tokens for node in cover))
    text, facts, decisions, artifacts = body.text, body.facts, body.decisions, body.artifacts

    def made() -> SummaryBody:
        return SummaryBody(text, facts, decisions, body.open_obligations, artifacts)

    while artifacts and body_tokens(made(), with_obligations=False) > limit:
        artifacts = artifacts[1:]
    while facts and body_tokens(made(), with_obligations=False) > limit:
        facts = facts[1:]
    while decisions and body_tokens(made(), with_obligations=False) > limit:
        decisions = decisions[1:]
    if body_tokens(made(), with_obligations=False) > limit:
        lines = text.splitlines()
        while len(lines) > 1 and body_tokens(SummaryBody("\n".join(lines))) > limit:
            lines.pop(len(lines) // 2)
        text = "\n".join(lines)
    return made()


def _steps(cover: Sequence[Node]) -> list[Step]:
    return [node.body for node in cover if isinstance(node.body, Step)]


def _said(step: Step) -> str:
    if step.tool_call is None:
        return step.content
    return f"{step.tool_call.name}\n{step.tool_call.arguments_json}\n{step.content}"
