"""Claims of sweeps on copies: those that are due, and those that are absent."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate, islice
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from worker import clock
from worker.catalogue.artifacts import FIRST_READS, READ_ONCE, SPREADS
from worker.catalogue.bulk import one_of, update
from worker.catalogue.companion_keys import PLACED_AS, with_owners
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import Queries
from worker.catalogue.findings import NewFinding, see
from worker.catalogue.key_ranges import begins_with
from worker.catalogue.record_versions import ensure_copy
from worker.catalogue.records import BEGUN_FOR_PLACEMENT, GOOD, Artifact, CopyState, FindingKind, artifact_of
from worker.catalogue.tables import CURRENT, artifacts, copies, sweep_cursors
from worker.storage import Verdict
from worker.storage.keys import CANARY_BUCKET

_SOME = 100
_LATEST = 0.9
"""The part of the period after which a copy is due at the latest."""


def _spread_over(number: int) -> list[float]:
    return [_LATEST * (each + 1) / number for each in range(number)]


_PARTS = [*_spread_over(FIRST_READS), *[_LATEST] * (READ_ONCE - FIRST_READS), *_spread_over(SPREADS - READ_ONCE)]
"""The part of its time after which a copy is due, by its `spread`.

The time of a copy that was not read since its write is `first_read`, that of others is the period. Copies that were
written together have their first reads close together, so their second reads are spread over the whole period. All
further reads come late in the period.
"""
AHEAD = 0.25
"""The part of that time after which a copy that was read may be read before it is due, so that the reads are even.

New copies are not read before they are due: the rate of first reads is counted from the new copies that wait.
"""
GRACE = 1 - _LATEST
"""The part of the period that is left at least when a copy becomes due: what is read later is overdue."""
_SPARE = 0.05
"""The part of the period between the time at which a copy is due and the one until which it has to be read."""
_HORIZONS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.45, 0.65, _LATEST + _SPARE)
"""The parts of the period from now on for which the copies that have to be read are counted."""
_SOON = (0.1, 0.2, 0.4, 0.7, _LATEST + _SPARE)
"""The parts of `first_read` from now on for which these copies are counted, too."""
SHORTEST_HORIZON = 0.001
"""The shortest time for which they are counted, as a part of the period."""


class NeededReads(NamedTuple):
    """How many copies of a store have to be read in a second.

    `all`: of all. `first`: of those that were not read yet. `new`: of those whose first read is not late yet. `again`:
    of those that were read before.
    """

    all: float = 0.0
    first: float = 0.0
    new: float = 0.0
    again: float = 0.0


Plan = Callable[[Connection, Sequence[Artifact]], None]
"""Accepts the pages of what was claimed into the ledger, in the transaction of the claims: see `Pages.accept`."""

NOT_ARCHIVED = copies.c.last_verdict.is_distinct_from(Verdict.ARCHIVED.value)
"""The condition of copies that can be read now, as far as is known; an archived one has a `next_due_at`."""


class SweepClaims(Queries):
    """The claims: no two sweeps work on the same copy."""

    def overdue(self, store: str, *, period: timedelta, now: datetime) -> int:
        """Return how many copies of a store, other than archived ones, were not read fully for longer than `period`."""
        with self._database.read() as connection:
            found: int = connection.execute(_OVERDUE, {"of": store, "before": now - period}).scalar_one()
        return int(found)

    def oldest(self, store: str) -> datetime | None:
        """Return when the copy of a store was read or written that was not read for the longest time."""
        with self._database.read() as connection:
            found: datetime | None = connection.execute(_OLDEST, {"of": store}).scalar()
        return found

    def first_reads_late(self, store: str, *, first_read: timedelta, now: datetime) -> int:
        """Return how many copies of a store were written longer ago than `first_read` and not read since."""
        with self._database.read() as connection:
            found: int = connection.execute(_FIRST_READS_LATE, {"of": store, "before": now - first_read}).scalar_one()
        return int(found)

    def count_due(
        self, store: str, *, period: timedelta, first_read: timedelta | None = None, now: datetime, limit: int,
        ahead: float = 1,
    ) -> int:  # fmt: skip
        """Return how many copies are due, claimed ones included, counted up to about `limit`; `ahead`: see `AHEAD`.

        Without `first_read`, a copy that was not read yet is due `_LATEST` of the period after its write.
        """
        times = _due_times(_waits(period, first_read), period, now, ahead)
        with self._database.read() as connection:
            found: int = connection.execute(_COUNT_DUE, {"of": store, "most": limit, **times}).scalar_one()
        return min(int(found), limit)

    def count_retries(self, store: str, *, now: datetime) -> int:
        """Return how many copies of a store wait for their retry and are due now."""
        due = sa.select(sa.func.count()).where(copies.c.store == store, copies.c.next_due_at.is_not(None))
        with self._database.read() as connection:
            return connection.execute(due.where(copies.c.next_due_at <= now)).scalar_one()

    def needed(
        self, store: str, *, period: timedelta, first_read: timedelta, now: datetime, every: timedelta = timedelta()
    ) -> NeededReads:
        """Return how many copies a second have to be read so that none is late, at the lowest constant rates.

        For some times from now on it counts the copies that have to be read until then, each in one range of the index.
        The rate follows what was written, and not only how many copies there are: copies that were written together are
        read within `first_read` and then over the whole period, and those that an outage has made late within what is
        left of it. `every`: how often reads are planned; no shorter time says anything about them.
        """
        must = [wait + _SPARE * first_read for wait in _waits(period, first_read)[:FIRST_READS]]
        must += [period * (_LATEST + _SPARE)] * (SPREADS - FIRST_READS)  # earlier reads only make the load even
        parts = [*(period * part for part in _HORIZONS), *(first_read * part for part in _SOON)]
        horizons = [timedelta(), *sorted(max(each, period * SHORTEST_HORIZON, every) for each in parts)]
        first, again = [0] * len(horizons), [0] * len(horizons)
        with self._database.read() as connection:
            for spread in range(SPREADS):
                until = {f"until_{number}": now - must[spread] + each for number, each in enumerate(horizons)}
                ranges = connection.execute(_NEEDED, {"of": store, "spread": spread, **until}).one()
                counts = first if spread < FIRST_READS else again
                for number, found in enumerate(accumulate(ranges)):
                    counts[number] += found
        late = first[0]

        def rate(counts: Iterable[int]) -> float:
            pairs = zip(counts, horizons, strict=True)
            return max(count / horizon.total_seconds() for count, horizon in islice(pairs, 1, None))

        return NeededReads(
            rate(new + other for new, other in zip(first, again, strict=True)),
            rate(first),
            rate(count - late for count in first),
            rate(again),
        )

    def mean_size(
        self, store: str, *, period: timedelta, first_read: timedelta | None = None, now: datetime,
        largest: int | None = None, ahead: float = 1,
    ) -> int:  # fmt: skip
        """Return the mean size of some copies that are due, each counted with `largest` bytes at most, if given."""
        with self._database.read() as connection:
            some = due_copies(
                connection, store, period=period, first_read=first_read, now=now, until=now, limit=_SOME, ahead=ahead
            )
            of = sa.select(artifacts.c.size).join(copies, copies.c.artifact_id == artifacts.c.id)
            sizes = list(connection.execute(of.where(copies.c.id.in_(some))).scalars())
        if largest is not None:
            sizes = [min(size, largest) for size in sizes]
        return sum(sizes) // len(sizes) if sizes else 0

    def measure_absent(
        self, store: str, bucket: str | None, prefix: str, *, wanted: Callable[..., bool] | None
    ) -> dict[str | None, tuple[int, int]]:
        """Return how many current artifacts `begun` and `absent` would find in all, and their bytes.

        They are by the store that has the copy to read, None where no other store has a good one. Claimed ones, and
        those that their upload is still writing, are included. With `wanted`, it reads all artifacts.
        """
        columns = (artifacts.c.bucket, artifacts.c.stores_named, artifacts.c.size, _read_from())
        queries = [(_begun(store, *columns), partial(_is_to_complete, wanted))]
        if wanted is not None:
            queries.append((_absent(store, *columns), partial(_is_wanted, wanted)))
        within = [artifacts.c.bucket == bucket, *begins_with(PLACED_AS, prefix)] if bucket is not None else []
        found: dict[str | None, tuple[int, int]] = {}
        with self._database.read() as connection:
            for query, fits in queries:
                rows = connection.execution_options(yield_per=1000).execute(query.where(*within))
                for row in filter(fits, rows):
                    count, size = found.get(row.read_from, (0, 0))
                    found[row.read_from] = count + 1, size + row.size
        return found

    def begun(
        self,
        store: str,
        bucket: str | None,
        prefix: str,
        *,
        wanted: Callable[..., bool] | None,
        now: datetime,
        until: datetime,
        limit: int,
        late_since: datetime,
        plan: Plan | None = None,
    ) -> list[Artifact]:
        """Claim current artifacts whose copy in a store a job has begun and left, and open a finding on each.

        A copy is left to its job if the artifact was committed after `late_since`. One that was begun for the placement
        alone is claimed as long as it is `wanted`, see `absent`. Any other one is claimed where another store has a
        good copy, whatever the placement says: the upload or the replication has named the store. It searches the
        unfinished copies of the store alone.
        """
        late = (artifacts.c.committed_at <= late_since, unclaimed(now, until))
        query = _begun(store, artifacts, copies.c.id.label("copy_id"), _read_from()).where(*late)
        if bucket is not None:  # concat: search by the copies of the store
            query = query.where(artifacts.c.bucket.concat("") == bucket, *begins_with(PLACED_AS, prefix))
        with self._database.read() as connection:
            rows = connection.execution_options(yield_per=1000).execute(query)
            found = {
                row.copy_id: artifact_of(row) for row in islice(filter(partial(_is_to_complete, wanted), rows), limit)
            }
            rows.close()
        if not found:
            return []
        with self._database.write() as connection:
            of = sa.exists().where(artifacts.c.id == copies.c.artifact_id, *CURRENT)
            still = sa.and_(copies.c.state == CopyState.WRITING, of)
            claimed = [found[id_] for id_ in claim_copies(connection, list(found), still, now=now, until=until)]
            _see_under_replicated(connection, store, claimed, now)
            if plan and claimed:
                plan(connection, claimed)
        return claimed

    def absent(
        self,
        store: str,
        bucket: str | None,
        prefix: str,
        *,
        wanted: Callable[..., bool],
        now: datetime,
        until: datetime,
        limit: int,
        scan: int = 10_000,
        late_since: datetime | None = None,
        plan: Plan | None = None,
    ) -> list[Artifact]:
        """Claim current artifacts that a store should have and of which no copy was begun there, the oldest first.

        A call reads the `scan` newest artifacts, and as many older ones from where the previous call ended, so that its
        cost does not grow with the catalogue. A copy that was deleted there, or that is there and bad, is not absent. A
        claim keeps other sweeps away until the copy is written, or until `until`; then `begun` finds it. Those that
        were committed before `late_since` are findings.

        `wanted`: asked with the bucket, the key by which an artifact is placed, see `Companions.placed_as`, and whether
        its uploads named their stores. The prefix is about that key too.
        """
        query = (
            _absent(store, artifacts)
            .where(artifacts.c.id > sa.bindparam("after"), artifacts.c.id <= sa.bindparam("last"))
            .order_by(artifacts.c.id)
        )
        if bucket is not None:  # concat: search by id
            query = query.where(artifacts.c.bucket.concat("") == bucket, *begins_with(PLACED_AS, prefix))

        def found(connection: Connection, after: int, last: int, most: int) -> list[Artifact]:
            rows = connection.execution_options(yield_per=1000).execute(query, {"after": after, "last": last})
            some = [artifact_of(row) for row in islice(filter(partial(_is_wanted, wanted), rows), most)]
            rows.close()
            return some

        cursor = f"replicate {store}" if bucket is None else f"replicate {store} {bucket}/{prefix}"
        with self._database.read() as connection:  # it may scan many rows, and other writers would wait for it
            newest = connection.execute(sa.select(sa.func.max(artifacts.c.id))).scalar() or 0
            old = max(newest - scan, 0)
            absent = found(connection, old, newest, limit if not old else limit - limit // 2)
            if old:
                after = connection.execute(_CURSOR, {"sweep": cursor}).scalar() or 0
                after = after if after < old else 0
                last, room = min(after + scan, old), limit - len(absent)
                older = found(connection, after, last, room)
                absent = older + absent
                if len(older) == room:
                    last = older[-1].id if older else after
        with self._database.write() as connection:
            ids = [artifact.id for artifact in absent]
            still = set(connection.execute(_absent(store, artifacts.c.id).where(one_of(artifacts.c.id, ids))).scalars())
            absent = [artifact for artifact in absent if artifact.id in still]
            ids = [ensure_copy(connection, artifact, store).id for artifact in absent]
            begun = sa.update(copies).where(copies.c.id.in_(ids))
            connection.execute(begun.values(claimed_until=until, evidence=BEGUN_FOR_PLACEMENT))
            old_ones = [of for of in absent if late_since and of.committed_at and of.committed_at <= late_since]
            _see_under_replicated(connection, store, old_ones, now)
            if plan and absent:
                plan(connection, absent)
            if old:
                connection.execute(sa.delete(sweep_cursors).where(sweep_cursors.c.name == cursor))
                connection.execute(sa.insert(sweep_cursors), {"name": cursor, "after": last})
        return absent


def _absent(store: str, *columns: Any) -> sa.Select[Any]:
    """Return the query of current artifacts of which no copy was begun in a store; canaries have theirs in one store.

    It reads these columns and `placed_as`.
    """
    here = sa.and_(copies.c.artifact_id == artifacts.c.id, copies.c.store == store)
    query = sa.select(*columns, PLACED_AS.label("placed_as")).select_from(artifacts).outerjoin(copies, here)
    return with_owners(query).where(*CURRENT, artifacts.c.bucket != CANARY_BUCKET, copies.c.id.is_(None))


def _begun(store: str, *columns: Any) -> sa.Select[Any]:
    """Return the query of current artifacts whose copy in a store was begun and is not complete; no canaries.

    It reads these columns, `placed_as` and the `evidence` of the copy.
    """
    query = sa.select(*columns, PLACED_AS.label("placed_as"), copies.c.evidence).select_from(copies)
    return with_owners(query.join(artifacts, artifacts.c.id == copies.c.artifact_id)).where(
        copies.c.store == store, copies.c.state == CopyState.WRITING, *CURRENT, artifacts.c.bucket != CANARY_BUCKET
    )


def _read_from() -> sa.Label[Any]:
    """Return the store from which an artifact is copied to one without a good copy, null where none has one."""
    source = copies.alias("source")
    good = (source.c.artifact_id == artifacts.c.id, source.c.state.in_(GOOD))
    first = (source.c.last_verified_at.is_(None), source.c.store)  # as replications choose it
    return sa.select(source.c.store).where(*good).order_by(*first).limit(1).scalar_subquery().label("read_from")


def _is_wanted(wanted: Callable[..., bool] | None, row: sa.Row[Any]) -> bool:
    return wanted is not None and wanted(row.bucket, row.placed_as, stores_named=bool(row.stores_named))


def _is_to_complete(wanted: Callable[..., bool] | None, row: sa.Row[Any]) -> bool:
    """Return whether a copy that was begun is completed; see `SweepClaims.begun`."""
    return _is_wanted(wanted, row) or (row.read_from is not None and row.evidence != BEGUN_FOR_PLACEMENT)


def _see_under_replicated(connection: Connection, store: str, found: Sequence[Artifact], now: datetime) -> None:
    kind = FindingKind.UNDER_REPLICATED
    see(connection, [NewFinding(kind, store, of.bucket, of.key, of.version) for of in found], now)


def due_copies(
    connection: Connection,
    store: str,
    *,
    period: timedelta,
    first_read: timedelta | None = None,
    now: datetime,
    until: datetime,
    limit: int,
    ahead: float = 1,
) -> list[int]:
    """Return the ids of copies that are due and not claimed: those late in the period, then first reads, then others.

    A copy is due a part of the period after its last full read, or a part of `first_read` after its write: the part
    follows from the copy, so that copies written together are not read together. `ahead`: see `AHEAD`. However many
    copies are new, they make no other copy overdue: one that was not read for `_LATEST` of the period is taken before
    them, the oldest first. So none is overdue where all copies can be read once in a period.
    """
    waits = [*_waits(period, first_read), timedelta()]  # the last is that of -1, a retry
    values = {"of": store, "claimed_far": _far(until), **_due_times(waits[:-1], period, now, ahead)}
    latest = [*[period * _LATEST] * SPREADS, timedelta()]

    def order(spread: int, moment: datetime) -> tuple[int, datetime]:
        if moment > now or moment + latest[spread] <= now:  # a moment to come is of a clock that was ahead
            return 0, min(moment, now) + latest[spread]
        return 1 if 0 <= spread < FIRST_READS else 2, moment + waits[spread]

    def first(most: int) -> list[tuple[tuple[int, datetime], int, int]]:
        """Return the first copies with their `spread`, found with this limit of each search.

        Copies that are due together are in the order of their ids: rows beside each other are then written together.
        """
        due: dict[tuple[int, str | datetime], tuple[int, datetime]] = {}  # many were read at one moment: as one group
        some = []
        for id_, spread, moment in _DUE.tuples(connection, **values, most=most):
            at = due.get((spread, moment)) or due.setdefault((spread, moment), order(spread, _moment(moment)))
            some.append((at, id_, spread))
        return sorted(some)[:limit]

    most = limit // 3 + 1  # of four equal parts, as copies have that were read before
    some = first(most)
    if most < limit and max(Counter(spread for _, _, spread in some).values(), default=0) >= most:
        some = first(limit)  # one search may have more that are among the first
    return [id_ for _, id_, _ in some]


def _waits(period: timedelta, first_read: timedelta | None) -> list[timedelta]:
    """Return after which time a copy is due, by its `spread`; without `first_read`, a new copy is due late."""
    unread = [period * _LATEST] * FIRST_READS
    if first_read is not None:
        unread = [first_read * part for part in _PARTS[:FIRST_READS]]
    return unread + [period * part for part in _PARTS[FIRST_READS:]]


def _due_times(waits: Sequence[timedelta], period: timedelta, now: datetime, ahead: float) -> dict[str, datetime]:
    """Return the times in the queries of due copies.

    A read or a retry after the latest time that a right clock can have written makes a copy due too.
    """
    before = {
        f"before_{spread}": now - (wait if spread < FIRST_READS else wait * ahead) for spread, wait in enumerate(waits)
    }
    return {"now": now, "latest_read": now + clock.SKEW, "latest_retry": now + period, **before}


def _moment(value: str | datetime) -> datetime:
    """Return a moment from what the driver has read: SQLite keeps text, in UTC."""
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value


def claim_copies(
    connection: Connection, ids: Sequence[int], still: sa.ColumnElement[bool], *, now: datetime, until: datetime
) -> list[int]:
    """Claim copies until `until`, and return those that could be claimed, in the same order.

    `still` is the condition by which the copies were found: since then, another sweep may have claimed a copy, done its
    work and ended the claim.
    """
    claim = (
        update(copies)
        .where(one_of(copies.c.id, sa.bindparam("ids")), _unclaimed(sa.literal(now), sa.literal(_far(until))), still)
        .values(claimed_until=until)
        .returning(copies.c.id)
    )
    claimed = set(connection.execute(claim, {"ids": ids}).scalars().all())
    return [id_ for id_ in ids if id_ in claimed]


def unclaimed(now: datetime, until: datetime) -> sa.ColumnElement[bool]:
    """Return the condition that no claim made now until `until` takes a copy from another sweep."""
    return _unclaimed(sa.literal(now), sa.literal(_far(until)))


def claim_due_copies(
    connection: Connection,
    ids: Sequence[int],
    *,
    period: timedelta,
    first_read: timedelta | None = None,
    now: datetime,
    until: datetime,
    ahead: float = 1,
) -> list[int]:
    """Do as `claim_copies` with those copies that are still due: one that was read just now is not, in any `spread`."""
    waits = _waits(period, first_read)
    claimed = _CLAIM_DUE.tuples(
        connection, ids=ids, now=now, claimed_far=_far(until), until=until,
        unread_before=now - min(waits[:FIRST_READS]), read_before=now - min(waits[FIRST_READS:]) * ahead,
        latest_read=now + clock.SKEW, latest_retry=now + period,
    )  # fmt: skip
    found = {id_ for (id_,) in claimed}
    return [id_ for id_ in ids if id_ in found]


def _far(until: datetime) -> datetime:
    """Return the latest moment at which a claim can end; one that ends later was made by a clock that was ahead."""
    return until + clock.SKEW


def _unclaimed(now: sa.ColumnElement[Any], far: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    claimed = copies.c.claimed_until
    return sa.or_(claimed.is_(None), claimed <= now, claimed > far)


def _due() -> sa.CompoundSelect[Any]:
    """Return the query of due copies: a search of the index for each `spread`, so that no row holds a period."""
    unclaimed = _unclaimed(sa.bindparam("now"), sa.bindparam("claimed_far"))
    found = []
    for spread in range(SPREADS):
        of = (copies.c.store == sa.bindparam("of"), copies.c.spread == spread, copies.c.next_due_at.is_(None))
        query = sa.select(copies.c.id, copies.c.spread, copies.c.read_at.label("moment")).where(*of, unclaimed)
        oldest = query.where(copies.c.read_at <= sa.bindparam(f"before_{spread}")).order_by(copies.c.read_at)
        too_late = query.where(copies.c.read_at > sa.bindparam("latest_read")).order_by(copies.c.read_at.desc())
        found += [oldest, too_late]
    retry = sa.select(copies.c.id, sa.literal(-1).label("spread"), copies.c.next_due_at.label("moment")).where(
        copies.c.store == sa.bindparam("of"), copies.c.next_due_at.is_not(None), unclaimed
    )
    found += [
        retry.where(copies.c.next_due_at <= sa.bindparam("now")).order_by(copies.c.next_due_at),
        retry.where(copies.c.next_due_at > sa.bindparam("latest_retry")).order_by(copies.c.next_due_at.desc()),
    ]
    parts = [query.limit(sa.bindparam("most")).subquery() for query in found]
    return sa.union_all(*(sa.select(part) for part in parts))


def _claim_due() -> sa.Update:
    """Return the claim of copies that are still due."""
    read, retry, unread = copies.c.read_at, copies.c.next_due_at, copies.c.spread < FIRST_READS
    before, unread_before = (sa.bindparam(name, type_=read.type) for name in ("read_before", "unread_before"))
    earliest = sa.case((unread, unread_before), else_=before)
    by_period = sa.and_(retry.is_(None), sa.or_(read <= earliest, read > sa.bindparam("latest_read")))
    still = sa.or_(by_period, retry <= sa.bindparam("now"), retry > sa.bindparam("latest_retry"))
    of = one_of(copies.c.id, sa.bindparam("ids"))
    claim = update(copies).where(of, _unclaimed(sa.bindparam("now"), sa.bindparam("claimed_far")), still)
    return claim.values(claimed_until=sa.bindparam("until")).returning(copies.c.id)


def _count_due() -> sa.Select[Any]:
    """Return the query that counts due copies from the index alone, so that it reads no row."""
    found = []
    for spread in range(SPREADS):
        of = (copies.c.store == sa.bindparam("of"), copies.c.spread == spread, copies.c.next_due_at.is_(None))
        read = sa.select(copies.c.spread).where(*of)
        found.append(read.where(copies.c.read_at <= sa.bindparam(f"before_{spread}")))
        found.append(read.where(copies.c.read_at > sa.bindparam("latest_read")))
    retry = sa.select(copies.c.store).where(copies.c.store == sa.bindparam("of"), copies.c.next_due_at.is_not(None))
    found.append(retry.where(copies.c.next_due_at <= sa.bindparam("now")))
    found.append(retry.where(copies.c.next_due_at > sa.bindparam("latest_retry")))
    parts = [query.limit(sa.bindparam("most")).subquery() for query in found]
    counts = sa.union_all(*(sa.select(sa.func.count().label("due")).select_from(part) for part in parts)).subquery()
    return sa.select(sa.func.sum(counts.c.due))


def _oldest() -> sa.Select[Any]:
    """Return the query of the first of all reads; each `spread` is named so that the index is searched, not read."""
    moment = copies.c.read_at.type
    first = sa.select(sa.func.min(copies.c.read_at, type_=moment).label("first")).where(
        copies.c.store == sa.bindparam("of"), copies.c.next_due_at.is_(None)
    )
    firsts = sa.union_all(*(first.where(copies.c.spread == spread) for spread in range(SPREADS))).subquery()
    return sa.select(sa.func.min(firsts.c.first, type_=moment))


def _overdue() -> sa.Select[Any]:
    """Return the query that counts the copies that were read before a moment, unreadable ones too."""
    late = sa.select(sa.func.count().label("late")).where(
        copies.c.store == sa.bindparam("of"), copies.c.read_at <= sa.bindparam("before")
    )
    found = [late.where(copies.c.spread == spread, copies.c.next_due_at.is_(None)) for spread in range(SPREADS)]
    counts = sa.union_all(*found, late.where(copies.c.next_due_at.is_not(None), NOT_ARCHIVED)).subquery()
    return sa.select(sa.func.sum(counts.c.late))


def _first_reads_late() -> sa.Select[Any]:
    """Return the query that counts the copies that were written before a moment and not read since."""
    late = sa.select(sa.func.count().label("late")).where(
        copies.c.store == sa.bindparam("of"), copies.c.read_at <= sa.bindparam("before")
    )
    found = [late.where(copies.c.spread == spread, copies.c.next_due_at.is_(None)) for spread in range(FIRST_READS)]
    unreadable = late.where(copies.c.next_due_at.is_not(None), NOT_ARCHIVED, copies.c.spread < FIRST_READS)
    counts = sa.union_all(*found, unreadable).subquery()
    return sa.select(sa.func.sum(counts.c.late))


def _needed() -> sa.Select[Any]:
    """Return the query that counts the copies of one `spread` that were read until some times, between each two."""
    of = (
        copies.c.store == sa.bindparam("of"),
        copies.c.spread == sa.bindparam("spread"),
        copies.c.next_due_at.is_(None),
    )
    counts = []
    for number in range(1 + len(_HORIZONS) + len(_SOON)):
        count = sa.select(sa.func.count()).where(*of, copies.c.read_at <= sa.bindparam(f"until_{number}"))
        if number:
            count = count.where(copies.c.read_at > sa.bindparam(f"until_{number - 1}"))
        counts.append(count.scalar_subquery())
    return sa.select(*counts)


_DUE = Prepared(_due())
_CLAIM_DUE = Prepared(_claim_due())
_COUNT_DUE = _count_due()
_OVERDUE = _overdue()
_FIRST_READS_LATE = _first_reads_late()
_OLDEST = _oldest()
_NEEDED = _needed()
_CURSOR = sa.select(sweep_cursors.c.after).where(sweep_cursors.c.name == sa.bindparam("sweep"))
