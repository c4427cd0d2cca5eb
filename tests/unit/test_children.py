"""What holds while a job runs in a pool child."""

import gc

import pytest

from worker import children


def test_no_garbage_is_looked_for_while_a_batch_runs_whatever_it_raises() -> None:
    def run() -> None:
        with children.uncollected():
            assert not gc.isenabled()
            raise ValueError("the batch failed")

    assert gc.isenabled()
    with pytest.raises(ValueError, match="the batch failed"):
        run()
    assert gc.isenabled()
