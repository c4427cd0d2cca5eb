"""Read queues.yaml (stand-in)."""
import os
from functools import cache
from pathlib import Path
import yaml
from pydantic import BaseModel
class M(BaseModel):
    model_config = {"frozen": True, "extra": "forbid"}
class Retry(M):
    max_attempts: int = 3
    backoff_s: float = 2
    backoff_max_s: float = 60
    jitter: float = 0.2
class Batch(M):
    max_jobs: int = 1
    max_wait_s: float = 0.05
class Lease(M):
    duration_s: float = 8
    renew_every_s: float = 2
    give_up_after_s: float = 3600
class Retention(M):
    record_s: float = 86400
    result_s: float = 86400
    idempotency_s: float = 86400
class Queue(M):
    name: str
    description: str = ""
    task: str
    pool: str = "threads"
    concurrency: int = 1
    prefetch_multiplier: int = 1
    max_tasks_per_worker: int | None = None
    max_memory_mib: int | None = None
    max_tasks_per_child: int | None = None
    max_memory_per_child_mib: int | None = None
    max_length: int = 0
    max_payload_bytes: int = 262144
    time_limit_s: float = 60
    batch: Batch | None = None
    rows_per_job: int | None = None
    tables: tuple[str, ...] | None = None
    retry: Retry = Retry()
class Policy(M):
    retention: Retention
    lease: Lease
    queues: dict[str, Queue]
    def queue(self, name: str) -> Queue: return self.queues[name]
    def queue_of_task(self, task: str) -> Queue | None:
        return next((q for q in self.queues.values() if q.task == task), None)
@cache
def load() -> Policy:
    d = yaml.safe_load((Path(__file__).parent.parent / "queues.yaml").read_text())
    for n, q in d["queues"].items(): q["name"] = n
    for k in ("DURATION_S", "RENEW_EVERY_S"):
        if v := os.environ.get("FOREBAY_LEASE_" + k): d["lease"][k.lower()] = float(v)
    return Policy.model_validate(d)
def effective(p): return []
