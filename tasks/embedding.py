"""Turn texts into vectors, many jobs in one provider call."""

from collections.abc import Sequence
from typing import Any

from db import documents
from db.documents import Document
from tasks import fault, llm
from tasks.payloads import Embedding, check
from worker.app import app
from worker.batching import Answer, BatchJob
from worker.errors import JobRefused
from worker.outcome import Fault
from worker.policy import load as load_policy

One = tuple[str, Embedding]


class EmbeddingJob(BatchJob):
    """Jobs gathered by the worker; each keeps its own result, retry and dead letter."""

    abstract = True

    def classify(self, error: Exception) -> Fault:
        return fault.of(error)

    def run_batch(self, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[Answer]:
        """Embed all texts and keep the vectors of each call in one transaction.

        One call for each model. When the provider rejects a call, its texts are halved until the bad one stands alone:
        only that job fails.
        """
        answers: dict[str, Answer] = {}
        ones: list[One] = []
        for job_id, arguments in jobs:
            try:
                ones.append((job_id, check(Embedding, **arguments)))
            except JobRefused as error:  # from a producer that does not check
                answers[job_id] = error
        for model in {one.model for _, one in ones}:
            answers.update(_embed([(job_id, one) for job_id, one in ones if one.model == model], model))
        return [answers[job_id] for job_id, _ in jobs]


@app.task(base=EmbeddingJob, bind=True, name=Embedding.task)  # type: ignore[untyped-decorator]
def embedding(self: EmbeddingJob, **arguments: Any) -> dict[str, Any]:
    """Embed one text. The worker calls `EmbeddingJob.run_batch` instead; this is the call within one process."""
    answer = self.run_batch([(self.request.id or "", arguments)])[0]
    if isinstance(answer, Exception):
        raise answer
    return dict(answer)


def _embed(ones: Sequence[One], model: str | None) -> dict[str, Answer]:
    try:
        reply = llm.embed(
            [one.text for _, one in ones],
            timeout_s=load_policy().queue(Embedding.queue).time_limit_s,
            model=model,
        )
    except llm.ProviderRejected as error:
        if len(ones) == 1:
            return {ones[0][0]: error}
        middle = len(ones) // 2
        return {**_embed(ones[:middle], model), **_embed(ones[middle:], model)}
    documents.store(
        [
            Document(key=one.key or job_id, content=one.text, embedding=vector, model=reply.model, job_id=job_id)
            for (job_id, one), vector in zip(ones, reply.vectors, strict=True)
        ]
    )
    return {
        job_id: {"key": one.key or job_id, "model": reply.model, "dimensions": len(reply.vectors[0])}
        for job_id, one in ones
    }
