"""The id of each store as it was last seen, for all machines: a machine that is new knows which disk belongs there."""

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from worker import clock
from worker.catalogue.database import Database
from worker.catalogue.tables import store_identities
from worker.catalogue.writers import Writers
from worker.storage.identity import SHARED, marker_of
from worker.storage.writer_record import WriterRecord

_ALL = sa.select(store_identities.c.store, store_identities.c.marker)


class StoreIdentities:
    """The recorded ids of the configured stores (`KnownIds`)."""

    def __init__(self, database: Database, names: Iterable[str]) -> None:
        self._database = database
        self._names = frozenset(names)

    def get(self, name: str) -> str | None:
        return self._recorded().get(name)

    def put(self, name: str, store_id: str) -> None:
        """Record the id of a store, unless another machine has recorded another one that no other store has."""
        with self._database.write() as connection:
            recorded: dict[str, str] = {row.store: row.marker for row in connection.execute(_ALL)}
            before = recorded.get(name)
            others = {marker for store, marker in recorded.items() if store != name and store in self._names}
            if before is None:
                connection.execute(sa.insert(store_identities), {"store": name, "marker": store_id})
            elif before in others or before.startswith(SHARED):
                own = store_identities.c.store == name
                connection.execute(sa.update(store_identities).where(own).values(marker=store_id))

    def put_place(self, name: str, place: str) -> None:
        """Record where a store is."""
        own = store_identities.c.store == name
        with self._database.read() as connection:
            recorded = connection.execute(sa.select(store_identities.c.place).where(own)).one_or_none()
        if recorded is not None and recorded.place != place:
            with self._database.write() as connection:
                connection.execute(sa.update(store_identities).where(own).values(place=place))

    def left_at(self, place: str) -> str | None:
        with self._database.read() as connection:
            found = connection.execute(sa.select(store_identities).where(*self._left(place))).first()
        return found.store if found else None

    def name_of(self, store_id: str) -> str | None:
        return min((name for name, known in self._recorded().items() if marker_of(known) == store_id), default=None)

    def _left(self, place: str) -> tuple[sa.ColumnElement[bool], ...]:
        return store_identities.c.place == place, store_identities.c.store.not_in(self._names)

    def others(self, name: str) -> Mapping[str, str]:
        return {other: marker for other, marker in self._recorded().items() if other != name and other in self._names}

    def renamed_to(self, name: str) -> str | None:
        """Return the configured store with the marker of `name`, which is no longer configured; None if none has it.

        It was renamed, or it was the place of that one before.
        """
        recorded = {store: marker_of(known) for store, known in self._recorded().items()}
        marker = recorded.get(name)
        same = (other for other in self._names - {name} if marker is not None and recorded.get(other) == marker)
        return min(same, default=None)

    def way_out(self, name: str) -> str:
        return f"`zot-artifacts stores accept {name}`"

    @property
    def catalogue(self) -> str:
        return self._database.identity

    def refusal(self, name: str, writer: WriterRecord | None) -> str | None:
        return Writers(self._database).see(name, writer, now=clock.now())

    def was_refused(self, name: str) -> bool:
        return Writers(self._database).was_refused(name)

    def forget(self, name: str, place: str | None = None) -> str | None:
        """Remove the record of a store and return its id, or None if there is none: the next use records a new one.

        With `place`, it also forgets that a store that is no longer in the settings was there.
        """
        before = self.get(name)
        with self._database.write() as connection:
            connection.execute(sa.delete(store_identities).where(store_identities.c.store == name))
            if place is not None:
                connection.execute(sa.update(store_identities).where(*self._left(place)).values(place=None))
        return before

    def _recorded(self) -> dict[str, str]:
        with self._database.read() as connection:
            return {row.store: row.marker for row in connection.execute(_ALL)}
