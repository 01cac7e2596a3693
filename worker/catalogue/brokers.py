"""Over which brokers jobs of this catalogue are sent: all its programs must use one."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.database import Queries
from worker.catalogue.tables import sweep_cursors

_BEGAN, _SEEN = "broker.began", "broker.seen"
_EVERY = timedelta(minutes=1)
"""How often it is recorded that a broker is used."""
_IN_USE = timedelta(minutes=3)
"""A broker that was not used for so long is used no more, such as the one before a move."""
_KEPT = timedelta(days=1)


class Brokers(Queries):
    """The times at which brokers were used, by the id that each broker keeps."""

    def note(self, broker: str, place: str, now: datetime) -> None:
        """Record that jobs are sent over a broker; `place` is what `others` calls it."""
        with self._database.read() as connection:
            seen, began = list(_rows(connection, _SEEN)), list(_rows(connection, _BEGAN))
        last = max((at for _, id_, _, at in seen if id_ == broker), default=now - _KEPT)
        if now - last < _EVERY:
            return
        used = {id_ for _, id_, _, at in seen if now - at < _KEPT}
        old = [name for name, id_, _, _ in seen if id_ == broker or id_ not in used]
        old += [name for name, id_, _, _ in began if id_ not in used]
        rows = [f"{_SEEN} {broker} {place}"]
        if now - last > _IN_USE:
            rows.append(f"{_BEGAN} {broker}")
        values = [{"name": name, "after": int(now.timestamp())} for name in rows]
        with self._database.write() as connection:
            connection.execute(sa.delete(sweep_cursors).where(sweep_cursors.c.name.in_([*old, *rows])))
            connection.execute(sa.insert(sweep_cursors), values)

    def others(self, broker: str, now: datetime) -> list[str]:
        """Return the places of other brokers that were used after this one was, and still are."""
        with self._database.read() as connection:
            began = next((at for _, id_, _, at in _rows(connection, _BEGAN) if id_ == broker), None)
            seen = list(_rows(connection, _SEEN))
        if began is None:
            return []
        return sorted(place for _, id_, place, at in seen if id_ != broker and at > max(began, now - _IN_USE))


def _rows(connection: Connection, kind: str) -> Iterator[tuple[str, str, str, datetime]]:
    """Yield the name of each row, the id of its broker, its place and its time."""
    found = sa.select(sweep_cursors).where(sweep_cursors.c.name.startswith(f"{kind} ", autoescape=True))
    for name, after in connection.execute(found).all():
        _, id_, *place = name.split(" ", 2)
        yield name, id_, " ".join(place), datetime.fromtimestamp(after, UTC)
