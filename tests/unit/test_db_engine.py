"""What the environment may say about the database."""

from __future__ import annotations

import pytest

from db import engine
from db.errors import SettingError

URL = "postgresql://someone:secret@127.0.0.1:5999/things"


def test_defaults() -> None:
    found = engine.settings({"DATABASE_URL": URL})
    assert (found.pool_size, found.pool_overflow, found.pool_recycle_s) == (10, 20, 3600)
    assert (found.connect_timeout_s, found.statement_timeout_s) == (10, 30.0)
    assert (found.pool_pre_ping, found.pool_lifo) == (True, True)
    arguments = engine.connect_arguments(found)
    assert arguments["options"] == "-c statement_timeout=30000"
    keepalives = [arguments[f"keepalives{part}"] for part in ("", "_idle", "_interval", "_count")]
    assert keepalives == [1, 30, 10, 5]


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2"])
def test_both_schemes_use_psycopg2(scheme: str) -> None:
    found = engine.settings({"DATABASE_URL": URL.replace("postgresql", scheme)})
    assert found.url.drivername == "postgresql+psycopg2"
    assert (found.url.database, found.url.password) == ("things", "secret")


@pytest.mark.parametrize("given", [{}, {"DATABASE_URL": " "}])
def test_a_missing_url_is_named(given: dict[str, str]) -> None:
    with pytest.raises(SettingError, match="DATABASE_URL is not set: set it to postgresql://"):
        engine.settings(given)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "secret", "postgresql://u:secret@h:port/d"])
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingError, match="DATABASE_URL") as raised:
        engine.settings({"DATABASE_URL": url})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("DATABASE_POOL_SIZE", "0", "a whole number from 1 to 2147483647"),
        ("DATABASE_POOL_SIZE", "many", "a whole number from 1 to 2147483647"),
        ("DATABASE_POOL_OVERFLOW", "-1", "a whole number from 0 to 2147483647"),
        ("DATABASE_POOL_RECYCLE_S", "1.5", "a whole number from 1 to 2147483647"),
        ("DATABASE_POOL_TIMEOUT_S", "nan", "a number of seconds from 0 to 2147483"),
        ("DATABASE_STATEMENT_TIMEOUT_S", "inf", "a number of seconds from 0 to 2147483"),
        ("DATABASE_STATEMENT_TIMEOUT_S", "2147484", "a number of seconds from 0 to 2147483"),
        ("DATABASE_KEEPALIVES_COUNT", "99999999999", "a whole number from 1 to 2147483647"),
        ("DATABASE_POOL_PRE_PING", "perhaps", "true or false"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingError) as raised:
        engine.settings({"DATABASE_URL": URL, name: value})
    assert str(raised.value) == f"{name}={value!r}: {allowed}"


def test_all_faults_are_reported_at_once() -> None:
    given = {"DATABASE_POOL_SIZE": "x", "DATABASE_POOL_LIFO": "y"}
    with pytest.raises(SettingError, match=r"DATABASE_URL is not set.*DATABASE_POOL_SIZE='x'.*DATABASE_POOL_LIFO='y'"):
        engine.settings(given)


def test_values_are_read() -> None:
    given = {"DATABASE_URL": URL, "DATABASE_POOL_SIZE": "3", "DATABASE_POOL_TIMEOUT_S": "0.5"}
    found = engine.settings(given | {"DATABASE_POOL_LIFO": "False"})
    assert (found.pool_size, found.pool_timeout_s, found.pool_lifo) == (3, 0.5, False)


def test_the_url_has_the_last_word_on_its_connection() -> None:
    url = f"{URL}?connect_timeout=2&options=-csearch_path%3Dthere"
    arguments = engine.connect_arguments(engine.settings({"DATABASE_URL": url}))
    assert "connect_timeout" not in arguments
    assert arguments["options"] == "-c statement_timeout=30000 -csearch_path=there"


def test_pgbouncer_is_sent_no_options_but_those_of_the_url() -> None:
    given = {"DATABASE_URL": URL, "DATABASE_PGBOUNCER": "true"}
    assert "options" not in engine.connect_arguments(engine.settings(given))
    named = engine.settings(given | {"DATABASE_URL": f"{URL}?options=-csearch_path%3Dthere"})
    assert engine.connect_arguments(named)["options"] == "-csearch_path=there"


def test_a_wrong_direct_url_is_named() -> None:
    with pytest.raises(SettingError, match="DATABASE_DIRECT_URL starts with 'mysql'"):
        engine.settings({"DATABASE_URL": URL, "DATABASE_DIRECT_URL": "mysql://u@h/d"})
    assert engine.settings({"DATABASE_URL": URL}).direct_url is None
