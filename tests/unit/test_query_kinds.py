"""Settings of the query cache, and the tables that statements write and read."""

import pytest

from db.errors import SettingError
from db.query_cache import kinds as query_kinds
from db.query_cache import written_tables


def test_every_faulty_variable_is_named() -> None:
    with pytest.raises(SettingError) as raised:
        query_kinds.settings(
            {
                "CACHE_SEARCH_TTL": "soon",
                "CACHE_FEED_TTL": "nan",
                "QUERY_CACHE_STALE_S": "-1",
                "QUERY_CACHE_ENABLED": "2",
            }
        )
    for name in (
        "CACHE_SEARCH_TTL='soon'",
        "CACHE_FEED_TTL='nan'",
        "QUERY_CACHE_STALE_S='-1'",
        "QUERY_CACHE_ENABLED='2'",
    ):
        assert name in str(raised.value)


def test_lifetimes_are_those_of_the_environment_and_else_ours() -> None:
    found = query_kinds.settings({"CACHE_URL": "redis://there", "CACHE_FEED_TTL": "45", "CACHE_SEARCH_TTL": ""})
    assert found.enabled
    assert found.ttl_s["feed"] == 45
    assert found.ttl_s["search"] == 3600
    assert found.ttl_s["default"] == 300
    assert not query_kinds.settings({}).enabled, "without a Redis nothing is kept"


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("SELECT * FROM documents FOR UPDATE OF documents", set()),
        ("INSERT INTO documents (key) VALUES ('x') ON CONFLICT (key) DO UPDATE SET key = 'y'", {"documents"}),
        ("insert\n into public . Documents select 1", {"documents"}),
        ('UPDATE ONLY "public"."Odd ""name" SET a = 1', {'Odd "name'}),
        ("WITH x AS (DELETE FROM ONLY receipts RETURNING 1) SELECT * FROM x", {"receipts"}),
        ("TRUNCATE receipts, ONLY documents", {"receipts", "documents"}),
        ("DELETE/**/FROM/**/documents", {"documents"}),
        ("SELECT '--'; DELETE FROM documents", {"documents"}),
        ("DELETE FROM conversations", {"conversations", "messages"}),
        ("COPY documents (key) FROM STDIN", {"documents"}),
        ("DO $$ BEGIN UPDATE documents SET key = 1; END $$", {"documents"}),
    ],
)
def test_tables_that_a_statement_writes_are_found(statement: str, tables: set[str]) -> None:
    assert written_tables.written(statement) == tables


@pytest.mark.parametrize(
    ("statement", "is_one"),
    [
        ("\n INSERT INTO documents (key) VALUES ('x') ON CONFLICT DO NOTHING", True),
        ("update documents set key = 1", True),
        ("DELETE FROM documents", True),
        ("INSERT INTO documents (key) VALUES ('x'); DELETE FROM receipts", False),
        ("WITH x AS (DELETE FROM receipts) INSERT INTO documents (key) VALUES ('x')", False),
        ("INSERT INTO documents (key) WITH x AS (DELETE FROM receipts RETURNING job_id) SELECT job_id FROM x", False),
        ("TRUNCATE documents", False),
    ],
)
def test_a_count_of_rows_is_believed_for_one_plain_change(statement: str, is_one: bool) -> None:
    assert written_tables.is_one_change(statement) is is_one


def test_tables_that_a_statement_reads_are_found() -> None:
    statement = (
        'SELECT m.id, documents.key FROM messages AS m, "receipts" JOIN ONLY documents ON true, lateral (SELECT 1)'
    )
    assert written_tables.read(statement) == {"messages", "receipts", "documents"}
