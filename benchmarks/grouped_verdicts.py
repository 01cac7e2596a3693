"""Verdicts a second into the catalogue in the groups of a page, with 1, 2 and 4 writers, on SQLite and PostgreSQL."""

import gc
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

from benchmarks.harness.processor_time import Run, as_samples
from benchmarks.harness.result_rows import Row, Target
from benchmarks.harness.testbed import Testbed
from tests.servers.postgres import Postgres
from worker import clock
from worker.artifacts.page_runner import GROUP
from worker.catalogue import Catalogue, FinishedCopy, NewVersion, PageCopy, PageOutcome, Recorded, VerdictRow
from worker.storage import Digest

_WRITERS = (1, 2, 4)
_PAGE = 2000
"""Copies of a page of a sweep."""
_LEAST, _NOT_FALLING = Target(5000, at_least=True), Target(0.9, at_least=True)
"""Runs of one writer differ by a tenth: a fall of the rate with more writers is what is more than that."""
_barriers: list[Barrier] = []
"""Of the round that this process is for."""


def fill(url: str, count: int) -> None:
    """Record `count` artifacts with one copy each."""
    catalogue, now, digest = Catalogue(url), clock.now(), Digest(16384, "a" * 64)
    for start in range(0, count, GROUP):
        versions = [
            NewVersion("releases", f"{n:08}", digest, ("main",)) for n in range(start, start + GROUP)[: count - start]
        ]
        made = [
            each.artifact
            for each in catalogue.artifacts.record_many(versions, {}, now, job="fill")
            if isinstance(each, Recorded)
        ]
        catalogue.artifacts.finish_copies([FinishedCopy(each, "main", "1") for each in made], now=now)
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
        lease = {"writes_to": None, "parent": None, "now": now, "lease": timedelta(hours=1)}
        catalogue.ledger.acquire(job, "page", {}, owner=name, **lease)  # type: ignore[arg-type]
        fenced = catalogue.fenced(job, 1)
        pages.append((fenced.pages.recorder(fenced.pages.begin(job, [copy.id for copy in of_page])), of_page))
    gc.collect()
    gc.freeze()  # otherwise one collection of all that was prepared, 60 ms, is in some of the runs
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
            each.digest.sha256, each.digest.sha256, each.digest.size, None, "1", same_tag=each.tag == "1",
        )
        for each in copies
    ]  # fmt: skip
    return outcomes, verdicts


def measure(testbed: Testbed) -> Iterator[Row]:
    """Let 1, 2 and 4 writers take turns, on each database."""
    count, rounds = (4_000, 2) if testbed.quick else (48_000, 5)
    directory = testbed.directory / "verdicts"
    directory.mkdir()
    with ExitStack() as stack:
        databases = {
            "SQLite": lambda: f"sqlite:///{directory / 'catalogue.sqlite3'}",
            "PostgreSQL": lambda: stack.enter_context(stack.enter_context(Postgres(directory / "postgres")).database()),
        }
        for kind, opened in databases.items():
            if testbed.wants(what := f"verdicts into {kind}"):
                yield from _rows(what, opened(), count, rounds, _LEAST if kind == "PostgreSQL" else None)


def _rows(what: str, url: str, count: int, rounds: int, least: Target | None) -> Iterator[Row]:
    fill(url, count)
    runs: dict[int, list[Run]] = {writers: [] for writers in _WRITERS}
    for number in range(rounds):
        for writers in _WRITERS:
            runs[writers].append(_run(url, str(number), count, writers))
    alone = as_samples(runs[1], " a second")
    yield Row(f"{what}, 1 writer", alone, target=least)
    for writers in _WRITERS[1:]:
        together = as_samples(runs[writers], " a second")
        yield Row(f"{what}, {writers} writers, against 1", together, alone, _NOT_FALLING if least else None)


def _run(url: str, name: str, count: int, writers: int) -> Run:
    """Let some processes, which begin together, record verdicts of their shares of the copies."""
    share, context = count // writers, get_context("spawn")
    barrier = context.Barrier(writers)
    with ProcessPoolExecutor(writers, mp_context=context, initializer=_meet, initargs=(barrier,)) as pool:
        jobs = [pool.submit(write, url, f"{name}-{writers}-{n}", n * share, share) for n in range(writers)]
        begun, ended, used = zip(*(job.result() for job in jobs), strict=True)
    return Run(share * writers / (max(ended) - min(begun)), sum(used) / (share * writers))
