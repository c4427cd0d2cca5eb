"""Reckon what a text costs in tokens, without the model's own tokenizer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: What an answer is reckoned to cost where nobody has said.
ANSWER = 500
#: OpenAI counts about 3 tokens around each message, for its role and its bounds.
AROUND_MESSAGE = 3


def estimate(text: str) -> int:
    """Return about how many tokens a text has: one for each 4 bytes of UTF-8, rounded up.

    OpenAI's rule of thumb is 4 characters a token of English; counting bytes keeps other scripts from being
    underestimated.
    """
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def cost_of_chat(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    max_tokens: int | None = None,
    answer_tokens: int = ANSWER,
) -> int:
    """Return the tokens that a chat's whole prompt and its answer are reckoned to cost.

    An answer is reckoned as ``max_tokens``, without it as ``answer_tokens``.
    """
    prompt = sum(AROUND_MESSAGE + _estimate_content(message.get("content")) for message in messages)
    return prompt + (estimate(json.dumps(tools)) if tools else 0) + (max_tokens or answer_tokens)


def _estimate_content(content: Any) -> int:
    return estimate(content if isinstance(content, str) else json.dumps(content) if content else "")
