"""Distribute the tests over the processes of a run: tests that wait beside tests that compute."""

import os
import re
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

FOLDERS = ("faults", "acceptance", "integration", "unit", "fuzz", "conformance")
"""The folders of tests/: the first ones wait for other processes most of the time, the last ones compute."""
CORES = os.cpu_count() or 1
PROCESSES = CORES + 4
"""How many processes run the tests: one computes on each core, and the others wait most of the time."""
ALONE = frozenset({"faults", "acceptance", "integration"})
"""Folders whose tests are handed out one by one, because each may take seconds or minutes."""
_STORE = re.compile(r"\[([a-z0-9]+(?:-(?:ministack|aws|native|rclone|resumable|sdk|auto))*)")


def files_of(paths: Sequence[str], number: int, processes: int) -> list[str]:
    """Return the test files below these paths in an order that differs from process to process.

    Python compiles a file when it is first imported. In a new checkout, processes that import the same files at the
    same time would all compile all of them.
    """
    found = [sorted(map(str, Path(path).rglob("test_*.py"))) if Path(path).is_dir() else [path] for path in paths]
    files = list(dict.fromkeys(chain.from_iterable(found)))
    first = len(files) * number // processes
    return files[first:] + files[:first]


def in_order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests in the order in which they run: marked as slow first, then by folder, store and file."""

    def rank(item: pytest.Item) -> tuple[bool, int, str, str]:
        folder = _folder(item.nodeid)
        number = FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)
        store = group_of(item.nodeid) if folder == "conformance" else ""
        return item.get_closest_marker("slow") is None, number, store, item.nodeid.partition("::")[0]

    return sorted(items, key=rank)


class FromBothEnds(LoadScopeScheduling):
    """Hand out groups of tests: one process for each core takes the last one that is left, the others the first one.

    So tests that wait run beside tests that compute, and the groups in the middle, which are short, are the last.
    At least half of the processes take the first ones.
    A group is one test, the tests of a module that starts something for all of them, or all cases of one store: a
    worker or a server that several of them use is started in one process alone.
    """

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        config.option.loadscopereorder = False  # it would order groups by the number of their tests
        super().__init__(config, log)

    def _assign_work_unit(self, node: WorkerController) -> None:
        nodes = self.nodes
        if nodes.index(node) < min(CORES, len(nodes) // 2):
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@cache
def group_of(nodeid: str) -> str:
    """Return the name of the group of a test."""
    module, _, name = nodeid.partition("::")
    folder = _folder(nodeid)
    if folder == "conformance":
        store = _STORE.search(name)
        return f"{folder} {store[1]}" if store else module
    return nodeid if folder in ALONE and not _has_a_start_in_common(module) else module


def _folder(nodeid: str) -> str:
    parts = nodeid.split("/")
    return parts[1] if parts[0] == "tests" and len(parts) > 2 else ""


@cache
def _has_a_start_in_common(module: str) -> bool:
    return 'scope="module"' in (Path(__file__).parents[1] / module).read_text()
