"""Say of every error that our tasks meet whether trying again may help."""

from kombu.exceptions import OperationalError

from db import errors
from tasks.llm import ProviderAway, ProviderBusy, ProviderRefusesUs
from worker.errors import BrokerUnavailable, QueueFull
from worker.outcome import Fault

OF_DATABASE = {
    errors.Fault.AWAY: Fault.AWAY,
    errors.Fault.BUSY: Fault.PASSING,  # a deadlock, a timeout: the same statement may meet it for ever
    errors.Fault.INPUT: Fault.FATAL,
    errors.Fault.UNKNOWN: Fault.FATAL,
}


#: A provider that waits for something else than this job, and a broker that takes no jobs from one that sends some.
ELSEWHERE = (ProviderBusy, ProviderRefusesUs, BrokerUnavailable, QueueFull, OperationalError)


def of(error: Exception) -> Fault:
    """Return what an error of a provider, of the database or of the broker says about the next attempt."""
    if isinstance(error, ELSEWHERE):
        return Fault.AWAY
    if isinstance(error, ProviderAway):
        return Fault.PASSING
    return OF_DATABASE[errors.fault_of(error)]
