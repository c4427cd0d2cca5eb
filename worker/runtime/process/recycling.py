"""Recycle lanes on threads: after so many jobs or so much memory the worker drains and starts anew in place.

Celery recycles prefork children by itself and threads not at all. A lane on threads stops fetching, finishes what runs,
and executes itself again under the same pid, so that supervisors notice nothing and leaked memory is gone.
"""

import logging
import os
import signal
import sys
import threading

import psutil
from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state

from worker.policy.queue import Queue
from worker.runtime import lease
from worker.runtime.process import draining
from worker.runtime.request import wedged

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0


class Recycler:
    """Watch this process and ask Celery for a warm shutdown when a limit is reached."""

    def __init__(self, queue: Queue) -> None:
        self.max_tasks = queue.max_tasks_per_worker
        self.max_memory_mib = queue.max_memory_mib
        self.max_wedged = max(1, queue.concurrency // 2)
        self.due = False
        self._asked = threading.Event()

    def watch(self) -> None:
        """Begin when the worker is ready."""
        worker_ready.connect(self._begin, weak=False)
        worker_shutting_down.connect(self._give_up, weak=False)

    def start_anew(self) -> None:
        """Replace this process by a fresh one of the same command."""
        if threading.current_thread() is threading.main_thread():  # Celery's own handler has nobody left to tell
            signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_OK))
        if self._asked.is_set():
            os._exit(os.EX_OK)
        lease.leave_all()  # execv runs no exit handlers
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, sys.orig_argv)

    def reason(self) -> str:
        """Say which limit is reached, empty when none is. Nothing is gained by starting anew before a job was done."""
        if len(wedged) >= self.max_wedged:
            return f"{len(wedged)} jobs hang in threads that nobody can end"
        done = sum(state.total_count.values())
        if not done:
            return ""
        if self.max_tasks and done >= self.max_tasks:
            return f"{done} jobs done, max_tasks_per_worker is {self.max_tasks}"
        memory_mib = psutil.Process().memory_info().rss / 2**20
        if self.max_memory_mib and memory_mib >= self.max_memory_mib:
            return f"{memory_mib:.0f} MiB in use, max_memory_mib is {self.max_memory_mib}"
        return ""

    def _begin(self, **_: object) -> None:
        threading.Thread(target=self._run, name="forebay-recycler", daemon=True).start()

    def _give_up(self, **_: object) -> None:
        """Stay ended when somebody asks the worker to stop, also while it drains."""
        self._asked.set()
        self.due = False

    def _run(self) -> None:
        while not self._asked.wait(CHECK_EVERY_S):
            reason = self.reason()
            if reason:
                logger.info("recycling: %s; draining, then starting anew", reason)
                self.due = True
                draining.begin(self.start_anew)
                state.should_stop = os.EX_OK
                return
