"""The commands, run as a person and as a script would run them."""

import json
import re
from pathlib import Path

import pytest

from db.conversations import history
from db.vectors import documents
from db.vectors.documents import Document
from tasks import enqueue
from tests.commands import Cli
from tests.eventually import eventually
from tests.workers import Workers
from worker.records.broker import Broker

ROOT = Path(__file__).resolve().parents[2]


def test_a_chat_is_enqueued_followed_and_answered(cli: Cli, workers: Workers) -> None:
    job_id = cli("enqueue", "chat", "Say yes.").strip()
    assert cli.json("job", job_id)["status"] == "QUEUED"
    workers.start("chat")
    shown = cli.json("job", job_id, "--wait", "60")
    assert shown["status"] == "SUCCESS"
    assert shown["result"]["text"]
    assert job_id in cli("job", job_id)


def test_a_chat_of_a_user_is_in_their_history(cli: Cli, workers: Workers) -> None:
    workers.start("chat")
    cli("enqueue", "chat", "Hello.", "--conversation", "c-1", "--user", "ada", "--wait", "60")
    assert [message.role for message in history.page("ada", "c-1").items] == ["user", "assistant"]


def test_files_are_embedded_under_their_paths(cli: Cli, workers: Workers, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    for file in files:
        file.write_text(f"the text of {file.name}", encoding="utf-8")
    workers.start("embedding")
    jobs = cli.json("enqueue", "embedding", *map(str, files))
    assert cli.errors == "3 embedding jobs sent\n"
    assert [job["key"] for job in jobs] == [str(file) for file in files]
    assert cli.json("job", jobs[2]["id"], "--wait", "60")["result"]["key"] == str(files[2])
    waited = cli.json("enqueue", "embedding", *map(str, files), "--wait", "60")
    assert [job["result"]["key"] for job in waited] == [str(file) for file in files]
    assert f"{files[0]}: 384 numbers by all-minilm" in cli("enqueue", "embedding", str(files[0]), "--wait", "60")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'codepoint,name,numeric\n1,"one, with a comma",\n2,two,2.5\n'),
        (
            "rows.jsonl",
            '{"codepoint": 1, "name": "one", "numeric": null}\n\n{"codepoint": 2, "name": "two", "numeric": 2}\n',
        ),
    ],
)
def test_a_file_of_rows_is_inserted(cli: Cli, workers: Workers, tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    workers.start("bulk_insert")
    assert "2 rows inserted" in cli("enqueue", "bulk", "unicode_characters", str(file), "--wait", "60")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", b"codepoint,name\n1\n", "rows.csv:2"),
        ("rows.csv", b"codepoint,name\n1,\xff\n", "UTF-8"),
        ("rows.csv", b"", "at least one row"),
        ("rows.jsonl", b'{"codepoint": 1}\nnot json\n', "rows.jsonl:2"),
        ("rows.jsonl", b"[1]\n", "must be a JSON object"),
        ("rows.jsonl", b'{"codepoint": 1}\n{"name": "x"}\n', "rows.jsonl:2"),
        ("rows.xml", b"<rows/>", "must end in .csv, .jsonl or .parquet"),
        ("rows.csv", b"codepoint,nam\n1,x\n", "no column 'nam'; it has codepoint, character, name"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(
    cli: Cli, broker: Broker, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    said = cli("enqueue", "bulk", "unicode_characters", str(file), code=1, FORCE_COLOR="1", TERM="xterm")
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said)
    assert words in said
    assert said.startswith("error: ")  # no bar before it
    assert not list(broker.redis.scan_iter("*"))


def test_rows_are_taken_where_no_database_can_be_reached(cli: Cli, broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("codepoint,nam\n1,x\n", encoding="utf-8")
    for url in ("", "postgresql://nobody@127.0.0.1:9/nothing"):
        cli("enqueue", "bulk", "unicode_characters", str(file), DATABASE_URL=url)
        assert "the columns are not checked" in cli.errors
    assert broker.redis.hget(broker.keys.stats("bulk_insert"), "submitted") == b"2"


def test_a_message_from_standard_input_is_utf_8(cli: Cli, broker: Broker) -> None:
    cli("enqueue", "chat", "-", "--priority", "NORMAL", given="naïve 漢字".encode(), PYTHONIOENCODING="latin-1")
    (sent,) = broker.redis.lrange("chat", 0, -1)
    assert "naïve 漢字" in json.loads(sent)["body"]
    refused = cli("enqueue", "chat", "-", given=b"\x7fELF\xff\xfe", code=1)
    assert r"standard input: b'\xff' at byte 4 is not UTF-8" in refused


def test_wrong_calls_are_refused_in_one_line(cli: Cli) -> None:
    assert "is not known" in cli("job", "no-such-job", code=1)
    for deadline in ("0", "-5"):
        assert "must be more than 0 seconds" in cli("enqueue", "chat", "hello", "--deadline", deadline, code=1)
    assert "priority: 'urgnet' must be one of" in cli("enqueue", "chat", "hello", "--priority", "urgnet", code=1)
    assert "queue 'caht' is not declared; queues.yaml has chat, embedding, bulk_insert; did you mean chat?" in cli(
        "worker", "caht", code=1
    )
    assert "not a file" in cli("enqueue", "bulk", "unicode_characters", "/no/such/file.csv", code=1)
    assert "no answer from the broker" in cli("queues", code=1, CELERY_BROKER_URL="redis://127.0.0.1:9/0")
    assert "conversation: '' is too short; give at least 1" in cli("enqueue", "chat", "x", "--conversation", "", code=1)
    operation = ("enqueue", "bulk", "unicode_characters", "-", "--format", "csv", "--operation", "upsrt")
    assert "operation: 'upsrt' is not allowed; give 'insert', 'update', 'upsert' or 'delete'" in cli(
        *operation, given=b"codepoint,name\n1,a\n", code=1
    )
    assert "FOREBAY_CHAT_CONCURENCY" in cli("config", code=1, FOREBAY_CHAT_CONCURENCY="3")


def test_queues_show_pending_by_priority_and_workers(cli: Cli, workers: Workers) -> None:
    enqueue.chat("hello")
    enqueue.chat("hello", priority="BATCH")
    workers.start("embedding")
    shown = cli.json("queues")
    chat = next(queue for queue in shown["queues"] if queue["name"] == "chat")
    assert chat["pending"] == {"CRITICAL": 0, "HIGH": 1, "NORMAL": 0, "LOW": 0, "BATCH": 1}
    (worker,) = (worker for worker in shown["workers"] if worker["node"].startswith("embedding@"))
    assert worker["queues"] == ["embedding"]
    assert "embedding@" in cli("queues")


def test_pending_jobs_are_worked_off_in_the_foreground(cli: Cli, broker: Broker) -> None:
    jobs = [enqueue.embedding(f"text {number}") for number in range(30)]
    later = enqueue.embedding("not yet", delay=3600)
    cli("work-off", "embedding")
    assert {job.status for job in jobs} == {"SUCCESS"}
    assert later.status == "QUEUED"
    later.cancel()


def test_a_job_can_be_cancelled_until_it_is_fetched(cli: Cli, workers: Workers) -> None:
    job = enqueue.chat("hello")
    assert "is cancelled" in cli("cancel", job.id)
    done = enqueue.embedding("hello")
    workers.start("embedding")
    done.result(60)
    assert "cannot be cancelled" in cli("cancel", done.id, code=1)


def test_dead_letters_are_listed_with_their_reason(cli: Cli, workers: Workers, broker: Broker) -> None:
    broker.redis.lpush("embedding", "not json")
    workers.start("embedding")
    eventually(lambda: broker.redis.zcard(broker.keys.dead()) == 1)
    (letter,) = cli.json("dead", "list")
    assert (letter["queue"], letter["reason"]) == ("embedding", "malformed")
    assert letter["id"] in cli("dead", "list")
    assert "malformed" in cli("job", letter["id"], code=1)


def test_configuration_says_where_each_value_came_from(cli: Cli) -> None:
    settings = {each["key"]: each for each in cli.json("config")}
    line = next(
        n for n, text in enumerate((ROOT / "queues.yaml").read_text().splitlines(), 1) if "pool: threads" in text
    )
    assert settings["queues.chat.pool"]["source"] == f"{ROOT / 'queues.yaml'}:{line}"
    changed = json.loads(cli("config", "--json", FOREBAY_CHAT_CONCURRENCY="7"))
    concurrency = next(each for each in changed if each["key"] == "queues.chat.concurrency")
    assert concurrency["value"] == 7
    assert concurrency["source"] == "environment variable FOREBAY_CHAT_CONCURRENCY"
    pool = next(each for each in changed if each["key"] == "DATABASE_POOL_SIZE")
    assert (pool["value"], pool["source"]) == (10, "default")
    assert "DATABASE_POOL_SIZE='x': a whole number" in cli("config", code=1, DATABASE_POOL_SIZE="x")


def test_synchronous_processing_needs_no_worker(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"codepoint": 7, "name": "seven"}\n', encoding="utf-8")
    said = cli("enqueue", "bulk", "unicode_characters", str(file), "--wait", "1", ASYNC_PROCESSING_ENABLED="false")
    assert "1 rows inserted" in said


def test_migrate_says_what_it_did(cli: Cli) -> None:
    assert "up to date" in cli("migrate")
    assert "up to date" in cli("migrate", "--check")
    assert "give one of them" in cli("migrate", "--check", "--down", "0001", code=2)
    assert "'9999'; known revisions are 0001, 0002" in cli("migrate", "--down", "9999", "--yes", code=1)


def test_a_database_that_cannot_be_used_is_told_of_in_one_line(cli: Cli) -> None:
    said = cli("indexes", code=1, DATABASE_URL="postgresql://u:secret@127.0.0.1:9/x")
    assert "correct DATABASE_URL: connection to server" in said
    assert "secret" not in said
    before = cli.environment["DATABASE_URL"].rpartition("/")[0]
    assert "run ./forebay migrate" in cli("queries", "slow", code=1, DATABASE_URL=f"{before}/template1")
    assert "raise DATABASE_STATEMENT_TIMEOUT_S" in cli("indexes", code=1, DATABASE_STATEMENT_TIMEOUT_S="0.001")


def test_models_without_vectors_are_named_with_those_that_have(cli: Cli) -> None:
    documents.store([Document("k", "text", [1.0, 0.0], "kept")])
    cli("vectors", "progress", "kpet", "new")
    assert "no document has a vector of kpet; models that have: kept" in cli.errors
    assert "name one that has: kept" in cli("vectors", "index", "kpet", code=1)


def test_a_command_without_its_part_shows_the_parts(cli: Cli) -> None:
    for command in ("cache", "dead", "enqueue", "queries", "vectors"):
        assert "Commands" in cli(command, code=2)
