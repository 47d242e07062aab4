"""The default estimate of rendered tokens, for nodes that carry no ids of the tokenizer in question.

Byte-pair tokenizers give English about 4 bytes a token, code and JSON about 3: dividing by 3 errs on the long side, so
that a budget kept by estimates is seldom overrun by the real ids.
"""

from __future__ import annotations

from typing import Final

from katsura.domain.trees import Effect, Hint, StandingEffect, Step, Wait, WaitKind

_WAIT_NAMES: Final = {WaitKind.APPROVAL: "approval", WaitKind.SUBGOAL: "subgoal"}
BYTES_PER_TOKEN: Final = 3
MESSAGE_TOKENS: Final = 4
"""What a template adds around one message: role and separators."""


def estimate(text: str) -> int:
    """Rendered tokens of a message that says `text`."""
    return MESSAGE_TOKENS + -(-len(text.encode()) // BYTES_PER_TOKEN)


def wait_text(wait: Wait) -> str:
    """What a step waits for, as an obligation."""
    return f"{_WAIT_NAMES.get(wait.kind, 'tool')}: {wait.what}"


def shown_text(step: Step) -> str:
    """What a step says in a context: the same for as long as it is there, so that no prefix changes."""
    if step.wait is None or step.wait.kind is WaitKind.SUBGOAL:  # whose step says so in its own words
        return step.content
    return f"{step.content}\n[waits for {wait_text(step.wait)}]".lstrip("\n")


def hint_text(hint: Hint) -> str:
    """What a hint says in a context."""
    text = (
        f"[untrusted history: branch {hint.abandoned_branch} was abandoned; work goes on after step "
        f"{hint.restored_after}]\nReason: {hint.reason}\nIt began with: {hint.first_action}"
    )
    return "\n".join((text, *map(_standing_text, hint.standing)))


def _standing_text(effect: StandingEffect) -> str:
    undo = "cannot be undone" if effect.effect is Effect.IRREVERSIBLE else f"undo: {effect.undo_ref}"
    return f"Done outside all the same: {effect.excerpt} (step {effect.node_id}, {undo})"


def estimate_step(step: Step) -> int:
    """Rendered tokens of a step, with its tool call."""
    if step.tool_call is None:
        return estimate(shown_text(step))
    return estimate(shown_text(step) + step.tool_call.call_id + step.tool_call.name + step.tool_call.arguments_json)
