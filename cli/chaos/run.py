"""Run one fault: load, strokes, drain, verdict."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis.exceptions import RedisError
from rich.progress import Progress, TaskID
from sqlalchemy import text

from cli.chaos import verdict as chaos_verdict
from cli.chaos.load import Load
from cli.chaos.scene import Fault, Scene
from cli.chaos.verdict import Verdict
from db.engine import transaction
from dev.faulty.process import FaultyProvider
from dev.fleet import Fleet
from dev.processes import Log, Process
from worker.errors import ForebayError
from worker.inspection import overview
from worker.inspection.audit import audit
from worker.policy.policy import load as load_policy
from worker.records import broker as brokers
from worker.records.broker import Broker

LANES = ("chat", "embedding", "bulk_insert", "effects")
RESCUE_WITHIN_S = 10.0
DRAIN_WITHIN_S = 90.0
SHOW_EVERY_S = 0.5

TABLES = (
    "CREATE TABLE chaos_rows (job_id text NOT NULL, number int NOT NULL)",  # no key: a doubled row would go in
    "CREATE TABLE chaos_effects (job_id text NOT NULL, kept boolean NOT NULL)",
    "CREATE TABLE chaos_locks (number int PRIMARY KEY)",
    "INSERT INTO chaos_locks VALUES (1), (2)",
)
DROP = "DROP TABLE IF EXISTS chaos_rows, chaos_effects, chaos_locks"
#: What a run leaves in the tables of others.
LEFT = {"conversations": "id", "documents": "job_id", "receipts": "job_id"}


class Run:
    """Faults that run one after the other on one stack; each has jobs of its own."""

    def __init__(
        self,
        root: Path,
        environment: Mapping[str, str],
        servers: Mapping[str, Process],
        results_url: str,
        provider: FaultyProvider,
        name: str,
        log: Log,
    ) -> None:
        self.servers = servers
        self.results_url = results_url
        self.provider = provider
        self.name = name
        self.broker = brokers.connect()
        self.fleet = Fleet(root, environment, LANES, self._fetching, log)
        self._started: tuple[object, object] | None = None
        self._found_before: set[str] = set()

    def _fetching(self) -> set[int]:
        return {each.pid for each in overview.workers(self.broker)}

    @contextlib.contextmanager
    def prepared(self, here: bool) -> Iterator[None]:
        """Make the tables; at the end stop the workers and, on a stack of others, remove what was written."""
        _execute(DROP, *TABLES)
        try:
            yield
        finally:
            self.fleet.stop()
            if here:
                _execute(DROP, *(f"DELETE FROM {name} WHERE {key} LIKE 'chaos-%'" for name, key in LEFT.items()))  # noqa: S608
                for key in self.broker.redis.scan_iter(f"{self.broker.keys.prefix}*"):
                    self.broker.redis.delete(key)

    def fault(self, fault: Fault, seconds: float, bars: Progress) -> Verdict:
        """Let jobs arrive for so long while the fault strikes, wait until all have ended, and judge."""
        began = time.monotonic()
        bar = bars.add_task(fault.name, total=None, note="workers start")
        self._man(fault)
        load = Load(self.broker, f"{self.name}-{fault.name}")
        scene = Scene(self.broker, self.fleet, load, self.servers, load_policy().lease.duration_s, self.provider)
        before, dead_before = chaos_verdict.counters(self.broker, LANES), self._dead()
        scene.rescued_before = before.get("rescued", 0)
        scene.show = _Bar(self.broker, scene, bars, bar)
        complaints = self._strike(fault, scene, seconds) + self._drain(scene)
        verdict = chaos_verdict.judge(fault.name, chaos_verdict.find(self.broker, load.accepted, LANES))
        after = chaos_verdict.counters(self.broker, LANES)
        verdict.complaints += [
            *complaints,
            *self._strangers(scene, dead_before),
            *chaos_verdict.second_opinion(before, after, verdict, len(scene.strangers)),
            *self._audited(),
        ]
        verdict.rescue_s, verdict.strokes = scene.rescue_s, scene.strokes
        if fault.rescues and (scene.rescue_s or RESCUE_WITHIN_S) >= RESCUE_WITHIN_S:
            verdict.complaints.append(f"no job was rescued within {RESCUE_WITHIN_S:g} s of the first stroke")
        scene.provider.clear()
        verdict.seconds = time.monotonic() - began
        bars.update(bar, total=verdict.accepted, completed=verdict.accepted - verdict.waiting)
        bars.update(bar, note="[green]passed[/]" if verdict.passed else "[bold red]FAILED[/]")
        return verdict

    def _man(self, fault: Fault) -> None:
        """Have every lane's worker running as the fault wants it started."""
        settings = dict(fault.settings)
        if "results" in fault.servers:
            settings["CELERY_RESULT_BACKEND"] = self.results_url
        if self._started == (settings, fault.before):
            self.fleet.mend()
            self.fleet.wait()
            return
        self.fleet.stop()
        self.fleet.start_all(fault.before, settings)
        self._started = (settings, fault.before)

    def _strike(self, fault: Fault, scene: Scene, seconds: float) -> list[str]:
        """Let the load run and the fault strike. Return what a stroke complained of."""
        until = time.monotonic() + seconds
        scene.load.begin()
        try:
            scene.pause(min(1.0, seconds / 4))
            while True:
                scene.struck_at = scene.struck_at or time.monotonic()
                fault.strike(scene)
                scene.strokes += 1
                if scene.strokes >= fault.most or time.monotonic() + fault.every_s > until:
                    break
                scene.pause(fault.every_s)
            scene.pause(max(0.0, until - time.monotonic()))
        except (ForebayError, RedisError, OSError) as error:
            return [f"stroke {scene.strokes + 1}: {type(error).__name__}: {error}"]
        finally:
            scene.load.end()
        return []

    def _drain(self, scene: Scene) -> list[str]:
        """Wait until every job has ended. Return what is to complain of; jobs that wait are counted elsewhere."""

        def ended() -> bool:
            try:
                return scene.load.ended and not chaos_verdict.open_jobs(self.broker, scene.load.accepted)
            except RedisError:
                return False

        with contextlib.suppress(ForebayError):
            scene.until(ended, "all jobs end", DRAIN_WITHIN_S)
        if not scene.load.unsent:
            return []
        why = scene.load.refusals[-1] if scene.load.refusals else "unknown"
        return [f"{scene.load.unsent} jobs could not be sent: {why}"]

    def _audited(self) -> list[str]:
        """Return what the audit finds that it did not find after an earlier fault."""
        found = {f"audit: {each.key} {each.what}" for each in audit(self.broker, load_policy()).findings}
        new, self._found_before = sorted(found - self._found_before), found
        return new

    def _dead(self) -> set[str]:
        return {job_id.decode() for job_id in self.broker.redis.zrange(self.broker.keys.dead(), 0, -1)}

    def _strangers(self, scene: Scene, dead_before: set[str]) -> list[str]:
        """Complain unless every message that no producer sent is exactly one dead letter, byte for byte."""
        new = self._dead() - dead_before - {job.id for job in scene.load.accepted}
        kept = Counter(self.broker.redis.hget(self.broker.keys.job(job_id), "message") for job_id in new)
        wanted = Counter(scene.strangers)
        missing, more = wanted - kept, kept - wanted
        return [f"no dead letter of {raw[:200]!r}" for raw in missing] + [
            f"an unexpected dead letter, or one too many: {(raw or b'')[:200]!r}" for raw in more
        ]


class _Bar:
    """A fault's line in the progress display: how many of its jobs have ended, how often it struck."""

    def __init__(self, broker: Broker, scene: Scene, bars: Progress, bar: TaskID) -> None:
        self.broker, self.scene, self.bars, self.bar = broker, scene, bars, bar
        self.shown_at = 0.0

    def __call__(self) -> None:
        """Show the state, unless it was shown just now or the broker is away."""
        if time.monotonic() - self.shown_at < SHOW_EVERY_S:
            return
        self.shown_at = time.monotonic()
        with contextlib.suppress(RedisError):
            accepted = list(self.scene.load.accepted)
            done = len(accepted) - chaos_verdict.open_jobs(self.broker, accepted)
            self.bars.update(self.bar, total=len(accepted), completed=done, note=f"{self.scene.strokes} strokes")


def _execute(*statements: str) -> None:
    with transaction() as session:
        for statement in statements:
            session.execute(text(statement))
