"""Lengths of time on the command line."""

import pytest
import typer

from cli import durations


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604800), ("1.5h", 5400)])
def test_a_length_of_time_is_read(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "2 weeks", "1e3s", "nan", "9999999999d"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="such as 90s or 2h"):
        durations.parse(text)
