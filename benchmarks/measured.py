"""What a measurement returns: one row of the table, its ratio taken pairwise within one run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from subprocess import CalledProcessError

from celery.exceptions import CeleryError

from tests.servers import ServerFailed, ServerMissing
from worker.storage.errors import StorageError
from zot_artifact_client import ClientError


class NotMeasured(Exception):
    """Something could not be measured; the message says what and why."""


_OURS = (NotMeasured, ServerMissing, ServerFailed, ClientError, StorageError)
FAILURES = (*_OURS, CeleryError, CalledProcessError, OSError)
"""What leaves a line of the table without its numbers, and the others with theirs."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a number should be: at least or at most a value."""

    limit: float
    at_least: bool = False
    unit: str = ""

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{self.unit}"

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Samples:
    """The same thing measured several times, with the unit it is shown in."""

    values: Sequence[float]
    unit: str = ""
    digits: int = 0

    @property
    def median(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        """Return the median and, of several values, the least and the greatest."""
        spread = (
            f" ({self._shown(min(self.values))} to {self._shown(max(self.values))})" if len(self.values) > 1 else ""
        )
        return f"{self._shown(self.median)}{spread}{self.unit}"

    def _shown(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ours, what it is held against, their ratio, and what was promised of it.

    Without a yardstick, it is ours itself that the target is of.
    """

    what: str
    ours: Samples
    yardstick: Samples | None = None
    target: Target | None = None
    ratio: Samples | None = field(init=False)

    def __post_init__(self) -> None:
        pairs = zip(self.ours.values, self.yardstick.values, strict=True) if self.yardstick else ()
        ratios = [ours / theirs for ours, theirs in pairs]
        object.__setattr__(self, "ratio", Samples(ratios, digits=2) if ratios else None)

    @property
    def met(self) -> bool | None:
        """Return whether the target is met, None where there is none."""
        return self.target.met((self.ratio or self.ours).median) if self.target else None


@dataclass(frozen=True, slots=True)
class Missing:
    """A line of the table without numbers, and why it has none."""

    what: str
    why: str


Line = Row | Missing
