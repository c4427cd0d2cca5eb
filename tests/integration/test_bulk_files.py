"""Files of rows by command: every format, what is refused, and groups that are broken off and taken up again."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from cli.bulk import bulk
from cli.rows import file as row_file
from db.engine import transaction
from tasks import enqueue
from tasks.producer.bulk_group import BulkGroup, Piece
from tasks.producer.enqueue import Options
from tasks.producer.job import Group, Job
from tasks.producer.kinds.bulk_insert import BulkInsert
from tasks.producer.kinds.payload import check
from tests.commands import Cli
from tests.eventually import eventually
from tests.integration.test_jobs import scalar
from tests.workers import Workers
from worker.errors import JobRefused, UnknownJob
from worker.records.broker import Broker

TABLE = "unicode_characters"
HOSTILE = [
    "tab\there",
    'a "quote"',
    "back\\slash \\N \\.",
    "two\nlines",
    "crlf\r\nline",
    "naïve 漢字 🎉",
    "",
    ",",
    "'; DROP TABLE x",
]


def names() -> list[str]:
    with transaction() as session:
        return list(session.scalars(text(f"SELECT name FROM {TABLE} ORDER BY codepoint")))


def write(file: Path, kind: str) -> None:
    if kind == "csv":
        quoted = ['"' + each.replace('"', '""') + '"' for each in HOSTILE]
        lines = "codepoint,name,numeric\n" + "".join(f"{n},{each},\r\n" for n, each in enumerate(quoted))
        file.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    elif kind == "jsonl":
        rows = [{"codepoint": n, "name": each, "numeric": None} for n, each in enumerate(HOSTILE)]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        count = len(HOSTILE)
        columns = {"codepoint": list(range(count)), "name": HOSTILE, "numeric": pa.array([None] * count, pa.float64())}
        pq.write_table(pa.table(columns), file, row_group_size=2)


def test_every_format_carries_hostile_texts(
    workers: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers.start("bulk_insert")
    for kind in ("csv", "jsonl", "parquet"):
        file = tmp_path / f"rows.{kind}"
        write(file, kind)
        bulk(TABLE, file, None, null="", window=10, wait=60, as_json_=True)
        assert json.loads(capsys.readouterr().out)["rows"] == len(HOSTILE)
        assert names() == HOSTILE
        assert scalar(f"SELECT count(*) FROM {TABLE} WHERE numeric IS NULL") == len(HOSTILE)
        with transaction() as session:
            session.execute(text(f"DELETE FROM {TABLE}"))


def test_the_four_operations_by_command(
    cli: Cli, workers: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers.start("bulk_insert")
    file = tmp_path / "rows.csv"

    def run(content: bytes, operation: str) -> str:
        file.write_bytes(content)
        bulk(TABLE, file, None, null="", operation=operation, key="codepoint", window=10, wait=60)
        return capsys.readouterr().out

    options = ("--format", "csv", "--columns", "codepoint,name,numeric", "--null", "NIL", "--wait", "60")
    assert "2 rows inserted" in cli("enqueue", "bulk", TABLE, "-", *options, given=b'1,a,NIL\n2,"NIL",2\n')
    assert scalar(f"SELECT count(*) FROM {TABLE} WHERE name = 'NIL' OR numeric IS NULL AND name = 'a'") == 2
    assert "1 rows updated, 1 rows skipped" in run(b"codepoint,name\n1,b\n9,b\n", "update")
    assert "1 rows inserted, 1 rows updated" in run(b"codepoint,name\n1,c\n3,c\n", "upsert")
    assert "2 rows deleted" in run(b"codepoint\n1\n2\n", "delete")
    assert scalar(f"SELECT count(*) FROM {TABLE}") == 1
    with pytest.raises(JobRefused, match=r"key: 'codepoint' must be a list of columns, such as \['codepoint'\]"):
        enqueue.bulk_upsert(TABLE, [{"codepoint": 3, "name": "d"}], key="codepoint")
    group = enqueue.bulk_update(TABLE, [{"codepoint": each, "name": "d"} for each in (3, 9)], key=["codepoint"])
    assert group.result(60) == {"rows": 2, "updated": 1, "skipped": 1}
    (job,) = enqueue.bulk_upsert(TABLE, [{"codepoint": 4, "name": "d"}], key=["codepoint"]).jobs
    assert job.result(60)["inserted"] == 1
    (job,) = enqueue.bulk_delete(TABLE, [{"codepoint": 4}], key=["codepoint"]).jobs
    assert job.result(60)["deleted"] == 1


def test_a_killed_command_goes_on_and_a_changed_file_is_refused(
    cli: Cli, workers: Workers, broker: Broker, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    lines = [f"{number},row {number}\n" for number in range(40_000)]
    file.write_text("codepoint,name\n" + "".join(lines), encoding="utf-8")
    command = ["enqueue", "bulk", TABLE, str(file), "--group", "load"]

    def again() -> None:
        bulk(TABLE, file, None, null="", group="load", window=1000)

    sending = subprocess.Popen(
        [sys.executable, "-m", "cli", *command, "--window", "16"],
        env=cli.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: (broker.redis.hget(broker.keys.group("load"), "sent") or b"0") == b"16")
    assert sending.poll() is None  # nobody works, so the window holds it there
    sending.kill()
    sending.wait()
    cli("group", "load", code=3)
    cli(*command)
    assert "16 of 40 jobs were in before" in cli.errors
    again()
    assert broker.redis.hget(broker.keys.stats("bulk_insert"), "submitted") == b"40"
    lines[20_500] = "20500,another\n"
    file.write_text("codepoint,name\n" + "".join(lines), encoding="utf-8")
    with pytest.raises(JobRefused, match=r"job load\.20, whose rows begin at .*:20002, is the first that differs"):
        again()
    file.write_text("codepoint,name\n" + "".join(lines[:20_000]), encoding="utf-8")
    with pytest.raises(JobRefused, match="begun with more rows"):
        again()
    workers.start("bulk_insert")
    assert cli.json("group", "load", "--wait", "60")["rows"] == {"SUCCESS": 40_000}
    assert scalar(f"SELECT count(*) FROM {TABLE}") == 40_000
    broker.redis.delete(broker.keys.job("load.3"))
    assert BulkGroup("load").state().jobs == {"SUCCESS": 39, "FORGOTTEN": 1}


def test_of_two_commands_with_other_rows_under_one_name_one_goes_through(broker: Broker) -> None:
    both = threading.Barrier(2)

    def send(group: str, count: int) -> bool:
        rows = [check(BulkInsert, table=TABLE, columns=["codepoint"], rows=[[100 * count + n]]) for n in range(count)]
        both.wait(30)
        try:
            BulkGroup(group).send(
                [Piece(n, each, each.to_json().encode(), "") for n, each in enumerate(rows)], Options(), 1
            )
            BulkGroup(group).end(count)
        except JobRefused:
            return False
        return True

    with ThreadPoolExecutor(2) as commands:
        for number in range(20):
            went = list(commands.map(send, [f"load-{number}"] * 2, [3, 8]))
            assert sorted(went) == [False, True]
            assert BulkGroup(f"load-{number}").state().jobs == {"QUEUED": 3 if went[0] else 8}


def test_a_group_tells_what_failed(cli: Cli, workers: Workers, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"codepoint": 1, "name": "x"}\n{"codepoint": 123456789012345678901234567890, "name": "x"}\n', encoding="utf-8"
    )
    bulk(TABLE, file, None, null="", group="partly", window=10)
    unknown = tmp_path / "unknown.csv"
    unknown.write_text("codepoint,nam\n1,x\n", encoding="utf-8")
    cli("enqueue", "bulk", TABLE, str(unknown), "--group", "unknown", DATABASE_URL="")  # which leaves it to the worker
    workers.start("bulk_insert")
    said = cli("group", "partly", "--wait", "60", code=1)
    assert "partly.0.rejected is FAILURE" in said
    state = BulkGroup("partly").state()
    assert (state.jobs, state.rows) == ({"SUCCESS": 1, "FAILURE": 1}, {"SUCCESS": 1, "FAILURE": 1})
    said = cli("enqueue", "bulk", TABLE, str(file), "--group", "partly", "--wait", "60", code=1)
    assert "1 rows inserted" in said
    assert "1 rows were refused; they are job partly.0.rejected" in said
    refused = Group("partly", [Job("partly.0")]).result(60)
    assert refused == {"rows": 1, "rejected": 1, "rejected_jobs": ["partly.0.rejected"]}
    assert "no column 'nam'" in cli("group", "unknown", "--wait", "60", code=1)
    with pytest.raises(UnknownJob, match="never begun"):
        BulkGroup("never begun").state()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"codepoint,name\n1,x\n2,a\0b\n", "a.csv:3: '2,a\\x00b\\n' holds U+0000 at position 3"),
        ("a.csv", b"codepoint,name\n1,x\n2,\xe9\n", "a.csv:3: b'\\xe9' at byte 2 of the line, 21 of the file"),
        ("a.csv", b"codepoint,name\n", "holds no row; give at least one row"),
        (
            "a.csv",
            b"codepoint;name\n1;x\n",
            "a.csv:1: 'codepoint;name' is one field; separate fields by commas, not by ';'",
        ),
        ("a.csv", b"codepoint,name\n1\tx\n", "has 1 fields for 2 columns; separate fields by commas, not by '\\t'"),
        ("a.csv", b"codepoint,name\n1,x,y\n", "a.csv:2: '1,x,y' has 3 fields for 2 columns; quote a field that holds"),
        ("a.csv", b"codepoint,codepoint\n1,2\n", "a.csv:1: 'codepoint' is the name of two columns"),
        ("a.csv", b"codepoint,\n1,2\n", "a.csv:1: 'codepoint,' has no name for column 2"),
        ("a.csv", b'codepoint,name\n1,"open\n2,x\n', "a.csv:2: '1,\"open\\n' opens a quote that is never closed"),
        ("a.csv", b'codepoint,name\n1,a"b"\n', "a.csv:2: '\"b\"' has a quote within a field"),
        ("a.csv", b'codepoint,name\n1,"two\nlines"\n2\n', "a.csv:4: '2' has 1 fields for 2 columns"),
        ("a.csv", b"codepoint,name\n1," + b"x" * 9_000_000 + b"\n", "a.csv:2: b'1,xxx"),
        ("a.jsonl", b"", "give at least one row"),
        ("a.jsonl", b'{"codepoint": NaN}\n', "a.jsonl:1: '{\"codepoint\": NaN}' is not JSON: NaN is no JSON number"),
        (
            "a.jsonl",
            b'{"name": "x"}\n{"name":\n',
            "a.jsonl:2: '{\"name\":' is not JSON: Expecting value at character 9; write",
        ),
        ("a.jsonl", b'[{"name": "x"}]\n', "must be a JSON object; write one object a line, in no list"),
        ("a.jsonl", b'{"name": "x"}\n{"name": "\\u0000"}\n', "holds U+0000"),
        ("a.jsonl", b'{"name": "x"}\n{"name": "\\ud800"}\n', "holds U+D800"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_fault_in_a_file_is_named_with_its_place(
    cli: Cli, broker: Broker, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(JobRefused) as caught:
        bulk(TABLE, file, None, null="", window=10)
    assert words in str(caught.value)
    assert not list(broker.redis.scan_iter("*"))


def test_a_fault_behind_sent_rows_says_how_to_go_on(cli: Cli, broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("codepoint,name\n" + "".join(f"{n},x\n" for n in range(9)) + "bad\n", encoding="utf-8")
    said = cli("enqueue", "bulk", TABLE, str(file), "--group", "late", FOREBAY_BULK_INSERT_ROWS_PER_JOB="1", code=1)
    assert "rows.csv:11: 'bad' has 1 fields for 2 columns" in said
    assert "8 jobs are in; once that is mended, the same command with --group late goes on" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("rows.csv", "--format", "xml"), "format: 'xml' is not known; give csv, jsonl or parquet"),
        (("-",), "file: '-' is standard input, whose format has no suffix to tell it; give --format csv|jsonl"),
        (("rows.csv", "--group", "a", "--idempotency-key", "b"), "'b' is --group by another name ('a'); give one"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    cli: Cli, broker: Broker, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    (tmp_path / "rows.csv").write_text("codepoint,name\n1,x\n", encoding="utf-8")
    given = [str(tmp_path / each) if each.endswith(".csv") else each for each in options]
    assert words in cli("enqueue", "bulk", TABLE, *given, code=1)


def test_values_of_parquet_arrive_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    given = {
        "a": [1.5, float("nan")],
        "b": [b"\x00\xff", None],
        "bs": [[None, b"\\x41"], []],
        "c": [Decimal("1.10"), None],
        "d": [date(2024, 2, 29)] * 2,
    }
    pq.write_table(pa.table(given), file)
    with row_file.opened(file, None, None, "", 1000) as source:
        assert [values for _, values in source.rows] == [
            [1.5, "\\x00ff", [None, "\\x5c783431"], Decimal("1.10"), date(2024, 2, 29)],
            ["nan", None, [], None, date(2024, 2, 29)],
        ]


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_json_cannot_say_are_refused_with_their_place(cli: Cli, tmp_path: Path, rows: int) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"codepoint": list(range(rows)), "name": [[float("nan")]] * rows}), file)
    with pytest.raises(JobRefused, match=r"rows from .*rows\.parquet row 1: .* cannot be written as JSON"):
        bulk(TABLE, file, None, null="", window=10)


def test_long_numbers_of_json_keep_every_digit(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"a": 0.1, "b": 0.12345678901234567890123, "c": 123456789012345678901234567890}\n', encoding="utf-8"
    )
    with row_file.opened(file, None, None, "", 1000) as source:
        assert [values for _, values in source.rows] == [
            [0.1, "0.12345678901234567890123", 123456789012345678901234567890]
        ]


def test_a_text_may_spell_out_what_cannot_be_stored(tmp_path: Path) -> None:
    spelled = ["\\u0000", "C:\\\\ud800", '"\\u0000']
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"a": spelled, "b": "\u00e9"}), encoding="utf-8")
    with row_file.opened(file, None, None, "", 1000) as source:
        assert [values for _, values in source.rows] == [[spelled, "\u00e9"]]
    file.write_text(json.dumps({"a": ["\\\0"]}), encoding="utf-8")
    with pytest.raises(JobRefused, match=r"holds U\+0000"), row_file.opened(file, None, None, "", 1000) as source:
        list(source.rows)


def test_objects_of_json_have_the_columns_given_or_those_of_the_first(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"

    def read(content: str, columns: list[str] | None) -> list[object]:
        file.write_text(content, encoding="utf-8")
        with row_file.opened(file, None, columns, "", 1000) as source:
            return [values for _, values in source.rows]

    assert read('{"a": 1, "b": 2}\n\n{"b": 3, "a": null}\n', None) == [[1, 2], [None, 3]]
    assert read('{"a": 1}\n{"b": 2}\n{}\n', ["b", "a"]) == [[None, 1], [2, None], [None, None]]
    for content in ('{"a": 1}\n{}\n', '{"a": 1}\n{"a": 2, "b": 3}\n'):
        with pytest.raises(JobRefused, match=r"rows\.jsonl:2: .* must have the columns a; with --columns"):
            read(content, None)
    with pytest.raises(JobRefused, match=r"rows\.jsonl:1: .* must have no columns but a, b$"):
        read('{"a": 1, "c": 2}\n', ["a", "b"])


@pytest.mark.parametrize(
    ("name", "content", "columns", "words"),
    [
        ("a.csv", b"a,b\n1,2\n", ["a", "b"], "a.csv:1: 'a,b' names the columns; leave --columns out"),
        ("a.csv", b'a\n"open\n' + b"x\n" * 600, None, "opens a quote that is not closed in 1000 bytes"),
        ("a.jsonl", b'{"a": 1}\n{"a": "' + b"x" * 1000 + b'"}\n', None, "is longer than a job may be (1000 bytes"),
        ("a.parquet", b"", ["a", "c"], "columns: 'c' is not in"),
    ],
)
def test_what_cannot_be_read_as_asked_is_named(
    tmp_path: Path, name: str, content: bytes, columns: list[str] | None, words: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    if name == "a.parquet":
        pq.write_table(pa.table({"a": [1], "b": [2]}), file)
    with pytest.raises(JobRefused) as caught, row_file.opened(file, None, columns, "", 1000) as source:
        list(source.rows)
    assert words in str(caught.value)


def test_parquet_does_not_come_from_standard_input() -> None:
    with (
        pytest.raises(JobRefused, match="file: '-' cannot be Parquet"),
        row_file.opened(Path("-"), "parquet", None, "", 1000),
    ):
        pass


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        pytest.raises(JobRefused, match="FOREBAY_INSTALL=full"),
        row_file.opened(tmp_path / "rows.parquet", None, None, "", 1000),
    ):
        pass


def test_rows_too_large_for_one_message_become_more_jobs(broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("codepoint,name\n" + "".join(f"{n},{'x' * 1_000_000}\n" for n in range(6)), encoding="utf-8")
    bulk(TABLE, file, None, null="", group="large", window=10)
    assert BulkGroup("large").state().rows == {"QUEUED": 6}
    assert (
        broker.redis.llen("bulk_insert")
        + sum(broker.redis.llen(key) for key in broker.redis.scan_iter("bulk_insert\x06*"))
        == 2
    )
