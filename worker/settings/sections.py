"""The sections of the settings, one model each, with what every value means."""

from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.storage.units import Duration, Size


class Section(BaseModel):
    """Part of the settings: frozen, no unknown names, and no value in what it says of a wrong one."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class RetrySettings(Section):
    """How Celery retries a job that met a passing fault."""

    max_attempts: Annotated[int, Field(ge=1)] = 8
    """Attempts in all, the first included; then the job is dead."""
    backoff: Duration = timedelta(seconds=2)
    """The delay before the second attempt; it doubles with each further one. At least 1s."""
    backoff_max: Duration = timedelta(minutes=5)
    max_crashes: Annotated[int, Field(ge=1)] = 5
    """Starts in a row of which nothing was heard again, because the worker was killed; then the job is dead."""
    jitter: bool = True
    """Draw each delay from between 0 and its value, so that jobs that failed together do not return together."""


class SourceSettings(Section):
    """Where uploads may come from. Everything else is refused."""

    roots: tuple[Path, ...] = ()
    """Directories; files below them can be uploaded, symbolic links out of them cannot."""
    hosts: tuple[str, ...] = ()
    """`host` for https, or `http://host:port` and the like for a whole origin."""
    timeout: Duration = timedelta(seconds=60)
    max_size: Size | None = None
    """Largest download from a host."""


class ReplicationSettings(Section):
    """How a copy is proved that was brought to another store."""

    proof: Literal["provider", "reread"] = "provider"
    """`provider`: the bytes were hashed on the way, and the store confirmed the write. `reread`: they are read back."""
    server_side: bool = True
    """Let a provider copy between two of its stores by itself. What it has copied is always read back."""


class PlacementRule(Section):
    """Where the artifacts of some buckets belong; the first rule that fits an artifact is the one that counts."""

    bucket: Annotated[str, Field(min_length=1, max_length=63)]
    """Its name, or a pattern with `*`, `?` and `[…]`."""
    prefix: Annotated[str, Field(max_length=1024)] = ""
    """Only keys that begin like this."""
    stores: Annotated[tuple[str, ...], Field(min_length=1)]

    def fits(self, bucket: str, key: str) -> bool:
        """Return whether the rule speaks of this artifact."""
        return fnmatchcase(bucket, self.bucket) and key.startswith(self.prefix)


class VerifySweepSettings(Section):
    """How often every copy is read again."""

    enabled: bool = True
    every: Duration = timedelta(minutes=5)
    """How often the sweep looks for copies that are due."""
    period: Duration = timedelta(days=30)
    """Every copy of a store is fully read within this time."""
    periods: dict[str, Duration] = {}
    """Other periods for single stores, by name."""
    batch: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Most copies of one store that one sweep claims."""
    claim: Duration = timedelta(hours=6)
    """How long a claimed copy is left alone before another sweep may claim it."""

    def period_of(self, store: str) -> timedelta:
        """Return the time within which every copy of this store is read again."""
        return self.periods.get(store, self.period)


class ReplicateSweepSettings(Section):
    """How often artifacts are looked for that lack a copy which `placement_rules` want; without rules, never."""

    enabled: bool = True
    every: Duration = timedelta(minutes=1)
    batch: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Most copies of one store that one sweep claims."""
    claim: Duration = timedelta(hours=6)
    """How long a claimed copy is left to its job before another sweep may claim it."""


class LeftoverSweepSettings(Section):
    """How long what killed writers left behind stays: temporary files, open uploads, staged sources."""

    enabled: bool = True
    every: Duration = timedelta(hours=1)
    age: Duration = timedelta(days=1)
    """What is younger is left alone, and so is what a job that has not ended will go on with."""


class ProbeSweepSettings(Section):
    """How often every store is tried out with a small object of our own; also when a worker starts."""

    enabled: bool = True
    every: Duration = timedelta(hours=1)


class RecoverSweepSettings(Section):
    """How soon jobs are sent again of which nothing is heard: the worker was killed, or Redis lost the message."""

    enabled: bool = True
    every: Duration = timedelta(seconds=15)
    after: Duration = timedelta(seconds=60)
    """How long a job that no worker has taken over yet is left alone."""
    again: Duration = timedelta(minutes=5)
    """How long a job that was sent again is left alone."""


class SweepSettings(Section):
    """The periodic tasks."""

    recover: RecoverSweepSettings = RecoverSweepSettings()

    verify: VerifySweepSettings = VerifySweepSettings()
    replicate: ReplicateSweepSettings = ReplicateSweepSettings()
    leftovers: LeftoverSweepSettings = LeftoverSweepSettings()
    probe: ProbeSweepSettings = ProbeSweepSettings()


class JobSettings(Section):
    """Limits on a single job."""

    time_limit: Duration = timedelta(hours=6)
    """An attempt that takes longer is ended. It has a minute to stop by itself before it is killed."""
    lease: Duration = timedelta(seconds=30)
    """How long a job belongs to its worker after the last sign of life; renewed while it works."""
    grace: Duration = timedelta(seconds=5)
    """How long a worker that is asked to end lets its jobs go on; then they are handed back at their next piece."""
    max_put_off: Duration = timedelta(days=1)
    """How long a job waits in a row, at no cost to its attempts, for a store that is away or busy; then it is dead."""
    result_expires: Duration = timedelta(days=1)
    """How long results stay in the result backend; the ledger in the catalogue keeps them for good."""


class BatchSettings(Section):
    """How batch jobs plan."""

    in_flight: Annotated[int, Field(ge=1, le=10_000)] = 256
    """How many jobs of one batch wait or run at a time at most; a batch may name another number."""
    step: Duration = timedelta(seconds=1)
    """How often a batch counts what has come out, and sends as many more. It holds no process in between."""
