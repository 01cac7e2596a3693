"""What the verify sweep has used of the budget of each store."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.database import Queries
from worker.catalogue.sweep_claims import NeededReads
from worker.catalogue.tables import artifacts, budgets, copies

MOST_BUCKETS = 1000
_TOTALS = timedelta(hours=4)
"""How old what was counted of a store may be, and what has to be read in it."""
_SCAN_OF_ONE = timedelta(microseconds=300)
"""How much older it may be for each of its copies: a hundred times what a scan takes for one."""
_FEW = 0.1
"""The part of all copies up to which those of a store are searched for, and not all copies scanned."""
_TOTALS_OF_ONE = timedelta(seconds=0.1)
"""For how long for each of its copies a store is not counted again, even if it has other copies now."""
Taken = TypeVar("Taken")


@dataclass(frozen=True, slots=True)
class BudgetState:
    """What is left at each rate at a time, and what was used of the day and the month."""

    at: datetime
    bytes_level: float = 0.0
    requests_level: float = 0.0
    cost_level: float = 0.0
    day: str = ""
    day_bytes: int = 0
    day_requests: int = 0
    month: str = ""
    month_cost: float = 0.0

    def on_day_of(self, now: datetime) -> "BudgetState":
        """Return the state with what was used of the day and the month of this time: nothing yet of new ones."""
        day, month = f"{now:%Y-%m-%d}", f"{now:%Y-%m}"
        same_day, same_month = self.day == day, self.month == month
        return replace(
            self, day=day, month=month, day_bytes=self.day_bytes if same_day else 0,
            day_requests=self.day_requests if same_day else 0, month_cost=self.month_cost if same_month else 0.0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sweep reads of a store, as it was counted at a time: copies and bytes, and both by bucket.

    `buckets`: the largest first, at most `MOST_BUCKETS` of them.
    """

    copies: int
    bytes: int
    buckets: Mapping[str, tuple[int, int]]
    at: datetime


class Budgets(Queries):
    """The state of each store's budget."""

    def get(self, store: str, *, now: datetime) -> BudgetState:
        """Return the state of a store's budget, with what was used today and this month (UTC)."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(budgets).where(budgets.c.store == store)).one_or_none()
        return (BudgetState(at=now) if row is None else _state_of(row)).on_day_of(now)

    def counted(self, store: str) -> Usage | None:
        """Return what `usage` has counted of a store, None if it has not yet."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(budgets).where(budgets.c.store == store)).one_or_none()
        if row is None or row.counted_at is None or row.buckets is None:
            return None
        buckets = {bucket: (count, size) for bucket, count, size in row.buckets}
        return Usage(row.copies, row.bytes, buckets, row.counted_at)

    def usage(self, store: str, *, now: datetime) -> Usage:
        """Return what a sweep reads of a store; counted anew after some hours, and sooner of a store with few copies.

        The count scans all copies in the order of their rows, in which their artifacts are beside each other too. A
        search of an index by store reads the pages of both tables in another order, which takes many times longer for
        each copy: only a store that has few of all copies is counted so.
        """
        known = self.counted(store)
        if known is not None and timedelta() <= now - known.at < _TOTALS + known.copies * _SCAN_OF_ONE:
            soon = known.copies * _TOTALS_OF_ONE
            if now - known.at < soon or self.copies(store) == known.copies:
                return known
        found = self.count(store, now=now)
        buckets = [(bucket, *used) for bucket, used in found.buckets.items()]
        values = {"copies": found.copies, "bytes": found.bytes, "buckets": buckets, "counted_at": now}
        self._keep(store, values, now)
        return found

    def count(self, store: str, *, now: datetime) -> Usage:
        """Count what a sweep reads of a store, and keep nothing: at once for a small catalogue, else see `counted`."""
        # concat: no scan in the order of an index of buckets
        bucket = artifacts.c.bucket.concat(sa.literal_column("''"))
        count = sa.select(bucket, sa.func.count(), sa.func.sum(artifacts.c.size))
        query = count.join(copies, artifacts.c.id == copies.c.artifact_id).group_by(bucket)
        name = copies.c.store if self.copies(store) < _FEW * self._copies_of_all() else copies.c.store.concat("")
        with self._database.read() as connection:
            found_rows = connection.execute(query.where(name == store, copies.c.read_at.is_not(None)))
            rows = [(str(row[0]), int(row[1]), int(row[2])) for row in found_rows]
        rows.sort(key=itemgetter(2, 1), reverse=True)
        some = {bucket: (number, size) for bucket, number, size in rows[:MOST_BUCKETS]}
        return Usage(sum(row[1] for row in rows), sum(row[2] for row in rows), some, now)

    def copies(self, store: str) -> int:
        """Return how many copies a store has that a sweep reads now, from the indexes of due copies and of retries."""
        read = (copies.c.store == store, copies.c.read_at.is_not(None))
        count = sa.select(sa.func.count()).where(*read)
        by_spread = count.where(copies.c.next_due_at.is_(None), copies.c.spread >= 0)  # without it, SQLite reads rows
        with self._database.read() as connection:
            found = connection.execute(by_spread).scalar_one()
            return int(found) + int(connection.execute(count.where(copies.c.next_due_at.is_not(None))).scalar_one())

    def _copies_of_all(self) -> int:
        """Return how many copies all stores had when each was counted last."""
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.sum(budgets.c.copies))).scalar() or 0)

    def needed(self, store: str, count: Callable[[], NeededReads], *, age: timedelta, now: datetime) -> NeededReads:
        """Return how many copies of a store have to be read in a second; `count` computes it anew after `age`."""
        columns = budgets.c
        names = ("needed", "needed_first", "needed_new", "needed_again")  # as in NeededReads
        query = sa.select(columns.needed_at, *(columns[name] for name in names)).where(columns.store == store)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is not None and None not in row and timedelta() <= now - row.needed_at < min(age, _TOTALS):
            return NeededReads(*row[1:])
        found = count()
        self._keep(store, {**dict(zip(names, found, strict=True)), "needed_at": now}, now)
        return found

    def _keep(self, store: str, values: dict[str, object], now: datetime) -> None:
        """Write columns of a store's row, which is made if there is none."""
        with self._database.write() as connection:
            change = sa.update(budgets).where(budgets.c.store == store).values(**values)
            if not connection.execute(change).rowcount:
                connection.execute(sa.insert(budgets).values(store=store, **asdict(BudgetState(at=now)), **values))

    def largest(self, store: str, *, above: int = -1) -> tuple[str, int] | None:
        """Return the path and the size of the largest object that a sweep reads in a store, None if there is none.

        `above`: only of objects larger than that, which is several times faster than to look up the copies of all.
        """
        read = (copies.c.artifact_id == artifacts.c.id, copies.c.store == store, copies.c.read_at.is_not(None))
        query = (
            sa.select(artifacts.c.bucket, artifacts.c.key, artifacts.c.size)
            .where(artifacts.c.size > above, sa.exists().where(*read))
            .order_by(artifacts.c.size.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return (f"{row.bucket}/{row.key}", row.size) if row else None


def change_budget(
    connection: Connection, store: str, how: Callable[[BudgetState], tuple[BudgetState, Taken]], now: datetime
) -> Taken:
    """Change the state of a store's budget, and return what was taken."""
    row = connection.execute(sa.select(budgets).where(budgets.c.store == store)).one_or_none()
    state, taken = how(BudgetState(at=now) if row is None else _state_of(row))
    if row is None:
        connection.execute(sa.insert(budgets).values(store=store, **asdict(state)))
    else:
        connection.execute(sa.update(budgets).where(budgets.c.store == store).values(**asdict(state)))
    return taken


def _state_of(row: sa.Row[tuple[object, ...]]) -> BudgetState:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name
    return BudgetState(**{name: values[name] for name in BudgetState.__dataclass_fields__})
