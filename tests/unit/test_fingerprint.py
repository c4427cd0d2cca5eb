"""The mark of a death: what makes no difference, and what does."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.records import fingerprint

FRAMES = """Traceback (most recent call last):
  File "/{root}/tasks/chat.py", line {line}, in {function}
    answer()
  File "/{root}/.venv/lib/python3.11/site-packages/openai/_base_client.py", line 9, in post
    raise
  File "/usr/lib/python3.11/json/decoder.py", line 3, in decode
    raise
"""


def traceback(root: str = "srv", line: int = 7, function: str = "run") -> str:
    return FRAMES.format(root=root, line=line, function=function)


@given(st.integers(), st.floats(), st.uuids(), st.text(), st.integers(1, 2**64))
def test_values_make_no_difference(whole: int, real: float, uid: UUID, text: str, address: int) -> None:
    def of(*values: object) -> str:
        error = "ValueError: row {} took {} s, job {} ({}), held by <Lock at {}>, can't go on".format(*values)
        return fingerprint.of("failed", error, traceback())

    finite = 0.5 if real != real or abs(real) == float("inf") else real  # these have no digit
    assert of(whole, finite, uid, repr(text), hex(address)) == of(1, 2.5, UUID(int=0), "'x'", "0x7f")


@given(st.text(alphabet="'\"\\`ab1 \n", max_size=200), st.text(max_size=50))
def test_any_text_has_twelve_hexadecimal_digits(error: str, frames: str) -> None:
    found = fingerprint.of("failed", error, frames)
    assert len(found) == 12
    assert int(found, 16) >= 0


def test_the_line_and_the_folder_make_no_difference() -> None:
    assert fingerprint.of("failed", "KeyError: 'a'", traceback()) == fingerprint.of(
        "failed", "KeyError: 'b'\nmore", traceback("home/me/app", 99)
    )


@pytest.mark.parametrize(
    ("reason", "error", "function"),
    [
        ("time limit", "ValueError: no row", "run"),
        ("failed", "TypeError: no row", "run"),
        ("failed", "ValueError: no column", "run"),
        ("failed", "ValueError: no row", "check"),
    ],
)
def test_reason_type_text_and_function_do(reason: str, error: str, function: str) -> None:
    usual = fingerprint.of("failed", "ValueError: no row", traceback())
    assert fingerprint.of(reason, error, traceback(function=function)) != usual


def test_the_innermost_function_of_ours_counts() -> None:
    def of(*functions: str) -> str:
        ours = "".join(f'  File "/srv/tasks/chat.py", line 1, in {name}\n' for name in functions)
        foreign = '  File "/usr/lib/python3.11/json/decoder.py", line 3, in decode\n'
        return fingerprint.of("failed", "ValueError: no row", ours + foreign)

    assert of("outer", "inner") == of("another", "inner")
    assert of("outer", "inner") != of("outer", "another")
