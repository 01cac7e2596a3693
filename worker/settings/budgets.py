"""What the verify sweep may use of each store, and what the store's provider asks for it."""

import re
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field, field_validator

from worker.settings.section_models import Section
from worker.storage.durations_and_sizes import Size

_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_DAY = 86_400
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(Section):
    """What reading from a store costs, in any one currency. GB is 10⁹ bytes, as providers count."""

    read_gb: Price = 0
    egress_gb: Price = 0
    retrieval_gb: Price = 0
    requests_1000: Price = 0

    def cost(self, size: float, requests: float) -> float:
        """Return what it costs to read so many bytes with so many requests."""
        return (self.read_gb + self.egress_gb + self.retrieval_gb) * size / 1e9 + self.requests_1000 * requests / 1000


class Budget(Section):
    """The most that the verify sweep uses of one store; None for no limit."""

    hours: str | None = None
    """The hours of the day, in UTC, in which it reads: `22:00-06:00`."""
    bytes_per_second: Annotated[Size, Field(ge=1)] | None = None
    requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bytes_per_day: Annotated[Size, Field(ge=1)] | None = None
    requests_per_day: Annotated[int, Field(ge=1)] | None = None
    cost_per_month: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """In the currency of `prices`."""

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, hours: str | None) -> str | None:
        found = _HOURS.fullmatch(hours) if hours else None
        if hours is not None and (found is None or found.group(1, 2) == found.group(3, 4)):
            msg = "two different times of the day such as 22:00-06:00 are expected, in UTC"
            raise ValueError(msg)
        return hours

    def most_of_one(self, prices: Prices) -> int | None:
        """Return the size of the largest object that `can_hold`, -1 if there is none, None for no limit."""
        limits = [] if self.bytes_per_day is None else [float(self.bytes_per_day)]
        if self.cost_per_month is not None:
            left, per_byte = self.cost_per_month - prices.cost(0, 1), prices.cost(1, 0)
            if left < 0:
                limits.append(-1)
            elif per_byte:
                limits.append(left / per_byte)
        return int(min(limits)) if limits else None

    def can_hold(self, size: int, prices: Prices) -> bool:
        """Return whether an object of this size is within the sums of a whole day and month."""
        in_day = self.bytes_per_day is None or size <= self.bytes_per_day
        return in_day and (self.cost_per_month is None or prices.cost(size, 1) <= self.cost_per_month)

    def is_open(self, now: datetime) -> bool:
        """Return whether the sweep may read now."""
        begin, length = self._window
        return (now.hour * 3600 + now.minute * 60 + now.second - begin) % _DAY < length

    def opens_at(self, now: datetime) -> datetime:
        """Return when the sweep may read next: now, or at the beginning of the hours."""
        passed = (now.hour * 3600 + now.minute * 60 + now.second - self._window[0]) % _DAY
        return now if self.is_open(now) else now + timedelta(seconds=_DAY - passed)

    @property
    def open_share(self) -> float:
        """Return which part of the day the hours are."""
        return self._window[1] / _DAY

    @property
    def _window(self) -> tuple[int, int]:
        found = _HOURS.fullmatch(self.hours) if self.hours else None
        if found is None:
            return 0, _DAY
        first, second = (int(found[n]) * 3600 + int(found[n + 1]) * 60 for n in (1, 3))
        return first, (second - first) % _DAY
