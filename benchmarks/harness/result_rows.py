"""The result of a measurement: rows of the table, with ratios of pairs within one run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from subprocess import CalledProcessError

from celery.exceptions import CeleryError

from tests.servers import ServerFailed, ServerMissing
from worker.storage.errors import StorageError
from zot_artifact_client import ClientError


class NotMeasured(Exception):
    """A line could not be measured; the message says why."""


_OURS = (NotMeasured, ServerMissing, ServerFailed, ClientError, StorageError)
FAILURES = (*_OURS, CeleryError, CalledProcessError, OSError)
"""The errors that leave one line of the table without numbers, and do not end the run."""


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a number: at least or at most a value."""

    limit: float
    at_least: bool = False
    unit: str = ""

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{self.unit}"

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Samples:
    """Several measurements of one thing, with their unit.

    `cost`: the text of the processor time of each operation, beside a rate.
    """

    values: Sequence[float]
    unit: str = ""
    digits: int = 0
    cost: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        """Return the median and, of several values, the least and the greatest; and the cost."""
        spread = (
            f" ({self._shown(min(self.values))} to {self._shown(max(self.values))})" if len(self.values) > 1 else ""
        )
        cost = f", {self.cost}" if self.cost else ""
        return f"{self._shown(self.median)}{spread}{self.unit}{cost}"

    def _shown(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ours, the yardstick, their ratio, and the target.

    Without a yardstick the target is for ours.
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
    """A line of the table without numbers, and the reason."""

    what: str
    why: str


Line = Row | Missing
