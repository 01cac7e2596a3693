"""A catalogue of a version before keeps what it knows when it is brought up to date."""

import sqlalchemy as sa

from tests.claimed_keys import claimed_keys
from tests.unit.catalogue.test_catalogue import PERIOD
from worker import clock
from worker.catalogue import Catalogue, database
from worker.catalogue.database import open_engine

_ARTIFACT = (
    "INSERT INTO artifacts (id, bucket, key, version, size, sha256, metadata, created_at, committed_at)"
    " VALUES (:id, 'releases', :key, 1, 1, 'a', '{}', :at, :at)"
)
_COPY = (
    "INSERT INTO copies (id, artifact_id, store, state, attempts, last_verdict, last_attempt_at, last_verified_at,"
    " next_due_at, evidence) VALUES (:id, :id, 'dr', :state, 0, :verdict, :read, :read, :due, '{}')"
)


def test_copies_of_before_are_due_from_their_last_read(catalogue_url, monkeypatch):
    """Copies that were read long ago, or never, are due after the migration; those just read, or deleted, are not.

    What is bad by then is a finding.
    """
    engine, now = open_engine(catalogue_url), clock.now()
    with monkeypatch.context() as older:
        older.setattr(database, "_REVISION", "0007")
        if sa.inspect(engine).has_table("alembic_version"):  # PostgreSQL's database is made from one up to date
            with engine.begin() as connection:
                connection.exec_driver_sql("DROP SCHEMA public CASCADE")
                connection.exec_driver_sql("CREATE SCHEMA public")
        database.migrate(engine)
    rows = {
        "read": ("verified", "verified", now - 2 * PERIOD, now + PERIOD),
        "unread": ("stored", None, None, now + PERIOD),
        "fresh": ("verified", "verified", now, now + PERIOD),
        "deleted": ("deleted", "verified", now - 2 * PERIOD, None),
        "bad": ("corrupt", "corrupt", now, now + PERIOD),
    }
    moment = sa.DateTime(timezone=True)
    with engine.begin() as connection:
        for number, (key, (state, verdict, read, due)) in enumerate(rows.items(), 1):
            values = {"id": number, "key": key, "at": now - 2 * PERIOD, "state": state, "verdict": verdict}
            typed = [sa.bindparam(name, type_=moment) for name in ("read", "due")]
            connection.execute(
                sa.text(_ARTIFACT).bindparams(sa.bindparam("at", type_=moment)),
                {n: values[n] for n in ("id", "key", "at")},
            )
            copied = {n: values[n] for n in ("id", "state", "verdict")} | {"read": read, "due": due}
            connection.execute(sa.text(_COPY).bindparams(*typed), copied)
    engine.dispose()

    catalogue = Catalogue(catalogue_url)
    due = claimed_keys(catalogue, "dr", period=PERIOD, now=now, until=now + PERIOD, limit=9)
    findings = {(each.kind, each.key) for each in catalogue.findings.page()}
    catalogue.close()
    assert sorted(due) == ["read", "unread"]
    assert findings == {("corrupt", "bad"), ("lost", "bad")}
