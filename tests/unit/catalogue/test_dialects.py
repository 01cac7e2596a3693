"""The catalogue keeps the same promises in each database: one writer, order, text, time."""

import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.command import upgrade
from alembic.config import Config
from hypothesis import example, given
from hypothesis import strategies as st

import worker.catalogue
from tests.claimed_keys import claimed_keys
from worker import clock
from worker.catalogue import Busy, Catalogue, CatalogueUnavailable, Leased, VerdictRow, postgresql, sqlite
from worker.catalogue.database import Database
from worker.catalogue.key_ranges import first_after
from worker.storage import Digest
from zot_artifact_client.contract import JobState

LEASE = timedelta(seconds=30)
MANY = 8

OPEN_AT_ONCE = """
import os, traceback
from alembic import command, config
from worker.catalogue import Catalogue

def open_it():
    try:
        Catalogue(os.environ["CATALOGUE"]).close()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

children = [os.fork() or open_it() for _ in range(8)]
raise SystemExit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""

_MIGRATIONS = Path(worker.catalogue.__file__).parent / "migrations"
_MOMENT = "'2026-01-01 00:00:00.000000'"
_ENDED_AND_OPEN = (("b", "queued"), ("b.1", "dead"), ("b.2", "queued"))
BATCH_OF_0006 = [
    *(
        "INSERT INTO jobs (id, kind, request, state, attempts, fence, crashes, created_at)"
        f" VALUES ('{id_}', 'verify', '{{}}', '{state}', 0, 0, 0, {_MOMENT})"
        for id_, state in _ENDED_AND_OPEN
    ),
    f"INSERT INTO batches VALUES ('b', '{{}}', false, true, NULL, NULL, 2, 1, 0, 1, '{{}}', {_MOMENT}, {_MOMENT})",
    "INSERT INTO batch_items VALUES ('b', 1, 'b.1', 0, 'dead'), ('b', 2, 'b.2', 0, NULL)",
]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.sqlite3'}"
        return
    with request.getfixturevalue("postgres").database(migrated=False) as url:
        yield url


def at_once(work):
    with ThreadPoolExecutor(MANY) as pool:
        return list(pool.map(work, range(MANY)))


def stored(catalogue, key="app.tgz", *, digest="a"):
    artifact = catalogue.artifacts.record(
        "releases", key, Digest(11, digest * 64), {}, clock.now(), stores=["dr"]
    ).artifact
    catalogue.artifacts.finish_copy(artifact, "dr", tag="1", evidence={}, now=clock.now())
    return artifact


def test_a_writer_that_writes_on_and_on_lets_others_write(catalogue, catalogue_url):
    """A loop of transactions, as a plan or a cleanup is, has few turns while a user's job waits for one."""
    ended, loops, waited = threading.Event(), 0, 0

    def loop() -> None:
        nonlocal loops
        while not ended.is_set():
            with again._database.write(durable=False) as connection:
                again._database.touch(connection)
                ended.wait(0.002)
            loops += 1

    with closing(Catalogue(catalogue_url)) as again, ThreadPoolExecutor(1) as pool:
        looping = pool.submit(loop)
        for _ in range(50):
            before = loops
            with catalogue._database.write(durable=False) as connection:
                catalogue._database.touch(connection)
            waited += loops - before
        ended.set()
        looping.result()
    assert waited < 500


def begin(catalogue, id_, holds):
    more = {"owner": "me", "writes_to": holds, "parent": None, "now": clock.now(), "lease": LEASE}
    return catalogue.ledger.acquire(id_, "upload", {"key": "a"}, **more)


def find(catalogue, artifact, *, job="job-1", detail=None):
    copy = catalogue.artifacts.copies(artifact)["dr"]
    finding = VerdictRow.of(job, artifact, copy, "verified", detail=detail)
    catalogue.verifications.record(finding, now=clock.now())


# Migrations


def test_a_batch_goes_on_in_a_catalogue_from_before(empty_url):
    """A catalogue that an older version made is brought up to date, and the batch in it finds its children."""
    database = Database(empty_url)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with database.write() as connection:
        config.attributes["connection"] = connection
        upgrade(config, "0006")
        for statement in BATCH_OF_0006:
            connection.exec_driver_sql(statement)
    database.engine.dispose()
    catalogue = Catalogue(empty_url)
    assert [child.job for child in catalogue.batches.in_flight("b")] == ["b.2"]
    assert [child.job for child in catalogue.batches.failed("b", limit=9)] == ["b.1"]
    catalogue.close()


# Turns


def test_many_processes_may_open_a_new_catalogue_at_once(empty_url):
    """Eight workers that start on an empty database all get to work on the same tables, made once."""
    environment = {**os.environ, "CATALOGUE": empty_url, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OPEN_AT_ONCE]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    database = Database(empty_url)
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM alembic_version")).scalar() == 1
    database.engine.dispose()


def test_of_many_jobs_one_gets_to_write_to_an_artifact(catalogue):
    """Of jobs that begin at once and write to one artifact, one does and the others wait."""
    outcomes = at_once(lambda n: begin(catalogue, f"job-{n}", "releases/app.tgz"))
    assert Counter(type(outcome) for outcome in outcomes) == {Leased: 1, Busy: MANY - 1}


def test_the_chain_of_the_log_stays_whole_under_many_writers(catalogue):
    """Verdicts that are recorded at once follow one upon another, each with the hash of the one before it."""
    artifact = stored(catalogue)
    at_once(lambda n: [find(catalogue, artifact, job=f"job-{n}") for _ in range(3)])
    rows = catalogue.verifications.of("releases", "app.tgz")
    assert len({row["previous"] for row in rows}) == len(rows) == 3 * MANY
    assert catalogue.verifications.first_broken() is None


def test_many_sweeps_claim_each_copy_once(catalogue):
    """Sweeps that look for work at once share it."""
    for number in range(MANY + 2):
        stored(catalogue, f"app-{number}.tgz")
    now = clock.now()
    claim = {"period": timedelta(seconds=1), "now": now + LEASE, "until": now + 2 * LEASE, "limit": 2}
    shares = at_once(lambda _: claimed_keys(catalogue, "dr", **claim))
    claimed = [key for share in shares for key in share]
    assert sorted(claimed) == sorted({f"app-{number}.tgz" for number in range(MANY + 2)})


def test_versions_that_are_recorded_at_once_are_counted_through(catalogue):
    """Different bytes under one key at once become as many versions, none of them twice."""
    recorded = at_once(lambda n: stored(catalogue, digest=str(n)).version)
    assert sorted(recorded) == list(range(1, MANY + 1))


def test_who_waits_too_long_for_a_turn_is_told(catalogue_url, monkeypatch):
    """A writer that is kept waiting gets an error that passes, and never waits for ever."""
    monkeypatch.setattr(postgresql, "LOCK_SECONDS", 1)
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 1)
    catalogue = Catalogue(catalogue_url)
    with catalogue._database.write(), pytest.raises(CatalogueUnavailable, match="lock"):
        begin(catalogue, "job-1", None)
    assert isinstance(begin(catalogue, "job-1", None), Leased)
    catalogue.close()


def test_a_reader_sees_one_state_while_others_write(catalogue):
    """What is recorded during a read does not show in the middle of it."""
    with catalogue._database.read() as connection:
        count = sa.text("SELECT count(*) FROM artifacts")
        before = connection.execute(count).scalar()
        stored(catalogue)
        assert (before, connection.execute(count).scalar()) == (0, 0)


# Text, time, numbers


def test_keys_are_ordered_by_their_bytes(catalogue):
    """Artifacts are listed in the order of the UTF-8 bytes of their keys, whatever the language of the database."""
    keys = ["b", "A", "a", "Z", "é", "_", "\ufb01", "\U0001f600", "a b", "a-b", "a/b"]
    for key in keys:
        stored(catalogue, key)
    listed = [artifact.key for artifact in catalogue.artifacts.page()]
    assert listed == sorted(keys, key=str.encode)
    rest = catalogue.artifacts.page(after=("releases", "a-b"), limit=3)
    assert [artifact.key for artifact in rest] == ["a/b", "b", "é"]


def test_a_prefix_is_taken_at_its_letters(catalogue):
    """A prefix finds the keys that begin with it: no pattern, and no other case."""
    for key in ("App", "app", "app_", "apps", "a%b", "aab"):
        stored(catalogue, key)

    def listed(prefix):
        found, everywhere = ([a.key for a in catalogue.artifacts.page(of, prefix)] for of in ("releases", None))
        assert found == everywhere
        return found

    assert listed("app") == ["app", "app_", "apps"]
    assert listed("A") == ["App"]
    assert listed("app_") == ["app_"]
    assert listed("a%") == ["a%b"]


@given(st.text(max_size=4), st.text(max_size=4))
@example("a\U0010ffff", "b")
@example("\U0010ffff", "")
@example("a\ud7ff", "b")
def test_what_begins_with_a_prefix_is_between_it_and_the_first_after(prefix, other):
    """The range that is asked for holds what begins with the prefix, and nothing else."""
    end = first_after(prefix)
    for key in (other, prefix + other):
        assert (prefix <= key and (end is None or key < end)) == key.startswith(prefix)


def test_what_a_message_says_is_recorded_whatever_it_is(catalogue):
    """Text that no store would take as a key, and that is far too long, is kept as a job and not refused as one."""
    monstrous = "".join(chr(0x10000 + 7919 * n % 0x20000) for n in range(4000)) + "\0"
    begun = begin(catalogue, "job-\0", monstrous)
    assert isinstance(begun, Leased)
    assert isinstance(begin(catalogue, "job-2", monstrous), Busy)
    error = {"type": "Odd", "message": "a\0b \ud800"}
    catalogue.ledger.finish("job-\0", begun.record.fence, JobState.FAILED, now=clock.now(), error=error)
    assert catalogue.ledger.get("job-\0").error == error
    catalogue.ledger.reject("job-3", "no\0task" * 20, {"k\0": "…"}, error, clock.now())
    assert catalogue.ledger.get("job-3").request == {"k\0": "…"}


def test_the_log_holds_odd_details(catalogue):
    """A detail that is too long, or has what a database cannot hold, does not break the chain."""
    find(catalogue, stored(catalogue), job="job-\0", detail="\0 é" * 2000)
    assert catalogue.verifications.first_broken() is None
    assert len(catalogue.verifications.of("releases", "app.tgz")[0]["detail"]) == 2000
    for detail in ('{"a",\\"b"}', "NULL", " {} ", "\\"):
        find(catalogue, stored(catalogue), job='job "1",\\', detail=detail)
        assert catalogue.verifications.of("releases", "app.tgz")[0]["detail"] == detail
    assert catalogue.verifications.first_broken() is None


def test_moments_come_back_in_utc(catalogue):
    """A moment is the same and in UTC after it was recorded, wherever the database thinks it is."""
    now = clock.now()
    artifact = catalogue.artifacts.record("releases", "app.tgz", Digest(1, "a" * 64), {}, now).artifact
    found = catalogue.artifacts.version("releases", "app.tgz", 1)
    assert artifact.created_at.isoformat() == found.created_at.isoformat() == now.isoformat()


def test_sizes_and_versions_beyond_what_there_is(catalogue):
    """An object of five terabytes has its size; a version that no artifact can have is not there."""
    size = 5 * 1024**4
    catalogue.artifacts.record("releases", "big", Digest(size, "a" * 64), {}, clock.now())
    assert catalogue.artifacts.version("releases", "big", 1).digest.size == size
    assert catalogue.artifacts.version("releases", "big", 10**12) is None
