"""Say of every error that our tasks meet whether trying again may help."""

from db import errors
from tasks.llm import ProviderAway, ProviderBusy, ProviderRefusesUs
from worker.outcome import Fault

OF_DATABASE = {
    errors.Fault.AWAY: Fault.AWAY,
    errors.Fault.BUSY: Fault.PASSING,  # a deadlock, a timeout: the same statement may meet it for ever
    errors.Fault.INPUT: Fault.FATAL,
    errors.Fault.UNKNOWN: Fault.FATAL,
}


def of(error: Exception) -> Fault:
    """Return what an error of a provider or of the database says about the next attempt."""
    if isinstance(error, ProviderBusy | ProviderRefusesUs):
        return Fault.AWAY
    if isinstance(error, ProviderAway):
        return Fault.PASSING
    return OF_DATABASE[errors.fault_of(error)]
