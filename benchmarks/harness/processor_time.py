"""The processor time that programs have used: what an operation costs, beside how many of them are done in a second."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import median
from time import perf_counter
from typing import NamedTuple

from benchmarks.harness.result_rows import Samples
from tests.servers.process import Server

_TICKS = os.sysconf("SC_CLK_TCK")


def server_seconds(server: Server) -> float:
    """Return the seconds that a server and its children have used, such as a worker with its pool."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return sum(_of_process(pid) for pid in (server.pid, *children))


def own_seconds() -> float:
    """Return the seconds that this process has used."""
    return sum(getrusage(RUSAGE_SELF)[:2])


def tool_seconds() -> float:
    """Return the seconds that the programs which this process has started, and which have ended, have used."""
    return sum(getrusage(RUSAGE_CHILDREN)[:2])


class Run(NamedTuple):
    """One run of many operations: how many in a second, and the seconds of processor time of each."""

    rate: float
    each: float


def timed(count: int, used: Callable[[], float], run: Callable[[], object]) -> Run:
    """Run so many operations. `used` returns the processor time until now of what does them."""
    before, begun = used(), perf_counter()
    run()
    return Run(count / (perf_counter() - begun), (used() - before) / count)


def as_samples(runs: Sequence[Run], unit: str) -> Samples:
    """Return the rates of some runs, with the median of the processor time."""
    return Samples([run.rate for run in runs], unit, cost=f"{1000 * median(run.each for run in runs):.3g} ms")


def of_a_gib(seconds: Sequence[float], size: int) -> str:
    """Return the text of the processor time of 1 GiB: the median of several runs of so many bytes."""
    return f"{median(seconds) / size * (1 << 30):.2f} s/GiB"


def _of_process(pid: int | str) -> float:
    """Return its seconds, and those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS
