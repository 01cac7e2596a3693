"""Verifying many small files: a sweep on two worker processes, against `rclone hashsum` on the same files."""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from subprocess import DEVNULL

import sqlalchemy as sa

from benchmarks.harness.processor_time import Run, as_samples, server_seconds, timed, tool_seconds
from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import GIB, KIB, WAIT, Testbed
from tests.servers.process import find_server
from tests.servers.worker import Worker
from worker import clock
from worker.catalogue import Catalogue
from worker.catalogue.tables import artifacts, copies
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import SWEEP_VERIFY, SweepVerifyRequest

BUCKET = "swept"
MANY, FEW = 20_000, 4_000
CHECKERS = (2, 8, 32)
_SIZE = 16 * KIB
_PER_DIRECTORY = 100
_RATE, _PROCESSOR = Target(0.95, at_least=True), Target(0.15, unit=" ms")
_ROWS = 1000
_LONGEST = 300.0
"""Seconds after which a sweep is not measured."""


def measure(testbed: Testbed) -> Iterator[Row]:
    """Sweep the files, let rclone hash them with few and with many checkers, and compare within each round."""
    count, rounds = (FEW, 3) if testbed.quick else (MANY, 5)
    testbed.need(GIB)
    for cached in (True, False):
        sweeps, best = _rounds(testbed, count, rounds, cached=cached)
        where = "from the page cache" if cached else "from the disk"
        what = f"a sweep of {count:,} files of 16 KiB {where}"
        rates = as_samples(sweeps, " a second"), as_samples(best, " a second")
        yield Row(f"{what}, against the best of rclone hashsum", *rates, _RATE)
        if cached:
            times = Samples([1000 * run.each for run in sweeps], " ms", 3)
            yield Row(f"{what}: processor time of each copy", times, target=_PROCESSOR)


def _rounds(testbed: Testbed, count: int, rounds: int, *, cached: bool) -> tuple[list[Run], list[Run]]:
    sweeps, best = [], []
    place = testbed.directory / "swept"
    config = {"type": "filesystem", "root": str(place), "verify_cached": cached}
    settings = {"stores": json.dumps({"primary": config}), "placement": '["primary"]'}
    with testbed.worker("sweep", 2, **settings) as worker, testbed.client() as client:
        root = place / BUCKET
        catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
        _fill(catalogue, root, count)
        for _ in range(rounds + 1):
            best.append(max(_hashed(root, count, n, cached=cached) for n in CHECKERS))
            _make_due(catalogue)
            if not cached:
                _forget(root)
            sweeps.append(_sweep(worker, client, catalogue, count))
        catalogue.close()
    shutil.rmtree(place, ignore_errors=True)
    return sweeps[1:], best[1:]  # the first round has warmed the worker and the cache


def _fill(catalogue: Catalogue, root: Path, count: int) -> None:
    """Write the files and record them as copies of the store, in a catalogue and a store that are otherwise empty."""
    import hashlib

    now, rows = clock.now(), []
    for number in range(count):
        key = f"{number // _PER_DIRECTORY:05d}/{number:07d}.bin"
        data = number.to_bytes(8, "big") + os.urandom(_SIZE - 8)
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.with_name(f"{path.name}.sha256").write_text(hashlib.sha256(data).hexdigest())
        rows.append({
            "id": number + 1, "bucket": BUCKET, "key": key, "version": 1, "size": _SIZE, "metadata": {},
            "sha256": hashlib.sha256(data).hexdigest(), "created_at": now, "committed_at": now,
        })  # fmt: skip
    for start in range(0, count, _ROWS):
        part = rows[start : start + _ROWS]
        with catalogue._database.write() as connection:
            connection.execute(sa.insert(artifacts), part)
            connection.execute(
                sa.insert(copies),
                [
                    {"artifact_id": row["id"], "store": "primary", "state": "stored", "evidence": {},
                     "attempts": 0, "spread": row["id"] % 12}
                    for row in part
                ],
            )  # fmt: skip


def _make_due(catalogue: Catalogue) -> None:
    with catalogue._database.write() as connection:
        connection.execute(sa.update(copies).values(read_at=clock.now() - timedelta(days=60), claimed_until=None))


def _sweep(worker: Worker, client: ArtifactClient, catalogue: Catalogue, count: int) -> Run:
    # To ask for what is due, or through SQLAlchemy, would take the processor from the sweep.
    with closing(sqlite3.connect(worker.home / "catalogue.sqlite3")) as reader:
        verdicts = _verdicts(reader)

        def sweep() -> None:
            until = time.monotonic() + _LONGEST
            client.submit(SWEEP_VERIFY, SweepVerifyRequest(store="primary")).wait(WAIT)
            while time.monotonic() < until and _verdicts(reader) < verdicts + count:
                time.sleep(0.01)

        run = timed(count, lambda: server_seconds(worker), sweep)
    with catalogue._database.read() as connection:
        now_good = copies.c.last_verdict == "verified", copies.c.read_at > clock.now() - timedelta(days=30)
        good = connection.execute(sa.select(sa.func.count()).where(*now_good)).scalar()
    if good is None or good < count:
        raise NotMeasured(f"of {count} copies {good} were verified")
    return run


def _verdicts(reader: sqlite3.Connection) -> int:
    return reader.execute("SELECT max(id) FROM verifications").fetchone()[0] or 0


def _hashed(root: Path, count: int, checkers: int, *, cached: bool) -> Run:
    if not cached:
        _forget(root)
    command = [
        find_server("rclone"), "hashsum", "sha256", str(root), "--checkers", str(checkers), "--exclude", "*.sha256",
    ]  # fmt: skip
    return timed(count, tool_seconds, lambda: subprocess.run(command, stdout=DEVNULL, stderr=DEVNULL, check=True))


def _forget(root: Path) -> None:
    for path in root.rglob("*.bin"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
