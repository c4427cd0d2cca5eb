"""Say honestly why a chat has no answer yet: a cause for programs, and a text for people."""

from db.conversations.turns import Cause
from tasks.provider.errors import OutOfTime, ProviderAway, ProviderBusy, ProviderRefusesUs

TEXTS: dict[Cause, str] = {
    "busy": "I'm temporarily busy. Please try again in a moment; your message was saved and will be answered.",
    "unavailable": "I'm temporarily unavailable. Your message was saved and will be answered.",
    "failed": "Something went wrong. Your message was saved and will be tried again.",
    "dead": "Something went wrong, and this message could not be answered. It was saved.",
}


def cause_of(error: Exception) -> Cause:
    """Return what an error that is tried again means to the one who waits for the answer."""
    if isinstance(error, ProviderBusy):
        return "busy"
    if isinstance(error, ProviderAway | ProviderRefusesUs) and not isinstance(error, OutOfTime):
        return "unavailable"
    return "failed"
