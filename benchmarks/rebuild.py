"""Getting the catalogue back: a rebuild from two stores, and the restore of a backup."""

import gzip
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from benchmarks.harness.result_rows import NotMeasured, Row, Samples
from benchmarks.harness.testbed import GIB, Testbed
from worker.artifacts.rebuild.rebuild_catalogue import Rebuild
from worker.catalogue import Catalogue, Rules, load_export
from worker.settings.section_models import PageSettings
from worker.storage import Stores
from worker.storage.config import FilesystemConfig

MANY, FEW = 100_000, 10_000
_NAMES = ("primary", "dr")
_SIZE = 1024
_PER_DIRECTORY = 100


def measure(testbed: Testbed) -> Iterator[Row]:
    """Rebuild a catalogue of small objects, with all bytes read and with digests believed; then load its export."""
    count = FEW if testbed.quick else MANY
    testbed.need(2 * GIB)
    place = testbed.directory / "rebuilt"
    try:
        for name in _NAMES:
            _fill(place / name, count // len(_NAMES))
        for believe, how in ((False, "all bytes read"), (True, "digests believed")):
            path = place / f"{uuid4()}.sqlite3"
            rate = _timed(count, lambda path=path, believe=believe: _rebuild(place, path, count, believe=believe))
            yield Row(f"rebuild of {count:,} objects of 1 KiB in two stores, {how}", Samples([rate], " a second"))
        exported = io.BytesIO()
        rate = _timed(count, lambda: _export(path, exported))
        yield Row(f"backup of the catalogue of {count:,} copies", Samples([rate], " copies a second"))
        exported.seek(0)
        url = f"sqlite:///{place / 'restored.sqlite3'}"
        rate = _timed(count, lambda: load_export(url, gzip.GzipFile(fileobj=exported)))
        yield Row(f"restore of the catalogue of {count:,} copies", Samples([rate], " copies a second"))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _fill(root: Path, count: int) -> None:
    """Write files with their sidecars, the same in each store."""
    for number in range(count):
        data = number.to_bytes(8, "big") * (_SIZE // 8)
        path = root / "bucket" / f"{number // _PER_DIRECTORY:05d}" / f"{number:07d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.with_name(f"{path.name}.sha256").write_text(hashlib.sha256(data).hexdigest())
    os.sync()


def _rebuild(place: Path, path: Path, count: int, *, believe: bool) -> None:
    stores = Stores({name: FilesystemConfig(root=place / name) for name in _NAMES})
    catalogue = Catalogue(f"sqlite:///{path}")
    try:
        run = Rebuild(
            catalogue, list(stores.values()), Rules(), PageSettings(), job="rebuild", believe_digests=believe
        )  # fmt: skip
        tally = run.run()
        done = sum(each.outcomes["stored" if believe else "verified"] for each in tally.stores.values())
        if done != count:
            raise NotMeasured(f"of {count} objects {done} were recorded")
    finally:
        catalogue.close()
        stores.close()


def _export(path: Path, sink: io.BytesIO) -> None:
    catalogue = Catalogue(f"sqlite:///{path}")
    with gzip.GzipFile(fileobj=sink, mode="wb", mtime=0) as packed:
        catalogue.export(packed)
    catalogue.close()


def _timed(count: int, run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return count / (time.perf_counter() - begun)
