"""Measure the comparison of a million objects with a million recorded copies, from a listing and from a report.

The listing is replaced, the report is an S3 Inventory in CSV whose rows are in no order. The same of fewer objects in a
process of its own is the yardstick for memory.
"""

import csv
import gzip
import hashlib
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import GIB, MIB, Testbed
from benchmarks.sweep_paging import _fill, _Null, _take
from tasks.sweeps.reconcile import sweep_reconcile
from worker import clock
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import SourceSettings
from worker.storage import ListedObject, Store
from worker.storage.config import S3Config
from zot_artifact_client.contract import SweepReconcileRequest

MANY, FEW = 1_000_000, 200_000
_QUICK = 400_000
_GROWTH = Target(16, unit=" MiB")
_OLD = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Objects a second, and the most memory that the process has held meanwhile, in bytes."""

    speed: float
    peak: int


def measure(testbed: Testbed) -> Iterator[Row]:
    """Compare many objects and fewer, each in a process of its own."""
    many = _QUICK if testbed.quick else MANY
    testbed.need(2 * GIB)
    for way in ("listing", "inventory"):
        large, small = (_in_process(testbed, way, count) for count in (many, FEW))
        what = f"reconcile {many:,} objects with the catalogue, from the {way}"
        yield Row(what, Samples([large.speed], " objects/s"))
        gained = (large.peak - small.peak) / MIB
        yield Row(f"{what}: peak memory above that of {FEW:,}", Samples([gained], " MiB", 1), target=_GROWTH)


def _in_process(testbed: Testbed, way: str, count: int) -> Reconciled:
    home = str(testbed.directory / f"reconcile-{time.time_ns()}")
    command = [sys.executable, "-m", "benchmarks.reconciling", home, way, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasured(f"reconciling ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return Reconciled(**json.loads(done.stdout.splitlines()[-1]))


def run(home: Path, way: str, count: int) -> Reconciled:
    """Record so many copies, compare them with as many objects, and return the cost."""
    reports = home.with_name(f"{home.name}-reports")
    reports.mkdir(parents=True)
    store = S3Config(bucket="src", endpoint="http://127.0.0.1:9")
    context = Context.open(Settings(home=home, stores={"primary": store}, sources=SourceSettings(roots=(reports,))))
    _fill(context.catalogue, count)
    fields: dict[str, Any] = {"store": "primary", "bucket": "paged"}
    if way == "inventory":
        fields["inventory"] = str(_report(reports, count))
    setattr(Store, "list_objects", lambda *_, **__: _listed(count))  # noqa: B010 - no store is measured
    Path("/proc/self/clear_refs").write_text("5")
    job = _take(context, "reconcile", "sweep.reconcile", {}, _Null())
    begun = time.monotonic()
    with job:
        (found,) = sweep_reconcile(SweepReconcileRequest(**fields), job).stores
    taken = time.monotonic() - begun
    context.close()
    if (found.listed, found.recorded, found.seen) != (count, count, {}):
        raise NotMeasured(f"of {count} objects {found.listed} were listed, and these differ: {found.seen}")
    return Reconciled(count / taken, _peak())


def _listed(count: int) -> Iterator[ListedObject]:
    for number in range(1, count + 1):
        yield ListedObject(f"a/{number:09d}.tgz", 16384, "1", _OLD)


def _report(directory: Path, count: int) -> Path:
    numbers = list(range(1, count + 1))
    random.Random(1).shuffle(numbers)
    with gzip.open(directory / "rows.csv.gz", "wt", compresslevel=1, newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            ("src", f"paged/a/{number:09d}.tgz", 16384, "2026-01-01T00:00:00.000Z", "1") for number in numbers
        )
    data = (directory / "rows.csv.gz").read_bytes()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    manifest = {
        "sourceBucket": "src", "destinationBucket": "arn:aws:s3:::reports", "version": "2016-11-30",
        "creationTimestamp": str(int((clock.now() - timedelta(hours=1)).timestamp() * 1000)), "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, Size, LastModifiedDate, ETag",
        "files": [{"key": "rows.csv.gz", "size": len(data), "MD5checksum": md5}],
    }  # fmt: skip
    text = json.dumps(manifest)
    (directory / "manifest.json").write_text(text)
    (directory / "manifest.checksum").write_text(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())
    return directory / "manifest.json"


def _peak() -> int:
    status = io.StringIO(Path("/proc/self/status").read_text())
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _main(arguments: Iterable[str]) -> None:
    home, way, count = arguments
    print(json.dumps(asdict(run(Path(home), way, int(count)))))


if __name__ == "__main__":
    _main(sys.argv[1:])
