"""What we rely on in other libraries without their promise is there, as it was when we relied on it."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from worker.runtime import private
from worker.runtime.private import PRIVATE, Private

ROOT = Path(__file__).resolve().parents[2]
#: What is told by its name to be another library's: ours never begin with these.
TELLTALE = re.compile(
    r"\b(?:super\(\)|self\.connection|self\.qos|_message|channel|connection|message|made|kombu\w*|run|self\._pool)"
    r"\.(_[a-z]\w*)"
)


def owner_of(each: Private) -> type:
    module, _, name = each.owner.partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("each", PRIVATE, ids=lambda each: f"{each.owner}.{each.name}")
def test_it_is_there_as_we_know_it(each: Private) -> None:
    owner = owner_of(each)
    if each.signature:
        parameters = inspect.signature(getattr(owner, each.name)).parameters.values()
        assert f"({', '.join(str(one.replace(annotation=inspect.Parameter.empty)) for one in parameters)})" == (
            each.signature
        )
    else:
        sources = "".join(inspect.getsource(one) for one in owner.__mro__ if one is not object)
        assert re.search(rf"\b{each.name}\b", sources)


@pytest.mark.parametrize("each", PRIVATE, ids=lambda each: f"{each.owner}.{each.name}")
def test_the_module_that_is_named_uses_it(each: Private) -> None:
    source = (ROOT / (each.used_by.replace(".", "/") + ".py")).read_text("utf-8")
    assert re.search(rf"\b{each.name}\b", source)


def test_what_is_overridden_or_read_of_other_libraries_is_declared() -> None:
    declared = {each.name for each in PRIVATE}
    folder = Path(private.__file__).parent
    for path in [*folder.rglob("*.py"), ROOT / "worker/records/broker.py", ROOT / "db/pool.py"]:
        found = set(TELLTALE.findall(path.read_text("utf-8")))
        assert found <= declared | {"_settle", "_policy"}, f"{path.name}: {sorted(found - declared)}"
