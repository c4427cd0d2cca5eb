"""The examples of docs/database.md do what they say."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.query_cache import table_versions
from tests.integration.test_jobs import scalar
from tests.workers import Workers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "database.md"


@pytest.fixture(autouse=True)
def _own_query_cache() -> Iterator[None]:
    table_versions.close()
    yield
    table_versions.close()


def test_the_examples_run_one_after_the_other(workers: Workers, capsys: pytest.CaptureFixture[str]) -> None:
    workers.start("bulk_insert")
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(example, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "{'rows': 2500}" in said
    assert "[(2, 'name', 'null value" in said
    assert "False False 1\nc-1 How does a turbine use head water? None 1\n" in said
    assert scalar("SELECT count(*) FROM unicode_characters") == 2501
    assert names["count"]("all-minilm-l6-v2") == 0
