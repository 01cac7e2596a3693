"""Estimate whether the due copies of a store can be read before they are overdue."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.catalogue import GRACE, Catalogue

_RECENT = timedelta(hours=1)
"""The pages of this time tell how fast a store is read."""
_FEW = 10_000
"""So many copies are read in a moment at any rate."""


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
        """Return that copies will be overdue, with the way out, or None if the rate is enough or not known."""
        if self.due < _FEW or self.needed is None or self.needed <= self.allowed:
            return None
        return (
            f"{self.store}: {self.due} copies are due and {self.rate:.0f} a second are read, which takes "
            f"{_hours(self.needed)}; copies become overdue after {_hours(self.allowed)}: "
            "run more workers for the queue sweep, or set a longer sweep.verify.period"
        )


def pace_of(catalogue: Catalogue, store: str, due: int, *, period: timedelta, now: datetime) -> Pace:
    """Return the pace of a store of which so many copies are due."""
    rate = catalogue.pages.read_rate(store, since=now - _RECENT) if due >= _FEW else None
    return Pace(store, due, rate, period * GRACE)


def _hours(time: timedelta) -> str:
    return f"{time.total_seconds() / 3600:.1f} h"
