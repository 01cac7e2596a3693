"""The tokens that this catalogue has written into each store, and whether another copy of it writes there, too.

See `worker.storage.writer_record`.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import quote
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.backup_times import BackupTimes
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import Queries
from worker.catalogue.tables import sweep_cursors
from worker.storage.writer_record import Sign, WriterRecord

_WRITER = "writer "
"""Before the store and the token in the name of a row."""
_REFUSED = "other writer "
"""Before the store in the name of a row: this copy must not write to it, as the last process found."""
_KEPT = timedelta(days=1)
"""For so long each token is remembered, because a store may be rolled back, or a write of it may be late."""
_LEFT = "left database "
"""Before a database that this catalogue was imported from, in the name of a row."""
_NOTED = Prepared(sa.select(sweep_cursors.c.after).where(sweep_cursors.c.name == sa.bindparam("called")))
ALIVE = timedelta(minutes=15)
"""A copy of the catalogue that gave a sign since then may still run: each gives one with every `sweep.verify`."""
_MOST_REFUSED = 8
_NO_WRITE = datetime.fromtimestamp(0, UTC)
"""The time of a token that is in an objection."""
_LOCAL_HOSTS = {None, "", "localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of this copy of the catalogue, and when it wrote the last one into a store.

    They are of all stores: one that was renamed, or was begun as a copy of another one, has a token of that one. `here`
    is the time of the last one of this store, `last` that of all stores if none is of this one; None without any.
    `databases` are where this catalogue is, and those that it was imported from.
    """

    own: frozenset[str]
    databases: frozenset[str]
    here: datetime | None
    last: datetime | None


class Writers(Queries):
    """The tokens of this copy of the catalogue, for all its workers."""

    def other(self, store: str, record: WriterRecord | None, *, now: datetime) -> Sign | None:
        """Return the sign of another copy of the catalogue that writes to a store, or objects; None without one."""
        tokens = self._tokens(store)
        if record is None or _is_rolled_back(record, tokens):
            return None
        if record.writer.token not in tokens.own or self._may_run_elsewhere(record.writer, tokens, now):
            return record.writer
        objection = record.objection
        return objection if objection and objection.token not in tokens.own else None

    def refusal(self, store: str, record: WriterRecord | None, *, now: datetime) -> str | None:
        """Return why this copy of the catalogue must not write to a store, and the way out; None if it may."""
        if restored := BackupTimes(self._database).unaccepted():
            return restored
        other, tokens = self.other(store, record, now=now), self._tokens(store)
        if record is None or other is None or other is not record.writer:
            return None
        if other.token in tokens.own:
            return (
                f"this catalogue was copied or moved from {other.place}, which gave a sign at "
                f"{other.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC: it writes, deletes and verifies here from "
                f"{(other.at + ALIVE).astimezone(UTC):%H:%M:%S} on if that one gives no other sign; "
                "if it was moved, `zot-artifacts log accept --yes --take-over` ends that now"
            )
        if any(each in tokens.own and not _is_of_another(each, tokens) for each in record.refused):
            return (
                f"another copy of this catalogue, {other.place}, was accepted as the one that writes to this store: "
                "stop the programs of this one"
            )
        at = f"{other.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        told = (
            f"another copy of this catalogue, {other.place}, uses this store (at {at}); this one writes, deletes and "
            "verifies nothing here: stop the programs of one of them; to go on with this one, then"
        )
        if other.place == self.place():
            told = (
                f"{other.place} used this store at {at} in a later state: it was set back, or a copy of it runs; it "
                "writes, deletes and verifies nothing here: stop the programs of such a copy, then"
            )
        since = f"{tokens.here:%Y-%m-%dT%H:%M:%SZ}" if tokens.here else "MOMENT"
        return (
            f"{told} record what was written since with `zot-artifacts catalogue rebuild --newer-since {quote(since)}` "
            "and run `zot-artifacts log accept --yes`"
        )

    def see(self, store: str, record: WriterRecord | None, *, now: datetime) -> str | None:
        """Return what `refusal` does, and note it for all workers."""
        told = self.refusal(store, record, now=now)
        if self.was_refused(store) != (told is not None):
            with self._database.write() as connection:
                connection.execute(_noted(store))
                if told:
                    row = {"name": f"{_REFUSED}{store}", "after": int(now.timestamp())}
                    connection.execute(sa.insert(sweep_cursors), row)
        return told

    def was_refused(self, store: str) -> bool:
        """Return whether this copy of the catalogue had to leave a store to another one when a worker last asked."""
        with self._database.read() as connection:
            return _NOTED.first(connection, called=f"{_REFUSED}{store}") is not None

    def told_objection(self, store: str, record: WriterRecord | None, *, now: datetime) -> str | None:
        """Return that another copy of the catalogue objects, while this one writes to the store; None if none does."""
        other = self.other(store, record, now=now)
        if record is None or other is None or other == record.writer:
            return None
        return (
            f"another copy of this catalogue, {other.place}, uses this store too (at "
            f"{other.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC), and writes nothing to it: stop its programs, or give "
            "it copies of the stores"
        )

    def objection(self, store: str, record: WriterRecord, *, now: datetime) -> WriterRecord | None:
        """Return the record with the objection of this copy, so that the other one is told; None if it has none.

        A copy against which an operator has decided does not object. The token of an objection is a new one, because
        the other copy may know the earlier ones.
        """
        tokens, before = self._tokens(store), record.objection
        if record.writer.token in tokens.own or not tokens.own.isdisjoint(record.refused):
            return None
        if before is None or now - before.at >= ALIVE:
            token = self._add(store, _NO_WRITE)
        elif before.token in tokens.own:
            token = before.token
        else:
            return None  # a third copy has told it
        return WriterRecord(record.writer, Sign(token, self.place(), now), record.refused)

    def renewed(self, store: str, record: WriterRecord | None, *, now: datetime, decided: bool = False) -> WriterRecord:
        """Record a new token, and return the record with it: the store belongs to this copy of the catalogue then.

        The token is durable before it can be in the store. `decided`: an operator has decided for this copy, against
        the other one that the record names. Otherwise its objection stays until it is `ALIVE` old.
        """
        other, objection = self.other(store, record, now=now), record.objection if record else None
        refused = record.refused if record else ()
        if decided and other is not None:
            refused = (*refused, other.token)[-_MOST_REFUSED:]
        if objection and (decided or now - objection.at >= ALIVE):
            objection = None
        token = self._add(store, now, forget_all_but=record.writer.token if record else "")
        return WriterRecord(Sign(token, self.place(), now), objection, refused)

    def _may_run_elsewhere(self, sign: Sign, tokens: _Tokens, now: datetime) -> bool:
        """Return whether this database was copied from the one that gave a sign, or moved, so short a time ago."""
        recent = abs(now - sign.at) < ALIVE
        return recent and sign.place != self.place() and _is_of_another(sign.token, tokens)

    def place(self) -> str:
        """Return where this copy of the catalogue is, for messages."""
        file, url = self._database.file, self._database.engine.url
        if file is None and url.host not in _LOCAL_HOSTS:
            return f"{url.host}/{url.database}"  # of whichever machine: all its workers are one writer
        where = Path(file.path).absolute() if file else f"{url.host or 'localhost'}/{url.database}"
        return f"{where} of {socket.gethostname()}"

    def _add(self, store: str, now: datetime, *, forget_all_but: str | None = None) -> str:
        """Record a new token; with `forget_all_but` also forget the old ones except that one, which the store has."""
        token, name, old = f"{uuid4().hex}-{self._database.physical_id()}", sweep_cursors.c.name, list[str]()
        with self._database.write() as connection:
            if forget_all_but is not None:
                before = now.replace(microsecond=0) - _KEPT
                mine = (each for each in _rows(connection) if each.store == store)
                old = [each.name for each in mine if each.token != forget_all_but and each.at < before]
                connection.execute(_noted(store))
            connection.execute(sa.delete(sweep_cursors).where(name.in_(old)))
            row = {"name": f"{_WRITER}{store} {token}", "after": int(now.timestamp())}
            connection.execute(sa.insert(sweep_cursors), row)
        self._database.flush()
        return token

    def _tokens(self, store: str) -> _Tokens:
        with self._database.read() as connection:
            rows = list(_rows(connection))
            found = sa.select(sweep_cursors.c.name).where(sweep_cursors.c.name.startswith(_LEFT, autoescape=True))
            left = [name.removeprefix(_LEFT) for name in connection.execute(found).scalars()]
        written = [each for each in rows if each.at > _NO_WRITE]
        here = max((each.at for each in written if each.store == store), default=None)
        last = here or max((each.at for each in written), default=None)
        databases = frozenset([self._database.physical_id(), *left])
        return _Tokens(frozenset(each.token for each in rows), databases, here, last)


def _noted(store: str) -> sa.Delete:
    return sa.delete(sweep_cursors).where(sweep_cursors.c.name == f"{_REFUSED}{store}")


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    store: str
    token: str
    at: datetime


def _rows(connection: Connection) -> Iterator[_Row]:
    """Yield all tokens. The name of a store may have spaces, and LIKE of SQLite takes `Dr` for `dr`."""
    found = sa.select(sweep_cursors).where(sweep_cursors.c.name.startswith(_WRITER, autoescape=True))
    for name, after in connection.execute(found).all():
        store, _, token = name.removeprefix(_WRITER).rpartition(" ")
        yield _Row(name, store, token, datetime.fromtimestamp(after, UTC))


def forget_writers(connection: Connection) -> None:
    """Forget all tokens: what the stores have is later than a catalogue that was restored, or of another copy."""
    connection.execute(sa.delete(sweep_cursors).where(sweep_cursors.c.name.startswith(_WRITER, autoescape=True)))


def leave_databases(connection: Connection) -> None:
    """Record that a catalogue was imported: its tokens are of a database that it does not use any more."""
    left = {each.token.partition("-")[2] for each in _rows(connection)} - {""}
    known = sa.select(sweep_cursors.c.name).where(sweep_cursors.c.name.startswith(_LEFT, autoescape=True))
    names = {f"{_LEFT}{each}" for each in left} - set(connection.execute(known).scalars())
    for name in names:
        connection.execute(sa.insert(sweep_cursors), {"name": name, "after": 0})


def _is_of_another(token: str, tokens: _Tokens) -> bool:
    """Return whether a token was recorded in a database that this catalogue has not left."""
    database = token.partition("-")[2]
    return bool(database) and "" not in tokens.databases and database not in tokens.databases


def _is_rolled_back(record: WriterRecord, tokens: _Tokens) -> bool:
    """Return whether a record is older than the tokens that are remembered: the store itself was restored."""
    last = max((sign.at for sign in (record.writer, record.objection) if sign), default=record.writer.at)
    return tokens.last is not None and last < tokens.last - _KEPT
