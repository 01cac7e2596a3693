"""Record the parts of a multipart upload in the catalogue, so that any worker can resume it."""

from dataclasses import dataclass

from celery.exceptions import SoftTimeLimitExceeded

from worker import clock
from worker.catalogue import Artifact, Catalogue, CatalogueError
from worker.jobs.running_job import Requeue
from worker.limits.limited_store import SourceError
from worker.limits.snooze import Snooze
from worker.storage.errors import TransientError
from worker.storage.transfer.multipart import Checkpoint, OpenUpload, SentPart


@dataclass(frozen=True, slots=True)
class CopyCheckpoint(Checkpoint):
    """The checkpoint of one copy's multipart upload."""

    catalogue: Catalogue
    artifact: Artifact
    store: str

    def resume(self) -> OpenUpload | None:
        return self.catalogue.transfers.find(self.artifact, self.store)

    def begins(self) -> None:
        self.catalogue.transfers.intend(self.artifact, self.store, now=clock.now())

    def begun(self, token: str, part_size: int) -> None:
        self.catalogue.transfers.begin(self.artifact, self.store, token=token, part_size=part_size, now=clock.now())

    def sent(self, part: SentPart) -> None:
        self.catalogue.transfers.add(self.artifact, self.store, part)

    def ended(self) -> None:
        self.catalogue.transfers.end(self.artifact, self.store)

    def worth_keeping(self, error: BaseException) -> bool:
        """Return whether there will be another attempt: after transient errors, time limits, shutdowns, lost leases.

        A transient error of the source counts too.
        """
        cause = error.error if isinstance(error, SourceError) else error
        passing = isinstance(cause, TransientError | CatalogueError | SoftTimeLimitExceeded | Requeue | Snooze)
        return passing or not isinstance(cause, Exception)
