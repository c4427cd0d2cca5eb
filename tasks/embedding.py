"""Turn texts into vectors, many jobs in one provider call."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from db.vectors import documents
from db.vectors.documents import Document
from tasks import fault
from tasks.bisect import apart, readable
from tasks.producer.kinds.embedding import Embedding
from tasks.provider import cached, endpoint
from worker.app import app
from worker.limits import gates
from worker.limits.breaker import Breakers
from worker.policy.policy import load as load_policy
from worker.runtime.batching import Answer, BatchJob
from worker.runtime.outcome import Fault

One = tuple[str, Embedding]


class EmbeddingJob(BatchJob):
    """Jobs gathered by the worker; each keeps its own result, retry and dead letter."""

    abstract = True

    def prepare(self) -> None:
        endpoint.load_client()

    def classify(self, error: Exception) -> Fault:
        return fault.of(error)

    def wait_s(self, error: Exception) -> float | None:
        return fault.wait_s(error)

    def run_batch(self, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[Answer]:
        """Embed all texts, in one call for each model, and keep the vectors in one transaction.

        What fails for good is halved until the job at fault stands alone: only that job fails. Of two jobs with one
        key, the later one's document stays.
        """
        given, answers = readable(Embedding, jobs)
        asked: dict[str | None, list[One]] = defaultdict(list)
        for job_id, one in given:
            asked[one.model].append((job_id, one))
        for model, ones in asked.items():
            answers.update(zip((job_id for job_id, _ in ones), apart(partial(_embed, model), ones), strict=True))
        added = {job_id for job_id, one in given if one.add}
        made = [(job_id, answers[job_id]) for job_id, _ in jobs if isinstance(answers[job_id], Document)]
        for keep, some in (
            (documents.store, [each for each in made if each[0] not in added]),
            (_add, [each for each in made if each[0] in added]),
        ):
            kept = apart(keep, [document for _, document in some])
            answers.update(zip((job_id for job_id, _ in some), kept, strict=True))
        return [answers[job_id] for job_id, _ in jobs]


@app.task(base=EmbeddingJob, bind=True, name=Embedding.task)  # type: ignore[untyped-decorator]
def embedding(self: EmbeddingJob, **arguments: Any) -> dict[str, Any]:
    """Embed one text. The worker calls `EmbeddingJob.run_batch` instead; this is the call within one process."""
    answer = self.run_batch([(self.request.id or uuid4().hex, arguments)])[0]
    if isinstance(answer, Exception):
        raise answer
    return dict(answer)


def _embed(model: str | None, ones: Sequence[One]) -> list[Document]:
    queue, meter = load_policy().queue(Embedding.queue), gates.meter()
    reply = cached.embed(
        [one.text for _, one in ones],
        timeout_s=queue.time_limit_s,
        model=model,
        meter=meter,
        breakers=Breakers(meter.broker, queue.breaker),
    )
    return [
        Document(key=one.key or job_id, content=one.text, embedding=vector, model=reply.model, job_id=job_id)
        for (job_id, one), vector in zip(ones, reply.vectors, strict=True)
    ]


def _add(some: Sequence[Document]) -> list[dict[str, Any]]:
    """Keep vectors beside those of other models. A second run finds them there, so it needs no receipt."""
    documents.add(some)
    return [{"key": each.key, "model": each.model, "dimensions": len(each.embedding)} for each in some]
