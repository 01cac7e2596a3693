"""The planner of the verify sweep on a virtual clock: months of stores with different budgets, outages and changes.

The effects are replaced: a copy is a number in a heap, and a read takes no time. What decides is the worker's own code:
when a copy is due, how many are read until the next run, what the budget allows, and what the forecast tells. 12,000
copies in each store and a run each hour take the place of a million and a run each five minutes.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from worker.artifacts.read_budget import LATE, forecast, plan, refilled, take
from worker.catalogue import BudgetState
from worker.catalogue.artifacts import FIRST_READS, SPREADS
from worker.catalogue.sweep_claims import DUE_PARTS
from worker.settings.budgets import Budget, Prices

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
EVERY = timedelta(hours=1)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
PERIOD = 30 * DAY
COPIES, SIZE = 12_000, 1_000_000
MONTHLY = COPIES * SIZE / 1e9 * 0.05
"""What one pass costs at 0.05 a GB."""


@dataclass
class SimulatedStore:
    """A store whose copies are read as the sweep and its pages do it, once an hour."""

    budget: Budget
    prices: Prices = field(default_factory=Prices)
    period: timedelta = PERIOD
    away: Callable[[datetime], bool] = lambda _: False
    change: Callable[["SimulatedStore", datetime], None] = lambda *_: None
    now: datetime = BEGIN
    state: BudgetState = field(default_factory=lambda: BudgetState(at=BEGIN))
    reads: Counter[int] = field(default_factory=Counter)
    oldest_age: timedelta = timedelta()
    first_miss: datetime | None = None
    first_warning: datetime | None = None
    spent: Counter[str] = field(default_factory=Counter)
    read_at: dict[int, datetime] = field(default_factory=dict)
    _due: list[tuple[datetime, int]] = field(default_factory=list)
    _ready: list[tuple[datetime, int]] = field(default_factory=list)
    _ages: list[tuple[datetime, int]] = field(default_factory=list)
    _again: set[int] = field(default_factory=set)

    def add(self, copy: int) -> None:
        self.read_at[copy] = self.now
        self._enqueue(copy)

    def set_period(self, period: timedelta) -> None:
        self.period, self._due, self._ready = period, [], []
        for copy in self.read_at:
            heapq.heappush(self._due, (self._due_at(copy), copy))

    def turn(self) -> None:
        """Do what happens until the next run of the sweep."""
        self.change(self, self.now)
        oldest = self._oldest()
        age = self.now - oldest
        self.oldest_age = max(self.oldest_age, age)
        if age > self.period + 2 * EVERY and self.first_miss is None:
            self.first_miss = self.now
        ahead = forecast(
            "dr", len(self.read_at), len(self.read_at) * SIZE, period=self.period, budget=self.budget,
            prices=self.prices, bandwidth=None,
        )  # fmt: skip
        if ahead.warning and self.first_warning is None:
            self.first_warning = self.now
        self.state = refilled(self.state, self.budget, self.prices, self.now)
        if not self.away(self.now):
            self._read(oldest)
        self.now += EVERY

    def _read(self, oldest: datetime) -> None:
        due = self._count_due()
        wanted = plan(
            self.state, due=due, late=self._late(), oldest=oldest,
            copies=len(self.read_at), mean=SIZE, period=self.period, every=EVERY,
            budget=self.budget, prices=self.prices, now=self.now,
        )  # fmt: skip
        self.state, allowed = take(self.state, [SIZE] * wanted, self.budget, self.prices, self.now)
        for _ in range(allowed):
            _, copy = heapq.heappop(self._ready)
            self.read_at[copy] = self.now
            self._again.add(copy)
            self._enqueue(copy)
        self.reads[(self.now - BEGIN) // HOUR] += allowed
        self.spent[f"{self.now:%Y-%m-%d}"] += allowed * SIZE
        self.spent[f"{self.now:%Y-%m}"] += allowed * SIZE

    def _count_due(self) -> int:
        while self._due and self._due[0][0] <= self.now:
            heapq.heappush(self._ready, heapq.heappop(self._due))
        return len(self._ready)

    def _late(self) -> int:
        return sum(self.now - self.read_at[copy] >= self.period * LATE for _, copy in self._ready)

    def _enqueue(self, copy: int) -> None:
        heapq.heappush(self._due, (self._due_at(copy), copy))
        heapq.heappush(self._ages, (self.read_at[copy], copy))

    def _due_at(self, copy: int) -> datetime:
        spread = FIRST_READS + copy % (SPREADS - FIRST_READS) if copy in self._again else copy % FIRST_READS
        return self.read_at[copy] + self.period * DUE_PARTS[spread]

    def _oldest(self) -> datetime:
        while self.read_at[self._ages[0][1]] != self._ages[0][0]:
            heapq.heappop(self._ages)
        return self._ages[0][0]

    def run(self, days: int) -> "SimulatedStore":
        """Half of the copies are there at the begin; the others arrive evenly over thirty days."""
        for copy in range(COPIES // 2):
            self.add(copy)
        arriving, turns = COPIES // 2, 30 * DAY // EVERY
        for turn in range(days * DAY // EVERY):
            while arriving < COPIES and (arriving - COPIES // 2) * turns <= turn * (COPIES // 2):
                self.add(arriving)
                arriving += 1
            self.turn()
        return self

    def hourly(self, first_day: int, *, hours: range = range(24)) -> list[int]:
        last = (self.now - BEGIN) // HOUR
        return [self.reads[hour] for hour in range(first_day * 24, last) if hour % 24 in hours]


def test_copies_are_read_evenly_and_none_is_late() -> None:
    """Nothing but the period limits the store: after two periods 99 % of the hours have the same load within 20 %."""
    store = SimulatedStore(Budget()).run(135)
    assert store.oldest_age <= PERIOD + EVERY
    assert (store.first_miss, store.first_warning) == (None, None)
    loads = store.hourly(75)
    mean = sum(loads) / len(loads)
    assert max(loads) <= 1.2 * mean
    few = [load for load in loads if load < 0.8 * mean]
    assert len(few) <= 0.01 * len(loads), Counter(loads)  # where one group of due copies ends before the next begins
    assert sum(loads) / (len(loads) / 24) <= COPIES / 30 * 1.25


def test_an_outage_makes_no_copy_late() -> None:
    """What was not read in two days is read afterwards, within the rate of the budget."""
    begin = BEGIN + 70 * DAY
    limit = 2 * COPIES / PERIOD.total_seconds()
    budget = Budget(requests_per_second=limit)
    store = SimulatedStore(budget, away=lambda now: begin <= now < begin + DAY).run(110)
    assert (store.first_miss, store.first_warning) == (None, None)
    assert store.oldest_age <= PERIOD + EVERY
    assert max(store.reads.values()) <= 2 * limit * 3600 + 1


def test_a_store_is_read_in_its_hours_and_within_its_bytes_a_day() -> None:
    """Outside its hours nothing is read; no day has more bytes than the budget, and no copy is late."""
    day_bytes = round(COPIES * SIZE / 30 * 1.3)
    budget = Budget(hours="22:00-06:00", bytes_per_day=day_bytes)
    store = SimulatedStore(budget).run(100)
    night = {22, 23, 0, 1, 2, 3, 4, 5}
    assert all(count == 0 for hour, count in store.reads.items() if hour % 24 not in night)
    assert max(used for day, used in store.spent.items() if len(day) == 10) <= day_bytes
    assert (store.first_miss, store.first_warning) == (None, None)
    assert store.oldest_age <= PERIOD + EVERY


def test_money_is_never_overspent_and_the_forecast_comes_before_the_first_miss() -> None:
    """Midway the cap is cut to half of what a pass costs: the forecast tells at once, before any copy is late."""
    cut = BEGIN + 60 * DAY

    def change(store: SimulatedStore, now: datetime) -> None:
        if now == cut:
            store.budget = Budget(cost_per_month=MONTHLY / 2)

    store = SimulatedStore(Budget(cost_per_month=MONTHLY * 1.4), Prices(read_gb=0.05), change=change).run(150)
    assert store.first_warning == cut
    assert store.first_miss is not None
    assert store.first_miss > cut
    months = {month: used / 1e9 * 0.05 for month, used in store.spent.items() if len(month) == 7}
    assert max(months.values()) <= MONTHLY * 1.4
    assert max(cost for month, cost in months.items() if month > "2026-03") <= MONTHLY / 2 + 1e-6


def test_a_shorter_period_takes_effect_at_once() -> None:
    """Midway the period is cut to twenty days: what is older is read as soon as the budget allows."""
    cut = BEGIN + 70 * DAY

    def change(store: SimulatedStore, now: datetime) -> None:
        if now == cut:
            store.set_period(20 * DAY)

    store = SimulatedStore(Budget(requests_per_second=4 * COPIES / PERIOD.total_seconds()), change=change).run(74)
    assert store.now - store._oldest() <= 20 * DAY
    store.oldest_age = timedelta()
    for _ in range(30 * DAY // EVERY):
        store.turn()
    assert store.oldest_age <= 20 * DAY + EVERY


@pytest.mark.parametrize("hours", [None, "22:00-06:00"])
def test_the_forecast_is_what_the_budget_needs(hours: str | None) -> None:
    """A budget that the forecast calls enough is enough, and what it says would do does."""
    exact = round(COPIES * SIZE / 30)
    short = Budget(hours=hours, bytes_per_day=exact // 2)
    ahead = forecast(
        "dr", COPIES, COPIES * SIZE, period=PERIOD, budget=short, prices=Prices(), bandwidth=None
    )  # fmt: skip
    assert ahead.warning is not None
    assert "raise bytes_per_day 2.0 times, or set a period of 60d" in ahead.warning
    assert "takes 60.0 days, its period is 30 days" in ahead.warning
    assert forecast(
        "dr", COPIES, COPIES * SIZE, period=60 * DAY, budget=short, prices=Prices(), bandwidth=None
    ).warning is None  # fmt: skip
