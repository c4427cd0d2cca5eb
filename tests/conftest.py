"""What the tests stand on: real servers on free ports, started once, and real worker processes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dev import addresses, stack
from dev.faulty import process as faulty_provider
from dev.faulty.process import FaultyProvider
from tests.commands import Cli
from tests.workers import Workers
from worker.records import broker as brokers
from worker.records.broker import Broker
from worker.records.keys import PERMANENT
from worker.runtime import lease

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "FOREBAY_LEASE_DURATION_S": "2",
    "FOREBAY_LEASE_RENEW_EVERY_S": "0.5",
    "CACHE_ENABLED": "false",  # what one test asked would be known to the next
    "QUERY_CACHE_ENABLED": "false",
    "COLUMNS": "200",  # whatever the terminal has; readline hands its width on to child processes
}


def pytest_configure() -> None:
    """Set what holds for every test before any module reads it: what was read first, stays."""
    os.environ.update(SETTINGS)
    os.environ.pop("CACHE_URL", None)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run folders of tests in several processes, each on servers of its own; files, -k and debuggers in this one.

    Most tests wait, for processes that start and leases that end, hence one process more than there are cores. This is
    no option in pyproject.toml: pytest would not know it with ``-p no:xdist``.
    """
    wanted = config.option
    if not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ:
        return
    serial = wanted.keyword or wanted.collectonly or wanted.usepdb or wanted.trace or wanted.capture == "no"
    if wanted.numprocesses is None and not serial and any(Path(name).is_dir() for name in config.args):
        wanted.numprocesses = min((os.cpu_count() or 1) + 1, 4)
    if wanted.numprocesses and wanted.dist == "no":
        wanted.dist = "worksteal"  # neighbours mostly stay together, and with them what a module's tests share


@pytest.fixture(scope="session")
def machine() -> Iterator[stack.Started]:
    """Run Valkey, PostgreSQL and the local model provider, and point this process's environment at them."""
    from db import migration

    def migrate(environment: Mapping[str, str]) -> None:
        os.environ.update({name: environment[name] for name in addresses.SERVICE_VARIABLES})
        migration.upgrade()

    before = dict(os.environ)
    with stack.temporary_home() as home:
        # Workers get its environment over that of the test, which may have set one of these anew.
        environ = {name: value for name, value in stack.without_services(os.environ).items() if name not in SETTINGS}
        own = stack.from_environment(ROOT, environ, home=home, durable=False)
        with stack.started(own, migrate=migrate) as running:
            yield running
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def broker(machine: stack.Started) -> Iterator[Broker]:
    """Give an empty broker, and hold the test to leaving no key that stays for ever."""
    connected = brokers.connect(machine.addresses["CELERY_BROKER_URL"])
    connected.redis.flushall()
    yield connected
    lease.leave_all()  # of channels that the test opened: its thread would sweep in the next test
    stayed = [
        key.decode()
        for key in connected.redis.scan_iter("forebay:*")
        if connected.redis.ttl(key) == -1 and not key.decode().startswith(PERMANENT)
    ]
    unended = [key for key in stayed if key.startswith("forebay:job:") and _is_open(connected, key)]
    assert sorted(stayed) == sorted(unended), "keys without a lifetime that no open job explains"


@pytest.fixture(scope="session")
def faulty_process() -> Iterator[FaultyProvider]:
    with faulty_provider.started() as running:
        yield running


@pytest.fixture
def faulty(faulty_process: FaultyProvider) -> FaultyProvider:
    """Give a provider with faults to order, as quick and as well as it starts."""
    faulty_process.clear()
    return faulty_process


@pytest.fixture
def database(machine: stack.Started) -> None:
    """Empty every table."""
    from sqlalchemy import text

    from db import models
    from db.engine import transaction

    names = ", ".join(table.name for table in models.Base.metadata.sorted_tables)
    with transaction() as session:
        session.execute(text(f"TRUNCATE {names}"))


@pytest.fixture
def workers(machine: stack.Started, broker: Broker, database: None, tmp_path: Path) -> Iterator[Workers]:
    """Start real worker processes; what is left of them is ended with the test."""
    started = Workers(ROOT, dict(machine.environment), broker, tmp_path)
    yield started
    started.stop()


@pytest.fixture
def cli(machine: stack.Started, workers: Workers) -> Cli:
    return Cli(dict(machine.environment))


def _is_open(connected: Broker, key: str) -> bool:
    """Say whether a record has a reason to stand without a lifetime: its job waits, runs, or is a dead letter."""
    return connected.redis.hget(key, "state") in (b"queued", b"delayed", b"leased", b"started", b"replaced", b"dead")
