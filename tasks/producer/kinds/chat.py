"""What a chat is given."""

import json
from typing import Any
from uuid import uuid4

from pydantic import Field

from tasks import tokens
from tasks.producer.kinds.payload import JobPayload, Name, Text
from worker.policy.policy import load as load_policy


class Chat(JobPayload):
    """One turn of a conversation. Without ``conversation`` a new one begins.

    ``stream``: give readers of `Job.stream` the text while the model writes it.
    """

    queue = "chat"
    task = "tasks.chat"

    message: Text
    conversation: Name = Field(default_factory=lambda: uuid4().hex)
    user: Name | None = None
    tenant: Name | None = None
    system: Text | None = None
    model: Name | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    tools: list[dict[str, Any]] | None = None
    history: int = Field(default=15, ge=1, le=1000)
    stream: bool = False

    def cost(self) -> int:
        """Return the tokens of what is known here and of the answer; the history is added when the call is made."""
        tools = json.dumps(self.tools) if self.tools else ""
        answer = self.max_tokens or load_policy().queue(self.queue).answer_tokens
        return tokens.estimate(self.message) + tokens.estimate(self.system or "") + tokens.estimate(tools) + answer
