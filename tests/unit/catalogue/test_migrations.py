"""A catalogue of a version before keeps what it knows when it is brought up to date."""

import pytest
import sqlalchemy as sa

from tests.claimed_keys import claimed_keys
from tests.unit.catalogue.test_catalogue import PERIOD
from worker import clock
from worker.catalogue import Catalogue, database, tables
from worker.catalogue.database import open_engine

_ARTIFACT = (
    "INSERT INTO artifacts (id, bucket, key, version, size, sha256, metadata, created_at, committed_at)"
    " VALUES (:id, 'releases', :key, 1, 1, 'a', '{}', :at, :at)"
)
_COPY = (
    "INSERT INTO copies (id, artifact_id, store, state, attempts, last_verdict, last_attempt_at, last_verified_at,"
    " next_due_at, evidence) VALUES (:id, :id, 'dr', :state, 0, :verdict, :read, :read, :due, '{}')"
)


def _make_tables(engine: sa.Engine, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(database, "_REVISION", revision)
        if sa.inspect(engine).has_table("alembic_version"):  # PostgreSQL's database is made from one up to date
            with engine.begin() as connection:
                connection.exec_driver_sql("DROP SCHEMA public CASCADE")
                connection.exec_driver_sql("CREATE SCHEMA public")
        database.migrate(engine)


def test_artifacts_of_before_belong_to_the_stores_that_their_upload_named(catalogue_url, monkeypatch):
    """As far as the ledger still has the request: of an upload, and of a page of them."""
    engine, now = open_engine(catalogue_url), clock.now()
    _make_tables(engine, "0030", monkeypatch)
    moment = sa.bindparam("at", type_=sa.DateTime(timezone=True))
    job = sa.text(
        "INSERT INTO jobs (id, kind, request, state, attempts, fence, created_at, crashes)"
        " VALUES (:id, :kind, :request, 'succeeded', 1, 1, :at, 0)"
    ).bindparams(moment)
    artifact = sa.text(
        "INSERT INTO artifacts (id, bucket, key, version, size, sha256, metadata, created_at, committed_at, job)"
        " VALUES (:id, 'releases', :key, 1, 1, 'a', '{}', :at, :at, :key)"
    ).bindparams(moment)
    requests = [("upload", "null"), ("upload", '["dr"]'), ("page", '["dr"]'), ("adopt", '["dr"]')]
    with engine.begin() as connection:
        for number, (kind, stores) in enumerate(requests):
            values = {"kind": kind, "request": f'{{"stores": {stores}}}', "at": now}
            connection.execute(job, {"id": f"{kind} {stores}", **values})
            connection.execute(artifact, {"id": number, "key": f"{kind} {stores}", "at": now})
        connection.execute(artifact, {"id": 9, "key": "forgotten", "at": now})
    engine.dispose()
    catalogue = Catalogue(catalogue_url)
    with catalogue._database.read() as connection:
        named = sa.select(tables.artifacts.c.key).where(tables.artifacts.c.stores_named)
        assert sorted(connection.execute(named).scalars()) == ['page ["dr"]', 'upload ["dr"]']
    catalogue.close()


def test_dead_pages_of_before_whose_objects_are_jobs_are_no_dead_letters(catalogue_url, monkeypatch):
    """An earlier version left them dead for good; those that a redrive still continues stay."""
    engine, now = open_engine(catalogue_url), clock.now()
    _make_tables(engine, "0036", monkeypatch)
    job = sa.text(
        "INSERT INTO jobs (id, kind, request, state, attempts, fence, created_at, crashes, parent)"
        " VALUES (:id, :kind, :request, :state, 1, 1, :at, 0, :parent)"
    ).bindparams(sa.bindparam("at", type_=sa.DateTime(timezone=True)))
    claim = '{"verb": "verify", "claim": {"store": "dr"}}'
    rows = {
        "done": ("batch", "{}", "succeeded", None), "open": ("batch", "{}", "running", None),
        "done.1": ("page", "{}", "dead", "done"), "done.2": ("verify", "{}", "dead", "done"),
        "open.1": ("page", "{}", "dead", "open"), "sweep": ("sweep.verify", "{}", "succeeded", None),
        "sweep.1": ("page", claim, "dead", "sweep"), "sweep.2": ("page", claim, "dead", "sweep"),
    }  # fmt: skip
    with engine.begin() as connection:
        for id_, (kind, request, state, parent) in rows.items():
            connection.execute(
                job, {"id": id_, "kind": kind, "request": request, "state": state, "parent": parent, "at": now}
            )
        progress = {"open": [1], "bytes": 0, "outcomes": {}, "failures": [], "left": []}
        connection.execute(sa.insert(tables.pages).values(job="sweep.2", **progress))
    engine.dispose()
    catalogue = Catalogue(catalogue_url)
    states = catalogue.ledger.states([id_ for id_, (kind, *_) in rows.items() if kind in {"page", "verify"}])
    catalogue.close()
    assert {id_ for id_, state in states.items() if state == "failed"} == {"done.1", "sweep.1"}
    assert {id_ for id_, state in states.items() if state == "dead"} == {"done.2", "open.1", "sweep.2"}


def test_copies_of_before_are_due_from_their_last_read(catalogue_url, monkeypatch):
    """Copies that were read long ago, or never, are due after the migration; those just read, or deleted, are not.

    What is bad by then is a finding.
    """
    engine, now = open_engine(catalogue_url), clock.now()
    _make_tables(engine, "0007", monkeypatch)
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
