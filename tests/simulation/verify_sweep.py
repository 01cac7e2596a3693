"""Simulate months of the verify sweep on a virtual clock: four stores, budgets, outages, arrivals, changed settings.

The planner, the claims, the budgets, the ledger, the findings and the log are the worker's own code on a real SQLite
catalogue. Only the reads are replaced: every copy that a page has claimed is recorded as verified, in no time. A page
whose store is away waits, as a page does whose store is not admitted, and runs when the store is back.
"""

import argparse
import hashlib
import json
import logging
import math
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

import tasks.sweeps.verify
from tasks.pages.verify import claim_copies
from tests.simulation.plot import Panel, draw
from worker import clock
from worker.catalogue import Catalogue, FindingKind, Group, Leased, PageOutcome, VerdictRow
from worker.catalogue.artifacts import FIRST_READS
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.settings import Settings
from worker.settings.budgets import Budget, Prices
from worker.storage.config import FilesystemConfig
from zot_artifact_client.contract import JobState, PageRequest, Progress, SweepVerifyRequest
from zot_artifact_client.outgoing_messages import Outgoing

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SIZE = 1_000_000
STORES = ("plain", "outage", "night", "money")
SHARE = len(STORES)
PRICES = Prices(read_gb=0.05)
NIGHT = frozenset({*range(18, 24), *range(6)})
ARRIVE = 1.0
"""Periods in which three tenths of the copies arrive evenly; the others are written at one time, at the begin."""
AWAY = (4 / 3, 4 / 3 + 0.05)
"""When `outage` is away."""
CUT = 1.5
"""When the money of `money` is cut to half of what a pass costs."""
SHORTER = 5 / 3
"""When the period of `plain` becomes two thirds of it."""
END = 2.5
"""How many periods are simulated unless another end is asked for; an overdue copy of `money` is seen before it."""


@dataclass
class Seen:
    """What was seen of one store, by the number of the run of the sweep."""

    reads: list[int] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    oldest: list[timedelta] = field(default_factory=list)
    periods: list[timedelta] = field(default_factory=list)
    first_read: timedelta = DAY
    first_miss: datetime | None = None
    first_warning: datetime | None = None
    first_overdue: datetime | None = None
    spent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Bytes read, by day and by month."""

    def loads(self, every: timedelta, begin: timedelta, end: timedelta, hours: Collection[int]) -> list[float]:
        """Return the reads of each run between two times, as a part of an even share, see `even`.

        `hours`: those of the day in which the store is read.
        """
        return [
            self.reads[number] / self.even(number, every, len(hours) / 24)
            for number in range(math.ceil(begin / every), int(end / every))
            if (BEGIN + number * every).hour in hours
        ]

    def even(self, number: int, every: timedelta, share: float = 1.0) -> float:
        """Return an even share of the reads of a run: of the copies that are there, and the new ones besides.

        `share`: the part of the day in which the store is read.
        """
        since = max(number - max(round(self.first_read / every), 1), 0)
        new = (self.copies[number] - self.copies[since]) / max(number - since, 1)
        return (self.copies[number] * (every / self.periods[number]) + new) / share


class _Quiet:
    def report(self, _progress: Progress) -> None:
        pass

    def cancelled(self) -> bool:
        return False


class _Messages:
    """The broker: the pages that wait."""

    def __init__(self) -> None:
        self.waiting: list[Outgoing] = []

    def send(self, jobs: list[Outgoing]) -> None:
        self.waiting += jobs

    def lost(self, ids: list[str]) -> set[str]:
        return set()


class Simulation:
    """One run of a scenario."""

    def __init__(self, home: Path, copies: int, *, period: timedelta, every: timedelta, end: float = END) -> None:
        self.period = period
        self.every = every
        self.end = end
        self.each = copies // SHARE
        self.now = BEGIN
        self.first_read = max(period / 30, 6 * every)
        self.seen = {name: Seen(first_read=self.first_read) for name in STORES}
        self._messages = _Messages()
        self._arrived = 0
        sa.event.listen(sa.Pool, "checkout", _without_sync)
        self._context = Context.open(self._settings(home))
        self._sweep = 0

    def _settings(self, home: Path) -> Settings:
        budgets = {
            "outage": Budget(requests_per_second=2 * self.each / self.period.total_seconds()),
            "night": Budget(hours="18:00-06:00", bytes_per_day=self.day_bytes),
            "money": Budget(cost_per_month=self.money * 1.5),
        }
        settings = Settings(
            home=home, stores={name: FilesystemConfig(root=home / name) for name in STORES}, placement=("plain",),
            budgets=budgets, prices={"money": PRICES},
        )  # fmt: skip
        changed = {"every": self.every, "period": self.period, "first_read": self.first_read, "page": 5000}
        verify = settings.sweep.verify.model_copy(update=changed)
        return settings.model_copy(update={"sweep": settings.sweep.model_copy(update={"verify": verify})})

    @property
    def catalogue(self) -> Catalogue:
        return self._context.catalogue

    @property
    def day_bytes(self) -> int:
        """The bytes of a day that the budget of `night` has."""
        return round(1.5 * self.each * SIZE * (DAY / self.period))

    @property
    def money(self) -> float:
        """What as many passes as a month has periods cost."""
        return self.each * SIZE / 1e9 * PRICES.read_gb * (30 * DAY / self.period)

    def run(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Simulate it to its end."""
        begun, number = time.monotonic(), 0
        self._arrive(self.each * 7 // 10)
        with _clock(lambda: self.now), _without_heads():
            while self.now < BEGIN + self.end * self.period:
                self._turn()
                number += 1
                if number % 120 == 0:
                    tell(f"day {(self.now - BEGIN) / DAY:.0f} after {time.monotonic() - begun:.0f} s")
        self._context.close()
        sa.event.remove(sa.Pool, "checkout", _without_sync)

    def _turn(self) -> None:
        """Do what happens until the next run of the sweep."""
        passed = self.now - BEGIN
        soon = min(passed / (ARRIVE * self.period), 1.0) * (self.each - self.each * 7 // 10)
        self._arrive(self.each * 7 // 10 + int(soon))
        self._change(passed)
        for seen in self.seen.values():
            seen.reads.append(0)
            seen.copies.append(self._arrived)
        self._plan()
        waiting, self._messages.waiting = self._messages.waiting, []
        for message in waiting:
            request = PageRequest.read(message.payload)
            assert request.claim is not None
            if request.claim.store == "outage" and AWAY[0] <= passed / self.period < AWAY[1]:
                self._messages.waiting.append(message)
            else:
                self._read(message.job_id, request)
        self._look()
        self.now += self.every

    def _change(self, passed: timedelta) -> None:
        """Change the settings midway, as an operator does who starts the workers again."""
        settings = self._context.settings
        if passed == CUT * self.period:
            cut = Budget(cost_per_month=self.money / 2)
            settings = settings.model_copy(update={"budgets": {**settings.budgets, "money": cut}})
        if passed == SHORTER * self.period:
            verify = settings.sweep.verify.model_copy(update={"periods": {"plain": self.period * 2 / 3}})
            settings = settings.model_copy(update={"sweep": settings.sweep.model_copy(update={"verify": verify})})
        if settings is not self._context.settings:
            object.__setattr__(self._context, "settings", settings)

    def _plan(self) -> None:
        self._sweep += 1
        job = self._take(f"sweep-{self._sweep}", "sweep.verify", {})
        tasks.sweeps.verify.sweep_verify(SweepVerifyRequest(), job, self._messages)
        self.catalogue.ledger.finish(job.id, job.fence, JobState.SUCCEEDED, now=self.now, result={})

    def _read(self, id_: str, request: PageRequest) -> None:
        """Claim the copies of a page, and record each of them as verified."""
        assert request.claim is not None
        job = self._take(id_, "page", request.payload())
        name, page = request.claim.store, claim_copies(request.claim, job)
        copies = job.catalogue.pages.claimed_copies(page)
        rows = [
            VerdictRow(
                each.id, id_, name, each.bucket, each.key, each.version, "verified", each.digest.sha256,
                each.digest.sha256, each.digest.size,
            )
            for each in copies
        ]  # fmt: skip
        outcomes = [PageOutcome(each.id, each.key, each.digest.size, "verified") for each in copies]
        job.catalogue.pages.record(page, Group(outcomes, rows), now=self.now)
        result = {"objects": len(copies)}
        self.catalogue.ledger.finish(id_, job.fence, JobState.SUCCEEDED, now=self.now, result=result)
        seen = self.seen[name]
        seen.reads[-1] += len(copies)
        seen.spent[f"{self.now:%Y-%m-%d}"] += len(copies) * SIZE
        seen.spent[f"{self.now:%Y-%m}"] += len(copies) * SIZE

    def _take(self, id_: str, kind: str, request: dict[str, Any]) -> RunningJob:
        begun = self.catalogue.ledger.acquire(
            id_, kind, request, owner="simulation", writes_to=None, parent=None, now=self.now, lease=timedelta(hours=1)
        )
        assert isinstance(begun, Leased), begun
        return RunningJob(begun.record, self._context, _Quiet())

    def _look(self) -> None:
        """Note what an operator can see after the run."""
        settings = self._context.settings
        opened = {(each.kind, each.store) for each in self.catalogue.findings.page()}
        for name, seen in self.seen.items():
            period = settings.sweep.verify.period_of(name)
            oldest = self.now - (self.catalogue.sweep_claims.oldest(name) or self.now)
            seen.oldest.append(oldest)
            seen.periods.append(period)
            if oldest > period + self.every:
                seen.first_miss = seen.first_miss or self.now
            if (FindingKind.TOO_SLOW, name) in opened:
                seen.first_warning = seen.first_warning or self.now
            if (FindingKind.OVERDUE, name) in opened:
                seen.first_overdue = seen.first_overdue or self.now

    def _arrive(self, total: int) -> None:
        """Have all copies up to this number of each store: they were written just now."""
        if total <= self._arrived:
            return
        at = self.now.strftime("%Y-%m-%d %H:%M:%S.%f")
        database = sqlite3.connect(self._context.settings.home / "catalogue.sqlite3")
        for number in range(self._arrived + 1, total + 1):
            sha256 = hashlib.sha256(b"%d" % number).hexdigest()
            database.execute(
                "INSERT INTO artifacts (id, bucket, key, version, size, sha256, metadata, created_at, committed_at) "
                "VALUES (?, 'releases', ?, 1, ?, ?, '{}', ?, ?)",
                (number, f"a/{number:010}", SIZE, sha256, at, at),
            )
            database.executemany(
                "INSERT INTO copies (artifact_id, store, state, attempts, evidence, read_at, spread) "
                "VALUES (?, ?, 'stored', 0, '{}', ?, ?)",
                [(number, store, at, number % FIRST_READS) for store in STORES],
            )
        database.commit()
        database.close()
        self._arrived = total


def _without_sync(raw: Any, *_: object) -> None:
    """Wait for no disk: a simulation that dies is run again from its begin."""
    raw.execute("PRAGMA synchronous = OFF").close()
    raw.execute("PRAGMA cache_size = -1000000").close()


@contextmanager
def _clock(now: Callable[[], datetime]) -> Iterator[None]:
    real = clock.now
    clock.now = now
    try:
        yield
    finally:
        clock.now = real


@contextmanager
def _without_heads() -> Iterator[None]:
    """Write no head of the log into the stores: an effect, as the reads are."""
    real = tasks.sweeps.verify.keep_records
    tasks.sweeps.verify.keep_records = lambda *_: None
    try:
        yield
    finally:
        tasks.sweeps.verify.keep_records = real


def faults(of: Simulation, margin: float = 0.2) -> list[str]:
    """Return what a simulation has broken of what the sweep promises; empty if nothing."""
    wrong: list[str] = []
    every, period, seen = of.every, of.period, of.seen

    def expect(true: bool, text: str) -> None:
        if not true:
            wrong.append(text)

    for name in ("plain", "outage", "night"):
        told = seen[name]
        late = [
            (number, age) for number, age in enumerate(told.oldest)
            if age > told.periods[number] + every and not (name == "plain" and number == SHORTER * period // every)
        ]  # fmt: skip
        expect(not late, f"{name}: a copy is older than its period and one run: {late[:1]}")
        expect(told.first_warning is None, f"{name}: told to be too slow at {told.first_warning}")
    day, first = frozenset(range(24)), max(0.1, 1.2 * of.first_read / period)
    for name, begin, end, hours in (
        ("plain", first, SHORTER, day), ("plain", SHORTER + 0.05, of.end, day), ("outage", first, AWAY[0], day),
        ("outage", AWAY[1] + 0.05, of.end, day), ("night", first, of.end, NIGHT), ("money", first, CUT, day),
    ):  # fmt: skip
        loads = seen[name].loads(every, begin * period, end * period, hours)
        mean = sum(loads) / len(loads)
        uneven = [load for load in loads if not (1 - margin) * mean <= load <= (1 + margin) * mean]
        expect(
            not uneven,
            f"{name}: {len(uneven)} of {len(loads)} runs between the periods {begin:.2f} and {end:.2f} are more than "
            f"{margin:.0%} off the mean {mean:.2f}: from {min(loads):.2f} to {max(loads):.2f}",
        )
    money, cut = seen["money"], BEGIN + CUT * period
    expect(money.first_warning == cut, f"money: told to be too slow at {money.first_warning}, not at {cut}")
    expect(money.first_miss is not None and money.first_miss > cut, f"money: first miss {money.first_miss}")
    night = seen["night"]
    most = max(used for time_, used in night.spent.items() if len(time_) == len("2026-01-01"))
    expect(most <= of.day_bytes, f"night: {most} bytes were read in a day, {of.day_bytes} are its budget")
    closed = [count for number, count in enumerate(night.reads) if (BEGIN + number * every).hour not in NIGHT]
    expect(not any(closed), "night: it was read outside its hours")
    return wrong


_TITLES = {
    "plain": "plain: nothing limits it",
    "outage": "outage: 2 times the even rate at most",
    "night": "night: from 18:00 to 06:00, 1.5 times the even bytes of a day at most",
    "money": "money: 1.5 times what its passes cost",
}


def picture(of: Simulation) -> str:
    """Return the plot of a simulation as SVG."""
    runs = of.period / of.every
    events = {
        "plain": [(SHORTER * runs, SHORTER * runs, "the period becomes 2/3 of it")],
        "outage": [(AWAY[0] * runs, AWAY[1] * runs, "the store is away")],
        "money": [(CUT * runs, CUT * runs, "its budget is cut to half a pass: the forecast alarm is raised")],
    }
    panels = []
    for name, seen in of.seen.items():
        share = len(NIGHT) / 24 if name == "night" else 1.0
        is_open = [name != "night" or (BEGIN + n * of.every).hour in NIGHT for n in range(len(seen.reads))]
        reads = [count if now else None for count, now in zip(seen.reads, is_open, strict=True)]
        loads = seen.loads(of.every, 0.1 * of.period, AWAY[0] * of.period, NIGHT if share < 1 else range(24))
        mean = sum(loads) / len(loads)
        even = [mean * seen.even(number, of.every, share) for number in range(len(seen.reads))]
        panels.append(Panel(_TITLES[name], reads, even, seen.oldest, seen.periods, events.get(name, ())))
    return draw(panels, of.every)


def main() -> None:
    """Simulate it, write the plot and the figures, and end with status 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=1_000_000)
    parser.add_argument("--period", type=float, default=30, help="days")
    parser.add_argument("--every", type=float, default=1, help="hours between two runs of the sweep")
    parser.add_argument("--plot", type=Path, help="write the plot into this SVG file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # that a period cannot be met is told at every run
    with TemporaryDirectory() as home:
        simulation = Simulation(
            Path(home), options.copies, period=options.period * DAY, every=timedelta(hours=options.every)
        )
        simulation.run(lambda line: print(line, file=sys.stderr, flush=True))
    if options.plot:
        options.plot.write_text(picture(simulation))
    for name, seen in simulation.seen.items():
        oldest = max(seen.oldest) / DAY
        figures = {"store": name, "copies": seen.copies[-1], "reads": sum(seen.reads), "oldest_days": round(oldest, 2)}
        print(json.dumps(figures))
    wrong = faults(simulation)
    print(*wrong or ["every promise was kept"], sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
