"""What an embedding is given."""

from pydantic import model_validator

from tasks import tokens
from tasks.producer.kinds.payload import JobPayload, Name, Text


class Embedding(JobPayload):
    """One text to be kept with its vector under ``key`` (by default the job's id).

    ``add``: the vector of a further model, kept beside the others, and only while the document has this very text.
    """

    queue = "embedding"
    task = "tasks.embedding"

    text: Text
    key: Name | None = None
    model: Name | None = None
    add: bool | None = None  # left out when it is not wanted, so that a worker of the version before takes the job

    def cost(self) -> int:
        return tokens.estimate(self.text)

    @model_validator(mode="after")
    def _fits(self) -> "Embedding":
        if self.add and not self.key:
            raise ValueError("key: is required with add; name the document")
        return self
