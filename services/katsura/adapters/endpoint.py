"""One question to any server that speaks the OpenAI chat API, our gateway included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import httpx

from katsura.adapters.prompts import Message
from katsura.domain.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)

_SHOWN_CHARS: Final = 200
_RETRY_AFTER_S: Final = 5.0
_RETRY_AFTER_MAX_S: Final = 3600.0


class ChatEndpoint:
    """A model behind `url` (the part before `/chat/completions`). Close it, or use it as a context manager.

    Args:
        timeout_s: of a whole answer.
        max_tokens: of an answer.
    """

    def __init__(
        self, url: str, model: str, api_key: str = "", timeout_s: float = 120.0, max_tokens: int = 800
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(base_url=url.rstrip("/") + "/", headers=headers, timeout=timeout_s)
        self._model = model
        self._max_tokens = max_tokens

    async def ask(self, messages: Sequence[Message]) -> str:
        """The text of one answer, as it is.

        Raises:
            ResourceExhaustedError: 429. UnavailableError: 5xx, or nobody answers. DeadlineExceededError: too slow.
            FailedPreconditionError: refused for good, or the answer is not one of the chat API.
        """
        asked = {"model": self._model, "messages": list(messages), "max_tokens": self._max_tokens, "temperature": 0}
        try:
            reply = await self._client.post("chat/completions", json=asked)
        except httpx.TimeoutException as error:
            raise DeadlineExceededError(f"the model took longer than {self._client.timeout.read} s") from error
        except httpx.HTTPError as error:
            raise UnavailableError(f"the endpoint does not answer: {error or type(error).__name__}") from error
        if reply.status_code == 429:
            raise ResourceExhaustedError("the endpoint answers 429: too many requests", retry_after_s=_wait(reply))
        if reply.status_code >= 500:
            raise UnavailableError(f"the endpoint answers {reply.status_code}", retry_after_s=_wait(reply))
        if reply.status_code >= 400:
            text = reply.text[:_SHOWN_CHARS]
            raise FailedPreconditionError(f"the endpoint refuses with {reply.status_code}: {text}")
        try:
            return str(reply.json()["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError) as error:
            text = reply.text[:_SHOWN_CHARS]
            raise FailedPreconditionError(f"the endpoint's answer is not a chat completion: {text!r}") from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


def _wait(reply: httpx.Response) -> float:
    try:
        asked = float(reply.headers.get("retry-after", ""))
    except ValueError:
        return _RETRY_AFTER_S  # none, or a date
    return min(max(asked, 0.0), _RETRY_AFTER_MAX_S)
