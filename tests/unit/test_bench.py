"""Lines of a benchmark: what counts as met, and how the last results are kept."""

import json
from pathlib import Path

import pytest

from bench import results
from bench.line import Line

RATE = Line("bulk", "jobs in batches", 900.0, 100.0, "jobs/s", "one by one", aim=5)
COST = Line("limits", "refused", 0.0, 610.0, "429", "all calls", aim=0, is_cost=True)


@pytest.mark.parametrize(
    ("line", "met"),
    [
        (RATE, True),
        (Line("bulk", "", 400.0, 100.0, "", "", aim=5), False),
        (Line("bulk", "", 400.0, 0.0, "", "", aim=5), False),
        (Line("bulk", "", 400.0, 100.0, "", ""), None),
        (COST, True),
        (Line("limits", "", 1.0, 610.0, "", "", aim=0, is_cost=True), False),
    ],
)
def test_an_aim_is_met_or_missed(line: Line, met: bool | None) -> None:
    assert line.is_met is met
    assert line.as_dict()["is_met"] is met


def test_the_last_results_of_each_part_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "JSON", tmp_path / "results.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    results.record([RATE, COST])
    results.record([Line("bulk", "jobs in batches", 100.0, 100.0, "jobs/s", "one by one", aim=5)])
    page = (tmp_path / "results.md").read_text()
    assert "| jobs in batches | 100 jobs/s | 100 jobs/s: one by one | 1 | at least 5: MISSED |" in page
    assert "| refused | 0 429 | 610 429: all calls | 0 | at most 0: met |" in page
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["bulk", "limits"]
