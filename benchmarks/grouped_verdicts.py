"""Verdicts a second into the catalogue in the groups of a page, with 1, 2 and 4 writers, on SQLite and PostgreSQL."""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from worker import clock
from worker.artifacts.page_runner import GROUP
from worker.catalogue import Catalogue, FinishedCopy, Group, PageOutcome, VerdictRow
from worker.storage import Digest

_WRITERS = (1, 2, 4)


def fill(url: str, count: int) -> None:
    """Record `count` artifacts with one copy each."""
    catalogue, now = Catalogue(url), clock.now()
    made = [
        catalogue.artifacts.record("releases", f"{n:08}", Digest(16384, "a" * 64), {}, now).artifact
        for n in range(count)
    ]
    for start in range(0, count, GROUP):
        for artifact in made[start : start + GROUP]:
            catalogue.artifacts.ensure_copy(artifact, "main")
        catalogue.artifacts.finish_copies([FinishedCopy(each, "main", "1") for each in made[start:][:GROUP]], now=now)
    catalogue.close()


def write(url: str, name: str, first: int, count: int) -> tuple[float, float, float]:
    """Record a verdict of each copy of a range, as a page does; return start, end and processor time."""
    catalogue, now = Catalogue(url), clock.now()
    lease = {"holds": None, "parent": None, "now": now, "lease": timedelta(hours=1)}
    catalogue.ledger.acquire(name, "page", {}, owner=name, **lease)  # type: ignore[arg-type]
    fenced = catalogue.fenced(name, 1)
    made = catalogue.artifacts.page("releases", after=("releases", f"{first - 1:08}" if first else ""), limit=count)
    copies = [copy for of in catalogue.pages.copies_of([each.id for each in made]).values() for copy in of]
    page = fenced.pages.begin(name, [copy.id for copy in copies])
    begun, used = time.time(), time.process_time()
    for start in range(0, len(copies), GROUP):
        group = copies[start : start + GROUP]
        outcomes = [PageOutcome(each.id, f"{each.bucket}/{each.key}", each.digest.size, "verified") for each in group]
        verdicts = [
            VerdictRow(
                each.id, name, each.store, each.bucket, each.key, each.version, "verified",
                each.digest.sha256, each.digest.sha256, each.digest.size, None, "1",
            )
            for each in group
        ]  # fmt: skip
        page = fenced.pages.record(page, Group(outcomes, verdicts), now=clock.now())
    ended = time.time(), time.process_time()
    catalogue.close()
    return begun, ended[0], ended[1] - used


def measure(kind: str, url: str, count: int) -> None:
    """Print the rate for each number of writers."""
    fill(url, count)
    for writers in _WRITERS:
        share = count // writers
        with ProcessPoolExecutor(writers, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(write, url, f"{writers}-{n}", n * share, share) for n in range(writers)]
            spans = [job.result() for job in jobs]
        seconds = max(end for _, end, _ in spans) - min(begun for begun, _, _ in spans)
        used = sum(used for _, _, used in spans) / (share * writers)
        print(
            f"{kind:10} {writers} writers {share * writers / seconds:10.0f} verdicts/s {used * 1e6:6.0f} us each",
            flush=True,
        )


def main() -> None:
    """Measure both databases."""
    from tests.servers.postgres import Postgres

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=4000)
    count = parser.parse_args().copies
    with TemporaryDirectory() as directory:
        measure("SQLite", f"sqlite:///{Path(directory, 'catalogue.sqlite3')}", count)
        server = Postgres(Path(directory, "postgres"))
        server.start()
        try:
            with server.database() as url:
                measure("PostgreSQL", url, count)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
