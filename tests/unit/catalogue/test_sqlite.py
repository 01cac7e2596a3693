"""Faults of a catalogue in a file: a lock of another program, and a full disk."""

import errno
import fcntl
import io
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from tests.open_files import open_below
from tests.servers.process import REPOSITORY
from tests.unit.catalogue.test_catalogue import stored
from tests.waiting import WITHIN
from worker import clock, shutdown_flag
from worker.catalogue import (
    Busy,
    Catalogue,
    CatalogueError,
    CatalogueUnavailable,
    EndNotDurable,
    Finished,
    FinishedCopy,
    Group,
    Leased,
    NewVersion,
    PageOutcome,
    Share,
    VerdictRow,
    check_file,
    checkpoint_write_ahead_log,
    load_export,
)
from worker.report.service_checks import catalogue_writes
from worker.settings import Settings
from worker.storage import Digest
from zot_artifact_client.contract import JobState


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"


def begin(catalogue, id_, content=""):
    more = {"owner": "me", "writes_to": None, "parent": None, "now": clock.now(), "lease": timedelta(seconds=30)}
    return catalogue.ledger.acquire(id_, "upload", {"key": content}, **more)


def test_how_long_a_lock_is_waited_for_is_in_the_url(url):
    """A lock that another program holds is waited for as long as the URL says, and is then a fault that passes.

    The error names the way out, as for a catalogue that this user may not write.
    """
    path = url.removeprefix("sqlite:///")
    with closing(Catalogue(f"{url}?timeout=0.1")) as catalogue, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogueUnavailable, match="is locked; end the program that keeps it locked"):
            begin(catalogue, "job-1")
        other.rollback()
        assert isinstance(begin(catalogue, "job-1"), Leased)


@pytest.mark.timeout(60)
def test_a_worker_that_shuts_down_waits_for_no_lock(url, monkeypatch):
    """A lock that another program keeps holds a worker no longer than its grace period; the job is delivered again."""
    path = url.removeprefix("sqlite:///")
    with closing(Catalogue(f"{url}?timeout=3600")) as catalogue, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(shutdown_flag, "grace_is_over", lambda _since: True)
        with pytest.raises(CatalogueUnavailable, match="locked"):
            begin(catalogue, "job-1")


def test_children_of_a_worker_that_shuts_down_wait_for_each_other(url, monkeypatch):
    """When the grace period ends, all children record at the same time that their jobs are requeued."""
    path = url.removeprefix("sqlite:///")
    with closing(Catalogue(url)) as catalogue, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        over = time.monotonic()
        monkeypatch.setattr(shutdown_flag, "grace_is_over", lambda since: time.monotonic() > over + since)

        def ended(_seconds: float) -> None:
            other.rollback()

        monkeypatch.setattr("worker.catalogue.sqlite.time", SimpleNamespace(**{**vars(time), "sleep": ended}))
        assert isinstance(begin(catalogue, "job-1"), Leased)


def test_no_writer_begins_before_the_next_one(url):
    """The next one has a lock on the write-ahead log until it has begun; what need not wait for it does not."""
    with closing(Catalogue(url)) as catalogue, Path(f"{url.removeprefix('sqlite:///')}-wal").open("rb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as the next writer has it
        with catalogue._database.write_if_free() as connection:
            assert connection is None
        fcntl.flock(log, fcntl.LOCK_UN)
        with catalogue._database.write_if_free() as connection:
            assert connection is not None


@pytest.mark.timeout(60)
def test_a_next_writer_that_was_stopped_keeps_no_one_waiting(url, monkeypatch):
    """A process may be frozen when it is the next one; the others write without it, as soon as they may."""
    here, sleep = threading.current_thread(), time.sleep

    def wait(seconds: float) -> None:  # the threads of earlier tests wait as before
        if threading.current_thread() is here:
            pytest.fail("it waits again")
        sleep(seconds)

    log_path = Path(f"{url.removeprefix('sqlite:///')}-wal")
    with closing(Catalogue(f"{url}?timeout=3600")) as catalogue, log_path.open("rb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert isinstance(begin(catalogue, "job-1"), Leased)
        with monkeypatch.context() as patch:  # only the first of a row of writes waits behind it
            patch.setattr(time, "sleep", wait)
            assert isinstance(begin(catalogue, "job-2"), Leased)


def test_a_disk_without_locks_of_files_takes_writes(url, monkeypatch):
    """Such as some network file systems: the writers have no order there, and wait for SQLite's own lock."""

    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with closing(Catalogue(url)) as catalogue:
        begin(catalogue, "job-1")  # a first write makes the file that is locked
        monkeypatch.setattr(fcntl, "flock", fail)
        assert isinstance(begin(catalogue, "job-2"), Leased)


def test_a_closed_catalogue_leaves_no_descriptor(url):
    """Each connection that has written keeps one of the write-ahead log until it is closed."""
    place = Path(url.removeprefix("sqlite:///")).parent
    with closing(Catalogue(url)) as catalogue, ThreadPoolExecutor(4) as pool:
        assert all(isinstance(each, Leased) for each in pool.map(partial(begin, catalogue), "abcd"))
        assert open_below(place)
    assert open_below(place) == []


def test_a_new_file_with_a_writer_is_waited_for(url):
    """SQLite itself does not wait there, and of many processes that open a new catalogue at once one would fail."""
    path = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, other.rollback)
        release.start()
        with closing(Catalogue(url)) as catalogue:
            assert isinstance(begin(catalogue, "job-1"), Leased)
        release.join()


def test_no_transaction_waits_for_a_connection(url):
    """Kept connections do not return to the pool: a thread that waited there for one would starve."""
    with closing(Catalogue(url)) as catalogue, ExitStack() as many:
        for _ in range(20):
            many.enter_context(catalogue._database.read())
        assert catalogue.ledger.get("job-1") is None


def test_a_wait_that_is_no_number_is_named(url):
    """A parameter that SQLite cannot take is one line, as other faults of the URL are."""
    with pytest.raises(CatalogueError, match="the catalogue's URL cannot be used.*soon"):
        Catalogue(f"{url}?timeout=soon")


def test_a_full_disk_is_a_fault_that_passes(url):
    """What finds no room is not there in part, what was there stays, and the next try goes through when there is."""
    with closing(Catalogue(url)) as catalogue:
        begin(catalogue, "before")
        _allow(catalogue, pages=1)  # SQLite takes no fewer than it has
        with pytest.raises(CatalogueUnavailable, match="full; make room on its disk"):
            begin(catalogue, "large", "x" * 100_000)
        assert catalogue.ledger.get("large") is None
        assert catalogue.ledger.get("before") is not None
        _allow(catalogue, pages=1_000_000)
        assert isinstance(begin(catalogue, "large", "x" * 100_000), Leased)


def test_that_nothing_can_be_written_is_noticed_without_a_job(url):
    """`sweep.recover` sends no message meanwhile, and `doctor` and `status` say it, also where there is no job.

    The first program that opens the file then says what to do, too: it finds no room for a file beside it.
    """
    log, settings = Path(f"{url.removeprefix('sqlite:///')}-wal"), Settings(catalogue=url)
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(Catalogue(url)) as catalogue:
        assert not list(catalogue_writes(settings, catalogue))
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, most))
        try:
            with pytest.raises(CatalogueUnavailable, match="I/O error; its disk has errors.*quota is used up"):
                catalogue.ledger.check_writable()
            (told,) = catalogue_writes(settings, catalogue)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
        catalogue.ledger.check_writable()
    assert (told.name, told.outcome) == ("catalogue writes", "bad")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        with pytest.raises(CatalogueUnavailable, match="make room on its disk"):
            Catalogue(url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))


def test_a_file_that_is_damaged_while_it_is_in_use_is_a_fault_that_passes(url):
    """Jobs wait until it is restored, and the error says how; a file that is damaged before is an error at once."""
    path = Path(url.removeprefix("sqlite:///"))
    with closing(Catalogue(url)) as catalogue:
        begin(catalogue, "before")
        with catalogue._database.read() as connection:
            connection.exec_driver_sql("ROLLBACK").close()
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").close()
            connection.exec_driver_sql("BEGIN").close()
        whole = path.read_bytes()
        path.write_bytes(b"x" * len(whole))
        catalogue._database.close()  # as another thread, with connections of its own
        with pytest.raises(CatalogueUnavailable, match="catalogue restore STORE"):
            begin(catalogue, "next")
        path.write_bytes(whole)
        assert isinstance(begin(catalogue, "next"), Leased)


def _allow(catalogue, pages):
    with catalogue._database.read() as connection:  # the pool hands the same one out again
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


@pytest.mark.parametrize(
    "statement",
    [
        "REPLACE INTO verifications SELECT * FROM verifications",
        "REPLACE INTO artifacts SELECT * FROM artifacts",
        (
            "REPLACE INTO artifacts (bucket, key, version, size, sha256, metadata, created_at)"
            " SELECT bucket, key, version, 1, 'b', metadata, created_at FROM artifacts"
        ),
        (
            "REPLACE INTO artifacts (id, bucket, key, version, size, sha256, metadata, created_at)"
            " SELECT id, bucket, 'other', version, 1, 'b', metadata, created_at FROM artifacts"
        ),
    ],
)
def test_replace_rewrites_nothing_that_is_append_only(tmp_path, statement):
    """SQLite's REPLACE, which deletes a row without its trigger, changes neither a digest nor a verdict."""
    path = tmp_path / "catalogue.sqlite3"
    catalogue = Catalogue(f"sqlite:///{path}")
    artifact = stored(catalogue)
    finding = VerdictRow.of("job-1", artifact, catalogue.artifacts.copies(artifact)["dr"], "corrupt")
    catalogue.verifications.record(finding, now=clock.now())
    catalogue.close()
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as shell,
        pytest.raises(sqlite3.IntegrityError, match="never replaced"),
    ):
        shell.execute(statement)


def waits_of(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each commit adds from now on whether it waits for the disk, and each flush of the log."""
    waits: list[str] = []
    words = {1: "no wait", 2: "wait"}  # by the value of PRAGMA synchronous

    @sa.event.listens_for(catalogue._database.engine, "commit")
    def note(done: sa.Connection) -> None:
        waits.append(words[done.connection.dbapi_connection.execute("PRAGMA synchronous").fetchone()[0]])

    sync, log = os.fdatasync, Path(f"{catalogue._database.engine.url.database}-wal")

    def fdatasync(fd: int) -> None:
        assert Path(f"/proc/self/fd/{fd}").samefile(log)
        waits.append("flush")
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    catalogue.close()  # so that its next connection has the listener
    return waits


def test_the_first_lease_of_a_job_waits_for_no_disk_and_anything_else_does(url, monkeypatch):
    """A first lease that a power cut undoes is taken again; a later one has a larger fencing token than the first."""
    catalogue = Catalogue(url)
    with catalogue._database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2, "a new connection waits"
    waits = waits_of(catalogue, monkeypatch)
    now, lease = clock.now(), timedelta(seconds=30)

    def deliver(id_: str, now: datetime, holds: str = "b/k") -> object:
        waits.clear()
        return catalogue.ledger.acquire(
            id_, "upload", {"key": "k"}, owner="w", writes_to=holds, parent=None, now=now, lease=lease, max_crashes=2
        )

    assert isinstance(deliver("one", now), Leased)
    assert waits == ["no wait"]
    assert isinstance(deliver("two", now), Busy)
    assert waits == ["no wait", "flush"]
    assert isinstance(deliver("one", now + 2 * lease), Leased)
    assert waits == ["no wait", "flush"], "a later lease"
    assert isinstance(deliver("one", now + 4 * lease), Finished)
    assert waits == ["no wait", "flush"], "the end of a job that kills its workers"
    catalogue.close()


def test_the_end_of_a_job_waits_for_the_disk_after_its_commit(url, monkeypatch):
    """Others write while the end of a job waits for the disk, and an end that is read is durable before it is told."""
    with closing(Catalogue(url)) as catalogue:
        fence = begin(catalogue, "one").record.fence
        began, goes_on, sync = threading.Event(), threading.Event(), os.fdatasync

        def slow(fd: int) -> None:
            began.set()
            assert goes_on.wait(60)
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", slow)
        with ThreadPoolExecutor(1) as threads:
            try:
                ending = threads.submit(catalogue.ledger.finish, "one", fence, JobState.SUCCEEDED, now=clock.now())
                assert began.wait(60)
                assert isinstance(begin(catalogue, "two"), Leased)
                assert not ending.done()
            finally:
                goes_on.set()
            ending.result(60)
        waits = waits_of(catalogue, monkeypatch)
        assert catalogue.ledger.get("two").state == JobState.RUNNING
        assert "flush" not in waits
        assert catalogue.ledger.get("one").state == JobState.SUCCEEDED
        assert waits.count("flush") == 1
        fence = catalogue.ledger.get("two").fence
        waits.clear()
        catalogue.ledger.finish("two", fence, JobState.SUCCEEDED, now=clock.now())
        assert waits == ["no wait", "flush"]
        assert catalogue.ledger.get("two").state == JobState.SUCCEEDED
        assert waits.count("flush") == 2


def test_heartbeats_retries_and_copies_wait_for_the_disk_after_their_commit(url, monkeypatch):
    """What a job records while it runs is durable before it goes on, and makes no other job wait for the disk."""
    with closing(Catalogue(url)) as catalogue:
        artifact, now = stored(catalogue), clock.now()
        fence = begin(catalogue, "one").record.fence
        waits = waits_of(catalogue, monkeypatch)
        catalogue.ledger.renew("one", fence, until=now + timedelta(seconds=30), progress=None)
        catalogue.artifacts.finish_copy(artifact, "dr", tag="2", evidence={}, now=now)
        catalogue.ledger.retry("one", fence, {"type": "Timeout"}, due=now)
        assert waits == ["no wait", "flush"] * 3
        fence = begin(catalogue, "one").record.fence
        waits.clear()
        catalogue.ledger.snooze("one", fence, {"type": "Snooze"}, since=now, due=now)
        assert waits == ["no wait", "flush"]


def test_an_end_that_the_disk_did_not_confirm_is_not_told(url, monkeypatch):
    """The job is delivered again, its end is found, and it is made durable before anything is told of it."""
    with closing(Catalogue(url)) as catalogue:
        fence, sync = begin(catalogue, "one").record.fence, os.fdatasync

        def fail(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(EndNotDurable, match="Input/output error"):
            catalogue.ledger.finish("one", fence, JobState.SUCCEEDED, now=clock.now(), result={})
        with pytest.raises(CatalogueUnavailable):
            begin(catalogue, "one")
        with pytest.raises(CatalogueUnavailable):
            catalogue.ledger.get("one")
        monkeypatch.setattr(os, "fdatasync", sync)
        assert isinstance(begin(catalogue, "one"), Finished)


def test_a_disk_that_takes_no_commit_is_an_error_of_the_catalogue(url, monkeypatch):
    """A job is tried again after it, as after the same error within a transaction."""
    catalogue = Catalogue(url)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(CatalogueUnavailable, match="Input/output error"):
        catalogue.verifications.durable_head()
    catalogue.close()


def test_the_record_of_a_first_version_waits_for_no_disk_and_any_other_does(url, monkeypatch):
    """A job records a lost first version again; the bytes of a further one replace others, so it is durable first."""
    catalogue = Catalogue(url)
    artifacts, digest, waits = catalogue.artifacts, Digest(11, "a" * 64), waits_of(catalogue, monkeypatch)
    artifacts.record("releases", "a", digest, {}, clock.now(), stores=["dr"], durable=False)
    assert waits == ["no wait"]
    artifacts.record("releases", "a", Digest(11, "b" * 64), {}, clock.now(), stores=["dr"], durable=False)
    assert waits == ["no wait", "no wait", "flush"]
    artifacts.record("releases", "b", digest, {}, clock.now())
    assert waits[3:] == ["wait"]
    catalogue.close()


def test_a_page_that_uploads_waits_for_the_disk_only_before_bytes_are_replaced(url, monkeypatch):
    """A power cut ends the page, and its next delivery records again what was lost; a further version is durable."""
    with closing(Catalogue(url)) as catalogue:
        fence, now, waits = begin(catalogue, "page").record.fence, clock.now(), waits_of(catalogue, monkeypatch)
        page = catalogue.pages.begin("page", [0])
        paths = [("releases", "a")]
        assert catalogue.artifact_locks.acquire("page", fence, paths, now=now, lease=timedelta(seconds=30)) == {*paths}
        version = NewVersion("releases", "a", Digest(11, "a" * 64), ("dr",))
        [recorded] = catalogue.artifacts.record_many([version], {}, now, job="page")
        finished = [FinishedCopy(recorded.artifact, "dr", "1")]
        group = Group([PageOutcome(0, "releases/a", 11, "stored")], finished=finished)
        page = catalogue.pages.record(page, group, now=now, durable=False)
        catalogue.artifact_locks.release("page", fence)
        assert waits == ["no wait"] * 5
        waits.clear()
        catalogue.artifacts.record_many([replace(version, digest=Digest(11, "b" * 64))], {}, now, job="page")
        assert waits == ["no wait", "flush"]
        waits.clear()
        catalogue.pages.record(page, Group([]), now=now)
        assert waits == ["wait"]


def test_a_claim_waits_for_the_disk_only_where_a_budget_counts_it(url, monkeypatch):
    """After a power cut the next attempt of a page claims again; what its budget has paid for stays counted."""
    now = clock.now()
    asked = {"period": timedelta(days=30), "now": now, "until": now + timedelta(hours=1), "limit": 9}
    with closing(Catalogue(url)) as catalogue:
        waits = waits_of(catalogue, monkeypatch)
        catalogue.pages.claim_due("one", "dr", **asked)
        assert waits[-1] == "no wait"
        catalogue.pages.claim_due("two", "dr", **asked, share=lambda state, _: (state, Share(set(), [], now)))
        assert waits[-1] == "wait"


def test_the_groups_of_a_page_wait_for_the_disk_with_the_end_of_its_job(url, monkeypatch):
    """No group waits for the disk; all survive a power cut once the head of the log is kept, or the job has ended."""
    catalogue, found = Catalogue(url), []
    for key in "abc":
        artifact = stored(catalogue, key)
        copy = catalogue.artifacts.copies(artifact)["dr"]
        verdict = VerdictRow.of("page", artifact, copy, "verified")
        found.append((PageOutcome(copy.id, artifact.path, 11, "verified"), verdict))
    page = catalogue.pages.begin("page", [outcome.id for outcome, _ in found])
    fence = begin(catalogue, "page").record.fence
    waits = waits_of(catalogue, monkeypatch)
    with catalogue.pages.recorder(page) as recorder:
        for outcome, verdict in found:
            recorder.add([outcome], [verdict], now=clock.now())
    assert waits == ["no wait", "no wait", "no wait"]
    assert catalogue.verifications.durable_head().id == 3
    assert waits.count("flush") == 1
    catalogue.export(io.BytesIO())
    assert waits.count("flush") == 2, "no export has what a power cut takes from the catalogue"
    waits.clear()
    catalogue.ledger.finish("page", fence, JobState.SUCCEEDED, now=clock.now())
    assert waits == ["no wait", "flush"]
    catalogue.close()


def test_the_file_alone_is_the_catalogue_once_its_last_process_has_ended(tmp_path, url):
    """A child of a worker ends without closing its connections, and leaves its last rows in the write-ahead log."""
    file, log = tmp_path / "catalogue.sqlite3", tmp_path / "catalogue.sqlite3-wal"
    Catalogue(url).close()
    script = (
        "import os; from worker import clock; from worker.catalogue import Catalogue, Scope; "
        f"Catalogue({url!r}).pauses.begin(Scope.STORE, 'dr', reason=None, now=clock.now()); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY)
    assert log.exists()
    with closing(sqlite3.connect(file)) as other:
        other.execute("SELECT * FROM pauses").fetchall()
        checkpoint_write_ahead_log(url)
        assert log.exists(), "it is left to the process that has the catalogue open"
    checkpoint_write_ahead_log(url)
    assert not log.exists()
    copy = tmp_path / "copy.sqlite3"
    copy.write_bytes(file.read_bytes())
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT name FROM pauses").fetchall() == [("dr",)]


def test_a_program_that_has_the_catalogue_locked_keeps_no_worker_from_its_end(tmp_path, url):
    """The log is left to that program, however long the catalogue's own writers would wait."""
    Catalogue(url).close()
    other = sqlite3.connect(tmp_path / "catalogue.sqlite3", check_same_thread=False)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("CREATE TABLE other (x)")
    with ThreadPoolExecutor(1) as pool, closing(other):
        pool.submit(checkpoint_write_ahead_log, f"{url}?timeout=600").result(WITHIN)
        assert (tmp_path / "catalogue.sqlite3-wal").exists()


def test_no_catalogue_is_made_to_checkpoint_the_log_of_none(tmp_path, url):
    """The end of a worker whose catalogue is gone makes no new file, and no error."""
    checkpoint_write_ahead_log(url)
    assert list(tmp_path.iterdir()) == []


def _other_database(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Path.mkdir, "is a directory"),
        (os.mkfifo, "is a FIFO"),
        (lambda file: file.write_bytes(b"no database" * 500), "is not a database"),
        (lambda file: file.symlink_to(file), "Too many levels of symbolic links"),
        (lambda file: file.symlink_to("/nonexistent/catalogue"), "a symbolic link to nothing"),
        (lambda file: file.with_name(f"{file.name}-wal").mkdir(), "-wal is a directory"),
        (_other_database, "tables of another program"),
    ],
    ids=["directory", "FIFO", "text", "loop", "dangling", "wal", "other"],
)
def test_what_is_no_catalogue_is_told_at_once(make, said, tmp_path, url):
    """A catalogue's file that is something else is an error that says what it is, and stays as it is."""
    file = tmp_path / "catalogue.sqlite3"
    make(file)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CatalogueError, match=said) as caught:
        Catalogue(url)
    assert not isinstance(caught.value, CatalogueUnavailable), "it is not tried again"
    assert str(file) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_in_which_no_file_can_be_made_is_named(tmp_path):
    """SQLite says "unable to open database file" of one that is not there, such as on a disk that is not mounted.

    So it does of a directory in which nothing can be made, such as `/proc`.
    """
    directory = tmp_path / "disk"
    absent = f"there is no directory {directory}: mount its disk, make it, or name another file with ZOT_CATALOGUE"
    told = {directory: absent, Path("/proc"): "this user must be able to write in /proc, and the process"}
    for where, way_out in told.items():
        for use in (Catalogue, partial(load_export, file=[])):
            with pytest.raises(CatalogueUnavailable, match=f"^catalogue .*{where}/c.sqlite3: .*{way_out}"):
                use(f"sqlite:///{where}/c.sqlite3")
    with pytest.raises(CatalogueUnavailable, match=absent):
        check_file(f"sqlite:///{directory}/c.sqlite3")
    directory.mkdir()
    with closing(Catalogue(f"sqlite:///{directory}/c.sqlite3")) as opened:
        directory.rename(tmp_path / "away")
        with pytest.raises(CatalogueUnavailable, match=absent):
            opened.ledger.get("any")


def test_a_link_to_where_the_catalogue_is_to_be_made_is_followed(tmp_path, url):
    """An operator may link the file to another disk before the first start."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "catalogue.sqlite3").symlink_to(tmp_path / "disk" / "catalogue")
    Catalogue(url).close()
    assert (tmp_path / "disk" / "catalogue").is_file()
