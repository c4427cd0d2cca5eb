"""Make one call of a provider: short retries, then the next model, all within the job's time limit.

Before each request its model's breaker is asked and a permit is taken; after it, both hear how it ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_before_delay,
    stop_when_event_set,
    wait_exponential,
)

from tasks.provider import retry_after
from tasks.provider.call import Call, limited
from tasks.provider.endpoint import Endpoint, client_of, of_fallback
from tasks.provider.errors import (
    BreakerOpen,
    Cancelled,
    ModelUnknown,
    NotReached,
    OutOfTime,
    ProviderAway,
    ProviderBusy,
    ProviderError,
    ProviderRefusesUs,
    ProviderRejected,
    sorted_errors,
)
from tasks.provider.metering import Meter, Unmetered
from worker.errors import NoPermit
from worker.limits import breaker
from worker.limits.breaker import Breakers, Ticket
from worker.policy.queue import Breaker, Fallback

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

#: The time to reach the provider: the one wait that neither a limit nor a cancellation can cut short.
CONNECT_S = 5.0
#: No breaker: every call goes.
UNBROKEN = Breakers(None, Breaker())
UNMETERED = Unmetered()


class Counted(Protocol):
    """An answer that knows what it cost by the provider's own count."""

    @property
    def total_tokens(self) -> int: ...


T = TypeVar("T", bound=Counted)
#: Sends the request with a client to a model; takes note of what comes by the call.
Send: TypeAlias = "Callable[[openai.OpenAI, str, openai.Timeout, Call], T]"


@dataclass(frozen=True)
class Question(Generic[T]):
    """What is asked, and under which terms. ``tokens``: what one request is reckoned to cost."""

    send: Send[T]
    limit_s: float
    tokens: int
    job_id: str = ""
    meter: Meter = UNMETERED
    breakers: Breakers = UNBROKEN


def ask(question: Question[T], first: Endpoint, fallbacks: Sequence[Fallback] = ()) -> T:
    """Return the answer of the first model that gives one. Raises `ProviderError` and `Cancelled`.

    A model that cannot answer now is followed by the next; one that refuses the request is not, for the next is asked
    the same, unless it does not know the model. Of several errors the one is raised that says most about waiting.
    """
    until = time.monotonic() + question.limit_s
    errors: list[ProviderError] = []
    for place, fallback in enumerate((None, *fallbacks)):
        left_s = until - time.monotonic()
        if errors and left_s <= 0:
            break
        try:
            endpoint = first if fallback is None else of_fallback(fallback)
            # A provider that says nothing at all leaves half of the time to those behind it.
            silent_s = left_s / 2 if place < len(fallbacks) else None
            return _ask_one(_on_account(question, endpoint, first), endpoint, left_s, silent_s)
        except ProviderError as error:
            errors.append(error)
            if isinstance(error, ProviderRejected) and not isinstance(error, ModelUnknown):
                break
            if place < len(fallbacks):
                logger.warning("job %s asks %s next: %s", question.job_id, fallbacks[place].model, error)
    raise most_telling(errors)


def most_telling(errors: Sequence[ProviderError]) -> ProviderError:
    """Return the error that the job is decided by, of those of each model in order.

    Only when every model that may answer later is busy is the job rate limited, until the first of them is not.
    """
    waiting = [error for error in errors if not isinstance(error, ProviderRejected)]
    if not waiting:
        return errors[0]
    others = [error for error in waiting if not isinstance(error, ProviderBusy)]
    if others:
        return others[0]
    return min(waiting, key=lambda error: float("inf") if error.retry_after_s is None else error.retry_after_s)


def _on_account(question: Question[T], endpoint: Endpoint, first: Endpoint) -> Question[T]:
    """Return the question without its meter where another account is asked: the gate is not that one's."""
    if endpoint.shares_account_with(first):
        return question
    return Question(question.send, question.limit_s, question.tokens, question.job_id, breakers=question.breakers)


def _ask_one(question: Question[T], endpoint: Endpoint, left_s: float, silent_s: float | None) -> T:
    """Ask one model: up to 3 tries, 2 to 10 s apart, for what a moment heals.

    Longer trouble is the queue's retry policy's.
    """
    with sorted_errors():
        client = client_of(endpoint)  # the first one takes a second to import and make, which is no part of the call
    with limited(left_s, question.job_id, silent_s) as call:
        tries = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(3) | stop_before_delay(silent_s or left_s) | stop_when_event_set(call.over),
            wait=wait_exponential(multiplier=1, min=2, max=10),
            sleep=sleep_using_event(call.over),
            before_sleep=before_sleep_log(logger, logging.WARNING),
            reraise=True,
        )
        answer: T = tries(_try, question, endpoint, client, call)
        return answer


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, ProviderAway) and not isinstance(error, BreakerOpen)


def _try(question: Question[T], endpoint: Endpoint, client: openai.OpenAI, call: Call) -> T:
    """Make one request. A breaker or a gate that lets it not through ends the tries of this model."""
    try:
        if call.over.is_set():
            raise ProviderAway("not asked")
        ticket = _admitted(question, endpoint, call)
    except ProviderError as error:
        raise _ended(call, error) from error
    tell = partial(question.breakers.tell, ticket)
    had_time = call.left_s >= question.limit_s / 4
    try:
        answer = _sent(question, endpoint, client, call)
    except ProviderError as error:
        # A timeout that the models before have caused says nothing of this one.
        failed = isinstance(error, ProviderAway) and (had_time or not isinstance(error, OutOfTime))
        tell("failed" if failed else "unknown" if isinstance(error, ProviderAway) else "answered")
        _settle(question.meter, error)
        raise
    except BaseException:
        tell("unknown")
        raise
    tell("answered")
    question.meter.used(answer.total_tokens)
    opens_s = retry_after.of_used_up(call.headers, question.tokens)
    if opens_s:
        question.meter.used_up(opens_s)
    return answer


def _admitted(question: Question[T], endpoint: Endpoint, call: Call) -> Ticket:
    """Return the breaker's leave for one request that has its permit."""
    try:
        ticket = question.breakers.ask(endpoint.name, call.left_s)
    except breaker.BreakerOpen as error:
        raise BreakerOpen(
            f"{error.name} failed again and again and is left alone for {error.retry_after_s:.1f} s",
            error.retry_after_s,
        ) from error
    try:
        leaves_s = question.meter.before_call(question.tokens)
    except NoPermit as error:
        question.breakers.tell(ticket, "unknown")
        if error.retry_after_s is None:
            raise ProviderRejected(str(error)) from error
        raise ProviderBusy(str(error), error.retry_after_s) from error
    except BaseException:
        question.breakers.tell(ticket, "unknown")
        raise
    is_too_long = leaves_s > call.left_s / 2
    if is_too_long or call.over.wait(leaves_s):  # cancelled, or out of time
        question.meter.unused()
        question.breakers.tell(ticket, "unknown")
        raise ProviderBusy(f"its gate lets the call leave in {leaves_s:.1f} s", leaves_s)
    return ticket


def _sent(question: Question[T], endpoint: Endpoint, client: openai.OpenAI, call: Call) -> T:
    import openai

    try:
        with sorted_errors():
            timeout = openai.Timeout(None, connect=min(call.left_s, CONNECT_S))
            return question.send(client, endpoint.model, timeout, call)
    except ProviderError as error:
        raise _ended(call, error) from error


def _ended(call: Call, error: ProviderError) -> Exception:
    """Return what an error means of a call that had to end: its line was cut, whatever the error says."""
    if call.cancelled:
        return Cancelled("the job was cancelled while it asked the provider")
    if call.over.is_set():
        return OutOfTime(f"no answer from the provider within {round(call.limit_s, 1):g} s")
    return error


def _settle(meter: Meter, error: ProviderError) -> None:
    """Tell the meter of a request that failed. What an answer cut short has cost nobody knows: its charge stays."""
    match error:
        case ProviderBusy():
            meter.busy(error.retry_after_s)
        case NotReached():
            meter.unused()
        case ProviderRejected() | ProviderRefusesUs():
            meter.used(0)
