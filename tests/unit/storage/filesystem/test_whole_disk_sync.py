"""A group of small files is synced with its whole disk, or file by file where that is not sure or could wait long."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.storage import FilesystemConfig, ObjectStat, Store, Verdict
from worker.storage.driver import HashedBytes, SmallPut
from worker.storage.errors import Unavailable
from worker.storage.filesystem import bulk_write, whole_disk_sync
from worker.storage.filesystem.driver import FilesystemDriver


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Yield a directory of a disk that can be synced, whatever other programs write meanwhile."""
    monkeypatch.setattr(whole_disk_sync, "_MOST_WAITING", 1 << 62)
    opened = os.open(tmp_path, os.O_RDONLY)
    if not whole_disk_sync.sync_disks([opened]):
        pytest.skip("the disk of the tests cannot be synced as a whole")
    yield opened
    os.close(opened)


def written_and_synced(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[ObjectStat], int]:
    """Write a group of two objects; return their stats, and how many files were synced one by one."""
    store = Store(FilesystemDriver("main", FilesystemConfig(root=root)))
    synced, fsync = [], os.fsync

    def told(fd: int) -> None:
        synced.append(os.path.isdir(f"/proc/self/fd/{fd}"))  # noqa: PTH112
        fsync(fd)

    monkeypatch.setattr(os, "fsync", told)
    written = store.write_objects([SmallPut("b", key, HashedBytes.of(key.encode())) for key in ("k", "d/k")])
    assert [store.verify_object("b", key).verdict for key in ("k", "d/k")] == [Verdict.VERIFIED] * 2
    return [each for each in written if isinstance(each, ObjectStat)], synced.count(False)


@pytest.mark.usefixtures("directory")
def test_no_file_of_a_group_is_synced_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is synced once for all files of the group."""
    written, synced = written_and_synced(tmp_path, monkeypatch)
    assert (len(written), synced) == (2, 0)


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        (whole_disk_sync, "_MOST_WAITING", -1),
        (whole_disk_sync, "_MEMORY", Path("/no-such-file")),
        (os, "uname", lambda: SimpleNamespace(release="5.16.20-generic")),
        (os, "uname", lambda: SimpleNamespace(release="of another form")),
        (whole_disk_sync, "_DISKS", {}),
    ],
    ids=[
        "other programs have written much",
        "it is not told how much",
        "errors are not told",
        "unknown system",
        "another disk",
    ],
)
def test_each_file_is_synced_where_the_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: object, name: str, value: object
) -> None:
    """A group does not wait for what other programs have written, and relies on no disk that may hide an error."""
    monkeypatch.setattr(of, name, value)
    written, synced = written_and_synced(tmp_path, monkeypatch)
    assert (len(written), synced) == (2, 4)


def test_an_error_of_a_disk_is_no_success(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails is not synced, whatever the others say."""
    real = whole_disk_sync._system()

    class Failing:
        fstatfs = staticmethod(real.fstatfs)

        @staticmethod
        def syncfs(_fd: int) -> int:
            return -1

    monkeypatch.setattr(whole_disk_sync, "_system", Failing)
    assert not whole_disk_sync.sync_disks([directory])


@pytest.mark.usefixtures("directory")
def test_a_directory_that_does_not_answer_is_not_synced() -> None:
    """Its error is that of its own objects, and no error of the whole group."""
    assert not whole_disk_sync.sync_disks([1 << 20])  # no descriptor has this number


def test_a_file_that_is_shorter_than_what_was_written_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of each file is compared after a sync of the disk, too."""
    real = bulk_write.sync_disks

    def cut_off(directories: Iterable[int]) -> bool:
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            path = f"/proc/self/fd/{name}"
            if "(deleted)" in _link(path) and os.stat(path).st_size == len(b"cut off"):  # noqa: PTH116
                os.truncate(path, 1)
        return real(directories) or True

    monkeypatch.setattr(bulk_write, "sync_disks", cut_off)
    store = Store(FilesystemDriver("main", FilesystemConfig(root=tmp_path)))
    puts = [SmallPut("b", key, HashedBytes.of(data)) for key, data in (("k", b"cut off"), ("other", b"as it was"))]
    failed, written = store.write_objects(puts)
    assert isinstance(failed, Unavailable)
    assert "7 bytes were written and 1 are on the disk" in str(failed)
    assert isinstance(written, ObjectStat)
    assert [row.key for row in store.list_objects("b")] == ["other"]


def _link(path: str) -> Any:
    try:
        return os.readlink(path)  # noqa: PTH115
    except FileNotFoundError:  # the descriptor of the listing itself
        return ""
