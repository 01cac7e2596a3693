"""Groups of figures that are computed in the background: a request is answered at once, from the last ones."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic, time

from prometheus_client import Metric

from worker.catalogue import CatalogueError
from worker.metrics.family_builders import Sample, gauge
from worker.settings.model import SettingsError
from zot_artifact_client.connection import BROKER_ERRORS
from zot_artifact_client.errors import ClientError
from zot_artifact_client.text_escaping import bounded, without_secrets

logger = logging.getLogger(__name__)

_SHARE = 20
"""A group rests for so many times as long as it took, so that it never uses more than a twentieth of the time."""
_EXPECTED = (CatalogueError, *BROKER_ERRORS, SettingsError, ClientError)


@dataclass
class Group:
    """Figures that are computed together, at least so many seconds apart.

    While they cannot be computed they are left out: an old figure would look like a new one.
    """

    name: str
    collect: Callable[[], Iterable[Metric]]
    every: float
    families: Sequence[Metric] = ()
    up: bool = False
    at: float = 0.0
    seconds: float = 0.0
    tried: threading.Event = field(default_factory=threading.Event)

    def refresh(self) -> None:
        """Compute the figures once."""
        began = monotonic()
        try:
            self.families = list(self.collect())
            self.at = time()
            if not self.up:
                logger.info("figures of %s: computed", self.name)
            self.up = True
        except Exception as error:
            if self.up or not self.tried.is_set():
                known = isinstance(error, _EXPECTED)
                told = bounded(without_secrets(str(error)), 500)
                logger.warning("figures of %s: none: %s: %s", self.name, type(error).__name__, told, exc_info=not known)
            self.families, self.up = (), False
        self.seconds = monotonic() - began
        self.tried.set()


class Groups:
    """All groups, each refreshed by a thread of its own, so that a slow catalogue delays no figure of the broker."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(group,), name=f"figures-{group.name}", daemon=True)
            for group in groups
        ]

    def start(self) -> None:
        """Begin to compute."""
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Return whether every group was computed once, after so many seconds at most."""
        deadline = monotonic() + seconds
        return all(group.tried.wait(max(0.0, deadline - monotonic())) for group in self._groups)

    def stop(self) -> None:
        """End the threads; one that waits for a server ends with the process."""
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def collect(self) -> Iterable[Metric]:
        """Yield the last figures, and how old they are."""
        names = ["group"]
        up: list[Sample] = [((each.name,), float(each.up)) for each in self._groups]
        yield gauge("figures_up", "Whether the figures of a group could be computed the last time.", up, names)
        at: list[Sample] = [((each.name,), each.at) for each in self._groups]
        about = "When the figures of a group were computed, in seconds since 1970."
        yield gauge("figures_computed_timestamp_seconds", about, at, names)
        took: list[Sample] = [((each.name,), each.seconds) for each in self._groups]
        yield gauge("figures_seconds", "How long the last computation of a group took.", took, names)
        for group in self._groups:
            yield from group.families

    def _run(self, group: Group) -> None:
        while not self._ended.is_set():
            group.refresh()
            self._ended.wait(max(group.every, group.seconds * _SHARE))
