"""Tokenizer and chat template of each served model, loaded once per revision."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from katsura.gateway.core.chat_request import Message
from katsura.gateway.core.prompt import Part, Prompt, build
from katsura.text.template import ChatTemplate
from katsura.text.tokenizer import Tokenizer


class ModelText:
    """Between the messages of one model and its ids. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self.stop_token_ids = frozenset(tokenizer.eos_ids)
        self._template = template

    @classmethod
    def load(cls, folder: Path) -> ModelText:
        """Read a model folder; NotFoundError and DataLossError as `katsura.text` raises them."""
        tokenizer = Tokenizer.from_folder(folder)
        return cls(tokenizer, ChatTemplate.from_folder(folder, tokenizer))

    def pieces(self, messages: Sequence[Message]) -> list[str]:
        """Renderings: the preamble, one per message, the generation prompt."""
        return self._template.render_segments([{"role": m.role, "content": m.content} for m in messages])

    async def prompt(self, parts: Sequence[Part]) -> Prompt:
        """The prompt of `parts`, rendered and tokenised off the event loop."""

        def made() -> Prompt:
            return build(parts, self.pieces([part.message for part in parts]), self.tokenizer.encode)

        return await asyncio.to_thread(made)

    def answer_piece(self, content: str) -> str:
        """An answer as the template shows it in a later prompt."""
        return self.pieces([Message("user", ""), Message("assistant", content)])[2]


class Texts:
    """The texts of every model seen so far, by folder and tokenizer digest."""

    def __init__(self) -> None:
        self._loading: dict[tuple[str, str], asyncio.Task[ModelText]] = {}

    async def of(self, folder: str, tokenizer_digest: str) -> ModelText:
        """The text of a model; callers at once share one loading, and a failed one is tried again by the next."""
        key = (folder, tokenizer_digest)
        task = self._loading.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.get_running_loop().create_task(asyncio.to_thread(ModelText.load, Path(folder)))
            self._loading[key] = task
        return await asyncio.shield(task)
