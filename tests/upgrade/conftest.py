"""The previous release and this one, side by side on one Redis and one database, which this one migrated."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev import stack
from dev.faulty_provider import FaultyProvider
from tests.upgrade import release
from tests.upgrade.release import Release
from worker.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "tests" / "previous" / "release.tar.gz"


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def environment(machine: stack.Started, database: None, faulty: FaultyProvider) -> dict[str, str]:
    return {**machine.environment, "OPENAI_BASE_URL": faulty.base_url}


@pytest.fixture
def old(unpacked: Path, environment: dict[str, str], broker: Broker, tmp_path: Path) -> Iterator[Release]:
    with release.running("old", unpacked, environment, broker, tmp_path / "old") as started:
        yield started


@pytest.fixture
def new(environment: dict[str, str], broker: Broker, tmp_path: Path) -> Iterator[Release]:
    with release.running("new", ROOT, environment, broker, tmp_path / "new") as started:
        yield started


@pytest.fixture(params=["old then new", "new then old"])
def pair(request: pytest.FixtureRequest, old: Release, new: Release) -> tuple[Release, Release]:
    """Give both releases in both orders: what holds of the one towards the other must hold the other way round."""
    return (old, new) if request.param == "old then new" else (new, old)
