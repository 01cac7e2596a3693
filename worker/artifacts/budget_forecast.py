"""What one pass over a store takes with the budget that the settings give it."""

from datetime import datetime

from worker.artifacts.read_budget import Forecast, forecast
from worker.catalogue import Catalogue
from worker.settings import Settings
from worker.settings.budgets import Budget, Prices


def forecast_of(settings: Settings, catalogue: Catalogue, store: str, *, now: datetime) -> Forecast | None:
    """Return the forecast of a store, or None if neither a budget, a price nor a limit is set for it."""
    limits = settings.store_limits.get(store)
    bandwidth = limits.bytes_per_second if limits else None
    if store not in settings.budgets and store not in settings.prices and bandwidth is None:
        return None
    copies, size = catalogue.budgets.totals(store, now=now)
    return forecast(
        store, copies, size, period=settings.sweep.verify.period_of(store), bandwidth=bandwidth,
        budget=settings.budgets.get(store, Budget()), prices=settings.prices.get(store, Prices()),
    )  # fmt: skip
