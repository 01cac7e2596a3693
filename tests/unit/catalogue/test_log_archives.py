"""Whole months of the verification log go to the stores; what is left and what is archived stay one chain."""

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.unit.catalogue.test_catalogue import stored
from worker import clock
from worker.artifacts.verification_log.archive import archive_key, archive_log
from worker.artifacts.verification_log.kept_head import check_kept_head, keep_head, log_faults
from worker.catalogue import Catalogue, CatalogueError, FindingKind, VerdictRow, load_export, log_archives, tables
from worker.storage import Store, Stores
from worker.storage.config import FilesystemConfig
from worker.storage.keys import BACKUP_BUCKET

MONTHS = {"2025-01": 5, "2025-02": 4, "2025-04": 3}
BEFORE = datetime(2025, 4, 20, tzinfo=UTC)
NAMES = ("primary", "dr")


class Killed(BaseException):
    """The process died here."""


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[Store]]:
    for name in NAMES:
        (tmp_path / name).mkdir()
    opened = Stores({name: FilesystemConfig(root=tmp_path / name) for name in NAMES}, spool_dir=tmp_path)
    yield [opened[name] for name in NAMES]
    opened.close()


@pytest.fixture
def log(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """Return a catalogue whose log has reads of three months, and whose transactions remove two rows each."""
    monkeypatch.setattr(log_archives, "_REMOVED", 2)
    monkeypatch.setattr(log_archives, "_WRITTEN", 2)
    stored(catalogue)
    for month, count in MONTHS.items():
        for day in range(count):
            append(catalogue, datetime.fromisoformat(f"{month}-01T00:00:00+00:00") + timedelta(days=day))
    return catalogue


def append(catalogue: Catalogue, now: datetime) -> None:
    artifact = catalogue.artifacts.current("releases", "app.tgz")
    assert artifact is not None
    copy, digest = catalogue.artifacts.copies(artifact)["dr"], artifact.digest
    finding = VerdictRow.of("job-1", artifact, copy, "verified", digest.sha256, digest.size, 'a "détail"')
    catalogue.verifications.record(finding, now=now)


def archive(log: Catalogue, stores: list[Store], tmp_path: Path, **options: object) -> list[str]:
    return archive_log(log, stores, tmp_path, before=BEFORE, **options)  # type: ignore[arg-type]


def execute(log: Catalogue, *statements: sa.Executable) -> None:
    with log._database.write() as connection:
        for statement in statements:
            connection.execute(statement)


def faults(log: Catalogue, stores: list[Store], *, read: bool = True) -> str:
    return "; ".join(log_faults(stores, log, read_archives=read))


@pytest.mark.parametrize("place", [0, 2])
def test_a_row_of_a_clock_ahead_stops_no_archive(
    catalogue: Catalogue, stores: list[Store], tmp_path: Path, place: int
) -> None:
    """It is in the month of the rows beside it; without that, nothing would be archived before its time has come."""
    stored(catalogue)
    times = [datetime(2025, month, day, tzinfo=UTC) for month in (1, 2, 4) for day in (1, 2)]
    times.insert(place, datetime(2035, 1, 1, tzinfo=UTC))
    for each in times:
        append(catalogue, each)
    assert archive(catalogue, stores, tmp_path) == ["2025-01", "2025-02"]
    assert not faults(catalogue, stores)


def test_months_that_ended_long_ago_are_archived_and_the_chain_goes_on(log, stores, tmp_path):
    """Their rows are in both stores and no more in the catalogue; the heads and the count stay, and new rows fit."""
    for store in stores:
        assert keep_head(store, log) is None
    head, before = log.verifications.head(), log.verifications.of("releases", "app.tgz")
    log.findings.see_store(FindingKind.LOG_CHANGED, "dr", {"detail": "lost rows"}, now=clock.now())
    assert archive(log, stores, tmp_path) == [], "not before an operator has accepted the log"
    log.findings.see_store(FindingKind.LOG_CHANGED, "dr", None, now=clock.now())
    assert archive_log(log, stores, tmp_path, before=datetime(2025, 2, 28, tzinfo=UTC)) == ["2025-01"]
    assert archive(log, stores, tmp_path) == ["2025-02"]
    assert archive(log, stores, tmp_path) == []
    assert log.verifications.of("releases", "app.tgz") == before[:3]
    assert log.log_archives.extent() == (before[3]["id"], 9)
    assert log.verifications.head() == head
    assert "lost rows" in str(log.verifications.check_head(replace(head, id=head.id + 1))), "it is in no archive"
    append(log, clock.now())
    assert faults(log, stores) == ""
    for store in stores:
        keep_head(store, log)
        with store.read_object("zot-probe", f"verification-log/{log.identity}.json") as kept:
            assert b'"count": 13' in kept.read()


def test_the_month_of_the_last_row_stays(log, stores, tmp_path):
    """The next row is chained to the last one, so that it is never removed, however old it is."""
    archive_log(log, stores, tmp_path, before=clock.now())
    assert log.verifications.count() == MONTHS["2025-04"]


def test_an_export_has_the_archives(log, stores, tmp_path):
    """The log of a restored catalogue goes on from the month that was archived last."""
    archive(log, stores, tmp_path)
    file = io.BytesIO()
    log.export(file)
    file.seek(0)
    url = f"sqlite:///{tmp_path / 'restored.sqlite3'}"
    load_export(url, file, restore=True)
    restored = Catalogue(url)
    restored.backup_times.accept_restored()
    assert faults(restored, stores) == ""
    assert [each.month for each in restored.log_archives.all()] == ["2025-01", "2025-02"]
    restored.close()


@pytest.mark.parametrize("step", ["write", "record", "remove", "next month"])
def test_a_run_that_was_killed_is_completed_by_the_next(log, stores, tmp_path, monkeypatch, step):
    """Wherever it ended, the log was whole in between, and nothing is archived or removed twice."""
    calls = []

    def die(*_: object, **__: object) -> None:
        calls.append(step)
        if len(calls) > (step == "next month") * 3:
            raise Killed

    with monkeypatch.context() as patched:
        if step == "write":
            patched.setattr(stores[1], "write_object", die)
        if step == "record":
            patched.setattr(log.log_archives, "add", die)
        with pytest.raises(Killed):
            archive(log, stores, tmp_path, check=die if step in {"remove", "next month"} else lambda: None)
    assert faults(log, stores) == ""
    assert log.verifications.count() == {"write": 12, "record": 12, "remove": 10, "next month": 5}[step]
    archive(log, stores, tmp_path)
    assert faults(log, stores) == ""
    assert [(each.month, each.rows) for each in log.log_archives.all()] == [("2025-01", 5), ("2025-02", 4)]
    assert log.verifications.count() == 3


def test_rows_that_no_archive_has_cannot_be_removed(log, stores, tmp_path):
    """The trigger lets through what is recorded as archived, and nothing else; a record is never changed."""
    archive(log, stores, tmp_path)
    table = tables.log_archives
    for statement in (sa.delete(tables.verifications), sa.delete(table), sa.update(table).values(last=99)):
        with pytest.raises(CatalogueError):
            execute(log, statement)
    assert log.verifications.count() == 3


def test_a_forged_archive_shows(log, stores):
    """Rows that were removed with the record of an archive that no store has are missed, and no new head is kept."""
    for store in stores:
        keep_head(store, log)
    last = log.verifications.of("releases", "app.tgz")[0]
    append(log, clock.now())
    forged = {
        "month": "2025-04", "first": 1, "last": last["id"], "rows": 12, "previous": "0" * 64, "hash": last["hash"],
        "ended_at": last["at"], "size": 1, "sha256": "a" * 64, "archived_at": clock.now(),
    }  # fmt: skip
    execute(log, sa.insert(tables.log_archives).values(forged))
    execute(log, sa.delete(tables.verifications).where(tables.verifications.c.id <= last["id"]))
    assert log.verifications.first_broken() is None
    assert "2025-04 is in no store" in faults(log, stores, read=False)
    assert "was archived since" in str(keep_head(stores[0], log))
    assert "was archived since" in str(check_kept_head(stores[0], log))
    after = {**forged, "month": "2025-05", "first": last["id"] + 1, "last": last["id"] + 1, "previous": "1" * 64}
    execute(log, sa.insert(tables.log_archives).values(after))
    assert "2025-05 does not go on from the one before it" in faults(log, stores, read=False)


def test_a_row_that_is_put_back_among_the_archived_ones_shows(log, stores, tmp_path):
    """It has a hash of its own that fits, but the chain of the archive ends with another one."""
    row = log.verifications.of("releases", "app.tgz")[-1]
    archive(log, stores, tmp_path)
    execute(log, sa.insert(tables.verifications).values(row))
    assert log.verifications.first_broken() is not None


@pytest.mark.parametrize("is_linked", [True, False])
def test_a_log_that_was_changed_is_not_archived(catalogue, stores, tmp_path, is_linked):
    """A row that has not its own hash, or does not follow from the one before it, stays where it shows."""
    stored(catalogue)
    for day in (1, 2):
        append(catalogue, datetime(2025, 1, day, tzinfo=UTC))
    last = catalogue.verifications.of("releases", "app.tgz")[0]
    forged = {**last, "previous": last["hash"]} if is_linked else last
    del forged["id"]
    execute(catalogue, sa.insert(tables.verifications).values(forged))
    append(catalogue, clock.now())
    with pytest.raises(CatalogueError, match="was changed at row 3"):
        archive(catalogue, stores, tmp_path)
    assert (catalogue.verifications.count(), catalogue.log_archives.all()) == (4, [])


def test_a_damaged_archive_shows_when_it_is_read_and_an_absent_one_is_written_again(log, stores, tmp_path):
    """A store with other bytes is named; one that has lost an archive gets it from the other with the next run."""
    archive(log, stores, tmp_path)
    first, second = (archive_key(log, each) for each in log.log_archives.all())
    damaged = tmp_path / "primary" / BACKUP_BUCKET / first
    content = bytearray(damaged.read_bytes())
    content[50] ^= 1
    damaged.chmod(0o600)
    damaged.write_bytes(content)
    stores[1].delete_object(BACKUP_BUCKET, second)
    assert "2025-02 is in primary alone" in faults(log, stores, read=False)
    assert "2025-01 in primary cannot be relied on" in faults(log, stores)
    stores[0].delete_object(BACKUP_BUCKET, first)
    archive(log, stores, tmp_path)
    assert faults(log, stores) == ""
    stores[1].write_object(BACKUP_BUCKET, first, io.BytesIO(content))  # as large, with a digest of its own
    assert "2025-01 in dr cannot be relied on" in faults(log, stores, read=False)


def test_an_archive_with_other_rows_shows(log, stores, tmp_path):
    """An object with other rows ends with another hash than the one that the log goes on from."""
    archive(log, stores, tmp_path)
    [each, _] = log.log_archives.all()
    lines = io.BytesIO(b'{"format":"zot-artifacts verification log","version":1}\n{"end":{}}\n')
    with pytest.raises(log_archives.BadArchive, match="not those that were archived"):
        log_archives.check_lines(lines, each)
