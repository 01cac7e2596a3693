"""Find out whether a store refuses all that a job on many objects asks, which would otherwise try each of them."""

from collections import Counter

from worker.limits.snooze import StoreRefuses
from worker.storage import Store
from worker.storage.errors import REFUSALS, Archived, IntegrityError, NotFound, OutOfSpace, SameStore, StorageError
from worker.storage.probe import probe

REFUSED = 10
"""Requests of one verb that a store refuses a job before it may count as refusing all."""
_READS = frozenset({"stat", "read", "verify"})
_ANSWERS = (NotFound, Archived, IntegrityError)
"""Errors that show that the job may read objects: without that right, S3 answers 403 also for a missing object."""


class Refusals:
    """What one store has served and refused one job."""

    def __init__(self, store: Store, refused_for: float | None) -> None:
        self.refused_for = refused_for
        """Seconds for which a job is snoozed that the store refuses all; None for a job that tries each object."""
        self._store = store
        self._counts = Counter[str]()
        """By verb, how often the store has refused the job."""
        self._served: set[str] = set()
        """The verbs that the store has served for the job: if it refuses one, the refusal may be about one object."""
        self._all: tuple[str, str | None] | None = None
        """Why the store refuses all that the job asks; and the verb that, once served, takes that back, or None."""

    def check(self) -> None:
        """Raise StoreRefuses if the store refuses all that the job asks."""
        if self._all is not None and self._all[1] not in self._served and self.refused_for is not None:
            told = f"{self._store.name}: it refuses all that a page asks: {self._all[0]}"
            raise StoreRefuses(told, self.refused_for, self._store.name)

    def served(self, verb: str) -> None:
        """Record that the store has served a verb."""
        self._served.add(verb)

    def count(self, error: StorageError, verb: str) -> None:
        """Count an error of the store as a refusal or as an answer. The right to read tags is optional."""
        if isinstance(error, REFUSALS) and self.refused_for is not None and verb != "tags":
            self._counts[verb] += 1
            told = error.message.removeprefix(f"{self._store.name}: ")
            if isinstance(error, SameStore) and self._counts[verb] % REFUSED == 1 and self._is_place_of_another():
                self._all = told, None
            elif self._counts[verb] % REFUSED == 0:
                full, unserved = isinstance(error, OutOfSpace), verb not in self._served
                if full or unserved or self._refuses_probe(verb):
                    self._all = told, verb if unserved and not full else None
        elif isinstance(error, _ANSWERS) and verb in _READS:
            self._served.add(verb)

    def _is_place_of_another(self) -> bool:
        """Return whether the whole store, and not only a bucket of it, is the same place as another store."""
        try:
            self._store.check_identity("record")
        except StorageError as answer:
            return isinstance(answer, SameStore)
        return False

    def _refuses_probe(self, verb: str) -> bool:
        if verb in _READS:  # a probe writes: where it is refused, reads may still be served
            return self._store.refuses_reads()
        try:
            probe(self._store)
        except StorageError as answer:
            return isinstance(answer, REFUSALS)
        return False
