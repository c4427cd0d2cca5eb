"""The settings that Celery gets."""

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.app.defaults import SETTING_KEYS
from celery.app.utils import detect_settings
from celery.backends.redis import RedisBackend
from celery.utils.saferepr import saferepr
from kombu import Connection

import celeryconfig
from worker.policy.policy import load as load_policy
from worker.policy.priority import STEPS
from worker.records import message
from worker.runtime.task import Job
from worker.runtime.transport import Channel, Transport

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {name: value for name, value in vars(celeryconfig).items() if not name.startswith("_")}
READ = """
import json, celeryconfig
settings = {name: value for name, value in vars(celeryconfig).items() if not name.startswith("_")}
print(json.dumps(settings, default=lambda value: getattr(value, "name", str(value))))
"""


def run(**variables: str) -> "subprocess.CompletedProcess[str]":
    known = ("CELERY_", "FOREBAY_", "REDIS_", "DATABASE_", "OPENAI_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(known)}
    return subprocess.run(
        [sys.executable, "-c", READ], cwd=ROOT, env={**clean, **variables}, capture_output=True, text=True, check=False
    )


def read(**variables: str) -> dict[str, Any]:
    done = run(**variables)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_name_is_a_setting_that_celery_knows() -> None:
    assert set(SETTINGS) <= SETTING_KEYS


def test_celery_takes_the_settings_without_a_complaint() -> None:
    detect_settings(SETTINGS)
    app = Celery("check", set_as_current=False)
    app.config_from_object(celeryconfig)  # a deprecated setting warns, and warnings are errors here
    for name, value in SETTINGS.items():
        if name not in ("broker_url", "result_backend"):  # Celery reads those from the environment first
            assert app.conf[name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_acks_late", True),
        ("task_reject_on_worker_lost", True),
        ("task_acks_on_failure", True),
        ("task_acks_on_timeout", True),
        ("task_retry_on_worker_lost", False),
        ("task_ignore_result", False),
        ("task_track_started", True),
        ("task_send_sent_event", True),
        ("task_serializer", "json"),
        ("result_serializer", "json"),
        ("accept_content", ["json"]),
        ("result_accept_content", ["json"]),
        ("result_extended", False),
        ("task_default_priority", None),
        ("worker_send_task_events", True),
        ("worker_enable_remote_control", True),
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
        ("worker_max_tasks_per_child", None),
        ("worker_consumer", "worker.runtime.consumer:Consumer"),
        ("broker_connection_retry_on_startup", True),
        ("broker_connection_max_retries", None),
        ("timezone", "UTC"),
    ],
)
def test_settings_that_lose_nothing(name: str, value: object) -> None:
    app = Celery("check", set_as_current=False)
    app.config_from_object(celeryconfig)
    assert app.conf[name] == value


def test_queues_and_routes_are_those_of_the_policy() -> None:
    policy = load_policy()
    assert [queue.name for queue in celeryconfig.task_queues] == list(policy.queues)
    assert all(
        queue.exchange.type == "direct" and queue.routing_key == queue.name for queue in celeryconfig.task_queues
    )
    assert celeryconfig.task_default_queue in policy.queues
    for queue in policy.queues.values():
        assert celeryconfig.task_routes[queue.task] == {"queue": queue.name}
        assert queue.task in celeryconfig.include
    assert celeryconfig.result_expires == policy.retention.result_s


def test_only_prefork_lanes_get_a_hard_time_limit() -> None:
    limits = {task: annotation["time_limit"] for task, annotation in celeryconfig.task_annotations.items()}
    assert limits == {
        queue.task: queue.time_limit_s for queue in load_policy().queues.values() if queue.pool == "prefork"
    }


def test_kombu_keeps_its_list_layout_with_our_steps() -> None:
    options = celeryconfig.broker_transport_options
    assert options["priority_steps"] == list(STEPS)
    assert options["sep"] == "\x06\x16"
    assert options["socket_keepalive"]


def test_defaults_without_an_environment() -> None:
    settings = read()
    assert settings["broker_url"] == settings["result_backend"] == "redis://127.0.0.1:6379/0"
    assert settings["broker_transport"] == "worker.runtime.transport:Transport"
    assert settings["broker_transport_options"]["global_keyprefix"] == ""
    assert settings["worker_prefetch_multiplier"] == 1
    most = max(queue.concurrency for queue in load_policy().queues.values())
    assert settings["broker_transport_options"]["max_connections"] > 2 * most
    assert settings["redis_max_connections"] > 2 * most


def test_the_environment_wins() -> None:
    settings = read(
        CELERY_BROKER_URL="sentinel://127.0.0.1:1/0",
        CELERY_RESULT_BACKEND="redis://127.0.0.1:2/3",
        CELERY_WORKER_PREFETCH_MULTIPLIER="7",
        REDIS_MAX_CONNECTIONS="77",
        FOREBAY_KEY_PREFIX="staging:",
        REDIS_SENTINEL_MASTER="primary",
        FOREBAY_RETENTION_RESULT_S="60",
    )
    assert settings["broker_url"] == "sentinel://127.0.0.1:1/0"
    assert settings["broker_transport"] == "worker.runtime.transport:SentinelTransport"
    assert settings["result_backend"] == "redis://127.0.0.1:2/3"
    assert settings["worker_prefetch_multiplier"] == 7
    assert settings["redis_max_connections"] == settings["broker_transport_options"]["max_connections"] == 77
    assert settings["broker_transport_options"]["global_keyprefix"] == "staging:"
    assert settings["broker_transport_options"]["master_name"] == "primary"
    assert settings["result_backend_transport_options"] == {"global_keyprefix": "staging:", "master_name": "primary"}
    assert settings["result_expires"] == 60


def test_results_live_with_the_broker_unless_told_otherwise() -> None:
    settings = read(CELERY_BROKER_URL="redis://127.0.0.1:1/5")
    assert settings["result_backend"] == "redis://127.0.0.1:1/5"


@pytest.mark.parametrize("given", ["0", "off", "OFF"])
def test_a_plain_worker_may_prefetch_without_a_limit(given: str) -> None:
    assert read(CELERY_WORKER_PREFETCH_MULTIPLIER=given)["worker_prefetch_multiplier"] == 0


def fault(**variables: str) -> list[str]:
    """Return the lines of the error that ends the start."""
    done = run(**variables)
    assert done.returncode == 1
    name, _, lines = done.stderr[done.stderr.index("worker.errors.") :].partition(": ")
    assert name == "worker.errors.ConfigurationError"
    return lines.splitlines()


@pytest.mark.parametrize("given", ["many", "0", "1.5"])
def test_a_wrong_number_of_connections_is_named(given: str) -> None:
    assert fault(REDIS_MAX_CONNECTIONS=given) == [
        f"environment variable REDIS_MAX_CONNECTIONS: {given!r}: must be a whole number from 1 to 1000000"
    ]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("many", "'many': must be a whole number"),
        ("-1", "-1: must be greater than or equal to 0"),
        ("1001", "1001: must be less than or equal to 1000"),
    ],
)
def test_a_wrong_prefetch_is_named_for_each_lane(given: str, text: str) -> None:
    lines = fault(CELERY_WORKER_PREFETCH_MULTIPLIER=given)
    for line, name in zip(lines, load_policy().queues, strict=True):
        start = "environment variable CELERY_WORKER_PREFETCH_MULTIPLIER: "
        assert line.startswith(f"{start}queues.{name}.prefetch_multiplier: {text}")


def test_a_wrong_prefetch_is_named_where_each_lane_has_its_own() -> None:
    own = {f"FOREBAY_{name.upper()}_PREFETCH_MULTIPLIER": "1" for name in load_policy().queues}
    assert fault(CELERY_WORKER_PREFETCH_MULTIPLIER="many", **own) == [
        "environment variable CELERY_WORKER_PREFETCH_MULTIPLIER: 'many': must be a whole number from 0 to 1000"
    ]


@pytest.mark.parametrize("name", ["REDIS_MAX_CONNECTIONS", "CELERY_WORKER_PREFETCH_MULTIPLIER", "FOREBAY_KEY_PREFIX"])
def test_an_empty_variable_is_as_good_as_unset(name: str) -> None:
    assert read(**{name: ""}) == read()


def test_the_result_backend_waits_through_a_moments_outage() -> None:
    app = Celery("check", set_as_current=False)
    app.config_from_object(celeryconfig)
    backend = RedisBackend(app=app, url="redis://127.0.0.1:1/0")  # connects at first use
    assert backend.client.connection_pool.make_connection().retry.get_retries() == 1, "one more try at once"
    for error in (redis.ConnectionError(), redis.TimeoutError(), redis.BusyLoadingError()):
        assert backend.exception_safe_to_retry(error)
    assert backend.always_retry
    longest_s = [
        min(backend.max_sleep_between_retries_ms, backend.base_sleep_between_retries_ms * 2**retry) / 1000
        for retry in range(1, int(backend.max_retries) + 1)
    ]
    assert 30 < sum(longest_s) / 2 < 120, "a read waits a minute on average, and then fails"
    assert backend.retry_policy["max_retries"] == 20  # a write waits so many seconds within each of those
    timeouts = {name: backend.connparams[name] for name in ("socket_timeout", "socket_connect_timeout")}
    assert timeouts == {"socket_timeout": 30.0, "socket_connect_timeout": 5.0}
    assert backend.connparams["socket_keepalive"]
    assert backend.connparams["max_connections"] == celeryconfig.redis_max_connections
    assert backend.expires == load_policy().retention.result_s


def test_results_and_the_arguments_of_our_producers_stay_out_of_events() -> None:
    secret = "a secret"
    sent = json.loads(message.write("tasks.chat", "an-id", "chat", 0, {"message": secret}))
    assert secret not in json.dumps(sent["headers"]), "Celery's events copy argsrepr and kwargsrepr from here"
    for result in (secret, [secret], {"answer": secret}, {"answer": [secret]}, 12345):
        shown = saferepr(result, Job.resultrepr_maxsize)  # as celery.app.trace builds task-succeeded
        assert secret not in shown
        assert "12345" not in shown
    assert not celeryconfig.result_extended, "it would keep the arguments beside the result"


def test_a_task_of_two_queues_is_included_once_and_goes_to_the_first(tmp_path: Path) -> None:
    file = tmp_path / "queues.yaml"
    file.write_text("queues:\n  a: {task: tasks.chat, pool: threads}\n  b: {task: tasks.chat, pool: threads}\n")
    settings = read(FOREBAY_QUEUES=str(file))
    assert settings["include"] == ["tasks.chat"]
    assert settings["task_routes"] == {"tasks.chat": {"queue": "a"}}
    assert settings["task_queues"] == ["a", "b"]


def test_a_sentinel_url_needs_its_masters_name() -> None:
    ended = run(CELERY_BROKER_URL="sentinel://127.0.0.1:1/0")
    assert ended.returncode != 0
    assert "REDIS_SENTINEL_MASTER" in ended.stderr


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("rediss://:secret@127.0.0.1:1/0", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ("rediss://127.0.0.1:1/0?ssl_cert_reqs=required", None),
    ],
)
def test_a_rediss_url_connects_with_tls_and_a_verified_certificate(url: str, settings: Any) -> None:
    read_settings = read(CELERY_BROKER_URL=url)
    assert bool(read_settings["broker_use_ssl"]) == bool(read_settings["redis_backend_use_ssl"]) == bool(settings)
    channel = Channel.__new__(Channel)  # as it is before it connects
    channel.connection = SimpleNamespace(client=Connection(url, transport=Transport, ssl=settings))
    params = channel._connparams()
    assert issubclass(params["connection_class"], redis.SSLConnection)
    assert params["ssl_cert_reqs"] == ssl.CERT_REQUIRED
