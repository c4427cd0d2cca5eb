"""What `./forebay config` is told of the database's variables."""

import pytest

from db import configuration
from db.errors import SettingError
from db.variables import Reading

URL = "postgresql://someone:secret@127.0.0.1:5999/things?passfile=secret"


def test_every_value_is_told_and_no_password() -> None:
    given = {"DATABASE_URL": URL, "DATABASE_DIRECT_URL": URL, "QUERY_SLOW_THRESHOLD": "0.25", "CACHE_FEED_TTL": "5"}
    readings = {each.name: each for each in configuration.effective(given)}
    assert readings["DATABASE_URL"].value == "postgresql+psycopg2://someone:***@127.0.0.1:5999/things"
    assert readings["DATABASE_POOL_SIZE"] == Reading("DATABASE_POOL_SIZE", 10, is_given=False)
    assert readings["QUERY_SLOW_THRESHOLD"] == Reading("QUERY_SLOW_THRESHOLD", 0.25, is_given=True)
    assert readings["CACHE_FEED_TTL"].value == 5.0
    assert readings["PAGINATION_DEFAULT_LIMIT"].value == 50
    assert readings["QUERY_CACHE_ENABLED"].value is True
    assert "secret" not in repr(readings)


def test_without_a_database_there_is_none_to_configure() -> None:
    names = {each.name for each in configuration.effective({})}
    assert not any(name.startswith("DATABASE_") for name in names)
    assert "PAGINATION_LIST_LIMIT" in names


def test_faults_of_all_parts_are_told_at_once() -> None:
    given = {"DATABASE_URL": URL, "DATABASE_POOL_SIZE": "x", "PAGINATION_LIST_LIMIT": "0", "QUERY_CACHE_STALE_S": "99"}
    with pytest.raises(SettingError) as raised:
        configuration.effective(given)
    assert str(raised.value) == (
        "DATABASE_POOL_SIZE='x': a whole number from 1 to 2147483647; "
        "PAGINATION_LIST_LIMIT='0': a whole number from 1 to 2147483647; "
        "QUERY_CACHE_STALE_S='99': a number of seconds from 0 to 60"
    )
