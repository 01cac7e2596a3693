"""The stores that have copies in the catalogue, including those that are not configured any more."""

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from worker import clock
from worker.catalogue.database import Queries
from worker.catalogue.findings import note_deletes
from worker.catalogue.records import GONE, GOOD, Artifact, CopyState, artifact_of, copy_of
from worker.catalogue.tables import artifacts, copies

_GROUP = 500
_SAMPLE = 100
_PRESENT = [state for state in CopyState if state.present]
_other = copies.alias("other")
_LAST = sa.and_(
    copies.c.state.in_(GOOD),
    artifacts.c.tombstoned_at.is_(None),
    ~sa.exists().where(
        _other.c.artifact_id == copies.c.artifact_id, _other.c.store != copies.c.store, _other.c.state.in_(GOOD)
    ),
)
_NEXT = sa.select(sa.func.min(copies.c.store)).where(copies.c.store > sa.bindparam("after"))
_IN_STORE = (
    sa.select(artifacts, copies.c.id.label("copy_id"), _LAST.label("last"))
    .join(copies, copies.c.artifact_id == artifacts.c.id)
    .where(
        # concat: in the order of the rows; an index by store would sort all copies of the store for each group
        copies.c.store.concat("") == sa.bindparam("of"), copies.c.state.not_in(GONE),
        copies.c.id > sa.bindparam("after"),
    )
    .order_by(copies.c.id)
    .limit(_GROUP)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ForgottenStore:
    """The copies of a store that were forgotten, or would be. `last`: artifacts whose only good copy is there.

    `last_examples` names the first 100 of them.
    """

    forgotten: int
    last: int
    last_examples: tuple[Artifact, ...]


class StoreRecords(Queries):
    """The copies of the catalogue by the name of their store."""

    def names(self) -> list[str]:
        """Return the names of all stores that ever had a copy, configured or not; each is one search of an index."""
        names: list[str] = []
        with self._database.read() as connection:
            while (name := connection.execute(_NEXT, {"after": names[-1] if names else ""}).scalar()) is not None:
                names.append(name)
        return names

    def unconfigured(self, configured: Collection[str]) -> dict[str, dict[str, int]]:
        """Return the copies by state in the stores that are not among these, of the stores that have any."""
        beyond = [name for name in self.names() if name not in configured]
        query = (
            sa.select(copies.c.store, copies.c.state, sa.func.count())
            .where(copies.c.store.in_(beyond), copies.c.state.not_in(GONE))
            .group_by(copies.c.store, copies.c.state)
        )
        found: dict[str, dict[str, int]] = {}
        with self._database.read() as connection:
            for store, state, count in connection.execute(query) if beyond else ():
                found.setdefault(store, {})[state] = count
        return found

    def count_in_both(self, one: str, other: str) -> int:
        """Return how many artifact versions have a copy in each of two stores."""
        query = (
            sa.select(sa.func.count())
            .select_from(copies)
            .join(_other, _other.c.artifact_id == copies.c.artifact_id)
            .where(copies.c.store == one, _other.c.store == other)
            .where(copies.c.state.in_(_PRESENT), _other.c.state.in_(_PRESENT))
        )
        with self._database.read() as connection:
            count: int = connection.execute(query).scalar_one()
        return count

    def forget(self, name: str, *, dry_run: bool, force: bool = False) -> ForgottenStore:
        """Record the copies of a store as deleted, in groups; no byte in any store is touched.

        The only good copy of an artifact is counted and kept in the catalogue, unless `force` is given.
        """
        forgotten, last, examples, after = 0, 0, list[Artifact](), 0
        while True:
            with self._database.read() if dry_run else self._database.write() as connection:
                rows = connection.execute(_IN_STORE, {"of": name, "after": after}).all()
                ids = [row.copy_id for row in rows if force or not row.last]
                if ids and not dry_run:
                    _forget(connection, ids)
                    forgotten_copies = connection.execute(sa.select(copies).where(copies.c.id.in_(ids)))
                    note_deletes(connection, [copy_of(row) for row in forgotten_copies], "store forgotten", clock.now())
            if not rows:
                return ForgottenStore(forgotten, last, tuple(examples))
            only = [row for row in rows if row.last]
            forgotten, last, after = forgotten + len(ids), last + len(only), rows[-1].copy_id
            examples += [artifact_of(row) for row in only[: _SAMPLE - len(examples)]]


def _forget(connection: Connection, ids: list[int]) -> None:
    connection.execute(
        sa.update(copies)
        .where(copies.c.id.in_(ids))
        .values(state=CopyState.DELETED, read_at=None, next_due_at=None, claimed_until=None)
    )
