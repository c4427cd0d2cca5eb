"""Say of every error that our tasks meet whether trying again may help."""

from db.errors import StoreError, is_transient
from tasks.llm import ProviderAway, ProviderBusy
from worker.outcome import Fault


def of(error: Exception) -> Fault:
    """Return what an error of a provider or of the database says about the next attempt."""
    if isinstance(error, ProviderBusy):
        return Fault.AWAY
    if isinstance(error, ProviderAway):
        return Fault.PASSING
    if is_transient(error):
        return Fault.AWAY
    if isinstance(error, StoreError):
        return Fault.FATAL
    return Fault.FATAL
