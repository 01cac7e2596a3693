"""Backups of the catalogue: written, read back, restored for trial, and restored for good."""

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pytest

from tests.unit.catalogue.test_export import content, exported, fill
from worker import cli, clock
from worker.artifacts.catalogue_backup import NoBackup, back_up, backups, rehearse, restore, restore_newest
from worker.artifacts.disk_sort import DiskSort
from worker.artifacts.overdue_and_unconfigured_findings import see_stores
from worker.artifacts.rebuild.kept_lists import keep_list
from worker.catalogue import BadExport, Catalogue, FindingKind
from worker.settings import Settings
from worker.settings.section_models import BackupSweepSettings, SweepSettings
from worker.storage import Stores
from worker.storage.config import FilesystemConfig
from worker.storage.errors import IntegrityError, OutOfSpace
from worker.storage.keys import BACKUP_BUCKET

NAMES = ("primary", "dr")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Catalogue]:
    url = f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"
    opened = Catalogue(url)
    fill(opened)
    yield opened
    opened.close()


def run(kept: Catalogue, stores: Stores, tmp_path: Path, *, job: str | None = None, **settings: object):
    chosen = BackupSweepSettings(stores=NAMES, **settings)  # type: ignore[arg-type]
    return back_up(kept, [stores[name] for name in NAMES], chosen, tmp_path, job=job or str(uuid4()))


def faults(kept: Catalogue) -> dict[str | None, str]:
    return {each.store: str(each.evidence["detail"]) for each in kept.findings.page(kind=FindingKind.BACKUP)}


def object_file(tmp_path: Path, store: str, key: str) -> Path:
    return tmp_path / store / BACKUP_BUCKET / key


def test_each_store_has_a_backup_that_can_be_restored(kept, stores, tmp_path):
    """Both stores get the same export; loaded into a new database, it is the catalogue of that moment."""
    before = content(exported(kept))
    done = run(kept, stores, tmp_path)
    assert done.faults == {}
    assert list(done.written) == list(done.rehearsed) == list(NAMES)
    for name in NAMES:
        newest = backups(stores[name])[0]
        url = f"sqlite:///{tmp_path / f'restored-{name}.sqlite3'}"
        summary = restore(newest, stores[name], url)
        assert summary.log_head == kept.verifications.head()
        restored = Catalogue(url)
        assert restored.identity == kept.identity
        kept_rows = [line for line in before if not isinstance(line, dict) and line and line[0] == 1]
        assert all(row in content(exported(restored)) for row in kept_rows)
        restored.close()
    assert [path.name for path in tmp_path.glob("zot-*")] == [], "nothing is left in the spool directory"


def test_old_backups_go_when_new_ones_are_there(kept, stores, tmp_path):
    """Each store keeps as many backups as the settings say."""
    for _ in range(3):
        done = run(kept, stores, tmp_path, keep=2)
    assert done.removed == 2
    assert [len(backups(stores[name])) for name in NAMES] == [2, 2]


def test_a_backup_of_a_clock_that_was_ahead_displaces_no_later_one(kept, stores, tmp_path, monkeypatch):
    """What was just written stays and is the one that is restored for trial, whatever time older backups claim."""
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(days=365))
    run(kept, stores, tmp_path, keep=1)
    monkeypatch.setattr(clock, "now", lambda: now)
    done = run(kept, stores, tmp_path, keep=1, rehearse=timedelta(seconds=1))
    assert done.faults == {}
    for name in NAMES:
        assert done.written[name] in {each.key for each in backups(stores[name])}


def test_a_retried_job_writes_no_second_backup(kept, stores, tmp_path):
    """A store that has a good backup by the job already is left; one that has a damaged one gets another."""
    first = run(kept, stores, tmp_path, job="job-1")
    damaged = object_file(tmp_path, "dr", first.written["dr"])
    damaged.write_bytes(damaged.read_bytes()[:-5])
    second = run(kept, stores, tmp_path, job="job-1")
    assert second.written["primary"] == first.written["primary"]
    assert second.faults == {}
    assert len(backups(stores["primary"])) == 1


def test_a_store_that_is_away_has_a_finding_and_the_other_a_backup(kept, stores, tmp_path):
    """A failure of one store stops no other; its finding is resolved by the next good backup."""
    (tmp_path / "dr").rename(tmp_path / "away")
    done = run(kept, stores, tmp_path)
    assert list(done.written) == ["primary"]
    assert len(done.failures) == 1
    assert list(faults(kept)) == ["dr"]
    (tmp_path / "away").rename(tmp_path / "dr")
    assert run(kept, stores, tmp_path).faults == {}
    assert faults(kept) == {}


def test_a_backup_that_cannot_be_restored_is_found(kept, stores, tmp_path, monkeypatch):
    """The rehearsal reads the bytes that are in the store; the finding stays until a restore succeeds."""
    assert run(kept, stores, tmp_path).faults == {}
    newest = backups(stores["dr"])[0]
    path = object_file(tmp_path, "dr", newest.key)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert "cannot be restored" in str(rehearse(newest, stores["dr"], kept, tmp_path))
    with pytest.raises((BadExport, IntegrityError)):
        restore(newest, stores["dr"], f"sqlite:///{tmp_path / 'new.sqlite3'}")
    assert not list(tmp_path.glob("new.sqlite3*"))
    monkeypatch.setattr("worker.artifacts.catalogue_backup.rehearse", lambda *_: "it lacks rows")
    assert run(kept, stores, tmp_path, rehearse=timedelta()).faults == dict.fromkeys(NAMES, "it lacks rows")
    monkeypatch.undo()
    assert list(faults(kept)) == list(NAMES)
    assert list(run(kept, stores, tmp_path).rehearsed) == list(NAMES), "a store with a finding is rehearsed at once"
    assert faults(kept) == {}


def test_a_rehearsal_notices_a_log_that_lost_rows(kept, stores, tmp_path):
    """The log of today must still have the head that the backup has."""
    run(kept, stores, tmp_path)
    newest = backups(stores["dr"])[0]
    other = Catalogue(f"sqlite:///{tmp_path / 'other.sqlite3'}")
    fault = rehearse(newest, stores["dr"], other, tmp_path)
    other.close()
    assert "lost rows" in str(fault)


def test_a_rehearsal_counts_the_rows_of_each_table(kept, stores, tmp_path, monkeypatch):
    """A restore that loses a row is found, whatever it says itself."""
    run(kept, stores, tmp_path)

    def losing(backup, store, url, on_bytes=None):
        summary = restore(backup, store, url, on_bytes)
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as database:
            database.execute("DELETE FROM holds")
        return summary

    monkeypatch.setattr("worker.artifacts.catalogue_backup.restore", losing)
    fault = rehearse(backups(stores["dr"])[0], stores["dr"], kept, tmp_path)
    assert "holds has 0 rows in the scratch database, the backup has 1" in str(fault)


def test_a_late_backup_is_a_finding(kept, stores, tmp_path):
    """Without a good backup for three periods the store has a finding; without backups configured it has none."""
    run(kept, stores, tmp_path)
    backup = BackupSweepSettings(stores=NAMES, every=timedelta(days=1))
    configs = {name: FilesystemConfig(root=tmp_path / name) for name in NAMES}
    settings = Settings(home=tmp_path / "home", stores=configs, sweep=SweepSettings(backup=backup))
    see_stores(settings, kept, clock.now() + timedelta(days=2))
    assert faults(kept) == {}
    see_stores(settings, kept, clock.now() + timedelta(days=4))
    assert sorted(map(str, faults(kept))) == ["dr", "primary"]
    see_stores(Settings(home=tmp_path / "home", stores=configs), kept, clock.now() + timedelta(days=4))
    assert faults(kept) == {}


def test_a_lost_catalogue_comes_back_from_a_store(tmp_path, monkeypatch, capsys):
    """As an operator runs the commands, also where the clock was ahead when the backup was made.

    With a time in the future a rebuild would take what was written since the backup for corrupt copies.
    """
    home = tmp_path / "home"
    monkeypatch.setenv("ZOT_HOME", str(home))
    monkeypatch.setenv("ZOT_SWEEP__BACKUP__STORES", json.dumps(NAMES))
    home.mkdir()
    catalogue = Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}")
    fill(catalogue)
    identity, head = catalogue.identity, catalogue.verifications.head()
    catalogue.close()
    ahead = clock.now() + timedelta(days=1)
    with monkeypatch.context() as patch:
        patch.setattr(clock, "now", lambda: ahead)
        assert cli.run(["catalogue", "backup"]) == 0
    for path in home.glob("catalogue.sqlite3*"):
        if not path.name.endswith("-id"):
            path.unlink()
    assert cli.run(["show", "releases/app.tgz"]) == 3
    assert "catalogue restore STORE" in capsys.readouterr().err
    assert cli.run(["catalogue", "restore", "dr"]) == 0
    told = capsys.readouterr().out
    assert "a clock that was ahead made the backup: name" in told
    assert "rebuild --newer-since MOMENT\n" in told
    assert cli.run(["catalogue", "rebuild", "--newer-since", ahead.isoformat()]) == 2
    assert "is in the future: name the moment when the backup was really made" in capsys.readouterr().err
    assert cli.run(["show", "releases/app.tgz"]) == 0
    restored = Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}")
    assert (restored.identity, restored.verifications.head()) == (identity, head)
    restored.close()
    assert cli.run(["log", "verify"]) == 1
    told = [capsys.readouterr().err]
    for command, name in (("status", "verification log"), ("doctor", "catalogue")):
        cli.run([command, "--json"])
        checks = json.loads(capsys.readouterr().out)["checks"]
        told += [str(each) for each in checks if each["name"] == name and each["outcome"] == "bad"]
    for each in told:
        assert "the catalogue was restored from its backup of" in each
        assert "compare it" not in each, "that is not the way out of a restore"
    assert len(told) == 3
    assert cli.run(["log", "accept", "--yes"]) == 0
    assert cli.run(["log", "verify"]) == 0
    assert cli.run(["catalogue", "restore", "dr"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_backups_of_two_catalogues_are_not_mixed_up(stores, tmp_path, monkeypatch, capsys, kept):
    """Where a store has backups of more than one catalogue, and none is expected, one must be named."""
    run(kept, stores, tmp_path)
    other = Catalogue(f"sqlite:///{tmp_path / 'other.sqlite3'}")
    run(other, stores, tmp_path)
    other.close()
    config = tmp_path / "config.yaml"
    roots = {name: {"type": "filesystem", "root": str(tmp_path / name)} for name in NAMES}
    config.write_text(json.dumps({"stores": roots, "home": str(tmp_path / "home")}))
    monkeypatch.setenv("ZOT_CONFIG", str(config))
    assert cli.run(["catalogue", "restore", "dr"]) == 2
    assert "more than one catalogue" in capsys.readouterr().err
    named = next(each for each in backups(stores["dr"]) if each.identity == kept.identity)
    assert cli.run(["catalogue", "restore", "dr", "--backup", named.key]) == 0


def test_the_newest_whole_backup_is_restored(kept, stores, tmp_path, monkeypatch, capsys):
    """A damaged backup is passed over and named, and one that a clock ahead has named hides no later one."""
    now = clock.now()
    keys = []
    for days in (-2, -1, 0, 9):
        monkeypatch.setattr(clock, "now", lambda days=days: now + timedelta(days=days))
        keys.append(run(kept, stores, tmp_path).written["dr"])
    monkeypatch.setattr(clock, "now", lambda: now)
    found = {each.key: each for each in backups(stores["dr"])}
    path = object_file(tmp_path, "dr", keys[2])
    path.write_bytes(path.read_bytes()[:-10])
    ordered = backups(stores["dr"])
    chosen, summary, skipped = restore_newest(ordered, stores["dr"], f"sqlite:///{tmp_path / 'back.sqlite3'}")
    assert (chosen.key, list(skipped), summary.identity) == (keys[1], [keys[2]], kept.identity)
    for key in (keys[0], keys[1], keys[3]):
        object_file(tmp_path, "dr", key).write_bytes(b"nothing")
    with pytest.raises(NoBackup, match="no backup that is whole"):
        restore_newest(list(found.values()), stores["dr"], f"sqlite:///{tmp_path / 'none.sqlite3'}")
    assert not (tmp_path / "none.sqlite3").exists()


def test_a_full_disk_of_this_machine_is_named_and_found(kept, stores, tmp_path, monkeypatch):
    """Each store has a finding until the next good backup; what else waits on that disk names the directory too."""
    told = f"no room to spool to in {tmp_path}: No space left on device; make room there"
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", _full_file)
        done = run(kept, stores, tmp_path)
        for spool in (lambda: keep_list(stores["dr"], "list", "id", _Rows(), tmp_path), lambda: _sort(tmp_path)):
            with pytest.raises(OutOfSpace, match=told):
                spool()
    assert (done.written, faults(kept)) == ({}, dict.fromkeys(NAMES, told))
    assert run(kept, stores, tmp_path).faults == faults(kept) == {}


def _full_file(mode: str = "w+b", **_: object) -> IO[Any]:
    return Path("/dev/full").open(mode)


def _sort(directory: Path) -> None:
    with DiskSort(directory, run=1) as rows:
        rows.add(("a",))


class _Rows:
    def fingerprint(self) -> list[int]:
        return [1]

    def kept(self) -> Iterator[object]:
        return iter(())
