"""A rebuild, a backup and a restore of the catalogue are killed at each of their steps: the next run ends right."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.faults.killed_at_steps import steps
from tests.unit.artifacts.conftest import stores  # noqa: F401
from tests.unit.artifacts.rebuild.test_rebuild import NAMES, copies, kept_rebuild, put, rebuild
from worker import clock
from worker.artifacts.catalogue_backup import back_up, backups, rehearse, restore_newest
from worker.artifacts.rebuild.kept_lists import keep_tombstones
from worker.catalogue import Catalogue, FindingKind
from worker.catalogue.database import Database
from worker.settings.section_models import BackupSweepSettings
from worker.storage import Store, Stores, Verdict
from worker.storage.keys import BACKUP_BUCKET

STEPS = (
    (Database, ("read", "write")),
    (Store, ("list_objects", "write_object", "verify_object", "delete_object", "create_bucket")),
)


@pytest.fixture
def filled(stores: Stores, tmp_path: Path) -> Path:  # noqa: F811
    """Return a catalogue of four artifacts in two stores, one copy of which is corrupt and one of which is deleted."""
    path = tmp_path / "catalogue.sqlite3"
    for name in NAMES:
        for key in ("a", "b", "c", "d"):
            put(stores, name, key.encode(), key, day=1)
    (tmp_path / "dr" / "b" / "c").write_bytes(b"x")
    catalogue = Catalogue(f"sqlite:///{path}")
    rebuild(catalogue, stores)
    now, gone = clock.now(), catalogue.artifacts.current("b", "d")
    catalogue.deletions.begin(gone, now=now, until=now + timedelta(days=7), by="ana", reason=None, job="job-1")
    for name in NAMES:
        keep_tombstones(stores[name], catalogue, tmp_path)
    catalogue.close()
    return path


def run(url: str, work: Callable[[Catalogue], Any]) -> Any:
    catalogue = Catalogue(url)
    try:
        return work(catalogue)
    finally:
        catalogue.close()


def test_a_rebuild_that_is_killed_ends_right(filled, stores, tmp_path):  # noqa: F811
    """Each copy is recorded once, the corrupt one stays corrupt, and the deleted artifact stays deleted."""

    def attempt(number: int) -> Callable[[], Any]:
        url = f"sqlite:///{tmp_path / f'{number}.sqlite3'}"
        return lambda: run(url, lambda of: kept_rebuild(of, stores, tmp_path))

    done = 0
    for number in steps(attempt, STEPS):

        def check(of: Catalogue) -> None:
            kept_rebuild(of, stores, tmp_path)
            assert [(each.key, each.version) for each in of.artifacts.page("b")] == [("a", 1), ("b", 1), ("c", 1)]
            assert copies(of, key="c") == {"primary": "verified", "dr": "corrupt"}
            assert of.deletions.get("b", "d") is not None
            assert [each.kind for each in of.findings.page()] == [FindingKind.CORRUPT]
            assert (of.verifications.head().id, of.verifications.first_broken()) == (8, None)

        run(f"sqlite:///{tmp_path / f'{number}.sqlite3'}", check)
        done += 1
    assert done >= 8


def test_a_backup_that_is_killed_leaves_one_that_can_be_restored(filled, stores, tmp_path):  # noqa: F811
    """The next attempt of the job leaves one backup of its own in each store, and each can be restored."""
    settings = BackupSweepSettings(stores=NAMES, keep=2)
    url, both = f"sqlite:///{filled}", [stores[name] for name in NAMES]
    for number in (1, 2):
        run(url, lambda of, number=number: back_up(of, both, settings, tmp_path, job=f"before-{number}"))

    def attempt(number: int) -> Callable[[], Any]:
        return lambda: run(url, lambda of: back_up(of, both, settings, tmp_path, job=f"job-{number}"))

    done = 0
    for number in steps(attempt, STEPS):

        def check(of: Catalogue, number: int = number) -> None:
            if number % 4 == 0:  # a rehearsal takes most of the time of this test
                kept = both[number // 4 % 2]
                assert rehearse(backups(kept)[0], kept, of, tmp_path) is None
            assert back_up(of, both, settings, tmp_path, job=f"job-{number}").faults == {}
            for store in both:
                own = [each for each in backups(store) if each.job == f"job-{number}"]
                assert (len(own), len(backups(store))) == (1, 2)
                assert store.verify_object(BACKUP_BUCKET, own[0].key).verdict is Verdict.VERIFIED

        run(url, check)
        done += 1
    assert done > 10


def test_a_restore_that_is_killed_leaves_no_half_catalogue(filled, stores, tmp_path):  # noqa: F811
    """The next restore loads all rows."""
    url = f"sqlite:///{filled}"
    run(url, lambda of: back_up(of, [stores["dr"]], BackupSweepSettings(stores=NAMES), tmp_path, job="job-1"))
    rows = run(url, lambda of: of.count_rows())
    found = backups(stores["dr"])

    def target(number: int) -> str:
        return f"sqlite:///{tmp_path / f'restored-{number}.sqlite3'}"

    for number in steps(lambda number: lambda: restore_newest(found, stores["dr"], target(number)), STEPS):
        restore_newest(found, stores["dr"], target(number))
        assert run(target(number), lambda of: of.count_rows())["artifacts"] == rows["artifacts"]
