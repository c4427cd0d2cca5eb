"""Alarms go off in their order, whatever order they were set in, and not at all once they are cancelled."""

import os
import threading
from queue import SimpleQueue

import pytest

from tasks.provider import alarm


def test_alarms_go_off_in_order_also_those_set_later_for_earlier() -> None:
    gone: SimpleQueue[str] = SimpleQueue()
    alarm.after(60, lambda: gone.put("never"))
    alarm.after(0.2, lambda: gone.put("last"))
    cancelled = alarm.after(0.1, lambda: gone.put("cancelled"))
    alarm.after(0, lambda: gone.put("first"))
    cancelled.cancel()
    assert [gone.get(timeout=30), gone.get(timeout=30)] == ["first", "last"]
    assert gone.empty()


def test_one_that_fails_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    alarm.after(0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    alarm.after(0, done.set)
    assert done.wait(30)
    assert "an alarm failed" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # prefork does it too
def test_a_forked_child_has_alarms_of_its_own() -> None:
    alarm.after(0, lambda: None)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        gone = threading.Event()
        alarm.after(0, gone.set)
        if gone.wait(30):
            os.write(write, b"x")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        assert said.read() == b"x", "it ended without its alarm"
    os.waitpid(pid, 0)
