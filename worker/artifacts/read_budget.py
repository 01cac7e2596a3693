"""Compute how much of a store the verify sweep may read now, and whether that is enough for the period.

The first is computed from a `BudgetState` alone, so that a simulation can use a clock of its own. Two values answer the
second: a `Forecast` is computed from the settings, and a `Pace` from the reads of the last hour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import ByteSize

from worker.catalogue import GRACE, SHORTEST_HORIZON, BudgetState, Catalogue, NeededReads
from worker.counted import counted
from worker.settings import Settings
from worker.settings.budgets import Budget, Prices
from worker.storage.durations_and_sizes import duration_text

BURST = timedelta(hours=1)
"""Unused allowance of at most this time is saved, so that after an outage the backlog is not read all at once.

If the sweep runs less often, the allowance of the time between two runs is saved: otherwise such a store could never
use its budget, and its copies would become overdue.
"""
_MONTH = 30.0
"""Days of a month, for the pace; the sum of a calendar month is never exceeded."""
_DAY = timedelta(days=1)
LATE = 0.95
"""After this part of the period a copy that was not read again is late, and is read before others."""
_EVEN = 1.15
"""The even rate is faster than the period needs by this factor, so that a short outage makes no copy late."""
_RECENT = timedelta(hours=1)
"""The rate of a store is measured over its pages of this time."""
_FEW = 10_000
"""With fewer due copies than this no store is too slow: a worker reads them within minutes."""
_AT_ONCE = 10
"""Up to this number, copies that are due are read at once: to spread them saves nothing."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The most of each resource for a second of the open hours; None for no limit."""

    bytes: float | None
    requests: float | None
    cost: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """One pass over all copies of a store: their number, bytes and cost, and the time that the budget allows it in.

    `needs`: by the name of each limit, the time that a pass takes under it. `waiting`: how many of the copies were not
    read since their write. `first_reads`: the time within which these are planned to be read, as a part of the pass.
    """

    store: str
    copies: int
    bytes: int
    cost: float
    period: timedelta
    needs: dict[str, timedelta]
    cap: float | None
    waiting: int = 0
    first_reads: timedelta = timedelta()

    @property
    def takes(self) -> timedelta | None:
        """Return how long a pass takes, None where nothing limits it."""
        return max(self.needs.values(), default=None)

    @property
    def summary(self) -> str:
        """Return the time and cost of a pass, in one sentence."""
        size = ByteSize(self.bytes).human_readable(separator=" ")
        told = [f"one pass of {size} in {counted(self.copies, 'copy')}"]
        if self.cost:
            told.append(f"costs {self.cost:,.2f}" + (f" of your {self.cap:,.2f} a month" if self.cap else ""))
        if self.takes is not None:
            took = f"takes {duration_text(self.takes)}, its period is {duration_text(self.period)}"
            told.append(f"and {took}" if self.cost else took)
        first = ""
        if self.waiting and self.takes is not None:
            takes = duration_text(self.first_reads)
            first = f"; the first reads of {counted(self.waiting, 'new copy')} take {takes}"
        return f"{self.store}: {' '.join(told)}{first}"

    @property
    def warning(self) -> str | None:
        """Return a message that the period cannot be met, and which setting would help; None if it can."""
        if self.takes is None or self.takes <= self.period:
            return None
        limits = ", ".join(name for name, time in self.needs.items() if time > self.period)
        factor, days = self.takes / self.period, math.ceil(self.takes / _DAY)
        return f"{self.summary}: raise {limits} {factor:,.1f} times, or set a period of {days}d"


@dataclass(frozen=True, slots=True)
class Pace:
    """How many copies of a store are due, and how many a second were read of late; None if none were.

    `allowed`: the time within which the due ones have to be read, so that none becomes overdue.
    """

    store: str
    due: int
    rate: float | None
    allowed: timedelta

    @property
    def needed(self) -> timedelta | None:
        """Return how long reading the due copies takes at that rate, or None if the rate is not known."""
        return timedelta(seconds=min(self.due / self.rate, 10**10)) if self.rate else None

    @property
    def warning(self) -> str | None:
        """Return a message that copies will be overdue, with the way out; None if the rate is enough or not known."""
        if self.due < _FEW or self.needed is None or self.needed <= self.allowed:
            return None
        return (
            f"{self.store}: {counted(self.due, 'copy')} are due and {self.rate:.0f} a second are read, which takes "
            f"{duration_text(self.needed)}; copies become overdue after {duration_text(self.allowed)}: "
            "run more workers for the queue sweep, or set a longer sweep.verify.period"
        )


def rates(budget: Budget, prices: Prices) -> Rates:
    """Return the rates at which a budget is used evenly over its hours."""
    open_day = budget.open_share * 86_400
    daily_bytes = budget.bytes_per_day / open_day if budget.bytes_per_day else None
    daily_requests = budget.requests_per_day / open_day if budget.requests_per_day else None
    money = budget.cost_per_month / (_MONTH * open_day) if budget.cost_per_month and prices != Prices() else None
    return Rates(
        _least(budget.bytes_per_second, daily_bytes), _least(budget.requests_per_second, daily_requests), money
    )


def refilled(
    state: BudgetState, budget: Budget, prices: Prices, now: datetime, every: timedelta = BURST
) -> BudgetState:
    """Return the state with the allowance that has become free since its time: by rates, day and month.

    `every`: how often the sweep runs.
    """
    saved = max(BURST, every).total_seconds()
    passed = max((now - state.at).total_seconds(), 0.0) * (1.0 if budget.is_open(now) else 0.0)
    per = rates(budget, prices)

    def level(left: float, rate: float | None) -> float:
        return min(left + rate * passed, rate * saved) if rate else 0.0

    return replace(
        state.on_day_of(now),
        at=now,
        bytes_level=level(state.bytes_level, per.bytes),
        requests_level=level(state.requests_level, per.requests),
        cost_level=level(state.cost_level, per.cost),
    )


def take(
    state: BudgetState,
    sizes: Sequence[int],
    budget: Budget,
    prices: Prices,
    now: datetime,
    *,
    every: timedelta = BURST,
) -> tuple[BudgetState, int]:
    """Return how many of these objects may be read now, from the first on, and the state after that.

    An object is allowed while anything is left of each rate, even if the object is larger: otherwise a large one could
    never be read. What is left is then negative, and must be refilled before the next object is allowed. The sums of a
    day and of a month are never exceeded.
    """
    state, per = refilled(state, budget, prices, now, every), rates(budget, prices)
    if not budget.is_open(now):
        return state, 0
    for number, size in enumerate(sizes):
        cost = prices.cost(size, 1)
        spent = any(
            rate is not None and level <= 0
            for rate, level in (
                (per.bytes, state.bytes_level), (per.requests, state.requests_level), (per.cost, state.cost_level),
            )
        )  # fmt: skip
        over = (
            _over(state.day_bytes + size, budget.bytes_per_day)
            or _over(state.day_requests + 1, budget.requests_per_day)
            or _over(state.month_cost + cost, budget.cost_per_month)
        )
        if spent or over:
            return state, number
        state = replace(
            state, bytes_level=state.bytes_level - size, requests_level=state.requests_level - 1,
            cost_level=state.cost_level - cost, day_bytes=state.day_bytes + size,
            day_requests=state.day_requests + 1, month_cost=state.month_cost + cost,
        )  # fmt: skip
    return state, len(sizes)


def most(
    state: BudgetState, mean: int, budget: Budget, prices: Prices, now: datetime, *, every: timedelta = BURST
) -> int | None:
    """Return about how many copies of this mean size may be read now; None for no limit."""
    state, per = refilled(state, budget, prices, now, every), rates(budget, prices)
    if not budget.is_open(now):
        return 0
    cost, mean = prices.cost(mean, 1), max(mean, 1)
    left = [
        level / each
        for level, each, limited in (
            (state.bytes_level, mean, per.bytes), (state.requests_level, 1, per.requests),
            (state.cost_level, cost, per.cost if cost else None),
            ((budget.bytes_per_day or 0) - state.day_bytes, mean, budget.bytes_per_day),
            ((budget.requests_per_day or 0) - state.day_requests, 1, budget.requests_per_day),
            ((budget.cost_per_month or 0) - state.month_cost, cost, budget.cost_per_month if cost else None),
        )
        if limited is not None
    ]  # fmt: skip
    return max(0, -int(-min(left) // 1)) if left else None


def forecast(
    store: str, copies: int, size: int, *, period: timedelta, budget: Budget, prices: Prices, bandwidth: float | None
) -> Forecast:
    """Return the forecast of one pass over a store; `bandwidth` is the store's own limit in bytes a second."""
    cost, per, share = prices.cost(size, copies), rates(budget, prices), budget.open_share
    open_day = share * 86_400
    wanted: dict[str, tuple[float, float | None]] = {
        "bytes_per_second": (size, budget.bytes_per_second),
        "requests_per_second": (copies, budget.requests_per_second),
        "bytes_per_day": (size, budget.bytes_per_day and budget.bytes_per_day / open_day),
        "requests_per_day": (copies, budget.requests_per_day and budget.requests_per_day / open_day),
        "cost_per_month": (cost, per.cost),
        "store_limits.bytes_per_second": (size, bandwidth),
    }
    needs = {name: timedelta(seconds=min(whole / rate / share, 1e10)) for name, (whole, rate) in wanted.items() if rate}
    return Forecast(store, copies, size, cost, period, needs, budget.cost_per_month if prices != Prices() else None)


def forecast_of(settings: Settings, catalogue: Catalogue, store: str, *, now: datetime) -> Forecast | None:
    """Return the forecast for all copies of a store, or None if neither a budget, a price nor a limit is set for it."""
    limits = settings.store_limits.get(store)
    limited = store in settings.budgets or store in settings.prices or (limits and limits.bytes_per_second)
    if not limited:
        return None
    usage = catalogue.budgets.usage(store, now=now)
    waiting = catalogue.sweep_claims.first_reads_late(store, first_read=timedelta(), now=now)
    return forecast_for(settings, store, usage.copies, usage.bytes, waiting=min(waiting, usage.copies))


def forecast_for(settings: Settings, store: str, copies: int, size: int, *, waiting: int = 0) -> Forecast:
    """Return the forecast for so many copies of a store with so many bytes together, by its settings.

    `waiting`: how many of them were not read since their write.
    """
    limits, verify = settings.store_limits.get(store), settings.sweep.verify
    budget, prices = settings.budgets.get(store, Budget()), settings.prices.get(store, Prices())
    found = forecast(
        store, copies, size, period=verify.period_of(store), budget=budget, prices=prices,
        bandwidth=limits.bytes_per_second if limits else None,
    )  # fmt: skip
    takes = first_reads_take(
        waiting, copies, size // max(copies, 1), period=verify.period_of(store), first_read=verify.first_read_of(store),
        budget=budget, prices=prices,
    )  # fmt: skip
    return replace(found, waiting=waiting, first_reads=takes)


def first_reads_take(
    waiting: int, copies: int, mean: int, *, period: timedelta, first_read: timedelta, budget: Budget, prices: Prices
) -> timedelta:
    """Return the time within which `plan` has all copies read that were not read since their write.

    That is `first_read` if the budget allows it, and otherwise the time that their number takes at the even rate.
    """
    even, share = _even(copies, period, budget), budget.open_share
    allowed = _copies_a_second(mean, budget, prices) * share
    wanted = waiting / max(first_read, period * SHORTEST_HORIZON).total_seconds()  # as `SweepClaims.needed` counts them
    if even + wanted <= allowed:
        return first_read if waiting else timedelta()
    return timedelta(seconds=min(waiting / min(even, allowed), 1e10))


def pace_of(catalogue: Catalogue, store: str, due: int, *, period: timedelta, now: datetime) -> Pace:
    """Return the pace of a store of which so many copies are due."""
    rate = catalogue.pages.read_rate(store, since=now - _RECENT) if due >= _FEW else None
    return Pace(store, due, rate, period * GRACE)


@dataclass(frozen=True, slots=True)
class Backlog:
    """The copies of a store that are to be read.

    `copies`: their number. `needed`: how many have to be read in a second. `due`: how many are due. `retries`: how
    many of the due ones wait for a retry. `late`: how many were last read longer than `LATE` of the period ago.
    `oldest`: the earliest last read of a copy. `mean`: the mean size of a copy.
    """

    copies: int
    needed: NeededReads
    due: int
    retries: int
    late: int
    oldest: datetime | None
    mean: int


def plan(
    of: Backlog,
    state: BudgetState,
    *,
    period: timedelta,
    every: timedelta,
    budget: Budget,
    prices: Prices,
    now: datetime,
) -> tuple[int, int]:
    """Return how many copies of a store are read until the sweep runs again, and how many of them are urgent.

    Copies are read at the even rate, also before they are due; first reads of new copies are added to it. More copies
    are urgent only if they would be overdue otherwise; each late copy counts as old as the oldest one. Retries are
    always urgent, and so are due copies if they are few. The budget, whose state is `state`, is never exceeded.

    If the budget does not allow all first reads in time, only those that are not late are added. Late ones are made
    within the even rate, before copies that are not due.
    """
    if not budget.is_open(now):
        return 0, 0
    share = budget.open_share
    closed = _closed(budget)
    even, needed = _even(of.copies, period, budget), of.needed
    limited = math.isfinite(_copies_a_second(of.mean, budget, prices))
    rate = (max(even + needed.new, needed.again) if limited else max(even + needed.first, needed.all)) / share
    evenly = _in_slot(rate * every.total_seconds(), now, every)
    left = period - (now - of.oldest) - 2 * every - closed if of.oldest is not None else period
    urgent = math.ceil(of.late * (every / left) / share) if left > every else of.late
    urgent = max(urgent, of.retries, of.due if of.due <= _AT_ONCE else 0)
    allowed = most(state, of.mean, budget, prices, now, every=every)
    wanted = max(evenly, urgent)
    return (wanted, urgent) if allowed is None else (min(wanted, allowed), min(urgent, allowed))


def _closed(budget: Budget) -> timedelta:
    """Return for how long of a day a store is not read: the period of a copy may end within these hours."""
    return _DAY * (1 - budget.open_share)


def _even(copies: int, period: timedelta, budget: Budget) -> float:
    """Return the even rate of so many copies: reads a second, on average over the day, if none is late or new."""
    within = max(period - _closed(budget), period / 2)
    return copies * _EVEN / within.total_seconds()


def _copies_a_second(mean: int, budget: Budget, prices: Prices) -> float:
    """Return how many copies of this mean size a budget allows in a second of its hours, in the long run."""
    per, cost = rates(budget, prices), prices.cost(mean, 1)
    limits = ((per.bytes, max(mean, 1)), (per.requests, 1), (per.cost, cost))
    return min((rate / each for rate, each in limits if rate is not None and each), default=math.inf)


def _in_slot(wanted: float, now: datetime, every: timedelta) -> int:
    """Return a whole number for this run of a sweep, so that the mean over many runs is what is wanted."""
    number = int(now.timestamp() // every.total_seconds())
    return math.floor(wanted * (number + 1)) - math.floor(wanted * number)


def _least(*values: float | None) -> float | None:
    return min((float(each) for each in values if each is not None), default=None)


def _over(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit
