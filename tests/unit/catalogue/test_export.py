"""An export has the whole catalogue, and is loaded whole or not at all."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.claimed_keys import claimed_keys
from tests.unit.catalogue.test_catalogue import DIGEST, stored
from worker import clock
from worker.catalogue import (
    BadExport,
    Catalogue,
    CatalogueError,
    FindingKind,
    Leased,
    NewFinding,
    NotEmpty,
    Scope,
    VerdictRow,
    load_export,
)
from worker.catalogue.database import open_engine
from worker.catalogue.export import kind_of
from worker.catalogue.tables import metadata
from worker.settings.section_models import JobSettings
from worker.storage.integrity.manifest import CHUNK_SIZE, Digest, Manifest


def fill(catalogue: Catalogue) -> None:
    """Record something in most tables."""
    now = clock.now()
    artifact = stored(catalogue)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    for verdict in ("verified", "corrupt", "unreadable"):
        finding = VerdictRow.of("job-1", artifact, copy, verdict, "f" * 64, 7, "details: ü\u2028\0", tag="tag")
        catalogue.verifications.record(finding, now=now)
    digest = Digest(CHUNK_SIZE + 1, "a" * 64)
    chunks = Manifest(digest.size, CHUNK_SIZE, bytes(range(64)))
    catalogue.artifacts.record("releases", "large", digest, {"by": "ü"}, now, manifest=chunks, stores=["dr"])
    catalogue.findings.see([NewFinding(FindingKind.ORPHAN, "dr", "releases", "stray", 0, {"size": 3})], now=now)
    catalogue.holds.place("releases", "app.tgz", by="ops", reason="audit", now=now)
    catalogue.pauses.begin(Scope.STORE, "dr", reason="disk is replaced", now=now)
    begin_job(catalogue, "upload-1", "upload")
    begin_job(catalogue, "sweep-1", "sweep.verify")


def begin_job(catalogue: Catalogue, id_: str, kind: str) -> None:
    lease = JobSettings().lease
    begun = catalogue.ledger.acquire(
        id_, kind, {"bucket": "b"}, owner="w", writes_to=None, parent=None, now=clock.now(), lease=lease
    )
    assert isinstance(begun, Leased)


def exported(catalogue: Catalogue) -> bytes:
    sink = io.BytesIO()
    catalogue.export(sink)
    return sink.getvalue()


def content(data: bytes) -> list[Any]:
    """Return the lines of an export without its time and its digest."""
    lines = [json.loads(line) for line in data.splitlines()]
    lines[0].pop("exported_at")
    lines[-1]["end"].pop("sha256")
    return lines


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an export."""
    catalogue = Catalogue(f"sqlite:///{tmp_path_factory.mktemp('exported') / 'catalogue.sqlite3'}")
    fill(catalogue)
    made = exported(catalogue)
    catalogue.close()
    return made


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, tmp_path: Path, catalogue_url: str) -> Iterator[str]:
    """Return the URL of a database without tables, of the other kind than the catalogue's."""
    if catalogue_url.startswith("sqlite"):
        with request.getfixturevalue("postgres").database() as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path / 'moved.sqlite3'}"


def test_every_column_can_be_exported():
    """Each column of each table has a kind in which an export writes it."""
    assert all(kind_of(column) for table in metadata.sorted_tables for column in table.columns)


@pytest.mark.installed_server
def test_a_catalogue_moves_to_the_other_database_and_back(catalogue, empty_url, tmp_path):
    """Both databases have the same rows, ids, log and identity afterwards, and continue to count from there."""
    fill(catalogue)
    first = exported(catalogue)
    summary = load_export(empty_url, io.BytesIO(first))
    assert summary.rows["verifications"] == 3
    assert summary.rows["manifests"] == 1
    there = Catalogue(empty_url)
    try:
        second = exported(there)
        assert content(second) == content(first)
        assert there.identity == catalogue.identity
        assert there.verifications.first_broken() is None
        assert there.verifications.head() == catalogue.verifications.head()
        load_export(back := f"sqlite:///{tmp_path / 'back.sqlite3'}", io.BytesIO(second))
        record = there.artifacts.record(
            "releases", "next", Digest(1, "b" * 64), {}, clock.now(), stores=["dr"]
        ).artifact
        assert record.id == 3
        copy = there.artifacts.copies(record)["dr"]
        there.verifications.record(VerdictRow.of("j", record, copy, "verified"), now=clock.now())
        assert there.verifications.head().id == 4
        assert there.verifications.first_broken() is None
    finally:
        there.close()
    returned = Catalogue(back)
    assert content(exported(returned)) == content(first)
    returned.close()


def test_a_catalogue_that_has_rows_is_not_loaded_into(catalogue, catalogue_url, data):
    """The error names a table that is not empty, also one of jobs alone, and nothing changes."""

    def refused(table: str) -> None:
        before = content(exported(catalogue))
        with pytest.raises(NotEmpty, match=f"{table} has rows"):
            load_export(catalogue_url, io.BytesIO(data))
        assert content(exported(catalogue)) == before

    begin_job(catalogue, "another", "upload")
    refused("jobs")
    stored(catalogue)
    refused("artifacts")


def test_a_catalogue_without_rows_is_loaded_into(catalogue, catalogue_url, data, tmp_path, monkeypatch):
    """What opening a catalogue and its stores records is no obstacle; a file's marker of another catalogue is one."""
    # A table has more rows than are written at a time.
    monkeypatch.setattr(sys.modules["worker.catalogue.load_export"], "_ROWS", 2)
    catalogue.store_identities(["primary"]).put("primary", "the id of a disk that is no longer used")
    catalogue.close()
    if catalogue_url.startswith("sqlite"):
        with pytest.raises(CatalogueError, match="was here before"):
            load_export(catalogue_url, io.BytesIO(data))
        (tmp_path / "catalogue.sqlite3-id").unlink()
    load_export(catalogue_url, io.BytesIO(data))
    loaded = Catalogue(catalogue_url)
    assert content(exported(loaded)) == content(data)
    loaded.close()


def test_tables_that_are_of_no_empty_catalogue_stay(catalogue, catalogue_url, data, tmp_path):
    """Those of another program or of a newer version, and a view on ours, are named and not dropped."""
    catalogue.close()
    engine = open_engine(catalogue_url)
    for marker in tmp_path.glob("*-id"):
        marker.unlink()
    cases = {
        "UPDATE alembic_version SET version_num = '9999'": "newer version",
        "ALTER TABLE copies RENAME TO c": "another program",
    }
    if engine.dialect.name == "postgresql":
        cases = {"CREATE VIEW ours AS SELECT * FROM artifacts": "cannot drop .*remove what was made", **cases}
    for change, told in cases.items():
        with engine.begin() as connection:
            connection.execute(sa.text(change))
            before = sa.inspect(connection).get_table_names()
        with pytest.raises(CatalogueError, match=told):
            load_export(catalogue_url, io.BytesIO(data), restore=True)
        assert sa.inspect(engine).get_table_names() == before
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    engine.dispose()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_end(data: bytes) -> bytes:
    return data[: data.rindex(b'{"end"')]


def without_a_row(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    row = next(n for n, line in enumerate(lines) if line.startswith(b'[1,"dr"') or b'"upload-1"' in line)
    return b"".join(lines[:row] + lines[row + 1 :])


def with_another_digest(data: bytes) -> bytes:
    return data.replace(b"a" * 64, b"b" + b"a" * 63)


def with_another_count(data: bytes) -> bytes:
    assert b'"copies":2,' in data
    return data.replace(b'"copies":2,', b'"copies":3,')


def with_more(data: bytes) -> bytes:
    return data + b"x"


def of_the_future(data: bytes) -> bytes:
    return data.replace(b'"version":1', b'"version":2', 1)


def of_later_tables(data: bytes) -> bytes:
    revision = json.loads(data.splitlines()[0])["revision"]
    return data.replace(f'"revision":"{revision}"'.encode(), b'"revision":"9999"', 1)


def cut_gzip(data: bytes) -> bytes:
    return cut(gzip.compress(data))


def no_export(_: bytes) -> bytes:
    return b'{"hello": 1}\n'


def nothing(_: bytes) -> bytes:
    return b""


def with_a_strange_column(data: bytes) -> bytes:
    assert b'"lease_until"' in data
    return data.replace(b'"lease_until"', b'"lease_untjl"', 1)


@pytest.mark.parametrize(
    "damage",
    [
        *(cut, without_end, without_a_row, with_another_digest, with_more, of_the_future, no_export, nothing, cut_gzip),
        *(with_a_strange_column, with_another_count),
    ],
)
def test_a_damaged_export_loads_nothing(data, tmp_path, damage: Callable[[bytes], bytes]):
    """A cut, changed or foreign file is refused, and leaves neither rows nor a new database behind."""
    bad = damage(data)
    path = tmp_path / "new.sqlite3"
    file: Any = gzip.GzipFile(fileobj=io.BytesIO(bad)) if damage is cut_gzip else io.BytesIO(bad)
    with pytest.raises(BadExport, match="export"):
        load_export(f"sqlite:///{path}", file)
    assert not list(tmp_path.glob("new.sqlite3*"))


def test_an_export_of_a_newer_version_is_refused(data, tmp_path):
    """Tables of a revision that this program does not know are not loaded."""
    with pytest.raises(CatalogueError, match="newer version"):
        load_export(f"sqlite:///{tmp_path / 'new.sqlite3'}", io.BytesIO(of_later_tables(data)))


def test_an_export_of_an_earlier_version_is_brought_up_to_date(tmp_path):
    """The rows of an export of revision 0016 are in the tables of today."""
    url = f"sqlite:///{tmp_path / 'new.sqlite3'}"
    with (Path(__file__).parent / "export-0016.jsonl").open("rb") as file:
        summary = load_export(url, file)
    loaded = Catalogue(url)
    assert loaded.identity == summary.identity
    assert loaded.artifacts.current("releases", "app.tgz") is not None
    assert loaded.verifications.first_broken() is None
    assert len(loaded.findings.page(resolved=True)) == 4
    loaded.close()


def test_a_restored_catalogue_runs_no_job_of_the_past(tmp_path):
    """Open jobs end as dead letters, those of sweeps as cancelled; nothing stays claimed or locked, no batch open."""
    catalogue = Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}")
    fill(catalogue)
    begin_job(catalogue, "batch-1", "batch")
    catalogue.batches.begin("batch-1", {}, total=1, total_bytes=None, now=clock.now())
    begin_job(catalogue, "page-1", "page")
    catalogue.pages.begin("page-1", [1])
    lease = JobSettings().lease
    assert catalogue.artifact_locks.acquire("page-1", 1, [("releases", "app.tgz")], now=clock.now(), lease=lease)
    later = clock.now() + timedelta(days=2)
    period = timedelta(days=1)
    assert claimed_keys(catalogue, "dr", period=period, now=later, until=later + period, limit=5)
    url = f"sqlite:///{tmp_path / 'restored.sqlite3'}"
    load_export(url, io.BytesIO(exported(catalogue)), restore=True)
    catalogue.close()
    restored = Catalogue(url)
    jobs = {id_: restored.ledger.get(id_) for id_ in ("upload-1", "batch-1", "sweep-1", "page-1")}
    assert [job.state for job in jobs.values() if job] == ["dead", "dead", "cancelled", "cancelled"]
    assert "backup" in str(jobs["upload-1"].error)
    restored.close()
    engine = open_engine(url)
    with engine.connect() as connection:
        for rows in ("copies WHERE claimed_until IS NOT NULL", "artifact_locks", "pages", "batches WHERE open"):
            assert connection.execute(sa.text(f"SELECT count(*) FROM {rows}")).scalar() == 0, rows
    engine.dispose()


def test_a_restored_catalogue_purges_nothing_at_once(tmp_path):
    """A delete may have been undone after the backup: its whole grace period begins anew with the restore."""
    catalogue = Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}")
    fill(catalogue)
    artifact, now, week = catalogue.artifacts.current("releases", "app.tgz"), clock.now(), timedelta(days=7)
    long_ago = now - 2 * week
    catalogue.holds.release("releases", "app.tgz")
    catalogue.deletions.begin(artifact, now=long_ago, until=long_ago + week, by=None, reason=None, job="job-1")
    assert catalogue.deletions.count_due(now=now) == 1
    url = f"sqlite:///{tmp_path / 'restored.sqlite3'}"
    load_export(url, io.BytesIO(exported(catalogue)), restore=True)
    catalogue.close()
    restored = Catalogue(url)
    assert restored.deletions.count_due(now=now + week / 2) == 0
    assert restored.deletions.count_due(now=clock.now() + week) == 1
    restored.close()


def test_a_canary_that_was_open_in_a_backup_is_damaged_anew(tmp_path):
    """It may have been repaired since, and would be missed by every verify sweep for ever. A closed one stays."""
    catalogue = Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}")
    for store in ("dr", "primary"):
        artifact = catalogue.artifacts.record("zot-canary", f"{store}/0", DIGEST, {}, clock.now(), stores=[store])
        begun = catalogue.canaries.begin(store, f"{store}/0", now=clock.now())
        catalogue.canaries.damaged(begun, artifact.artifact, now=clock.now())
    catalogue.canaries.close(begun, now=clock.now())
    closed = catalogue.canaries.last("primary")
    url = f"sqlite:///{tmp_path / 'restored.sqlite3'}"
    load_export(url, io.BytesIO(exported(catalogue)), restore=True)
    catalogue.close()
    restored = Catalogue(url)
    last = restored.canaries.last("dr")
    assert (last.key, last.damaged_at, last.closed_at) == ("dr/0", None, None)
    assert restored.canaries.last("primary") == closed
    restored.close()


_TELLING = """
import sys
from worker.catalogue import load_export

class Telling:
    def readline(self, size=-1):
        print(flush=True)
        return sys.stdin.buffer.readline(size)

load_export(sys.argv[1], Telling())
"""


def test_a_load_that_is_killed_leaves_an_empty_catalogue(data, tmp_path):
    """SIGKILL when all rows but the last line are read leaves no row, and the next import loads all."""
    url = f"sqlite:///{tmp_path / 'killed.sqlite3'}"
    cut_before = without_end(data)
    command = [sys.executable, "-c", _TELLING, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        assert killed.stdin is not None
        assert killed.stdout is not None
        killed.stdin.write(cut_before)
        killed.stdin.flush()
        for _ in range(cut_before.count(b"\n") + 1):
            assert killed.stdout.readline()
        killed.kill()
    assert (tmp_path / "killed.sqlite3").exists()
    load_export(url, io.BytesIO(data))
    loaded = Catalogue(url)
    assert content(exported(loaded)) == content(data)
    loaded.close()
