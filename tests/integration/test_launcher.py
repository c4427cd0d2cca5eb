"""The launcher, in a repository of its own with a lock of one tiny package, without a network and without uv."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dev import state

ROOT = Path(__file__).resolve().parents[2]
CLI = """
import os, sys
import tiny
print(os.getcwd(), sys.argv[1:], sys.path[0], tiny.VERSION, sep="|")
"""


def wheel(folder: Path, version: str) -> str:
    """Write a wheel of the package `tiny` and return its line for a lock."""
    path = folder / f"tiny-{version}-py3-none-any.whl"
    info = f"tiny-{version}.dist-info"
    files = {
        "tiny.py": f'VERSION = "{version}"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    records = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
        for name, text in files.items()
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": "\n".join([*records, f"{info}/RECORD,,", ""])}.items():
            archive.writestr(name, text)
    return f"tiny=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Give a repository whose lock asks for the tiny package; its wheels lie in `wheels`."""
    root = tmp_path / "repo"
    (root / "cli").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    shutil.copy(ROOT / "forebay", root / "forebay")
    (root / "cli" / "__main__.py").write_text(CLI)
    (root / "requirements.lock").write_text(wheel(tmp_path / "wheels", "1.0"))
    return root


def environment(repo: Path, **more: str) -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "PYTHON", "FOREBAY_"))
    }
    wheels = str(repo.parent / "wheels")
    return {
        **kept,
        "PATH": "/usr/bin:/bin",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels,
        **more,
    }


def command(repo: Path, *arguments: str, python: str = sys.executable) -> list[str]:
    return [python, str(repo / "forebay"), *arguments]


def run(repo: Path, *arguments: str, python: str = sys.executable, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(repo, *arguments, python=python),
        env=environment(repo, **more),
        cwd=repo.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_two_first_uses_at_once_install_once_and_later_ones_do_not(repo: Path) -> None:
    started = [
        subprocess.Popen(
            command(repo, "queues", "--json"),
            env=environment(repo),
            cwd=repo.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in started]

    assert [process.returncode for process in started] == [0, 0]
    assert [out for out, _ in said] == [f"{repo.parent}|['queues', '--json']|{repo}|1.0\n"] * 2
    assert sum("installing its packages" in err and "installed in" in err for _, err in said) == 1
    assert sum("another process is installing" in err for _, err in said) == 1

    shutil.rmtree(repo.parent / "wheels")  # no index any more
    (repo.parent / "cli").mkdir()  # where the user stands: not what is imported
    (repo.parent / "cli" / "__main__.py").write_text("print('wrong')")
    (repo.parent / "tiny.py").write_text("VERSION = 'wrong'")
    later = run(repo)
    assert (later.returncode, later.stdout, later.stderr) == (0, f"{repo.parent}|[]|{repo}|1.0\n", "")


def test_a_changed_lock_waits_for_a_running_stack_and_is_then_installed_anew_as_is_another_kind(repo: Path) -> None:
    assert run(repo).stdout.endswith("|1.0\n")

    (repo / "requirements.lock").write_text(wheel(repo.parent / "wheels", "2.0"))
    with state.held(repo / ".forebay"):
        waits = run(repo)
    assert waits.stdout.endswith("|1.0\n")
    assert "the lock has changed, but a stack runs" in waits.stderr

    (repo / ".venv" / "forebay-stamp").unlink()  # as after a kill in the middle
    (module,) = (repo / ".venv").glob("lib/python*/site-packages/tiny.py")
    module.unlink()
    assert run(repo).stdout.endswith("|2.0\n")

    (repo / "requirements-production.lock").write_text(wheel(repo.parent / "wheels", "3.0"))
    activated = str(repo / ".venv" / "bin" / "python")  # removed while it runs the launcher
    assert run(repo, python=activated, FOREBAY_INSTALL="production").stdout.endswith("|3.0\n")


def test_a_package_that_does_not_match_its_hash_is_refused_and_nothing_runs(repo: Path) -> None:
    lock = repo / "requirements.lock"
    lock.write_text(lock.read_text().split("sha256:")[0] + "sha256:" + "0" * 64 + "\n")

    refused = run(repo)

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "pip could not install requirements.lock" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (repo / ".venv" / "forebay-stamp").exists()


def test_a_python_without_ensurepip_is_told_which_package_to_install(repo: Path) -> None:
    done = without_ensurepip(repo)

    assert done.returncode == 1
    assert "no module ensurepip" in done.stderr
    assert "python3-venv" in done.stderr


def test_a_venv_of_somebody_else_is_put_aside(repo: Path) -> None:
    (repo / ".venv").mkdir()
    (repo / ".venv" / "theirs").touch()

    assert "there was a .venv that was not made here" in without_ensurepip(repo).stderr
    (aside,) = repo.glob(".venv.before-*")
    assert (aside / "theirs").exists()


def test_an_unknown_kind_of_installation_is_refused(repo: Path) -> None:
    assert "FOREBAY_INSTALL='prod' is unknown; use full or production" in run(repo, FOREBAY_INSTALL="prod").stderr
    assert "requirements-production.lock is missing" in run(repo, FOREBAY_INSTALL="production").stderr


def without_ensurepip(repo: Path) -> subprocess.CompletedProcess[str]:
    code = "import runpy, sys; sys.modules['ensurepip'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, str(repo / "forebay")],
        env=environment(repo),
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_old_python_is_told_so(repo: Path) -> None:
    code = (
        "import runpy, shutil, sys; sys.version_info = (3, 8, 1); shutil.which = lambda name: None;"
        "runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(repo / "forebay")], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "needs Python 3.11 or later" in done.stderr
