"""Answers of a disk that Python does not expect are StorageErrors about one object."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.storage import Store, Verdict
from worker.storage.config import FilesystemConfig
from worker.storage.errors import UnexpectedAnswer
from worker.storage.filesystem.driver import FilesystemDriver

YEAR_30345 = 895_437_686_400


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a directory on a disk that keeps any time, as tmpfs does and ext4 does not."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def test_a_time_outside_the_years_1_to_9999_is_no_obstacle(root: Path) -> None:
    """An object of the year 30345 is listed, described, read and verified like any other."""
    store = Store(FilesystemDriver("nas", FilesystemConfig(root=root)))
    for key in ("a", "b"):
        store.write_object("photos", key, io.BytesIO(b"bytes"))
    os.utime(root / "photos" / "a", (YEAR_30345, YEAR_30345))
    assert [listed.key for listed in store.list_objects("photos")] == ["a", "b"]
    assert store.stat_object("photos", "a").size == 5
    assert store.verify_object("photos", "a").verdict is Verdict.VERIFIED


def test_an_unforeseen_exception_of_the_disk_is_about_one_object(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever class of exception comes out of the driver, a caller sees a StorageError that names store and key."""

    def fail(*_: object) -> None:
        msg = "a bug"
        raise ArithmeticError(msg)

    driver = FilesystemDriver("nas", FilesystemConfig(root=root))
    monkeypatch.setattr("worker.storage.filesystem.driver.object_stat", fail)
    Store(driver).create_bucket("photos")
    (root / "photos" / "a").write_bytes(b"bytes")
    with pytest.raises(UnexpectedAnswer, match="nas: photos/a"):
        Store(driver).stat_object("photos", "a")
