"""The reasons of dead letters are one closed list, in Python and in the scripts."""

import re
from pathlib import Path

import pytest

from worker.records import reason
from worker.records.reason import Reason

LUA = Path(reason.__file__).parent / "lua"
CALL = re.compile(r"(?<!function )\bbury\([^,]+, [^,]+, ([^,]+),")


@pytest.mark.parametrize("each", Reason)
def test_each_says_what_happened_and_what_to_do(each: Reason) -> None:
    assert each.explanation.endswith(".")
    assert each.next_step.endswith(".")
    assert str(each) == each.value


def test_scripts_name_no_reason_that_is_not_in_the_list() -> None:
    said = [found for path in LUA.rglob("*.lua") for found in CALL.findall(path.read_text("utf-8"))]
    named = [each for each in said if each != "ARGV[4]"]  # which bury.lua is given from here
    assert len(named) == 3
    assert {each.removeprefix("REASON.") for each in named} <= set(Reason.__members__)
    assert all(each.startswith("REASON.") for each in named)


def test_scripts_spell_no_reason_themselves() -> None:
    literals = {f"'{each.value}'" for each in Reason} - {"'failed'"}  # a counter of the queue has that name
    for path in LUA.rglob("*.lua"):
        text = re.sub(r"--.*", "", path.read_text("utf-8"))
        assert not [literal for literal in literals if literal in text], path.name


def test_a_script_gets_the_text_of_a_reason() -> None:
    assert reason.spelled("bury(id, queue, REASON.POISON, '')") == "bury(id, queue, 'poison', '')"
    with pytest.raises(KeyError):
        reason.spelled("REASON.POSION")
