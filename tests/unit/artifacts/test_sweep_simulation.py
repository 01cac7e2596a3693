"""The verify sweep on a virtual clock: the scenario of `make simulate`, with few copies and a short period.

The planner, the claims and the catalogue are the real ones; see `tests/simulation/verify_sweep.py`.
"""

from datetime import timedelta
from pathlib import Path

import pytest

from tests.simulation.verify_sweep import BEGIN, CUT, Simulation, faults, picture
from worker.artifacts.read_budget import Backlog, forecast, plan
from worker.catalogue import BudgetState, NeededReads
from worker.settings.budgets import Budget, Prices

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
PERIOD = 30 * DAY
COPIES, SIZE = 12_000, 1_000_000


@pytest.fixture(scope="module")
def simulation(database_directory: Path) -> Simulation:
    simulated = Simulation(database_directory / "simulation", 2400, period=3 * DAY, every=4 * HOUR, end=2.0)
    simulated.run()
    return simulated


def test_copies_are_read_evenly_and_none_is_late(simulation: Simulation) -> None:
    """No copy is older than its period and one run, the load of each hour is within 20 % of even, budgets are kept."""
    assert faults(simulation) == []


def test_money_is_never_overspent_and_the_forecast_comes_before_the_first_miss(simulation: Simulation) -> None:
    """Midway the cap is cut to half of what a pass costs: the forecast tells at once, before any copy is late."""
    money, cut = simulation.seen["money"], BEGIN + CUT * simulation.period
    assert money.first_warning == cut
    assert money.first_miss is not None
    assert money.first_miss > cut
    assert money.first_overdue is not None


def test_the_picture_shows_each_store(simulation: Simulation) -> None:
    """The plot of the documentation is made by the run."""
    svg = picture(simulation)
    assert [name in svg for name in simulation.seen] == [True] * 4


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
    assert "takes 60 d, its period is 30 d" in ahead.warning
    assert forecast(
        "dr", COPIES, COPIES * SIZE, period=60 * DAY, budget=short, prices=Prices(), bandwidth=None
    ).warning is None  # fmt: skip


def test_a_retry_and_what_is_late_do_not_wait_for_the_even_pace() -> None:
    """A store of few copies is read in few runs of the sweep; a canary and overdue copies are read in the next one."""
    few = Backlog(copies=3, needed=NeededReads(), due=0, retries=0, late=0, oldest=BEGIN, mean=SIZE)
    options = {"period": PERIOD, "every": 5 * timedelta(minutes=1), "budget": Budget(), "prices": Prices()}
    state = BudgetState(at=BEGIN)

    def planned(backlog: Backlog, now=BEGIN + DAY) -> int:
        return plan(backlog, state, now=now, **options)[0]

    counts = [planned(few, BEGIN + number * 5 * timedelta(minutes=1)) for number in range(8640)]
    assert sum(counts) in {3, 4}
    assert planned(Backlog(3, NeededReads(), due=1, retries=1, late=0, oldest=BEGIN, mean=SIZE)) >= 1
    assert planned(Backlog(9000, NeededReads(), due=500, retries=500, late=0, oldest=BEGIN, mean=SIZE)) == 500
    assert (
        planned(Backlog(9000, NeededReads(), due=900, retries=0, late=900, oldest=BEGIN, mean=SIZE), BEGIN + 31 * DAY)
        == 900
    )
