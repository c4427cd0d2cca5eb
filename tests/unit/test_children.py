"""What holds while a job runs in a pool child."""

import gc
import subprocess
import sys

import psutil
import pytest

from worker.runtime.pools import children


def test_no_garbage_is_looked_for_while_a_batch_runs_whatever_it_raises() -> None:
    def run() -> None:
        with children.uncollected():
            assert not gc.isenabled()
            raise ValueError("the batch failed")

    assert gc.isenabled()
    with pytest.raises(ValueError, match="the batch failed"):
        run()
    assert gc.isenabled()


PARENT = """
import os, signal
from worker.runtime.pools import children

if os.fork() == 0:
    children.die_with_parent()
    print(os.getpid(), flush=True)
signal.pause()
"""


def test_the_kernel_ends_a_child_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        try:
            gone, _ = psutil.wait_procs([child], timeout=20)
        finally:
            if child.is_running():
                child.kill()
    assert gone == [child]
