"""The plain values of a file, the line of each, and what the environment lays over them."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.policy.policy import DEFAULT_FILE, Policy, load
from worker.policy.queue_file import COMMON, DEEPEST, LARGEST_BYTES, SCALARS, SHARED, Reading, read, whole_number

PLAIN = "queues:\n  chat:\n    task: tasks.chat\n    pool: threads\n"


def reading(tmp_path: Path, content: str | bytes, environ: dict[str, str] | None = None) -> Reading:
    path = tmp_path / "queues.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path, environ or {})


def refused(tmp_path: Path, content: str | bytes) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        reading(tmp_path, content)
    path = tmp_path / "queues.yaml"
    assert all(fault.startswith(str(path)) for fault in error.value.faults)
    assert str(error.value).splitlines() == error.value.faults, "one line each"
    return [fault.removeprefix(f"{path}:").strip() for fault in error.value.faults]


def test_values_and_the_line_of_each_key(tmp_path: Path) -> None:
    found = reading(tmp_path, "# first\nlease: {duration_s: 9}\n\nqueues:\n  chat:\n    tables: [a,\n      b]\n")
    assert found.values == {"lease": {"duration_s": 9}, "queues": {"chat": {"tables": ["a", "b"]}}}
    assert found.faults == []
    assert found.sources == {
        key: f"{found.path}:{line}"
        for key, line in {
            "lease": 2,
            "lease.duration_s": 2,
            "queues": 4,
            "queues.chat": 5,
            "queues.chat.tables": 6,
        }.items()
    }


def test_a_key_that_the_file_lacks_is_placed_at_the_part_around_it(tmp_path: Path) -> None:
    found = reading(tmp_path, PLAIN)
    assert found.where(["queues", "chat", "retry", "jitter"]) == f"{found.path}:2"
    assert found.where(["lease"]) == str(found.path)


def test_all_keys_that_stand_twice_are_named(tmp_path: Path) -> None:
    found = reading(tmp_path, f"{PLAIN}    pool: solo\n  chat: {{}}\nqueues: {{}}\n")
    assert [fault.removeprefix(f"{found.path}:") for fault in found.faults] == [
        f"5: queues.chat.pool: stands here a second time; it is on {found.path}:4 already",
        f"6: queues.chat: stands here a second time; it is on {found.path}:2 already",
        f"7: queues: stands here a second time; it is on {found.path}:1 already",
    ]


def test_a_value_that_cannot_be_read_is_a_fault_and_the_others_are_still_read(tmp_path: Path) -> None:
    found = reading(tmp_path, "a: 2026-02-30\nb: 1\nc: =\n")
    assert found.values == {"a": None, "b": 1, "c": None}
    assert found.unread == {"a", "c"}
    assert [fault.removeprefix(f"{found.path}:")[:14] for fault in found.faults] == ["1: a: '2026-02", "3: c: '=': cou"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"queues:\n  a: \xe9\n", "2: not UTF-8: byte 0xe9"),
        ("queues: {}\n".encode("utf-16"), "1: not UTF-8: byte 0xff"),
        (b"queues:\n  a: \x00\n", "2: not YAML: '\\x00' is not allowed"),
        ("a: &x 1\nb: *x\nc: !foo 2\nd: !!map {}\ne: ! f\n", "2: aliases (*name) are not allowed"),
        ("[" * (DEEPEST + 1), f"1: is nested more than {DEEPEST} levels deep"),
        ("{a: " * 50_000, f"1: is nested more than {DEEPEST} levels deep"),
        ("queues: *none\n", "1: aliases (*name) are not allowed"),
        ("a: @\n", "1: not YAML: found character '@' that cannot start any token"),
    ],
)
def test_what_is_not_read_at_all(tmp_path: Path, content: str | bytes, fault: str) -> None:
    assert refused(tmp_path, content)[0].startswith(fault)


def test_all_aliases_and_tags_are_named(tmp_path: Path) -> None:
    found = refused(tmp_path, "a: &x 1\nb: *x\nc: !foo 2\nd: !!map {}\n? !!str e\n: 1\nf: [!g [], *x]\n")
    assert [fault[:7] for fault in found] == ["2: alia", "3: tags", "4: tags", "5: tags", "7: tags", "7: alia"]


@pytest.mark.parametrize("tagged", ["!!bool maybe", "!!timestamp x", "!!int ''", "!!seq x", "!!set {a}", "!!binary x"])
def test_a_tag_never_reaches_the_constructors_that_choke_on_it(tmp_path: Path, tagged: str) -> None:
    assert refused(tmp_path, f"queues: {tagged}\n") == ["1: tags (!name) are not allowed; write the value alone"]


def test_depth_is_counted_and_not_the_number_of_parts(tmp_path: Path) -> None:
    parts = "".join(f"a{number}: {{b: [c]}}\n" for number in range(DEEPEST * 3))
    assert len(reading(tmp_path, parts).values) == DEEPEST * 3


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert list(reading(tmp_path, b"\xef\xbb\xbf" + PLAIN.encode()).values) == ["queues"]


def test_a_line_break_in_a_key_breaks_no_line_of_the_faults(tmp_path: Path) -> None:
    path = tmp_path / "queues.yaml"
    path.write_text(f'{PLAIN}    "two\\nlines\\e[31m": 1\n')
    with pytest.raises(ConfigurationError) as error:
        load(path, {})
    (fault,) = str(error.value).splitlines()
    assert fault.startswith(f"{path}:5: queues.chat.two\\nlines\\x1b[31m: 1: unknown key")


def test_a_path_with_a_nul_is_a_fault() -> None:
    with pytest.raises(ConfigurationError, match="set FOREBAY_QUEUES"):
        read(Path("a\0b"), {})


def test_a_hostile_file_of_the_largest_size_is_refused_quickly(tmp_path: Path) -> None:
    before = time.process_time()
    refused(tmp_path, "a: &a 1\nb: [" + "*a," * ((LARGEST_BYTES - 12) // 3))
    assert time.process_time() - before < 5


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        st.lists(
            st.sampled_from(
                [*"{}[]:,-?&*!|>'\"%@`#\n \t0", "a", "queues", "\n  ", ": ", "- ", "!!int", "<<", "0x", "="]
            ),
            max_size=25,
        ).map(lambda parts: "".join(parts).encode()),
    )
)
def test_whatever_a_file_holds_it_is_a_policy_or_a_list_of_faults(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    found = outcome(path)
    if not isinstance(found, Policy):
        assert found
        assert all(fault.isprintable() and fault.startswith(str(path)) for fault in found)


def outcome(path: Path) -> Policy | list[str]:
    try:
        return load(path, {})
    except ConfigurationError as error:
        return error.faults


# The environment.


def variable(key: str) -> str:
    return "FOREBAY_" + key.upper().replace(".", "_")


def test_every_scalar_key_of_the_schema_has_a_variable(tmp_path: Path) -> None:
    """A key that is added to the schema and forgotten here could not be overridden."""
    text_or_list = {"name", "description", "task", "tables", "batch", "retry", "shares", "breaker", "fallbacks"}
    schema = Policy.model_json_schema()["$defs"]
    queue = set(schema["Queue"]["properties"]) - text_or_list
    nested = {f"{part.lower()}.{key}" for part in ("Batch", "Retry", "Breaker") for key in schema[part]["properties"]}
    assert set(SCALARS) == queue | nested
    assert set(COMMON) == {
        f"{part.lower()}.{key}" for part in ("Retention", "Lease", "Cache") for key in schema[part]["properties"]
    } - {"cache.prices"}
    keys = [*COMMON, *(f"queues.chat.{key}" for key in SCALARS)]
    environ = {variable(key.removeprefix("queues.")): str(at) for at, key in enumerate(keys, 1)}
    found = reading(tmp_path, PLAIN, environ)
    assert found.faults == []
    for at, key in enumerate(keys, 1):
        part: Any = found.values
        for name in key.split("."):
            part = part[name]
        assert part == at
        assert found.sources[key] == f"environment variable {variable(key.removeprefix('queues.'))}"


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), (" 8 ", 8), ("08", 8), ("0.5", 0.5), ("1e3", 1000.0), ("x", "x"), (" off ", "off"), ("true", "true")],
)
def test_a_variable_that_spells_a_number_is_one(tmp_path: Path, text: str, value: object) -> None:
    found = reading(tmp_path, PLAIN, {"FOREBAY_CHAT_CONCURRENCY": text})
    assert found.values["queues"]["chat"]["concurrency"] == value
    assert type(found.values["queues"]["chat"]["concurrency"]) is type(value)


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_as_good_as_unset(tmp_path: Path, empty: str) -> None:
    environ = {"FOREBAY_CHAT_CONCURRENCY": empty, "CELERY_WORKER_PREFETCH_MULTIPLIER": empty}
    assert reading(tmp_path, PLAIN, environ) == reading(tmp_path, PLAIN)
    own = {"FOREBAY_CHAT_PREFETCH_MULTIPLIER": empty, "CELERY_WORKER_PREFETCH_MULTIPLIER": "5"}
    assert reading(tmp_path, PLAIN, own).values["queues"]["chat"]["prefetch_multiplier"] == 5


def test_a_part_that_the_file_leaves_empty_takes_the_variable(tmp_path: Path) -> None:
    found = reading(tmp_path, f"lease:\n{PLAIN}    batch:\n", {"FOREBAY_CHAT_BATCH_MAX_JOBS": "3"})
    assert found.values["queues"]["chat"]["batch"] == {"max_jobs": 3}
    assert found.values["lease"] is None


def test_a_part_that_is_no_mapping_is_left_for_the_schema_to_refuse(tmp_path: Path) -> None:
    found = reading(tmp_path, f"{PLAIN}    retry: [1]\n", {"FOREBAY_CHAT_RETRY_JITTER": "0.5"})
    assert found.values["queues"]["chat"]["retry"] == [1]


@pytest.mark.parametrize("queues", ["queues: 3", "queues: [chat]", "queues:", "queues: {chat: 3}", "other: 1"])
@pytest.mark.parametrize("name", SHARED)
def test_shared_variables_meet_a_file_without_queues(tmp_path: Path, queues: str, name: str) -> None:
    assert reading(tmp_path, queues, {name: "5"}).values == reading(tmp_path, queues).values


def test_recycling_of_children_follows_the_pool_that_the_environment_sets(tmp_path: Path) -> None:
    children = {"CELERY_WORKER_MAX_TASKS_PER_CHILD": "5"}
    for name, pool, expected in (("chat", "prefork", 5), ("bulk_insert", "solo", None)):
        chosen = reading(tmp_path, DEFAULT_FILE.read_text(), {**children, variable(f"{name}.pool"): pool})
        given = chosen.values["queues"][name].get("max_tasks_per_child")
        assert given == (expected or 1000), "1000 is what the file says of bulk_insert"


def test_a_chunk_of_rows_is_what_a_job_of_rows_holds(tmp_path: Path) -> None:
    given = {"BULK_INSERT_CHUNK_SIZE": "500"}
    chosen = reading(tmp_path, DEFAULT_FILE.read_text(), given).values["queues"]
    assert {name: queue.get("rows_per_job") for name, queue in chosen.items()} == {
        "chat": None,
        "embedding": None,
        "bulk_insert": 500,
    }
    own = given | {"FOREBAY_BULK_INSERT_ROWS_PER_JOB": "7"}
    assert reading(tmp_path, DEFAULT_FILE.read_text(), own).values["queues"]["bulk_insert"]["rows_per_job"] == 7


def test_an_unknown_variable_is_named_with_the_nearest_and_others_are_none_of_ours(tmp_path: Path) -> None:
    found = reading(
        tmp_path,
        PLAIN,
        {"FOREBAY_CHAT_CONCURENCY": "8", "FOREBAY_HOM": "x", "FOREBAY_ZZZZZZZZZZ": "1", "FOREBAYS": "1", "PATH": "x"},
    )
    assert found.faults == [
        "environment: FOREBAY_CHAT_CONCURENCY: '8': overrides nothing; did you mean FOREBAY_CHAT_CONCURRENCY?",
        "environment: FOREBAY_HOM: 'x': overrides nothing; did you mean FOREBAY_HOME?",
        "environment: FOREBAY_ZZZZZZZZZZ: '1': overrides nothing",
    ]


@pytest.mark.parametrize("given", ["3", " 7 ", "5", "007"])
def test_a_whole_number_within_its_bounds(given: str) -> None:
    assert whole_number({"COUNT": given}, "COUNT", 4, least=3, most=7) == int(given)


@pytest.mark.parametrize("environ", [{}, {"COUNT": ""}, {"COUNT": " "}])
def test_a_whole_number_that_is_not_set(environ: dict[str, str]) -> None:
    assert whole_number(environ, "COUNT", 4, least=3, most=7) == 4


@pytest.mark.parametrize("given", ["2", "8", "-3", "+3", "3.0", "x", "1_0", "٣", "²", "0x4"])
def test_a_whole_number_that_is_none(given: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        whole_number({"COUNT": given}, "COUNT", 4, least=3, most=7)
    assert error.value.faults == [f"environment variable COUNT: {given!r}: must be a whole number from 3 to 7"]


def test_a_number_of_thousands_of_digits_is_refused_and_cut() -> None:
    with pytest.raises(ConfigurationError) as error:
        whole_number({"COUNT": "9" * 10_000}, "COUNT", 4, least=3, most=7)
    assert len(str(error.value)) < 200
