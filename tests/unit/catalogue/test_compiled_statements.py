"""Statements that are compiled once, in each kind of database."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta, timezone
from random import Random

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from worker.catalogue import Catalogue, CatalogueError
from worker.catalogue.bulk import BulkStatement, insert, update
from worker.catalogue.compiled_statements import Prepared, in_one_request
from worker.catalogue.tables import jobs

ROW = {"kind": "upload", "state": "queued", "attempts": 0, "fence": 0, "crashes": 0}
NOW = datetime(2026, 3, 29, 1, 30, 0, 125_000, tzinfo=timezone(timedelta(hours=2)))
INSERT = Prepared(sa.insert(jobs))
FIND = Prepared(sa.select(jobs).where(jobs.c.id == sa.bindparam("of")))
BEGIN_AGAIN = Prepared(
    sa.update(jobs).where(jobs.c.kind == sa.bindparam("of")).values(state="queued", fence=jobs.c.fence + 1)
)
EMPTY_KINDS = Prepared(update(jobs).values(kind=None))


def test_values_are_bound_and_read_back_as_sqlalchemy_does(catalogue: Catalogue) -> None:
    """Moments, JSON, text with a percent sign and None are the same, whichever of the two wrote and reads them.

    So is each row of many, whether it has the value of the row before or its own.
    """
    request = {"source": "/100%/a", "nested": [None, "ü"]}
    with catalogue._database.write() as connection:
        INSERT.run(connection, id="raw%s", request=request, created_at=NOW, error=None, **ROW)
        connection.execute(sa.insert(jobs), {"id": "core", "request": request, "created_at": NOW, "error": None, **ROW})
    with catalogue._database.read() as connection:
        for id_ in ("raw%s", "core"):
            row = FIND.first(connection, of=id_)
            assert row._asdict() == connection.execute(sa.select(jobs).where(jobs.c.id == id_)).one()._asdict()
            assert (row.created_at, row.request, row.error) == (NOW.astimezone(UTC), request, None)
        assert FIND.first(connection, of="another") is None
    shared: dict[str, int] = {"n": 1}
    requests = [shared, shared, {"n": 2}, {"n": 1}, {"n": 3}]
    rows = [{"id": f"many-{number}", "request": each} for number, each in enumerate(requests)]
    with catalogue._database.write() as connection:
        INSERT.run_many(connection, rows, created_at=NOW, error=None, **ROW)
        assert [FIND.first(connection, of=row["id"]).request for row in rows] == requests


def test_a_change_tells_how_many_rows_it_is_about(catalogue: Catalogue) -> None:
    """A fence that matches no row is noticed by the count."""
    with catalogue._database.write() as connection:
        INSERT.run_many(connection, [{"id": "a"}, {"id": "b"}], request={}, created_at=NOW, **ROW)
        assert BEGIN_AGAIN.run(connection, of="upload") == 2
        assert BEGIN_AGAIN.run(connection, of="delete") == 0


def test_what_is_asked_in_one_request_is_read_after_it(catalogue: Catalogue) -> None:
    """Each statement has its own rows, in whatever order they are read, and sees what those before it have changed."""
    with catalogue._database.write() as connection:
        with in_one_request(connection):
            before = FIND.ask(connection, of="a")
            INSERT.run(connection, id="a", request={"n": 1}, created_at=NOW, **ROW)
            after = FIND.ask(connection, of="a")
        assert [row.request for row in after.all()] == [{"n": 1}]
        assert before.all() == []


def test_a_default_that_would_not_be_filled_in_is_refused(catalogue: Catalogue) -> None:
    """An INSERT without a column that has a default is an error of the code, and not a row without it."""
    with catalogue._database.write() as connection, pytest.raises(TypeError, match="attempts"):
        INSERT.run(connection, id="a", kind="upload", state="queued", request={}, created_at=NOW)


@pytest.mark.parametrize("together", [in_one_request, nullcontext])
def test_an_error_of_the_database_undoes_the_transaction(
    catalogue: Catalogue, together: Callable[[sa.Connection], AbstractContextManager[None]]
) -> None:
    """The driver's error becomes that of SQLAlchemy, without the values, and nothing of the transaction stays."""

    def insert_twice() -> None:
        with catalogue._database.write() as connection, together(connection):
            for _ in range(2):
                INSERT.run(connection, id="same-id", request={}, created_at=NOW, **ROW)

    def empty_kinds() -> None:
        with catalogue._database.write() as connection, together(connection):
            INSERT.run(connection, id="same-id", request={}, created_at=NOW, **ROW)
            EMPTY_KINDS.ask(connection)

    for change, why in ((insert_twice, "(?i)unique|duplicate"), (empty_kinds, "(?i)not.null")):
        with pytest.raises(CatalogueError, match=why) as failure:
            change()
        assert isinstance(failure.value.__cause__, IntegrityError)
        with catalogue._database.read() as connection:
            assert FIND.first(connection, of="same-id") is None


def test_rows_that_share_values_are_inserted_as_they_are(catalogue: Catalogue) -> None:
    """SQLite binds once what all rows, two columns or a row and the next one have in common."""
    names = ("key", "expected", "found", "previous", "hash")
    columns = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("job", sa.Text)]
    columns += [sa.Column(name, sa.Text) for name in names]
    table = sa.Table("scratch", sa.MetaData(), *columns, prefixes=["TEMPORARY"])
    statement = BulkStatement(
        lambda given: insert(table, {"job": sa.bindparam("job", type_=sa.Text), **{n: given(n) for n in names}}),
        {name: table.c[name].type for name in names},
    )
    random = Random(1)
    with catalogue._database.write() as connection:
        table.create(connection)
        for turn in range(300):
            values = [None, "", *map(str, range(random.choice([0, 2, 50])))]
            rows = [[random.choice(values) for _ in names] for _ in range(random.choice([0, 1, 2, 24, 25, 26, 60]))]
            for row, before in zip(rows, [None, *rows], strict=False):
                if turn % 2:
                    row[1] = row[2]
                if turn % 3 and before:
                    row[3] = before[4]
            statement.execute(connection, rows, job="job-1")
            query = sa.select(table.c.job, *(table.c[name] for name in names)).order_by(table.c.id)
            assert [list(row) for row in connection.execute(query)] == [["job-1", *row] for row in rows]
            connection.execute(sa.delete(table))
        table.drop(connection)
