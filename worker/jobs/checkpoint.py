"""Remember in the catalogue how far the write of a copy has come, so that any worker can go on with it."""

from celery.exceptions import SoftTimeLimitExceeded

from worker import clock
from worker.catalogue import Artifact, Catalogue, CatalogueError
from worker.jobs.running_job import Requeue
from worker.limits.snooze import Snooze
from worker.storage.errors import TransientError
from worker.storage.transfer.multipart import OpenUpload, SentPart


class CopyCheckpoint:
    """The checkpoint of one copy's write in parts; see `worker.storage.transfer.multipart.Checkpoint`."""

    def __init__(self, catalogue: Catalogue, artifact: Artifact, store: str) -> None:
        self._transfers = catalogue.transfers
        self._artifact = artifact
        self._store = store

    def resume(self) -> OpenUpload | None:
        return self._transfers.find(self._artifact, self._store)

    def begun(self, token: str, part_size: int) -> None:
        self._transfers.begin(self._artifact, self._store, token=token, part_size=part_size, now=clock.now())

    def sent(self, part: SentPart) -> None:
        self._transfers.add(self._artifact, self._store, part)

    def ended(self) -> None:
        self._transfers.end(self._artifact, self._store)

    def worth_keeping(self, error: BaseException) -> bool:
        """Return whether there will be another attempt: after transient errors, time limits, shutdowns, lost leases."""
        passing = isinstance(error, TransientError | CatalogueError | SoftTimeLimitExceeded | Requeue | Snooze)
        return passing or not isinstance(error, Exception)
