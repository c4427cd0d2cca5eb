"""What the errors of our tasks say about the next attempt."""

import pytest
import sqlalchemy.exc
from kombu.exceptions import OperationalError

from db.errors import TextError
from tasks import fault
from tasks.provider import llm
from worker.errors import BrokerUnavailable, JobRefused, QueueFull
from worker.runtime.outcome import Fault


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (llm.ProviderBusy("limited"), Fault.AWAY),
        (llm.ProviderRefusesUs("no key"), Fault.AWAY),
        (llm.ProviderAway("no answer"), Fault.PASSING),
        (llm.ProviderRejected("too long"), Fault.FATAL),
        (sqlalchemy.exc.TimeoutError("no connection is free"), Fault.AWAY),
        (TextError("holds NUL"), Fault.FATAL),
        (OperationalError("no broker for a task that sends others"), Fault.AWAY),
        (BrokerUnavailable("no broker"), Fault.AWAY),
        (QueueFull("chat", 5, 5, None), Fault.AWAY),
        (JobRefused("text", "", "is empty"), Fault.FATAL),
        (ValueError("a bug"), Fault.FATAL),
    ],
)
def test_each_error_is_sorted(error: Exception, said: Fault) -> None:
    assert fault.of(error) is said


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [
        (llm.ProviderBusy("limited", 599.0), 599.0),
        (llm.ProviderBusy("limited", 86400.0), fault.LONGEST_WAIT_S),
        (llm.ProviderBusy("limited"), None),
        (ValueError("a bug"), None),
    ],
)
def test_a_wait_is_what_the_provider_says_within_reason(error: Exception, wait_s: float | None) -> None:
    assert fault.wait_s(error) == wait_s
