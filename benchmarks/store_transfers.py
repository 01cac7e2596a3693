"""Putting, getting and verifying on every store: ours, hashing included, against rclone and s5cmd there."""

import filecmp
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.harness.processor_time import of_a_gib, own_seconds, tool_seconds
from benchmarks.harness.result_rows import FAILURES, Line, Missing, NotMeasured, Row, Samples, Target
from benchmarks.harness.running_stores import STORES
from benchmarks.harness.testbed import GIB, KIB, MIB, Testbed, shown
from benchmarks.harness.transfer_in_process import BUCKET, open_configured
from benchmarks.harness.transfer_tools import SYNCED, VERIFIED, Ours, Rclone, SyncedRclone, TransferTool, VerifiedRclone
from worker.storage import Store

SMALL = 64 * KIB
PUT, GET, VERIFY = "put", "get", "verify"
ENOUGH = 25.0
LEAST = 2
TOO_LONG = 75.0
"""Seconds: after ENOUGH, a load has no rounds beyond the LEAST; after TOO_LONG, none at all."""
Turn = tuple[float, float]
"""Seconds of one transfer, and seconds of processor time."""


@dataclass(frozen=True, slots=True)
class Load:
    """The files to put and get: one file, or a directory of small files.

    Attributes:
        what: its description.
        path: its path.
        size: bytes of all files.
        amount: the size in the unit of the rate.
        unit: that unit.
        rounds: the most turns of each tool.
    """

    what: str
    path: Path
    size: int
    amount: float
    unit: str
    rounds: int

    @property
    def many(self) -> bool:
        return self.path.is_dir()


@dataclass(frozen=True, slots=True)
class Bench:
    """One running store, with all tools that put and get one load.

    Attributes:
        place: its name in the table.
        tools: ours is the first.
        got: a free path for downloads.
    """

    place: str
    store: Store
    tools: Sequence[TransferTool]
    load: Load
    got: Path


def measure(testbed: Testbed) -> Iterator[Line]:
    """Let each tool have its turn with each load on each store, and compare neighbours.

    Each load has a server of its own, so that deleted objects of one, in memory or on disk, slow down no other.
    """
    sizes = (16 * MIB, 64 * MIB) if testbed.quick else (64 * MIB, GIB)
    testbed.need(8 * sizes[-1])
    with ExitStack() as stack:
        loads = [stack.enter_context(_file(testbed, size)) for size in sizes]
        loads.append(stack.enter_context(_small_files(testbed)))
        for place in STORES:
            for load in loads:
                verbs = (GET, PUT) if load.many else (GET, VERIFY, PUT)
                asked = [verb for verb in verbs if testbed.wants(f"{place}: {verb} {load.what}")]
                if asked:
                    yield from _on(testbed.directory / "place", place, load, asked, loads[0].path)


def _on(directory: Path, place: str, load: Load, asked: Sequence[str], first: Path) -> Iterator[Line]:
    """Measure one load on one store. A line that fails has its reason, and the others are measured.

    `first` is put before and does not count: ours connects for it, and a worker keeps its connections too.
    """
    left = list(asked)
    try:
        with STORES[place](directory) as opened, closing(open_configured(opened.config)) as store:
            store.create_bucket(BUCKET)
            bench = Bench(place, store, (Ours(store), *opened.tools), load, directory / "got")
            bench.tools[0].put(first, "first")
            store.delete_object(BUCKET, "first")
            while left:
                yield from _tried(bench, left[0])
                del left[0]
    except FAILURES as error:
        for verb in left:
            yield Missing(f"{place}: {verb} {load.what}", str(error))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _file(testbed: Testbed, size: int) -> Iterator[Load]:
    rounds = 1 if testbed.quick else 3 if size >= GIB else 5
    with testbed.file(f"{size}.bin", size) as path:
        yield Load(shown(size), path, size, size / MIB, " MiB/s", rounds)


@contextmanager
def _small_files(testbed: Testbed) -> Iterator[Load]:
    number = 200 if testbed.quick else 2000
    directory = testbed.incoming / "small"
    directory.mkdir()
    try:
        for name in range(number):
            (directory / f"{name:04}.bin").write_bytes(os.urandom(SMALL))
        what = f"{number:,} objects of {shown(SMALL)}"
        yield Load(what, directory, number * SMALL, number, " objects/s", 1 if testbed.quick else LEAST)
    finally:
        shutil.rmtree(directory)


def _tried(bench: Bench, verb: str) -> Iterable[Line]:
    try:
        return list({GET: _gets, PUT: _puts, VERIFY: _verifies}[verb](bench))
    except FAILURES as error:
        return [Missing(f"{bench.place}: {verb} {bench.load.what}", str(error))]


def _puts(bench: Bench) -> Iterable[Line]:
    numbers = count()
    return _in_turn(bench, PUT, bench.tools, lambda tool: _put(bench, tool, f"put-{next(numbers)}"))


def _gets(bench: Bench) -> Iterable[Line]:
    tools = [tool for tool in bench.tools if not isinstance(tool, SyncedRclone)]  # a get does not wait for the disk
    if not bench.load.many:
        tools += [VerifiedRclone(tool) for tool in tools if isinstance(tool, Rclone)]
    tools[0].put(bench.load.path, "given")
    lines = _in_turn(bench, GET, tools, lambda tool: _get(tool, bench.load, "given", bench.got))
    _forget(bench, "given")
    return lines


def _verifies(bench: Bench) -> Iterable[Line]:
    """Read and hash an object in place, with `rclone hashsum --download`; other tools have no such command."""
    tools = [bench.tools[0], *(tool for tool in bench.tools if isinstance(tool, Rclone))]
    tools[0].put(bench.load.path, "given")
    lines = _in_turn(bench, VERIFY, tools, lambda tool: _timed(lambda: tool.verify("given")))
    _forget(bench, "given")
    return lines


def _in_turn(
    bench: Bench, verb: str, tools: Sequence[TransferTool], run: Callable[[TransferTool], Turn]
) -> Iterable[Line]:
    """Let each tool have its turn in each round, and return a line per tool. A tool that fails has no more turns.

    Raises:
        NotMeasured: ours has failed.
    """
    load, begun = bench.load, time.monotonic()
    rates: dict[str, list[float]] = {tool.name: [] for tool in tools}
    worked: dict[str, list[float]] = {tool.name: [] for tool in tools}
    failed: dict[str, str] = {}
    for number in range(load.rounds):
        if number and time.monotonic() - begun > (ENOUGH if number >= LEAST else TOO_LONG):
            break
        for tool in tools:
            if tool.name in failed:
                continue
            os.sync()  # otherwise it would wait for the writes of the one before
            try:
                took, processor = run(tool)
            except FAILURES as error:
                if tool is tools[0]:
                    raise
                failed[tool.name] = str(error)
            else:
                rates[tool.name].append(load.amount / took)
                worked[tool.name].append(processor)
    return _lines(f"{bench.place}: {verb} {load.what}", rates, worked, failed, load)


def _timed(transfer: Callable[[], float]) -> Turn:
    """Return the seconds of a transfer, and those of the processor for this process and the tool, not the server."""
    before = own_seconds() + tool_seconds()
    return transfer(), own_seconds() + tool_seconds() - before


def _put(bench: Bench, tool: TransferTool, key: str) -> Turn:
    took = _timed(lambda: tool.put(bench.load.path, key))
    found = sum(listed.size for listed in bench.store.list_objects(BUCKET, key))
    if found != bench.load.size:
        raise NotMeasured(f"{tool.name} has put {found} bytes of {bench.load.size}")
    _forget(bench, key)
    return took


def _get(tool: TransferTool, load: Load, key: str, got: Path) -> Turn:
    """Get a load to a free path, and remove it again."""
    if load.many:
        got.mkdir()
    try:
        took = _timed(lambda: tool.get(key, got))
        if not _same(load.path, got):
            raise NotMeasured(f"{tool.name} has not got what is in the store: {load.what}")
        return took
    finally:
        if load.many:
            shutil.rmtree(got)
        else:
            got.unlink(missing_ok=True)


def _same(path: Path, got: Path) -> bool:
    """Return whether the bytes are the same; tools allocate the size of a file early."""
    filecmp.clear_cache()
    if not path.is_dir():
        return filecmp.cmp(path, got, shallow=False)
    names, found = (sorted(file.name for file in directory.iterdir()) for directory in (path, got))
    same, _, _ = filecmp.cmpfiles(path, got, names, shallow=False)
    return same == names == found


def _forget(bench: Bench, key: str) -> None:
    """Remove large objects, which would fill the disk. Small ones stay, because a delete takes as long as a put."""
    if not bench.load.many:
        bench.store.delete_object(BUCKET, key)


def _lines(
    what: str, rates: dict[str, list[float]], worked: dict[str, list[float]], failed: dict[str, str], load: Load
) -> Iterator[Line]:
    """Yield a line for each tool. The target is for large objects, in a filesystem for `rclone` with an fsync."""
    (own, ours), *others = rates.items()
    like = set(rates) - ({"rclone"} if SYNCED in rates else set())
    for name, theirs in others:
        line = f"{what}, against {name}"
        if name in failed:
            yield Missing(line, failed[name])
        else:
            least = _least(what, name)
            target = Target(least, at_least=True) if name in like and not load.many else None
            costs = [of_a_gib(worked[each], load.size) for each in (own, name)]
            yield Row(line, Samples(ours, load.unit, cost=costs[0]), Samples(theirs, load.unit, cost=costs[1]), target)


def _least(what: str, name: str) -> float:
    """Return the least ratio of a large object, by the store, the verb and the other tool."""
    place, _, rest = what.partition(": ")
    match rest.partition(" ")[0]:
        case "get":
            return 1.1 if name == VERIFIED else 0.65
        case "put":
            return 1.1
    return 2.4 if place.startswith("s3") else 1.3 if place.startswith("azure") else 0.9
