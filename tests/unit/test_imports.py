"""Nothing of ours imports itself in a circle: not at import, not later in a function, not for a type alone."""

from graphlib import CycleError, TopologicalSorter

import grimp

PACKAGES = ("worker", "tasks", "db", "cache", "bench", "cli", "dev")


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    order = TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules})
    try:
        order.prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None
    assert len(graph.modules) > 100
