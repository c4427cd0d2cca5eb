"""Start a lane as queues.yaml declares it: the arguments of Celery's worker command."""

from worker.policy.queue import Queue

#: kombu.common.PREFETCH_COUNT_MAX: a larger prefetch count means no limit.
LARGEST_PREFETCH = 0xFFFF


def command(queue: Queue, loglevel: str = "INFO") -> list[str]:
    """Return the arguments behind ``celery -A worker.app`` for a lane's worker.

    Each lane has a node name of its own, so that lanes share a machine. Mingle would add a second to every reconnect.
    """
    arguments = [
        "worker",
        f"--queues={queue.name}",
        f"--hostname={queue.name}@%h",
        f"--pool={queue.pool}",
        f"--concurrency={queue.concurrency}",
        f"--prefetch-multiplier={prefetch_multiplier(queue)}",
        "--without-mingle",
        "--without-gossip",
        "--task-events",
        f"--loglevel={loglevel}",
    ]
    if queue.max_tasks_per_child:
        arguments.append(f"--max-tasks-per-child={queue.max_tasks_per_child}")
    if queue.max_memory_per_child_mib:
        arguments.append(f"--max-memory-per-child={queue.max_memory_per_child_mib * 1024}")  # in KiB
    return arguments


def prefetch_multiplier(queue: Queue) -> int:
    """Return what Celery multiplies by the concurrency: on a batching lane each slot takes a whole batch.

    Celery's command takes 0 for "not given" and falls back to its setting, so no limit is said by a product above the
    largest count that kombu keeps. A declared limit never passes it: a lane would lose its limit unnoticed.
    """
    if queue.prefetch_multiplier == 0:
        return LARGEST_PREFETCH // queue.concurrency + 1
    each = queue.prefetch_multiplier * (queue.batch.max_jobs if queue.batch else 1)
    return min(each, LARGEST_PREFETCH // queue.concurrency)
