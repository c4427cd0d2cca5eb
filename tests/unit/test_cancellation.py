"""What a running job closes when it is cancelled."""

from worker.runtime import cancellation


def test_a_cancelled_job_closes_what_it_waits_for_once() -> None:
    closed: list[str] = []
    with cancellation.running("job"), cancellation.closing("job", lambda: closed.append("first")):
        with cancellation.closing("job", lambda: closed.append("second")):
            assert not cancellation.is_cancelled("job")
            assert cancellation.cancel("job")
            assert cancellation.cancel("job")
        assert closed == ["first", "second"]
        assert cancellation.is_cancelled("job")


def test_a_job_that_was_cancelled_before_closes_at_once() -> None:
    closed: list[str] = []
    with cancellation.running("job"):
        assert cancellation.cancel("job")
        with cancellation.closing("job", lambda: closed.append("late")):
            assert closed == ["late"]


def test_what_is_over_is_not_closed() -> None:
    closed: list[str] = []
    with cancellation.running("job"):
        with cancellation.closing("job", lambda: closed.append("over")):
            pass
        assert cancellation.cancel("job")
    assert closed == []


def test_one_that_cannot_be_closed_holds_up_no_other() -> None:
    closed: list[str] = []

    def fail() -> None:
        raise OSError("it was closed already")

    with (
        cancellation.running("job"),
        cancellation.closing("job", fail),
        cancellation.closing("job", lambda: closed.append("other")),
    ):
        assert cancellation.cancel("job")
        assert closed == ["other"]


def test_only_what_runs_here_is_cancelled_here() -> None:
    closed: list[str] = []
    assert not cancellation.cancel("job")
    with cancellation.closing("job", lambda: closed.append("outside of a worker")):
        assert not cancellation.cancel("job")
    with cancellation.running("job"):
        assert cancellation.cancel("job")
    assert not cancellation.cancel("job")
    with cancellation.running("job"):  # a later delivery of the same job
        assert not cancellation.is_cancelled("job")
    assert closed == []
