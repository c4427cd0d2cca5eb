"""Dead letters: found, edited, replayed and purged, by function and by command."""

import io
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.app import main
from tasks import Embedding, Job, enqueue
from tests.eventually import eventually
from tests.workers import Workers
from worker.errors import JobRefused
from worker.inspection import dead_letters
from worker.inspection.letter import Filter, Letter
from worker.records import message
from worker.records.broker import Broker, Submission

ODD = b'{"headers": {"id": "odd \xff\x1b[2J"}, "properties": {}}'


class Cli:
    """Run `./forebay dead` in this process, which takes milliseconds; nobody answers its questions."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch

    def __call__(self, *arguments: str, code: int = 0, editor: str = "false") -> str:
        """Run a command, hold it to its exit code, and return what it printed."""
        self.monkeypatch.setattr("sys.argv", ["forebay", "dead", *arguments])
        self.monkeypatch.setattr("sys.stdin", io.StringIO())
        self.monkeypatch.setenv("VISUAL", editor)
        try:
            ended = main()
        except SystemExit as exit_:
            ended = int(exit_.code or 0)
        said = self.capsys.readouterr()
        assert ended == code, said
        return said.out + said.err

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def die(broker: Broker, job_id: str = "a", queue: str = "chat", reason: str = "failed", **more: Any) -> None:
    """Accept a job and bury it."""
    text = message.write(f"tasks.{queue}", job_id, queue, 0, {"message": "a secret", "conversation": "c"})
    broker.accept(Submission(job_id, queue, 0, f"tasks.{queue}", text, **more))
    bury(broker, queue, reason)


def bury(broker: Broker, queue: str = "chat", reason: str = "failed") -> str:
    (fetched,) = broker.fetch("a worker", 60, [queue], 1)
    broker.bury(fetched.delivery, reason, "ValueError: [/no] 7", f'  File "{__file__}", line 1, in body')
    return fetched.delivery.id


def age(broker: Broker, job_id: str, days: float) -> None:
    broker.redis.zincrby(broker.keys.dead(), -days * 86400, job_id)


def letter(broker: Broker, job_id: str) -> Letter:
    found = dead_letters.get(broker, job_id)
    assert found is not None
    return found


def ids(broker: Broker, **want: Any) -> list[str]:
    return [each.id for each in dead_letters.find(broker, Filter(**want)).letters]


def counter(broker: Broker, name: str, queue: str = "chat") -> int:
    return int(broker.redis.hget(broker.keys.stats(queue), name) or 0)


def test_dead_jobs_live_again_as_they_are_or_edited(workers: Workers, broker: Broker) -> None:
    raw = b"not \xff json"
    broker.redis.lpush("embedding", raw)
    edited, same = enqueue.many([Embedding(text=text, model="no-such-model") for text in ("edited", "same")])
    workers.start("embedding")
    eventually(lambda: broker.redis.zcard(broker.keys.dead()) == 3)
    (unreadable,) = ids(broker, reason="malformed")
    died_at = letter(broker, same.id).died_at

    assert dead_letters.edit(broker, letter(broker, edited.id), payload={"text": "edited", "key": "new"}) == "edited"
    assert dead_letters.replay_many(broker) == dead_letters.Tally(3, 3)
    assert edited.result(60)["key"] == "new"
    eventually(lambda: sorted(ids(broker)) == sorted([same.id, unreadable]))

    again = letter(broker, same.id)
    assert (again.deaths, [death.died_at for death in again.history]) == (2, [died_at])
    assert again.history[0].error == again.error != ""
    assert again.fingerprint == again.history[0].fingerprint
    assert broker.redis.hget(broker.keys.job(unreadable), "message") == raw
    assert letter(broker, unreadable).deaths == 2
    counted = [counter(broker, name, "embedding") for name in ("submitted", "completed", "dead", "replayed")]
    assert counted == [3, 1, 5, 3]


def test_letters_are_found_by_what_they_died_of_and_when(broker: Broker) -> None:
    for job_id, queue, reason, days in (
        ("a", "chat", "failed", 3.0),
        ("b", "chat", "time limit", 2.0),
        ("c", "embedding", "failed", 1.0),
        ("d", "chat", "failed", 0.0),
    ):
        die(broker, job_id, queue, reason)
        age(broker, job_id, days)
    assert ids(broker) == ["d", "c", "b", "a"]
    assert ids(broker, queue="chat") == ["d", "b", "a"]
    assert ids(broker, task="tasks.embedding") == ["c"]
    assert ids(broker, reason="time limit", queue="chat") == ["b"]
    assert ids(broker, fingerprint=letter(broker, "b").fingerprint) == ["b"]
    assert ids(broker, older_than_s=1.5 * 86400) == ["b", "a"]
    assert ids(broker, older_than_s=1.5 * 86400, newer_than_s=2.5 * 86400) == ["b"]
    assert ids(broker, reason="none such") == []
    assert [(group.count, group.example.id) for group in dead_letters.groups(broker)] == [(3, "d"), (1, "b")]
    with pytest.raises(JobRefused, match="after"):
        dead_letters.find(broker, after="nowhere")
    with pytest.raises(JobRefused, match="older_than_s"):
        Filter(older_than_s=float("nan"))


def test_two_thousand_letters_are_found_in_portions_of_any_filter(broker: Broker) -> None:
    text = message.write("tasks.chat", "x", "chat", 0, {"message": "hello"})
    names = [str(number) for number in range(2000)]
    broker.accept_many(
        [Submission(name, "chat", 0, "tasks.chat", text.replace('"id":"x"', f'"id":"{name}"')) for name in names]
    )
    for fetched in broker.fetch("a worker", 60, ["chat"], 2000):
        rare = fetched.delivery.id in ("3", "1999")
        broker.bury(fetched.delivery, "rare" if rare else "failed", "")
    for name in names[:1200]:  # more than a page died in one moment
        broker.redis.zadd(broker.keys.dead(), {name: 1e9})
    assert ids(broker, reason="rare") == ["1999", "3"]
    seen, after = [], ""
    while True:
        found = dead_letters.find(broker, most=700, after=after)
        seen += [each.id for each in found.letters]
        after = found.after
        if not after:
            break
    assert sorted(seen) == sorted(names)
    steps: list[int] = []
    dry = dead_letters.replay_many(broker, Filter(reason="failed"), dry_run=True)
    assert dead_letters.replay_many(broker, Filter(reason="failed"), on_progress=steps.append) == dead_letters.Tally(
        1998, 1998
    )
    assert (dry.matched, dry.done, steps[-1]) == (1998, 0, 1998)
    assert broker.redis.llen("chat") == 1998


def test_a_replay_begins_a_life_without_attempts_deadline_or_orphans(broker: Broker) -> None:
    die(broker, deadline="+3600")
    record = broker.keys.job("a")
    waiting = json.loads(letter(broker, "a").message or "")
    waiting["headers"] |= {"retries": 5, "expires": "2020-01-01T00:00:00+00:00"}
    broker.redis.hset(record, mapping={"message": json.dumps(waiting), "attempts": 5, "orphaned": 2, "deadline": "1"})
    broker.accept(Submission("before", "chat", 0, "tasks.chat", message.write("tasks.chat", "before", "chat", 0, {})))

    assert dead_letters.replay(broker, "a") == "replayed"
    assert dead_letters.replay(broker, "a") == "queued", "a second replay is harmless"
    assert dead_letters.replay(broker, "none") == ""
    first, second = broker.fetch("a worker", 60, ["chat"], 2)
    assert (first.delivery.id, second.delivery.id) == ("before", "a"), "at the tail"
    headers = json.loads(second.message)["headers"]
    assert (headers["retries"], headers["expires"]) == (0, None)
    assert broker.start(second.delivery) == "started", "its deadline is no more"
    assert not broker.redis.hmget(record, "attempts")[0]
    assert broker.redis.hmget(record, "orphaned", "reason", "error", "fingerprint") == [None] * 4
    assert (counter(broker, "replayed"), counter(broker, "dead"), counter(broker, "submitted")) == (1, 1, 2)
    broker.bury(second.delivery, "failed", "")
    for number in range(25):
        dead_letters.replay(broker, "a")
        bury(broker, reason=str(number))
    assert [death.reason for death in letter(broker, "a").history] == [str(number) for number in range(4, 24)]
    assert letter(broker, "a").deaths == 27


def test_a_purged_letter_leaves_a_record_that_ends_and_says_so(broker: Broker) -> None:
    for job_id in ("a", "b", "c"):
        die(broker, job_id)
    kept = letter(broker, "b")
    assert dead_letters.purge(broker, "a") == "purged"
    assert dead_letters.replay(broker, "a") == "purged"
    assert dead_letters.get(broker, "a") is None
    record = broker.redis.hgetall(broker.keys.job("a"))
    assert (record[b"state"], record[b"purged"]) == (b"dead", b"1")
    assert b"message" not in record
    assert broker.redis.ttl(broker.keys.job("a")) > 0
    assert Job("a").status == "FAILURE"
    assert dead_letters.purge(broker, "b", kept.died_at - 1) == "changed", "it died anew since it was read"
    assert dead_letters.purge_many(broker, Filter(queue="chat"), most=1) == dead_letters.Tally(1, 1)
    assert ids(broker) == ["c"]
    assert counter(broker, "purged") == 2


def test_what_is_dead_for_too_long_expires_and_nothing_else(broker: Broker) -> None:
    for job_id in ("old", "older", "young", "deleted"):
        die(broker, job_id)
    age(broker, "old", 31)
    age(broker, "older", 400)
    age(broker, "deleted", 31)
    broker.redis.delete(broker.keys.job("deleted"))
    assert dead_letters.expire(broker, 30 * 86400) == 2
    assert dead_letters.expire(broker, 30 * 86400) == 0
    assert broker.redis.zrange(broker.keys.dead(), 0, -1) == [b"young"]


def test_a_set_rate_is_kept(broker: Broker) -> None:
    for job_id in ("a", "b", "c"):
        die(broker, job_id)
    pauses: list[float] = []
    dead_letters.replay_many(broker, rate_per_s=1e-3, pause=pauses.append)
    assert [round(pause, -3) for pause in pauses] == [0, 1000, 2000]  # nothing was slept: each pause is from the start
    with pytest.raises(JobRefused, match="rate_per_s"):
        dead_letters.replay_many(broker, rate_per_s=0)


def test_an_edit_needs_the_letter_as_it_was_read(broker: Broker) -> None:
    die(broker)
    read = letter(broker, "a")
    assert dead_letters.edit(broker, read, payload={"message": "one"}) == "edited"
    assert dead_letters.edit(broker, read, payload={"message": "two"}) == "changed"
    assert letter(broker, "a").payload == {"message": "one"}
    other = message.write("tasks.chat", "b", "chat", 0, {})
    for how, field in (
        ({"text": other}, "headers.id"),
        ({"text": (read.message or "").replace('"py"', r'"\ud800"')}, "plain JSON"),
        ({"text": "no json"}, "message"),
        ({"text": "{}"}, "properties"),
        ({"payload": {"message": "x" * 300_000}}, "payload"),
        ({"payload": {"message": float("nan")}}, "payload"),
    ):
        with pytest.raises(JobRefused, match=field):
            dead_letters.edit(broker, letter(broker, "a"), **how)
    now = letter(broker, "a")
    dead_letters.replay(broker, "a")
    assert dead_letters.edit(broker, now, payload={}) == "queued"


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"null", b'{"headers": {"id": 7}}'])
def test_a_message_that_names_no_job_keeps_its_job_when_it_comes_back(broker: Broker, raw: bytes) -> None:
    broker.redis.lpush("chat", raw, raw)
    one, two = bury(broker), bury(broker)
    assert one != two
    assert {dead_letters.replay(broker, one), dead_letters.replay(broker, two)} == {"replayed"}
    fetched = broker.fetch("vanished", 0, ["chat"], 2)
    assert {each.delivery.id for each in fetched} == {one, two}
    broker.sweep()
    assert {bury(broker), bury(broker)} == {one, two}
    assert counter(broker, "submitted") == 2
    mended = message.write("tasks.chat", one, "chat", 0, {"message": "hello"})
    assert dead_letters.edit(broker, letter(broker, one), text=mended) == "edited"
    dead_letters.replay(broker, one)
    assert bury(broker) == one
    assert letter(broker, one).task == "tasks.chat"
    assert not list(broker.redis.scan_iter("forebay:nameless:*"))


def test_a_letter_is_shown_edited_replayed_and_purged_by_command(cli: Cli, broker: Broker, tmp_path: Path) -> None:
    die(broker, "a")
    die(broker, "b", "embedding", "time limit")
    age(broker, "b", 3)
    assert [each["id"] for each in cli.json("list", "--older-than", "2d")] == ["b"]
    assert "ValueError: [/no] 7" in cli("list", "--queue", "chat")
    assert "no dead letter matches" in cli("list", "--newer-than", "0s", code=1)
    assert [(each["count"], each["example"]["id"]) for each in cli.json("groups")] == [(1, "a"), (1, "b")]
    assert "time limit" in cli("groups")
    shown = cli("show", "a")
    assert "next step" in shown
    assert "in body" in shown
    assert "8 characters" in shown
    assert "a secret" not in shown + cli("show", "a", "--json")
    assert cli.json("show", "a", "--payload")["payload"]["message"] == "a secret"
    assert "is not a dead letter" in cli("show", "none", code=1)

    new = tmp_path / "new.json"
    new.write_text('{"message": "", "conversation": "c"}', encoding="utf-8")
    assert "message: '' must hold" in cli("edit", "a", "--from", str(new), code=1)
    replace = (
        "import pathlib, sys; f = pathlib.Path(sys.argv[1]); f.write_text(f.read_text().replace('a sec', 'no sec'))"
    )
    assert "is edited" in cli("edit", "a", editor=shlex.join([sys.executable, "-c", replace]))
    assert (letter(broker, "a").payload or {})["message"] == "no secret"
    assert "nothing is changed" in cli("edit", "a", editor="true")
    assert "ended with 1" in cli("edit", "a", editor="false", code=1)

    assert "1 dead letters would be replayed" in cli("replay", "--dry-run", "--queue", "chat")
    assert "1 dead letters replayed" in cli("replay", "--all", "--queue", "chat", "--rate", "100")
    assert "is queued, not a dead letter" in cli("replay", "a", code=1)
    assert "no dead letter matches" in cli("replay", "--all", "--queue", "chat", code=1)
    assert "Delete what 1 dead letters carry?" in cli("purge", "--all", code=1), "nobody said yes"
    assert cli.json("purge", "b", "--yes") == {"dry_run": False, "jobs": {"b": "purged"}}
    for wrong in (["replay"], ["replay", "a", "--all"], ["purge", "--queue", "chat"], ["list", "--older-than", "soon"]):
        cli(*wrong, code=2)


def test_a_letter_whose_id_could_break_a_terminal_is_in_reach(cli: Cli, broker: Broker) -> None:
    broker.redis.lpush("chat", ODD, ODD.replace(b"odd", b"x" * 5000))
    job_id, shown_as = "odd \udcff\x1b[2J", r"odd \udcff\x1b[2J"
    assert bury(broker) == job_id
    bury(broker)
    assert shown_as in cli("list")
    assert "\x1b" not in cli("list") + cli("list", "--json") + cli("show", shown_as, "--payload")
    assert cli.json("list")[1]["id"] == job_id
    assert "replayed" in cli("replay", shown_as)
    assert broker.redis.lindex("chat", 0) == ODD
    assert bury(broker) == job_id
    assert "2 dead letters purged" in cli("purge", "--all", "--yes")


@pytest.mark.parametrize("act", [dead_letters.replay_many, dead_letters.purge_many])
def test_many_are_acted_on_as_they_were_found(broker: Broker, act: Callable[..., dead_letters.Tally]) -> None:
    for job_id, days in (("first", 3.0), ("second", 2.0)):
        die(broker, job_id)
        age(broker, job_id, days)

    def die_anew(number: int) -> None:
        if number == 1:
            age(broker, "second", 1)  # as if it had been replayed meanwhile, and had died again

    assert act(broker, on_progress=die_anew) == dead_letters.Tally(2, 1)
    assert ids(broker) == ["second"]
