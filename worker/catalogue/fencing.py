"""Fencing: a worker that lost the lease of a job records nothing for it."""

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import CatalogueError, Database
from worker.catalogue.tables import jobs
from zot_artifact_client.contract import JobState

_HELD = Prepared(
    sa.select(jobs.c.id).where(
        jobs.c.id == sa.bindparam("job"), jobs.c.fence == sa.bindparam("token"), jobs.c.state == JobState.RUNNING
    )
)


class LostLease(CatalogueError):
    """Another worker has the lease of the job, or another job its artifact; nothing was recorded."""

    def __init__(self, job: str) -> None:
        super().__init__(f"job {job} has lost its lease to another worker, or to another job on its artifact")


class FencedDatabase(Database):
    """The database for the leaseholder of one job: writing raises LostLease once another worker has the lease.

    The fencing token is checked in the transaction that writes, so that a process that was paused between the two
    writes nothing.
    """

    def __init__(self, database: Database, job: str, fence: int) -> None:
        self.engine, self.identity, self._file = database.engine, database.identity, database._file  # noqa: SLF001
        self._dialect, self._idle = database._dialect, database._idle  # noqa: SLF001
        self._on_wait = database._on_wait  # noqa: SLF001
        self._job, self._held = job, {"job": job, "token": fence}

    def _begin_write(self, connection: Connection, *, wait: bool = True) -> bool:
        """Begin a transaction that writes; raise LostLease if another worker has the lease."""
        began = super()._begin_write(connection, wait=wait)
        if began and _HELD.first(connection, **self._held) is None:
            raise LostLease(self._job)
        return began
