"""Sort what a provider's call can raise, once, by what a retry, a wait or another model can change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasks.provider import retry_after
from worker.errors import ForebayError

if TYPE_CHECKING:
    import openai

#: What providers write into an error's ``code`` or ``type``; also within a stream, whose status was 200.
ACCOUNT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"})
LIMITED = frozenset({"rate_limit_exceeded", "429"})
TOO_LONG = frozenset({"context_length_exceeded", "string_above_max_length"})


class ProviderError(ForebayError):
    """A call of the provider that gave no usable answer. ``retry_after_s``: when asking again may help, if known."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text, retry_after_s)  # the arguments, so that it can be pickled
        self.text = text
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.text


class ProviderBusy(ProviderError):
    """Rate limited: the provider, or our own gate, answers later."""


class ProviderRefusesUs(ProviderError):
    """A wrong key, an empty account, a missing setting: no fault of the job, which waits until it is mended."""


class ProviderAway(ProviderError):
    """No connection, no answer in time, a server error, or an answer cut short: a moment may heal it."""


class NotReached(ProviderAway):
    """No connection: the provider has seen nothing of the call."""


class OutOfTime(ProviderAway):
    """The call's time limit was reached before its answer had come."""


class BreakerOpen(ProviderAway):
    """The provider failed again and again, so it was not asked; ``retry_after_s`` says when it may be."""


class ProviderRejected(ProviderError):
    """The request itself was refused; the same request will be refused again."""


class ModelUnknown(ProviderRejected):
    """The provider has no such model; another one may."""


class Cancelled(ForebayError):
    """The job was cancelled while its call was under way, which has ended."""


@contextmanager
def sorted_errors() -> Iterator[None]:
    """Turn the errors of the openai package, and what a malformed answer leads to, into `ProviderError`."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _of_status(error) from error
    except openai.APITimeoutError as error:
        raise NotReached(f"no connection to the provider: {error}") from error  # the only timeout that we set
    except openai.APIConnectionError as error:
        kind = NotReached if _is_unconnected(error) else ProviderAway
        raise kind(f"no answer from the provider: {error.__cause__ or error}") from error
    except UnicodeEncodeError as error:  # half of a surrogate pair is valid JSON and no text
        raise ProviderRejected(f"the request is not valid Unicode: {error}") from error
    except openai.APIError as error:
        raise _by_name(error) or ProviderAway(f"the provider's answer cannot be read: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:  # not what the protocol says
        raise ProviderAway(f"the provider's answer cannot be read: {error}") from error


def _of_status(error: openai.APIStatusError) -> ProviderError:
    status = error.status_code
    named = _by_name(error)
    if named and status < 500:
        return named
    if status == 429:
        return _busy(error)
    if status in (401, 402, 403):
        return _refuses_us(error)
    if status >= 500 or status in (408, 409):
        return ProviderAway(f"the provider failed with status {status}: {error}")
    kind = ModelUnknown if status == 404 else ProviderRejected
    return kind(f"the provider refused with status {status}: {error}")


def _by_name(error: openai.APIError) -> ProviderError | None:
    """Return what an error's own code or type says, None when that is nothing known."""
    names = {str(error.code), str(error.type)}
    if names & ACCOUNT:
        return _refuses_us(error)
    if names & LIMITED:
        return _busy(error)
    if names & TOO_LONG:
        return ProviderRejected(f"the provider refused, as the conversation is too long for the model: {error}")
    return None


def _busy(error: openai.APIError) -> ProviderBusy:
    response = getattr(error, "response", None)
    wait_s = retry_after.of(response.headers) if response is not None else None
    return ProviderBusy(f"the provider limits the rate: {error}", wait_s)


def _refuses_us(error: openai.APIError) -> ProviderRefusesUs:
    status = getattr(error, "status_code", 200)
    return ProviderRefusesUs(
        f"the provider refuses the account (status {status}): {error}; check the key and what is left on the account"
    )


def _is_unconnected(error: openai.APIConnectionError) -> bool:
    # by name: the package takes its HTTP client from httpx or from httpx2
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
