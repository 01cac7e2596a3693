"""The catalogue: the SQL database that knows artifacts, copies, jobs and the verification log. No SQL outside it."""

from worker.catalogue.artifacts import Artifacts
from worker.catalogue.database import CatalogueError, CatalogueUnavailable, Database, migrate
from worker.catalogue.jobs import Begun, Busy, Ended, Jobs, LostLease, OtherRequest
from worker.catalogue.records import Artifact, Copy, CopyState, Finding, JobRecord
from worker.catalogue.transfers import OpenTransfer, Transfers
from worker.catalogue.verifications import Verifications

__all__ = [
    "Artifact",
    "Begun",
    "Busy",
    "Catalogue",
    "CatalogueError",
    "CatalogueUnavailable",
    "Copy",
    "CopyState",
    "Ended",
    "Finding",
    "JobRecord",
    "Jobs",
    "LostLease",
    "OpenTransfer",
    "OtherRequest",
]


class Catalogue:
    """The record of everything, in one database. One instance serves one process."""

    def __init__(self, url: str) -> None:
        """Open the catalogue at this SQLAlchemy URL and bring its tables up to date.

        Raises:
            CatalogueUnavailable: it cannot be reached.
            CatalogueError: it cannot be used.
        """
        self._database = Database(url)
        migrate(self._database.engine)
        self.artifacts = Artifacts(self._database)
        self.jobs = Jobs(self._database)
        self.transfers = Transfers(self._database)
        self.verifications = Verifications(self._database)

    def close(self) -> None:
        """Give the connections back."""
        self._database.engine.dispose()
