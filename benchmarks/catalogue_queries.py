"""How long the catalogue's queries take at 1,000,000 copies: due copies, absent copies, counts."""

import argparse
import hashlib
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from worker import clock
from worker.catalogue import Catalogue

_PERIOD = timedelta(days=30)


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


def timed(what: str, work: Callable[[], object], repeat: int = 5) -> None:
    """Print the median of some runs, in milliseconds, and the size of the last result."""
    taken = []
    for _ in range(repeat):
        begun = time.perf_counter()
        result = work()
        taken.append(time.perf_counter() - begun)
    size = len(result) if isinstance(result, list) else result
    print(f"{what:48} {sorted(taken)[repeat // 2] * 1000:10.2f} ms  {size}")


def main() -> None:
    """Fill a catalogue and time its queries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=1_000_000)
    count = parser.parse_args().copies
    with TemporaryDirectory() as directory:
        path = Path(directory, "catalogue.sqlite3")
        catalogue = Catalogue(f"sqlite:///{path}")
        fill(path, count)
        print(f"{count} copies, {path.stat().st_size / count:.0f} bytes each")
        now = clock.now()

        def due(period: timedelta) -> object:
            return catalogue.pages.claim_due(str(uuid4()), "main", period=period, now=now, until=now, limit=500).open

        def absent() -> object:
            at = clock.now()
            return catalogue.sweep_claims.absent(
                "main", "releases", "", wanted=lambda *_, **__: True, now=at, until=at, limit=500
            )

        timed("due, none is", lambda: due(_PERIOD * 10))
        timed("due, 500 of few", lambda: due(_PERIOD))
        timed("due, 500 of all", lambda: due(_PERIOD / 100))
        timed("absent", absent)
        timed("overdue", lambda: catalogue.sweep_claims.overdue("main", period=_PERIOD, now=now))
        claims, budgets, day = catalogue.sweep_claims, catalogue.budgets, timedelta(days=1)
        timed("needed reads", lambda: claims.needed("main", period=_PERIOD, first_read=day, now=now).all)
        timed("copies of a store", lambda: budgets.copies("main"))
        timed("bytes of a store, by bucket", lambda: budgets.usage("main", now=now).copies, repeat=1)
        timed("stores without settings", lambda: len(catalogue.store_records.unconfigured(["main"])))
        timed("counts by state", catalogue.artifacts.count_by_state)
        timed("oldest verified", lambda: catalogue.artifacts.oldest_verified("main"))
        timed("never verified", lambda: catalogue.artifacts.never_verified("main"))
        catalogue.close()


if __name__ == "__main__":
    main()
