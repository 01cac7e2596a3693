"""When each store last got a backup of the catalogue, when one was rehearsed, and which one the catalogue is of."""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.database import Queries
from worker.catalogue.tables import sweep_cursors

_WRITTEN, _REHEARSED, _RESTORED = "backup.written", "backup.rehearsed", "backup.restored"


class BackupTimes(Queries):
    """The times of the last good backup and of the last rehearsal, by store."""

    def written(self, store: str) -> datetime | None:
        """Return when the last good backup was written to a store, or None."""
        return self._get(f"{_WRITTEN} {store}")

    def rehearsed(self, store: str) -> datetime | None:
        """Return when a backup of a store was last restored for trial, or None."""
        return self._get(f"{_REHEARSED} {store}")

    def set_written(self, store: str, at: datetime) -> None:
        """Record that a store has a good backup."""
        self._set(f"{_WRITTEN} {store}", at)

    def set_rehearsed(self, store: str, at: datetime) -> None:
        """Record that a backup of a store was restored for trial."""
        self._set(f"{_REHEARSED} {store}", at)

    def restored(self) -> datetime | None:
        """Return when the backup was made that the catalogue was restored from, until `accept_restored`; or None."""
        return self._get(_RESTORED)

    def unaccepted(self) -> str | None:
        """Return a message that the catalogue was restored, and what to do; None once `log accept` has accepted it."""
        if (at := self.restored()) is None:
            return None
        return (
            f"the catalogue was restored from its backup of {at:%Y-%m-%d %H:%M:%S} UTC: record what was written since "
            "with `zot-artifacts catalogue rebuild --newer-since MOMENT`, then run `zot-artifacts log accept --yes`"
        )

    def accept_restored(self) -> None:
        """Record that what was lost with a restore is accepted: what the stores keep may be replaced from now on."""
        with self._database.write() as connection:
            connection.execute(sa.delete(sweep_cursors).where(sweep_cursors.c.name == _RESTORED))

    def _get(self, name: str) -> datetime | None:
        query = sa.select(sweep_cursors.c.after).where(sweep_cursors.c.name == name)
        with self._database.read() as connection:
            found = connection.execute(query).scalar()
        return None if found is None else datetime.fromtimestamp(found, UTC)

    def _set(self, name: str, at: datetime) -> None:
        with self._database.write() as connection:
            _put(connection, name, at)


def record_restore(connection: Connection, at: datetime) -> None:
    """Record that the catalogue is what it was when this backup was made."""
    _put(connection, _RESTORED, at)


def _put(connection: Connection, name: str, at: datetime) -> None:
    connection.execute(sa.delete(sweep_cursors).where(sweep_cursors.c.name == name))
    connection.execute(sa.insert(sweep_cursors), {"name": name, "after": int(at.timestamp())})
