"""Answer one turn of a conversation."""

from typing import Any

from db.conversations import turns
from db.engine import transaction
from tasks import fault, notice
from tasks.producer.kinds.chat import Chat
from tasks.producer.kinds.payload import check
from tasks.provider import cached, endpoint
from tasks.provider.llm import Message
from tasks.stream_writer import Writer
from worker.app import app
from worker.limits import gates
from worker.limits.breaker import Breakers
from worker.policy.policy import load as load_policy
from worker.runtime.outcome import Fault
from worker.runtime.task import Job


class ChatJob(Job):
    """A chat turn keeps the user's message even when it is never run, and tells when its answer is late."""

    abstract = True

    def prepare(self) -> None:
        endpoint.load_client()

    def classify(self, error: Exception) -> Fault:
        return fault.of(error)

    def wait_s(self, error: Exception) -> float | None:
        return fault.wait_s(error)

    def failed(self, error: Exception, is_dead: bool, **arguments: Any) -> None:
        """Put a notice where the answer will be, or change the one that is there."""
        turn, job_id = check(Chat, **arguments), self.request.id
        cause = "dead" if is_dead else notice.cause_of(error)
        _keep(job_id, turn)
        turns.store_notice(job_id, turn.conversation, cause, notice.TEXTS[cause])

    def abandoned(self, **arguments: Any) -> None:
        _keep(self.request.id, check(Chat, **arguments))

    def writer(self) -> Writer | None:
        """Return what writes this run's stream; None for a run inside its caller, which has no record."""
        delivery = self._delivery()
        return Writer(self.records(), delivery) if delivery else None


@app.task(base=ChatJob, bind=True, name=Chat.task)  # type: ignore[untyped-decorator]
def chat(self: ChatJob, **arguments: Any) -> dict[str, Any]:
    """Keep the user's message, ask the model with the conversation's recent history, keep the answer once.

    The answer of an earlier run of the same job is returned as it is.
    """
    turn, job_id = check(Chat, **arguments), self.request.id
    with transaction():
        _keep(job_id, turn)
        answer = turns.answer_of(job_id)
        prompt = _prompt(job_id, turn) if answer is None else []
    writer = self.writer() if turn.stream and answer is None else None
    if answer is None:
        queue, meter = load_policy().queue(Chat.queue), gates.meter()
        completion = cached.chat(
            prompt,
            timeout_s=queue.time_limit_s,
            job_id=job_id,
            model=turn.model,
            max_tokens=turn.max_tokens,
            temperature=turn.temperature,
            tools=turn.tools,
            fallbacks=queue.fallbacks,
            answer_tokens=queue.answer_tokens,
            meter=meter,
            breakers=Breakers(meter.broker, queue.breaker),
            on_text=writer.text if writer else None,
            on_restart=writer.restart if writer else None,
        )
        answer = turns.store_answer(
            job_id,
            turn.conversation,
            completion.text,
            completion.model,
            completion.prompt_tokens,
            completion.completion_tokens,
            {
                "finish_reason": completion.finish_reason,
                "tool_calls": completion.tool_calls,
                **cached.marks(completion),
            },
        )
    usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    if writer:
        writer.whole(usage)
    return {
        "text": answer.content,
        "conversation": turn.conversation,
        "model": answer.model,
        "usage": usage,
        **(answer.details or {}),
    }


def _keep(job_id: str, turn: Chat) -> None:
    turns.store_user_message(job_id, turn.conversation, turn.message, user_id=turn.user, tenant=turn.tenant)


def _prompt(job_id: str, turn: Chat) -> list[Message]:
    system = [{"role": "system", "content": turn.system}] if turn.system else []
    history = turns.history_for(job_id, limit=turn.history)
    return [*system, *({"role": message.role, "content": message.content} for message in history)]
