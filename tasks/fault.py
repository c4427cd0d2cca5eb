"""Say of every error that our tasks meet whether trying again may help."""

from kombu.exceptions import OperationalError

from db import errors
from tasks.provider.errors import BreakerOpen, ProviderAway, ProviderBusy, ProviderError, ProviderRefusesUs
from worker.errors import BrokerUnavailable, QueueFull
from worker.runtime.outcome import Fault

OF_DATABASE = {
    errors.Fault.AWAY: Fault.AWAY,
    errors.Fault.BUSY: Fault.PASSING,  # a deadlock, a timeout: the same statement may meet it for ever
    errors.Fault.INPUT: Fault.FATAL,
    errors.Fault.UNKNOWN: Fault.FATAL,
}


#: A provider that waits for something else than this job, and a broker that takes no jobs from one that sends some.
ELSEWHERE = (ProviderBusy, ProviderRefusesUs, BreakerOpen, BrokerUnavailable, QueueFull, OperationalError)


def of(error: Exception) -> Fault:
    """Return what an error of a provider, of the database or of the broker says about the next attempt."""
    if isinstance(error, ELSEWHERE):
        return Fault.AWAY
    if isinstance(error, ProviderAway):
        return Fault.PASSING
    return OF_DATABASE[errors.fault_of(error)]


#: A wait that a provider asks for is cut to this: by then it may answer all the same.
LONGEST_WAIT_S = 600.0


def wait_s(error: Exception) -> float | None:
    """Return in how many seconds what is away may be back, when the error says so."""
    if not isinstance(error, ProviderError) or error.retry_after_s is None:
        return None
    return min(error.retry_after_s, LONGEST_WAIT_S)
