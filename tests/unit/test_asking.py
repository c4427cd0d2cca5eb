"""Which of several models' errors a job is decided by."""

import pytest

from tasks.provider.asking import most_telling
from tasks.provider.errors import (
    BreakerOpen,
    ModelUnknown,
    ProviderAway,
    ProviderBusy,
    ProviderError,
    ProviderRefusesUs,
    ProviderRejected,
)

LATER, SOON, SOMETIME = ProviderBusy("later", 60.0), ProviderBusy("soon", 1.0), ProviderBusy("sometime")
AWAY, OPEN, REFUSED = ProviderAway("away"), BreakerOpen("open", 5.0), ProviderRefusesUs("no account")
UNKNOWN, REJECTED = ModelUnknown("no such model"), ProviderRejected("too long")


@pytest.mark.parametrize(
    ("errors", "tells"),
    [
        ([AWAY], AWAY),
        ([LATER, SOON, SOMETIME], SOON),
        ([SOMETIME, ProviderBusy("too")], SOMETIME),
        ([SOON, AWAY], AWAY),
        ([AWAY, SOON], AWAY),
        ([OPEN, AWAY], OPEN),
        ([UNKNOWN, AWAY], AWAY),
        ([UNKNOWN, SOON], SOON),
        ([UNKNOWN, REJECTED], UNKNOWN),
        ([AWAY, REJECTED], AWAY),
        ([SOON, REFUSED], REFUSED),
    ],
)
def test_the_error_that_says_most_about_waiting(errors: list[ProviderError], tells: ProviderError) -> None:
    assert most_telling(errors) is tells
