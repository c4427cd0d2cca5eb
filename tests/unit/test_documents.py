"""The documents for those who carry on are held to the code: states, scripts, links, the form of decisions."""

import re
from pathlib import Path

import pytest

from tasks.producer.job import STATUS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
PAGES = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md")]
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "worker").rglob("*.lua")}
#: What changes the state of a record, or takes part in such a change.
STEP = re.compile(r"'state', |\b(?:finish|bury|to_head|wait|settling|holding)\(|HELD\[")
#: Those that only look, and what scripts share.
OTHERS = {"prelude.lua", "gate.lua", "admission.lua", "audit_jobs.lua", "audit_list.lua", "sizes.lua"}


@pytest.fixture
def lifecycle() -> str:
    return (DOCS / "job-lifecycle.md").read_text(encoding="utf-8")


def test_the_lifecycle_names_every_state(lifecycle: str) -> None:
    states = set(STATUS) | {"purged"}
    written = set(re.findall(r"HSET'[^\n]*'state', '(\w+)'", "\n".join(SCRIPTS.values())))
    assert {"queued", "leased", "dead"} <= written <= states
    table = lifecycle.partition("## The states")[2].partition("```mermaid")[0]
    assert set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) - {"state"} == states
    drawn = re.findall(r"^    (\S+) --> ([^\s:]+): ", lifecycle, re.MULTILINE)
    assert {end for arrow in drawn for end in arrow} - {"[*]"} == states


def test_the_lifecycle_names_every_script_that_takes_a_step(lifecycle: str) -> None:
    steps = {name for name, text in SCRIPTS.items() if STEP.search(text)} - OTHERS - {"stream_append.lua"}
    assert len(steps) > 12
    named = {Path(name).name for name in re.findall(r"`([\w/]+\.lua)`", lifecycle)}
    assert steps <= named
    assert named - SCRIPTS.keys() == set()


def test_the_diagram_and_the_table_have_the_same_arrows(lifecycle: str) -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+): ", lifecycle, re.MULTILINE))
    listed = set()
    for froms, tos in re.findall(r"^\| ([\w, ]+) -> ([\w, ]+) \|", lifecycle, re.MULTILINE):
        listed |= {(one, other) for one in froms.split(", ") for other in tos.split(", ") if one not in ("new", "from")}
    assert drawn == listed


def test_every_decision_has_its_parts_and_stands_in_the_index() -> None:
    assert DECISIONS
    index = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\((\d[^)]+\.md)\)", index) == [path.name for path in DECISIONS]
    numbers = [int(path.name.split("-")[0]) for path in DECISIONS]
    assert numbers == list(range(1, len(numbers) + 1))
    for path in DECISIONS:
        headings = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "What would reverse it"], path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    paths = [link.split("#")[0] for link in links if not link.startswith(("https://", "#"))]
    assert [path for path in paths if not (page.parent / path).exists()] == []
