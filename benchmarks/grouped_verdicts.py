"""Verdicts a second into the catalogue in the groups of a page, with 1, 2 and 4 writers, on SQLite and PostgreSQL."""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from worker import clock
from worker.artifacts.page_runner import GROUP
from worker.catalogue import Catalogue, FinishedCopy, PageCopy, PageOutcome, VerdictRow
from worker.storage import Digest

_WRITERS = (1, 2, 4)
_PAGE = 2000
"""Copies of a page of a sweep."""
_barriers: list[Barrier] = []
"""Of the round that this process is for."""


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


def _meet(barrier: Barrier) -> None:
    """Remember where the writers of a round wait for each other."""
    _barriers.append(barrier)


def write(url: str, name: str, first: int, count: int) -> tuple[float, float, float]:
    """Record a verdict of each copy of a range, as pages of a sweep do; return start, end and processor time."""
    catalogue, now = Catalogue(url), clock.now()
    made = catalogue.artifacts.page("releases", after=("releases", f"{first - 1:08}" if first else ""), limit=count)
    copies = [copy for of in catalogue.pages.copies_of([each.id for each in made]).values() for copy in of]
    pages = []
    for start in range(0, len(copies), _PAGE):
        job, of_page = f"{name}-{start}", copies[start : start + _PAGE]
        lease = {"holds": None, "parent": None, "now": now, "lease": timedelta(hours=1)}
        catalogue.ledger.acquire(job, "page", {}, owner=name, **lease)  # type: ignore[arg-type]
        fenced = catalogue.fenced(job, 1)
        pages.append((fenced.pages.recorder(fenced.pages.begin(job, [copy.id for copy in of_page])), of_page))
    _barriers[0].wait()  # otherwise the start of the last process is measured
    begun, used = time.time(), time.process_time()
    for recorder, of_page in pages:
        with recorder:
            for start in range(0, len(of_page), GROUP):
                outcomes, verdicts = _group(recorder.page.job, of_page[start : start + GROUP])
                recorder.add(outcomes, verdicts, now=clock.now())
    ended = time.time(), time.process_time()
    catalogue.close()
    return begun, ended[0], ended[1] - used


def _group(job: str, copies: Sequence[PageCopy]) -> tuple[list[PageOutcome], list[VerdictRow]]:
    outcomes = [PageOutcome(each.id, f"{each.bucket}/{each.key}", each.digest.size, "verified") for each in copies]
    verdicts = [
        VerdictRow(
            each.id, job, each.store, each.bucket, each.key, each.version, "verified",
            each.digest.sha256, each.digest.sha256, each.digest.size, None, "1",
        )
        for each in copies
    ]  # fmt: skip
    return outcomes, verdicts


def measure(kind: str, url: str, count: int, rounds: int) -> None:
    """Print the rate for each number of writers, which take turns."""
    fill(url, count)
    rates: dict[int, list[float]] = {writers: [] for writers in _WRITERS}
    used: dict[int, list[float]] = {writers: [] for writers in _WRITERS}
    context = get_context("spawn")
    for number in range(rounds):
        for writers in _WRITERS:
            share = count // writers
            together = {"initializer": _meet, "initargs": (context.Barrier(writers),)}
            with ProcessPoolExecutor(writers, mp_context=context, **together) as pool:  # type: ignore[arg-type]
                jobs = [pool.submit(write, url, f"{number}-{writers}-{n}", n * share, share) for n in range(writers)]
                spans = [job.result() for job in jobs]
            rates[writers].append(share * writers / (max(end for _, end, _ in spans) - min(at for at, _, _ in spans)))
            used[writers].append(1e6 * sum(each for _, _, each in spans) / (share * writers))
    for writers, each in rates.items():
        rate, took = f"{median(each):8.0f} ({min(each):.0f} to {max(each):.0f})", median(used[writers])
        print(f"{kind:10} {writers} writers {rate} verdicts/s {took:5.0f} us each", flush=True)


def main() -> None:
    """Measure both databases."""
    from tests.servers.postgres import Postgres

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    count = given.copies
    with TemporaryDirectory() as directory:
        measure("SQLite", f"sqlite:///{Path(directory, 'catalogue.sqlite3')}", count, given.rounds)
        server = Postgres(Path(directory, "postgres"))
        server.start()
        try:
            with server.database() as url:
                measure("PostgreSQL", url, count, given.rounds)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
