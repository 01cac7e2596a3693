"""A budget bounds what the verify sweep reads, and the forecast tells beforehand where that is not enough."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ByteSize, ValidationError

from worker.artifacts.read_budget import first_reads_take, forecast, most, take
from worker.catalogue import BudgetState
from worker.settings.budgets import Budget, Prices

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FREE = Prices()


def test_the_forecast_tells_cost_time_and_what_would_do() -> None:
    """A cap that a pass exceeds is named with the cost of a pass, before the first byte is read."""
    prices = Prices(read_gb=0.01, egress_gb=0.0475)
    ahead = forecast(
        "dr", 1_000_000, 10**13, period=30 * DAY, budget=Budget(cost_per_month=50), prices=prices, bandwidth=None
    )
    assert ahead.warning == (
        "dr: one pass of 9.1 TiB in 1,000,000 copies costs 575.00 of your 50.00 a month and takes 345 d, its "
        "period is 30 d: raise cost_per_month 11.5 times, or set a period of 345d"
    )
    enough = forecast(
        "dr", 1_000_000, 10**13, period=30 * DAY, budget=Budget(cost_per_month=600), prices=prices, bandwidth=None
    )
    assert (enough.warning, round(enough.cost)) == (None, 575)


def test_the_first_reads_of_new_copies_take_as_long_as_the_budget_asks_for() -> None:
    """First reads take `first_read` if the budget allows that, and otherwise as long as the even rate needs."""
    given = {"period": 30 * DAY, "first_read": DAY, "prices": FREE}
    enough, scarce = (Budget(bytes_per_day=count * 10**6) for count in (1_000_000, 50_000))
    assert first_reads_take(700_000, 1_000_000, 10**6, budget=enough, **given) == DAY
    assert round(first_reads_take(700_000, 1_000_000, 10**6, budget=scarce, **given) / DAY) == 18
    assert first_reads_take(0, 1_000_000, 10**6, budget=scarce, **given) == timedelta()
    given["first_read"] = timedelta()  # as soon as can be
    assert first_reads_take(700, 1_000_000, 10**6, budget=Budget(), **given) == timedelta()
    assert first_reads_take(0, 0, 0, budget=scarce, **given) == timedelta()
    assert round(first_reads_take(700_000, 1_000_000, 10**6, budget=scarce, **given) / DAY) == 18


def test_requests_and_retrieval_have_their_price() -> None:
    """Each request and each gigabyte costs what the settings say, and nothing is built in."""
    assert Prices(retrieval_gb=0.02, requests_1000=0.5).cost(3e9, 2000) == pytest.approx(1.06)
    assert FREE.cost(1e15, 1e9) == 0


def test_the_limit_of_the_store_counts_too() -> None:
    """A bandwidth limit that is too low for the period is told in the same way."""
    ahead = forecast("dr", 10, 10**9 * 86_400, period=DAY, budget=Budget(), prices=FREE, bandwidth=0.5e9)
    assert "raise store_limits.bytes_per_second 2.0 times, or set a period of 2d" in str(ahead.warning)


@pytest.mark.parametrize(
    ("hours", "hour", "is_open", "opens"),
    [
        ("22:00-06:00", 23, True, 0),
        ("22:00-06:00", 5, True, 0),
        ("22:00-06:00", 12, False, 10),
        ("06:00-22:00", 4, False, 2),
    ],
)
def test_hours_may_cross_midnight(hours: str, hour: int, opens: int, *, is_open: bool) -> None:
    """Nothing is read outside of them, and it is known when they begin."""
    now = NOON.replace(hour=hour)
    budget = Budget(hours=hours)
    assert budget.is_open(now) is is_open
    assert budget.opens_at(now) - now == opens * HOUR
    full = BudgetState(at=now, bytes_level=1e9, requests_level=1e9)
    assert take(full, [1], budget, FREE, now)[1] == int(is_open)
    assert most(full, 1, budget, FREE, now) == (None if is_open else 0)


def test_a_rate_is_held_and_a_large_object_is_paid_for_afterwards() -> None:
    """An object above what is left is read, because it could not be read otherwise; the next ones wait for the debt."""
    budget = Budget(bytes_per_second=ByteSize(1000))
    state, count = take(BudgetState(at=NOON), [5000] * 3, budget, FREE, NOON + timedelta(seconds=1))
    assert (count, state.bytes_level) == (1, -4000)
    assert take(state, [1], budget, FREE, NOON + timedelta(seconds=4))[1] == 0
    assert take(state, [1], budget, FREE, NOON + timedelta(seconds=6))[1] == 1
    later = take(state, [1] * 10**5, budget, FREE, NOON + 5 * DAY)[0]
    assert later.bytes_level == 1000 * 3600 - 10**5  # no more than an hour is saved


@pytest.mark.parametrize("every", [timedelta(minutes=5), 6 * HOUR, DAY])
def test_a_budget_is_used_up_however_seldom_the_sweep_runs(every: timedelta) -> None:
    """What the rates allow between two runs is saved, so that a day's budget is read in a day, and no more."""
    budget = Budget(bytes_per_day=ByteSize(86_400))
    state, read = BudgetState(at=NOON), 0
    for run in range(1, 4 * DAY // every + 1):
        now = NOON + run * every
        wanted = most(state, 60, budget, FREE, now, every=every)
        assert wanted is not None
        state, count = take(state, [60] * wanted, budget, FREE, now, every=every)
        read += 60 * count
    assert 0.95 < read / (4 * 86_400) <= 1


def test_the_sums_of_day_and_month_are_never_exceeded() -> None:
    """Requests are spread over the day; at the end of the month nothing is read when its money is spent."""
    prices, budget = Prices(requests_1000=250), Budget(requests_per_day=3, cost_per_month=10)
    state, reads = BudgetState(at=NOON), dict.fromkeys(range(40), 0)
    for hour in range(40 * 24):
        now = NOON + hour * HOUR
        state, count = take(state, [1] * 9, budget, prices, now)
        reads[(now.date() - NOON.date()).days] = reads.get((now.date() - NOON.date()).days, 0) + count
        assert state.month_cost <= 10
    assert max(reads.values()) <= 3
    assert sum(reads[day] for day in range(5, 36)) == 40  # December: 10 of money at 0.25 each
    assert reads[20] in {1, 2}
    spent = BudgetState(at=NOON, cost_level=0.01, requests_level=1, month="2026-11", month_cost=9.9)
    assert take(spent, [1], budget, prices, NOON)[1] == 0
    assert take(spent, [1], budget, prices, NOON + 5 * DAY)[1] == 1


@pytest.mark.parametrize("hours", ["22-06", "24:00-06:00", "06:00-06:00", "always"])
def test_hours_that_are_none_are_refused(hours: str) -> None:
    """The error says what is expected."""
    with pytest.raises(ValidationError, match=r"22:00-06:00"):
        Budget(hours=hours)


@pytest.mark.parametrize(
    "budget",
    [
        Budget(bytes_per_day=ByteSize(10**9)),
        Budget(cost_per_month=2),
        Budget(bytes_per_day=ByteSize(9), cost_per_month=2),
    ],
)
@pytest.mark.parametrize("prices", [FREE, Prices(read_gb=0.7, requests_1000=250), Prices(requests_1000=3000)])
def test_the_largest_object_that_a_budget_can_hold_is_computed(budget: Budget, prices: Prices) -> None:
    """It is the last one that fits into a whole day and month; every larger one does not."""
    most_of_one = budget.most_of_one(prices)
    if most_of_one is None:
        assert budget.can_hold(10**18, prices)
    else:
        assert most_of_one == -1 or budget.can_hold(most_of_one, prices)
        assert not budget.can_hold(most_of_one + 2, prices)
