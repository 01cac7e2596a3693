"""How much all workers together ask of a store, and when they leave one alone."""

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from worker.settings.sections import Section
from worker.storage.units import Duration, Size


class StoreLimits(Section):
    """What all workers together ask of one store at most."""

    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Jobs that read from or write to the store at a time."""
    bytes_per_second: Annotated[Size, Field(ge=1024)] | None = None
    """Bytes that are read from and written to the store in a second, together."""
    local_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The part of both that one process takes while Redis cannot be asked; by default its part among all processes."""


class BreakerSettings(Section):
    """When a store is left alone that keeps failing, and for how long."""

    enabled: bool = True
    failures: Annotated[int, Field(ge=1)] = 5
    """Passing faults in a row, of all workers, within `within`; then the store's jobs are put off."""
    within: Duration = timedelta(minutes=1)
    open: Duration = timedelta(seconds=30)
    """How long the store is left alone before it is tried out; doubles each time it still fails."""
    open_max: Duration = timedelta(minutes=10)
