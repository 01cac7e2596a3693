"""The verification log: append-only, each row chained to the one before it."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from json.encoder import encode_basestring_ascii
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from worker.catalogue.artifacts import FIRST_READS, READ_ONCE, SPREADS, FinishedCopy, finish_copies
from worker.catalogue.bulk import BulkStatement, Given, constant, insert, one_of, update
from worker.catalogue.compiled_statements import Prepared, in_one_request
from worker.catalogue.database import Queries
from worker.catalogue.findings import ask_around, note_verdicts
from worker.catalogue.records import BAD, Artifact, CopyState, LogHead, VerdictRow
from worker.catalogue.tables import copies, log_archives, verifications
from worker.catalogue.types import UtcDateTime, without_nul
from worker.metric_counters import DETECTION, VERDICTS
from worker.storage import Verdict

FIRST_PREVIOUS = "0" * 64
"""What the first row of the log has for the hash of the row before it."""
_text = encode_basestring_ascii
_SAMPLED = 500
"""Bad copies of one group whose last read is looked up."""


LOGGED = (
    "job", "store", "bucket", "key", "version", "verdict", "expected_sha256", "found_sha256", "found_size", "detail",
)  # fmt: skip
"""Of a row of the log, what a verdict has: all but its moment, which a group has once, and the links of the chain."""
_values = attrgetter(*LOGGED)
"""Returns these values of a row."""
_STORE_AND_VERDICT = attrgetter("store", "verdict")
_APPENDED = (*LOGGED, "previous", "hash")


def _append(given: Given) -> sa.Insert:
    at = {"at": sa.bindparam("at", type_=UtcDateTime())}
    return insert(verifications, at | {name: given(name) for name in _APPENDED})


_APPEND = BulkStatement(_append, {name: verifications.c[name].type for name in _APPENDED})
_LAST_HASH = Prepared(sa.select(verifications.c.hash).order_by(verifications.c.id.desc()).limit(1))
_OTHER_STATES = Prepared(
    sa.select(copies.c.id, copies.c.state).where(
        one_of(copies.c.id, sa.bindparam("ids")), copies.c.state != CopyState.VERIFIED
    )
)
_HEAD = Prepared(
    sa.select(verifications.c.id, verifications.c.hash, verifications.c.at).order_by(verifications.c.id.desc()).limit(1)
)

_LAST_ARCHIVED = (
    sa.select(log_archives.c.last, log_archives.c.hash, log_archives.c.ended_at)
    .order_by(log_archives.c.last.desc())
    .limit(1)
)


class Verifications(Queries):
    """The verdict of every verification of a copy."""

    def record(self, verdict: VerdictRow, *, now: datetime, finished: FinishedCopy | None = None) -> None:
        """Append a verdict to the log and update the copy, atomically.

        Every verdict moves `last_attempt_at`; only `verified` moves `last_verified_at`. `unreadable`, `archived`
        and `unverifiable` leave the state as it was: they say nothing about the bytes.
        `finished`: the copy as it was written before that read, if that is not recorded yet.
        """
        verdicts = prepare_verdicts([verdict], now)
        with self._database.write() as connection:
            finish_copies(connection, [finished] if finished else [], now)
            append_verdicts(connection, verdicts)

    def of(self, bucket: str, key: str, limit: int = 100) -> list[dict[str, Any]]:
        """Return the verdicts about an artifact's copies, the latest first."""
        query = (
            sa.select(verifications)
            .where(verifications.c.bucket == bucket, verifications.c.key == key)
            .order_by(verifications.c.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]  # noqa: SLF001 - SQLAlchemy's public name

    def by_job(self, job: str, artifact: Artifact, store: str) -> tuple[str, str | None, str | None] | None:
        """Return verdict, digest and detail of the latest verdict that a job recorded of a copy, or None."""
        row = verifications.c
        query = (
            sa.select(row.verdict, row.found_sha256, row.detail)
            .where(row.bucket == artifact.bucket, row.key == artifact.key, row.version == artifact.version)
            .where(row.job == job, row.store == store)
            .order_by(row.id.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            found = connection.execute(query).one_or_none()
        return tuple(found) if found else None

    def head(self) -> LogHead | None:
        """Return the last row of the log, or None if it is empty."""
        with self._database.read() as connection:
            return head_of(connection)

    def durable_head(self) -> LogHead | None:
        """Return the last row of the log for one that keeps it elsewhere: no power cut takes the row away."""
        head = self.head()
        self._database.flush()
        return head

    def count(self, after: int = 0) -> int:
        """Return how many rows the log has after the one with this id."""
        query = sa.select(sa.func.count()).select_from(verifications).where(verifications.c.id > after)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def check_head(self, kept: LogHead) -> str | None:
        """Compare the log with a head that was kept elsewhere; return what is wrong, or None.

        Rows that were removed at the end, an emptied log and a chain that was computed anew do not fit the kept head.
        A row that was archived since is not compared: the archives are checked themselves.
        """
        found = sa.select(verifications.c.hash).where(verifications.c.id == kept.id)
        with self._database.read() as connection:
            there, archive = connection.execute(found).scalar(), last_archive(connection)
        row = f"row {kept.id} of {kept.at:%Y-%m-%d %H:%M:%S} UTC"
        if there is None:
            is_archived = archive is not None and kept.id <= archive.id
            return None if is_archived else f"the verification log has lost rows: {row} is gone"
        if there != kept.hash:
            return f"the verification log was rewritten: {row} has another hash than it had"
        return None

    def first_broken(self, after: LogHead | None = None) -> int | None:
        """Walk the chain and return the id of the first row that does not fit the one before it, or None.

        It goes on from the last row that is archived. Of archived rows that are not removed yet, the last one must be
        the one that was archived.
        `after`: a row up to which the chain was found whole before, and which `check_head` has compared.
        """
        row = verifications.c
        with self._database.read() as connection:
            archive = last_archive(connection)
            if archive is not None:
                broken, end = _walk(connection, row.id <= archive.id, None)
                if broken is not None or end not in {None, archive.hash}:
                    return broken or archive.id
            start = max(filter(None, (archive, after)), key=attrgetter("id"), default=None)
            return _walk(connection, row.id > (start.id if start else 0), start.hash if start else FIRST_PREVIOUS)[0]


def _walk(connection: Connection, which: sa.ColumnElement[bool], previous: str | None) -> tuple[int | None, str | None]:
    """Return the first of some rows that does not fit the one before it, or the hash of the last one.

    `previous`: the hash of the row before the first one, None if that row is removed.
    """
    query = sa.select(verifications).where(which).order_by(verifications.c.id).execution_options(yield_per=1000)
    with connection.execute(query) as rows:
        for row in rows:
            if previous not in {None, row.previous} or row.hash != _hash(row):
                return int(row.id), None
            previous = row.hash
    return None, previous


def head_of(connection: Connection) -> LogHead | None:
    """Return the last row of the log, or None if it is empty."""
    row = _HEAD.first(connection)
    return LogHead(row.id, row.hash, row.at) if row else None


def last_archive(connection: Connection) -> LogHead | None:
    """Return the last row of the log that is archived, or None if there is none."""
    row = connection.execute(_LAST_ARCHIVED).one_or_none()
    return LogHead(row.last, row.hash, row.ended_at) if row else None


@dataclass(frozen=True, slots=True)
class PreparedVerdicts:
    """Verdicts as rows of the log, all but the links of its chain; made before other writers have to wait."""

    verdicts: Sequence[VerdictRow]
    now: datetime
    rows: Sequence[tuple[Any, ...]]
    """The values of `LOGGED`."""
    texts: Sequence[tuple[str, str]]
    """What is hashed of each row, before and after the hash of the row before it."""
    updates: Mapping[str, Sequence[tuple[Any, ...]]]
    """By verdict, the values of `_GIVEN` for each copy."""
    unchanged: Sequence[int]
    """The other copies: they are verified, and have the tag that they had."""


def prepare_verdicts(verdicts: Sequence[VerdictRow], now: datetime) -> PreparedVerdicts:
    """Prepare verdicts to be appended to the log."""
    at, rows, texts, unchanged = now.isoformat(), [], [], []
    verified = Verdict.VERIFIED  # Python takes 100 ns to look it up
    updates: dict[str, list[tuple[Any, ...]]] = {}
    for each in verdicts:
        row: tuple[Any, ...] = each[1:11]  # the values of `LOGGED`: to name them takes longer
        if each.detail is not None or "\0" in each.job:
            job, *about, detail = row  # without NUL and long details: the hash is over what can be read back
            row = (without_nul(job), *about, without_nul(detail[:2000]) if detail else None)
        rows.append(row)
        texts.append(_canonical(at, row))
        if each.same_tag and each.verdict == verified:
            unchanged.append(each.copy)
        else:
            updates.setdefault(each.verdict, []).append((each.copy, each.tag, each.retry_at))
    return PreparedVerdicts(verdicts, now, rows, texts, updates, unchanged)


def append_verdicts(connection: Connection, prepared: PreparedVerdicts) -> None:
    """Append verdicts to the log, each chained to the one before it, and update their copies.

    A copy that was deleted or superseded while it was read is not changed: its verdict is in the log alone.
    """
    if not prepared.verdicts:
        return
    with in_one_request(connection):
        asked_last = _LAST_HASH.ask(connection)
        again = _VERIFY_AGAIN.ask(connection, ids=prepared.unchanged, now=prepared.now)
        around = ask_around(connection, {(each.bucket, each.key) for each in prepared.verdicts})
    last = asked_last.all()
    previous = last[0].hash if last else FIRST_PREVIOUS
    others: dict[int, str] = {}
    if again.changed < len(prepared.verdicts):  # most often all were verified before
        found = _OTHER_STATES.all(connection, ids=[each.copy for each in prepared.verdicts])
        others = {row.id: row.state for row in found}
    gone = {id_ for id_, state in others.items() if not CopyState(state).present}
    _measure(connection, prepared)
    rows = []
    for row, text in zip(prepared.rows, prepared.texts, strict=True):
        linked = _linked(text, previous)
        rows.append((*row, previous, linked))
        previous = linked
    with in_one_request(connection):
        _APPEND.execute(connection, rows, at=prepared.now)
        for word, values in prepared.updates.items():
            there = [each for each in values if each[0] not in gone] if gone else values
            _UPDATES[Verdict(word)].execute(connection, there, now=prepared.now)
        if first := [each for each in prepared.unchanged if each in others and each not in gone]:
            _VERIFY.ask(connection, ids=first, now=prepared.now)
    note_verdicts(connection, [each for each in prepared.verdicts if each.copy not in gone], prepared.now, around)


def _measure(connection: Connection, prepared: PreparedVerdicts) -> None:
    """Count verdicts, and how long before each bad one its copy was last read or written."""
    for (store, word), count in Counter(map(_STORE_AND_VERDICT, prepared.verdicts)).items():
        VERDICTS.add(store, word, count=count)
    bad = {each.copy: each.store for each in prepared.verdicts if each.verdict in BAD}
    some = list(bad)[:_SAMPLED]
    if some:
        for id_, read_at in connection.execute(sa.select(copies.c.id, copies.c.read_at).where(copies.c.id.in_(some))):
            if read_at is not None:
                DETECTION.observe(bad[id_], value=max(0.0, (prepared.now - read_at).total_seconds()))


def _update(verdict: Verdict, given: Given) -> sa.Update:
    """Return how a verdict updates its copy."""
    return sa.update(copies).where(copies.c.id == given("copy")).values(_changes(verdict, given))


def _changes(verdict: Verdict, given: Given) -> dict[str, Any]:
    now, unread = sa.bindparam("now", type_=UtcDateTime()), verdict in {Verdict.UNREADABLE, Verdict.ARCHIVED}
    values: dict[str, Any] = {
        "last_attempt_at": now,
        "last_verdict": constant(verdict),
        "next_due_at": given("retry_at") if unread else sa.null(),
        "claimed_until": sa.null(),
        "attempts": copies.c.attempts + constant(1),
    }
    if not unread:
        once = constant(READ_ONCE) + copies.c.artifact_id % constant(SPREADS - READ_ONCE)
        again = constant(FIRST_READS) + copies.c.artifact_id % constant(READ_ONCE - FIRST_READS)
        values |= {"read_at": now, "spread": sa.case((copies.c.spread < constant(FIRST_READS), once), else_=again)}
    if verdict == Verdict.VERIFIED:
        values |= {"last_verified_at": now, "tag": given("tag")}
    if not unread and verdict != Verdict.UNVERIFIABLE:
        values["state"] = constant(CopyState(verdict))
    return values


_GIVEN = {"copy": copies.c.id.type, "tag": copies.c.tag.type, "retry_at": copies.c.next_due_at.type}
_UPDATES = {verdict: BulkStatement(partial(_update, verdict), _GIVEN) for verdict in Verdict}
_VERIFIED = _changes(Verdict.VERIFIED, copies.c.__getitem__)


_BY_IDS = update(copies).where(one_of(copies.c.id, sa.bindparam("ids")))
_VERIFY = Prepared(_BY_IDS.values(_VERIFIED))
"""The update of all verified copies whose tag stays: SQLite takes two thirds of the time of one for each."""

_VERIFY_AGAIN = Prepared(
    _BY_IDS.where(copies.c.state == CopyState.VERIFIED).values(
        {name: value for name, value in _VERIFIED.items() if name not in {"state", "tag"}}
    )
)
"""That of copies which were verified before: to set the state that they have would change its index."""


def row_fits(row: Row[Any]) -> bool:
    """Return whether a row has the hash of its content, and of the hash of the row before it."""
    return bool(row.hash == _hash(row))


def hash_of(at: str, values: tuple[Any, ...], previous: str) -> str:
    """Return the hash of a row from its time in ISO format, the values of `LOGGED`, and the hash of the row before."""
    return _linked(_canonical(at, values), previous)


def _hash(row: Row[Any]) -> str:
    return hash_of(row.at.isoformat(), _values(row), row.previous)


def _linked(text: tuple[str, str], previous: str) -> str:
    before, after = text
    return hashlib.sha256(f"{before}{previous}{after}".encode()).hexdigest()


def _canonical(at: str, row: tuple[Any, ...]) -> tuple[str, str]:
    """Return a row as JSON with its names in order, moments in ISO format: what is before and after `previous`."""
    # json.dumps of the whole row takes five times as long, and a page has hundreds of rows.
    job, store, bucket, key, version, verdict, expected, found, found_size, detail = row
    wanted = _json(expected)
    before = (
        f'{{"at": "{at}", "bucket": {_name(bucket)}, "detail": {_json(detail)}, '
        f'"expected_sha256": {wanted}, "found_sha256": {wanted if found == expected else _json(found)}, '
        f'"found_size": {"null" if found_size is None else found_size}, "job": {_name(job)}, '
        f'"key": {_text(key)}, "previous": "'
    )
    return before, f'", "store": {_name(store)}, "verdict": {_name(verdict)}, "version": {version}}}'


def _json(value: str | None) -> str:
    return "null" if value is None else _text(value)


_name = lru_cache(maxsize=256)(_json)
"""The JSON of what many rows have in common."""
