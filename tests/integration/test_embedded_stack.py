"""The stack on one machine: servers that keep their data, a runner that keeps processes alive, and their end."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import redis

from dev import addresses, ports, postgres, stack
from dev.errors import StackError
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
DATABASES = ("valkey", "postgres")


@pytest.fixture
def home() -> Iterator[Path]:
    with stack.temporary_home() as directory:
        yield directory


def databases(home: Path) -> stack.Stack:
    environ = stack.without_services(os.environ)
    return stack.from_environment(ROOT, environ, home=home, durable=False, only=DATABASES)


def checkout(folder: Path, procfile: str, **scripts: str) -> Path:
    """Make a directory with a Procfile and Python scripts; `PYTHON` in the Procfile becomes this interpreter."""
    folder.mkdir(exist_ok=True)
    (folder / "Procfile").write_text(textwrap.dedent(procfile).replace("PYTHON", sys.executable), encoding="utf-8")
    for name, code in scripts.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")
    return folder


def without_servers(root: Path, home: Path) -> stack.Stack:
    return stack.from_environment(root, stack.without_services(os.environ), home=home, only=())


@contextlib.contextmanager
def cursor_in(running: stack.Started) -> Iterator[psycopg2.extensions.cursor]:
    opened = contextlib.closing(psycopg2.connect(running.addresses["DATABASE_URL"]))
    with opened as connection, connection, connection.cursor() as cursor:
        yield cursor


def refusal_of(machine: stack.Stack, **options: Any) -> str:
    """Return the words with which a start is refused."""
    with pytest.raises(StackError) as raised, stack.started(machine, **options):
        pass
    return str(raised.value)


def add_a_row(running: stack.Started) -> tuple[int, int]:
    """Add one to a table and to a key; return how many are there now."""
    with cursor_in(running) as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS kept (x int)")
        cursor.execute("INSERT INTO kept VALUES (1)")
        cursor.execute("SELECT count(*) FROM kept")
        (rows,) = cursor.fetchone() or (0,)
    with redis.Redis.from_url(running.addresses["CELERY_BROKER_URL"]) as client:
        return rows, int(client.incr("kept"))


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# Servers


def test_data_and_ports_survive_a_restart(home: Path) -> None:
    with stack.servers(databases(home)) as running:
        first = running.addresses
        assert add_a_row(running) == (1, 1)
    with stack.servers(databases(home)) as running:
        assert running.addresses == first
        assert add_a_row(running) == (2, 2)


def test_data_survives_sigkill_of_the_servers_which_are_started_again(home: Path) -> None:
    with stack.servers(databases(home)) as running:
        assert add_a_row(running) == (1, 1)
        for name in DATABASES:
            running.processes[name].kill()
        eventually(lambda: all(running.processes[name].restarts for name in DATABASES))
        assert eventually(lambda: add_a_row(running)) >= (2, 2)
        assert [running.processes[name].restarts for name in DATABASES] == [1, 1]


def test_valkey_keeps_jobs_and_postgres_has_vectors(home: Path) -> None:
    with stack.servers(databases(home)) as running:
        with redis.Redis.from_url(running.addresses["CELERY_BROKER_URL"]) as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with cursor_in(running) as cursor:
            cursor.execute("CREATE EXTENSION vector")
            cursor.execute("SELECT current_database(), current_setting('max_connections')")
            assert cursor.fetchone() == ("forebay", "200")


def test_a_home_that_no_other_user_may_enter_serves_too(home: Path) -> None:
    """Under root PostgreSQL runs as another user, whose data then has to be elsewhere."""
    home.chmod(0o700)
    with stack.servers(databases(home)) as running:
        assert add_a_row(running) == (1, 1)
        assert psutil.Process(running.processes["postgres"].pid).uids().real != 0
    with stack.servers(databases(home)) as running:
        assert add_a_row(running) == (2, 2)


def test_a_temporary_home_leaves_nothing() -> None:
    with stack.temporary_home() as directory:
        directory.chmod(0o700)
        with stack.servers(databases(directory)):
            assert postgres.outside_place(directory).exists() == (os.geteuid() == 0)
    assert not directory.exists()
    assert not postgres.outside_place(directory).exists()


def test_a_second_start_is_refused_and_names_the_first(home: Path) -> None:
    with stack.servers(without_servers(ROOT, home)):
        said = refusal_of(without_servers(ROOT, home))
    assert f"already runs on {home} (pid {os.getpid()}" in said
    assert "FOREBAY_HOME" in said


def test_a_demanded_port_that_is_taken_is_refused(home: Path) -> None:
    with stack.servers(databases(home)) as running:
        taken = running.addresses["CELERY_BROKER_URL"].rsplit(":", 1)[1].split("/")[0]
        with stack.temporary_home() as other:
            environ = {**stack.without_services(os.environ), "FOREBAY_VALKEY_PORT": taken}
            said = refusal_of(stack.from_environment(ROOT, environ, home=other, only=("valkey",)))
    assert f"port {taken} (FOREBAY_VALKEY_PORT) is taken" in said


def test_a_server_that_cannot_start_says_why_in_its_own_words(home: Path) -> None:
    log = home / "valkey" / "appendonlydir" / "appendonly.aof.manifest"
    log.parent.mkdir(parents=True)
    log.write_text("no manifest at all\n")

    said = refusal_of(databases(home))

    assert "valkey ended with exit code 1 at its start" in said
    assert "AOF manifest" in said
    assert stack.running_environment(ROOT, {"FOREBAY_HOME": str(home)}) == {}


def test_a_home_that_is_not_ours_to_write_is_refused(home: Path) -> None:
    (home / "valkey").write_text("a file where a directory should be")

    assert f"cannot prepare valkey in {home}" in refusal_of(databases(home))


def test_what_the_environment_names_is_not_started(home: Path) -> None:
    named = {"CELERY_BROKER_URL": "redis://elsewhere/3", "DATABASE_URL": "postgresql://elsewhere/x"}
    partly = stack.from_environment(ROOT, {**stack.without_services(os.environ), **named}, home=home)

    assert partly.embedded == ("provider",)
    found = addresses.of_services(partly.environ, {"provider": 1234, "flower": 5555})
    assert found == {
        **named,
        "CELERY_RESULT_BACKEND": "redis://elsewhere/3",
        "OPENAI_BASE_URL": "http://127.0.0.1:1234/v1",
        "OPENAI_API_KEY": "local",
        "FLOWER_PORT": "5555",
    }


def test_other_shells_find_a_running_stack_and_no_ended_one(home: Path) -> None:
    environ = {**stack.without_services(os.environ), "FOREBAY_HOME": str(home)}
    with stack.servers(stack.from_environment(ROOT, environ, only=("valkey",))) as running:
        assert stack.running_environment(ROOT, environ) == running.addresses
        assert (home / "stack.json").stat().st_mode & 0o077 == 0
    assert stack.running_environment(ROOT, environ) == {}


def test_a_real_key_is_not_written_to_a_file(home: Path) -> None:
    environ = {**stack.without_services(os.environ), "OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": "http://x/v1"}
    with stack.servers(stack.from_environment(ROOT, environ, home=home, only=("valkey",))) as running:
        assert running.environment["OPENAI_API_KEY"] == "sk-secret"
        assert "sk-secret" not in (home / "stack.json").read_text()


# Processes

PARENT = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open("child.pid", "w").write(str(child.pid))
    print("has a child", flush=True)
    time.sleep(600)
"""


def test_a_dead_process_is_started_again_and_its_children_go_with_it(home: Path, tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo", "parent: PYTHON parent.py", parent=PARENT)
    with stack.started(without_servers(root, home), processes=True) as running:
        parent = running.processes["parent"]
        eventually(lambda: "has a child" in parent.tail)
        child, first = int((root / "child.pid").read_text()), parent.kill()

        eventually(lambda: parent.is_alive and parent.pid != first)
        eventually(lambda: is_gone(child))
        assert parent.restarts == 1
        eventually(lambda: int((root / "child.pid").read_text() or child) != child)
        second = int((root / "child.pid").read_text())
    assert is_gone(parent.pid)
    eventually(lambda: is_gone(second))  # SIGKILL was sent, it takes its moment


def test_restarting_can_be_turned_off(home: Path, tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo", "ends: PYTHON -c 'raise SystemExit(3)'\nstays: PYTHON parent.py", parent=PARENT)
    with stack.started(without_servers(root, home), processes=True, restart=False) as running:
        ended = running.processes["ends"]
        assert eventually(lambda: ended.exit_code) == 3
        assert ended.restarts == 0
        assert running.processes["stays"].is_alive


def test_a_process_that_keeps_dying_waits_longer_each_time(home: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    root = checkout(tmp_path / "repo", "ends: PYTHON -c 'raise SystemExit(3)'")
    machine = without_servers(root, home)
    with stack.started(machine, processes=True, log=lambda _name, line: lines.append(line)):
        eventually(lambda: sum("ends ended" in line for line in lines) == 3)
    waits = [line.partition("; ")[2] for line in lines if "ends ended" in line]
    assert waits == ["again in 0.5 s", "again in 1 s", "again in 2 s"]


def test_only_the_processes_asked_for_are_started(home: Path, tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo", "a: PYTHON parent.py\nb: PYTHON parent.py", parent=PARENT)
    with stack.started(without_servers(root, home), processes=["b"]) as running:
        assert list(running.processes) == ["b"]
    said = refusal_of(without_servers(root, home), processes=["c"])
    assert said == "no process named c in the Procfile; it has a, b"


def test_processes_stop_while_their_servers_still_answer(home: Path, tmp_path: Path) -> None:
    script = """
        import os, signal, sys, time
        import redis
        def stop(number, frame):
            redis.Redis.from_url(os.environ["CELERY_BROKER_URL"]).set("last", "word")
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        print("ready", flush=True)
        while True:
            time.sleep(600)
    """
    root = checkout(tmp_path / "repo", "worker: PYTHON worker.py", worker=script)
    environ = stack.without_services(os.environ)
    machine = stack.from_environment(root, environ, home=home, only=("valkey",))
    with stack.started(machine, processes=True) as running:
        eventually(lambda: "ready" in running.processes["worker"].tail)
    assert running.processes["worker"].exit_code == 0
    with stack.servers(machine) as again, redis.Redis.from_url(again.addresses["CELERY_BROKER_URL"]) as client:
        assert client.get("last") == b"word"


def test_the_migration_runs_between_servers_and_processes(home: Path, tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo", "a: PYTHON -c 'import time; print(open(\"made\").read()); time.sleep(600)'")
    machine = without_servers(root, home)

    def migrate(environment: object) -> None:
        (root / "made").write_text("before the processes")

    with stack.started(machine, processes=True, migrate=migrate) as running:
        process = running.processes["a"]
        eventually(lambda: process.tail or process.exit_code is not None)
        assert list(process.tail) == ["before the processes"], "the process began before the migration had ended"
        assert process.exit_code is None


# The runner in the foreground, in a process of its own

FOREGROUND = """
    import os, sys
    from pathlib import Path
    from dev import stack
    from dev.processes import terminal_log
    machine = stack.from_environment(Path(sys.argv[1]), stack.without_services(os.environ), home=Path(sys.argv[2]),
        only=("valkey",))
    stack.run(machine, log=terminal_log(sys.stdout))
"""


@contextlib.contextmanager
def foreground(root: Path, home: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a stack as `up` does, and give its process once everything runs."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FOREGROUND), str(root), str(home)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as runner:
        try:
            wait_for_line(runner, "everything runs")
            yield runner
        finally:
            runner.kill()


def wait_for_line(runner: subprocess.Popen[str], text: str) -> str:
    assert runner.stdout is not None
    seen = []
    for line in runner.stdout:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came in:\n{''.join(seen)}")


def family_of(runner: subprocess.Popen[str]) -> list[int]:
    return [process.pid for process in psutil.Process(runner.pid).children(recursive=True)]


STUBBORN = """
    import signal, time
    signal.signal(signal.SIGTERM, lambda number, frame: print("not yet", flush=True))
    print("stands", flush=True)
    while True:
        time.sleep(600)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(home: Path, tmp_path: Path, first: signal.Signals) -> None:
    root = checkout(tmp_path / "repo", "parent: PYTHON parent.py", parent=PARENT)
    with foreground(root, home) as runner:
        family = family_of(runner)
        runner.send_signal(first)
        wait_for_line(runner, "all stopped")
        assert runner.wait(10) == 0
        eventually(lambda: all(map(is_gone, family)))


def test_a_second_signal_ends_at_once_what_does_not_want_to_stop(home: Path, tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo", "stubborn: PYTHON stubborn.py", stubborn=STUBBORN)
    with foreground(root, home) as runner:
        wait_for_line(runner, "stands")
        family = family_of(runner)
        runner.send_signal(signal.SIGINT)
        wait_for_line(runner, "not yet")
        runner.send_signal(signal.SIGINT)
        assert "stubborn" in wait_for_line(runner, "killed, since they had not stopped yet")
        assert runner.wait(10) == 0
        eventually(lambda: all(map(is_gone, family)))


def test_sigkill_of_the_runner_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo", "stubborn: PYTHON stubborn.py", stubborn=STUBBORN)
    with foreground(root, home) as runner:
        wait_for_line(runner, "stands")
        family = family_of(runner)
        assert len(family) == 2
        runner.kill()
        if sys.platform == "linux":  # the kernel tells them; elsewhere the next start ends them
            eventually(lambda: all(map(is_gone, family)))
    with foreground(root, home) as runner:
        eventually(lambda: all(map(is_gone, family)))


def test_a_leftover_that_the_kernel_spared_is_ended_by_the_next_start(home: Path, tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo", "parent: PYTHON parent.py", parent=PARENT)
    with foreground(root, home) as runner:
        wait_for_line(runner, "has a child")
        child = int((root / "child.pid").read_text())
        runner.kill()
        runner.wait()
        assert not is_gone(child)  # it asked for no signal at its parent's death
    with foreground(root, home):
        eventually(lambda: is_gone(child))


def test_a_port_that_is_taken_between_its_choice_and_its_use_is_chosen_anew(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = ports.choose
    with contextlib.ExitStack() as open_:

        def too_late(*given: Any) -> dict[str, int]:
            chosen = choose(*given)
            if not taken:
                taken.append(open_.enter_context(socket.create_server((ports.LOOPBACK, chosen["postgres"]))))
            return chosen

        taken: list[socket.socket] = []
        monkeypatch.setattr(ports, "choose", too_late)
        with stack.started(databases(home)) as running, cursor_in(running) as cursor:
            cursor.execute("SELECT 1")
            assert f":{taken[0].getsockname()[1]}/" not in running.addresses["DATABASE_URL"]


def test_processes_that_seed_chance_alike_choose_different_ports() -> None:
    chosen = []
    for _ in range(2):
        random.seed(1)
        chosen.append([ports.free_port() for _ in range(3)])
    assert chosen[0] != chosen[1]


def test_ports_are_free_distinct_and_remembered(tmp_path: Path) -> None:
    names = {"one": "ONE_PORT", "two": "TWO_PORT"}
    first = ports.choose(names, {}, tmp_path / "ports.json")

    assert len(set(first.values())) == 2
    assert ports.choose(names, {}, tmp_path / "ports.json") == first
    assert ports.choose(names, {"ONE_PORT": "31999"}, tmp_path / "ports.json")["one"] == 31999
    with pytest.raises(StackError, match="TWO_PORT='x' is not a port"):
        ports.choose(names, {"TWO_PORT": "x"}, tmp_path / "ports.json")
