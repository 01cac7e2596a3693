"""Putting and getting on every store: ours, hashing included, against rclone and s5cmd on the same server."""

import filecmp
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks import places
from benchmarks.measured import NotMeasured, Row, Samples, Target
from benchmarks.movers import Mover, Ours, Synced
from benchmarks.places import Place
from benchmarks.scene import GIB, KIB, MIB, Scene, shown
from benchmarks.transfer import BUCKET, open_configured
from worker.storage import Store

PLACES: Sequence[Callable[[Path], AbstractContextManager[Place]]] = (
    places.filesystem,
    places.s3_ministack,
    places.s3_rclone,
    places.gcs,
    places.azure,
)
TARGET = Target(0.9, at_least=True)
SMALL = 64 * KIB


@dataclass(frozen=True, slots=True)
class Load:
    """What is put and got: a file, or a directory of small files.

    Attributes:
        what: its description.
        path: where it is.
        size: bytes of all of it.
        amount: how much it is in the unit that a second's work is counted in.
        unit: that unit.
        rounds: how often each mover has its turn.
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


def measure(scene: Scene) -> list[Row]:
    """Let each mover have its turn with each load on each store, and compare neighbours."""
    sizes = (16 * MIB, 64 * MIB) if scene.quick else (64 * MIB, GIB)
    scene.need(16 * sizes[-1])
    rows: list[Row] = []
    with ExitStack() as stack:
        loads = [stack.enter_context(_file(scene, size)) for size in sizes]
        loads.append(stack.enter_context(_small_files(scene)))
        for opened in PLACES:
            with opened(scene.directory) as place:
                print(f"  {place.name} …", file=sys.stderr, flush=True)
                rows += _on(place, loads, scene.directory / "got")
    return rows


@contextmanager
def _file(scene: Scene, size: int) -> Iterator[Load]:
    rounds = 1 if scene.quick else 3 if size >= GIB else 5
    with scene.file(f"{size}.bin", size) as path:
        yield Load(shown(size), path, size, size / MIB, " MiB/s", rounds)


@contextmanager
def _small_files(scene: Scene) -> Iterator[Load]:
    number = 200 if scene.quick else 2000
    directory = scene.incoming / "small"
    directory.mkdir()
    try:
        for name in range(number):
            (directory / f"{name:04}.bin").write_bytes(os.urandom(SMALL))
        what = f"{number:,} objects of {shown(SMALL)}"
        yield Load(what, directory, number * SMALL, number, " objects/s", 1 if scene.quick else 3)
    finally:
        shutil.rmtree(directory)


def _on(place: Place, loads: Sequence[Load], got: Path) -> list[Row]:
    """Measure on one store. The first transfer, for which ours makes its connections, does not count."""
    store = open_configured(place.config)
    try:
        store.create_bucket(BUCKET)
        movers = (Ours(store), *place.tools)
        _put(store, movers[0], loads[0], "first")
        rows: list[Row] = []
        for number, load in enumerate(loads):
            rows += _gets(place, store, movers, load, f"{number}-given", got)
            rows += _puts(place, store, movers, load, f"{number}-put")
        return rows
    finally:
        store.close()


def _puts(place: Place, store: Store, movers: Sequence[Mover], load: Load, key: str) -> list[Row]:
    numbers = count()
    rates = _in_turn(movers, load, lambda mover: _put(store, mover, load, f"{key}-{next(numbers)}"))
    return _rows(f"{place.name}: put {load.what}", rates, load)


def _gets(place: Place, store: Store, movers: Sequence[Mover], load: Load, key: str, got: Path) -> list[Row]:
    movers = [mover for mover in movers if not isinstance(mover, Synced)]  # nobody who gets a file waits for the disk
    movers[0].put(load.path, key)
    rates = _in_turn(movers, load, lambda mover: _get(mover, load, key, got))
    _forget(store, load, key)
    return _rows(f"{place.name}: get {load.what}", rates, load)


def _in_turn(movers: Sequence[Mover], load: Load, run: Callable[[Mover], float]) -> dict[str, list[float]]:
    """Return how much each mover did in a second, in each of its turns."""
    rates: dict[str, list[float]] = {mover.name: [] for mover in movers}
    for _ in range(load.rounds):
        for mover in movers:
            os.sync()  # or it would wait for what the one before has left to the disk
            rates[mover.name].append(load.amount / run(mover))
    return rates


def _put(store: Store, mover: Mover, load: Load, key: str) -> float:
    took = mover.put(load.path, key)
    found = sum(listed.size for listed in store.list_objects(BUCKET, key))
    if found != load.size:
        raise NotMeasured(f"{mover.name} has put {found} bytes of {load.size}")
    _forget(store, load, key)
    return took


def _get(mover: Mover, load: Load, key: str, got: Path) -> float:
    """Get a load into a place where nothing is, and remove it again."""
    if load.many:
        got.mkdir()
    try:
        took = mover.get(key, got)
        if not _same(load.path, got):
            raise NotMeasured(f"{mover.name} has not got what is in the store: {load.what}")
        return took
    finally:
        if load.many:
            shutil.rmtree(got)
        else:
            got.unlink(missing_ok=True)


def _same(path: Path, got: Path) -> bool:
    """Return whether the bytes are the same: a tool that makes room for a file first has its size soon."""
    filecmp.clear_cache()
    if not path.is_dir():
        return filecmp.cmp(path, got, shallow=False)
    names, found = (sorted(file.name for file in directory.iterdir()) for directory in (path, got))
    same, _, _ = filecmp.cmpfiles(path, got, names, shallow=False)
    return same == names == found


def _forget(store: Store, load: Load, key: str) -> None:
    """Remove what would fill the disk. Small objects stay: removing them takes as long as putting them."""
    if not load.many:
        store.delete_object(BUCKET, key)


def _rows(what: str, rates: dict[str, list[float]], load: Load) -> list[Row]:
    """Return a row for each tool. The target is for large objects, and for the first tool of a filesystem."""
    (_, ours), *others = ((name, Samples(values, load.unit)) for name, values in rates.items())
    like = {name for name, _ in others} - ({"rclone"} if "rclone and fsync" in rates else set())
    return [
        Row(f"{what}, against {name}", ours, theirs, TARGET if name in like and not load.many else None)
        for name, theirs in others
    ]
