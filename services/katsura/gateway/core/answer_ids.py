"""The ids of an answer's node: what the model drew, between what the template puts around it.

The node's ids must be those that the next prompt contains at its place, and they must be the drawn ones: encoding the
text again may give others, and then the cached pages would not match. So they are

    opening (the generation prompt)  +  drawn ids  +  closing (what the template puts after the content)

where the drawn stop token is the beginning of the closing. Where that cannot be said exactly (a stop string cut into
the text, the template changes the content) there are no such ids, and the node is tokenised from its text later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def answer_ids(
    rendered: str,
    opening: str,
    content: str,
    drawn: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    encode: Callable[[str], list[int]],
    stop_token_ids: frozenset[int],
) -> list[int] | None:
    """Ids of the rendered answer, None where they cannot be the drawn ones.

    Args:
        rendered: the answer's segment by the template.
        opening: the generation prompt that `drawn` followed.
        content: the answer's text as shown and kept.
        drawn: ids as drawn, the stop token included where one ended it.
        decode: ids to text, without special tokens; encode: text to ids.
    """
    if not drawn or not opening or not rendered.startswith(opening + content):
        return None
    body = list(drawn[:-1]) if drawn[-1] in stop_token_ids else list(drawn)
    if decode(body) != content:
        return None
    closing = encode(rendered[len(opening) + len(content) :])
    if len(body) < len(drawn) and (not closing or closing[0] != drawn[-1]):
        return None
    return [*encode(opening), *body, *closing]
