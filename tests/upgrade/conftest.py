"""The previous release and this one, side by side on one Redis and one database, which this one migrated."""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dev import stack
from dev.faulty.process import FaultyProvider
from tests.upgrade import release
from tests.upgrade.release import Producer, Release
from tests.workers import Workers
from worker.records.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "tests" / "previous" / "release.tar.gz"
Start = Callable[[str, Path, Producer], Release]


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def services(machine: stack.Started, faulty_process: FaultyProvider) -> dict[str, str]:
    return {**machine.environment, "OPENAI_BASE_URL": faulty_process.base_url}


@pytest.fixture(scope="session")
def old_producer(unpacked: Path, services: dict[str, str]) -> Iterator[Producer]:
    with release.producing(unpacked, services, unpacked / "producer.log") as producer:
        yield producer


@pytest.fixture(scope="session")
def new_producer(services: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Producer]:
    with release.producing(ROOT, services, tmp_path_factory.mktemp("new") / "producer.log") as producer:
        yield producer


@pytest.fixture
def start(
    services: dict[str, str], broker: Broker, database: None, faulty: FaultyProvider, tmp_path: Path
) -> Iterator[Start]:
    """Give what makes a release of its folder and producer; all its workers are ended with the test."""
    with ExitStack() as opened:

        def one(name: str, root: Path, producer: Producer) -> Release:
            folder = tmp_path / name
            folder.mkdir()
            workers = Workers(root, release.environment(root, services), broker, folder)
            opened.callback(workers.stop)
            return Release(name, root, producer, workers)

        yield one


@pytest.fixture
def old(start: Start, unpacked: Path, old_producer: Producer) -> Release:
    return start("old", unpacked, old_producer)


@pytest.fixture
def new(start: Start, new_producer: Producer) -> Release:
    return start("new", ROOT, new_producer)


@pytest.fixture(params=["old then new", "new then old"])
def pair(request: pytest.FixtureRequest, old: Release, new: Release) -> tuple[Release, Release]:
    """Give both releases in both orders: what holds of the one towards the other must hold the other way round."""
    return (old, new) if request.param == "old then new" else (new, old)
