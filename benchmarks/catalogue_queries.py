"""Measure the queries of a catalogue with 1,000,000 copies in SQLite, and the commands that ask it."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

from benchmarks.harness.result_rows import Row, Samples, Target
from benchmarks.harness.testbed import GIB, Testbed
from worker import clock
from worker.catalogue import Catalogue

_COPIES, _QUICK = 1_000_000, 100_000
_PERIOD = timedelta(days=30)
_DUE, _SHOWN = Target(5, unit=" ms"), Target(1000, unit=" ms")


def fill(path: Path, count: int) -> None:
    """Write `count` artifacts with one verified copy each, read evenly over the last 80 % of a period."""
    now = clock.now()

    def moment(number: int) -> str:
        return (now - _PERIOD * 0.8 * ((number * 7919) % count) / count).strftime("%Y-%m-%d %H:%M:%S.%f")

    artifacts = (
        (n, "releases", f"a/{n:010}", 1, 16384, hashlib.sha256(b"%d" % n).hexdigest(), "{}", moment(n), moment(n))
        for n in range(1, count + 1)
    )
    copies = (
        (n, n, "main", "verified", 1, moment(n), moment(n), "{}", moment(n), 12 + n % 4) for n in range(1, count + 1)
    )
    database = sqlite3.connect(path)
    database.execute("PRAGMA synchronous = OFF")
    database.executemany(
        "INSERT INTO artifacts (id, bucket, key, version, size, sha256, metadata, created_at, committed_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        artifacts,
    )
    database.executemany(
        "INSERT INTO copies (id, artifact_id, store, state, attempts, last_attempt_at, last_verified_at, evidence, "
        "read_at, spread) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        copies,
    )
    database.commit()
    database.close()


def measure(testbed: Testbed) -> Iterator[Row]:
    """Fill a catalogue, time its queries, and then the commands that ask it, each a process of its own."""
    testbed.need(GIB)
    count = _QUICK if testbed.quick else _COPIES
    home = testbed.directory / "home"
    (home / "main").mkdir(parents=True)
    catalogue = Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}")
    fill(home / "catalogue.sqlite3", count)
    now, day, of = clock.now(), timedelta(days=1), f"a catalogue of {count:,} copies"
    claims, budgets = catalogue.sweep_claims, catalogue.budgets

    def due(period: timedelta) -> object:
        return catalogue.pages.claim_due(str(uuid4()), "main", period=period, now=now, until=now, limit=500)

    queries: dict[str, tuple[Callable[[], object], Target | None]] = {
        "a claim of due copies, none is": (lambda: due(_PERIOD * 10), _DUE),
        "a claim of 500 due copies of all": (lambda: due(_PERIOD / 100), None),
        "copies overdue": (lambda: claims.overdue("main", period=_PERIOD, now=now), None),
        "reads that are needed": (lambda: claims.needed("main", period=_PERIOD, first_read=day, now=now), None),
        "copies of a store": (lambda: budgets.copies("main"), None),
        "copies by state": (catalogue.artifacts.count_by_state, None),
        "stores without settings": (lambda: catalogue.store_records.unconfigured(["main"]), None),
    }
    for what, (query, target) in queries.items():
        yield Row(f"{of}: {what}", _timed(query), target=target)
    yield Row(f"{of}: bytes of a store by bucket", _timed(lambda: budgets.usage("main", now=now), 1))
    catalogue.close()
    stores = json.dumps({"main": {"type": "filesystem", "root": str(home / "main")}})
    environment = {**os.environ, "ZOT_HOME": str(home), "ZOT_STORES": stores}
    program = str(Path(sys.executable).with_name("zot-artifacts"))
    for command, target in (("status", _SHOWN), ("stores", _SHOWN), ("ls releases/a/00000001", None)):
        run = partial(subprocess.run, [program, *command.split()], env=environment, capture_output=True, check=False)
        yield Row(f"{of}: `{command}`, without a broker", _timed(run), target=target)


def _timed(work: Callable[[], object], repeat: int = 5) -> Samples:
    """Return the times of some runs, in milliseconds."""
    taken = []
    for _ in range(repeat):
        begun = time.perf_counter()
        work()
        taken.append((time.perf_counter() - begun) * 1000)
    return Samples(taken, " ms", 1)
