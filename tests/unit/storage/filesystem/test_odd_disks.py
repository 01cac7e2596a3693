"""Answers of a disk that Python does not expect are StorageErrors about one object."""

import errno
import hashlib
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.storage import Digest, Match, Store, Verdict
from worker.storage.config import FilesystemConfig
from worker.storage.driver import HashedBytes, SmallPut
from worker.storage.errors import AccessDenied, Conflict, PreconditionFailed, StorageError, UnexpectedAnswer
from worker.storage.filesystem import inode_numbers
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


@pytest.mark.parametrize("together", [False, True])
def test_a_disk_that_keeps_fewer_bytes_than_it_says_gets_no_object(
    root: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """The size of the file is compared with the bytes that were written before it has a name."""
    store, write = Store(FilesystemDriver("nas", FilesystemConfig(root=root))), os.write
    store.write_object("photos", "a", io.BytesIO(b"before"))
    body = HashedBytes(b"bytes", Digest(5, hashlib.sha256(b"bytes").hexdigest()))
    monkeypatch.setattr(os, "write", lambda fd, data: len(data) if bytes(data) == b"bytes" else write(fd, data))
    if together:
        (error,) = store.write_objects([SmallPut("photos", "a", body)])
    else:
        with pytest.raises(StorageError) as raised:
            store.write_object("photos", "a", body)
        error = raised.value
    assert "5 bytes were written and 0 are on the disk" in str(error)
    assert b"".join(store.read_object("photos", "a")) == b"before"


def test_a_disk_that_became_read_only_is_told_as_that(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system mounts a disk so after errors: no permission of the user helps, and the jobs have to be retried."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    store = Store(FilesystemDriver("nas", FilesystemConfig(root=root)))
    store.write_object("photos", "a", io.BytesIO(b"one"))
    with monkeypatch.context() as failing:
        failing.setattr(os, "unlink", fail)
        with pytest.raises(AccessDenied, match="nas: photos/a.*mounted read-only.*jobs retry --all") as raised:
            store.delete_object("photos", "a")
    assert "worker's user" not in str(raised.value)


@pytest.fixture
def renumbered(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Yield a store on a file system that gives a file another inode number at each look."""
    looks = itertools.count(1)

    def renumbering(look: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def stat(*at: Any, **how: Any) -> os.stat_result:
            found = look(*at, **how)
            named = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
            return os.stat_result([found[0], next(looks), *found[2:10]], named)

        return stat

    inode_numbers._are_steady.cache_clear()
    with monkeypatch.context() as unsteady:
        unsteady.setattr(inode_numbers, "file_system_of", lambda _: "fuse.rclone")
        unsteady.setattr(os, "stat", renumbering(os.stat))
        unsteady.setattr(os, "fstat", renumbering(os.fstat))
        yield Store(FilesystemDriver("nas", FilesystemConfig(root=root)))
    inode_numbers._are_steady.cache_clear()


def test_inode_numbers_that_change_between_two_looks_are_no_other_version(renumbered: Store) -> None:
    """FUSE may number a file anew at each look: it is written, replaced, read, copied and deleted all the same."""
    first, _ = renumbered.write_object("photos", "a", io.BytesIO(b"one"))
    assert renumbered.stat_object("photos", "a").version == first.version
    second, digest = renumbered.write_object("photos", "a", io.BytesIO(b"two"), condition=Match(first.version))
    with pytest.raises(PreconditionFailed):
        renumbered.delete_object("photos", "a", condition=Match(first.version))
    assert renumbered.stat_object("photos", "a").sha256 == digest.sha256
    assert renumbered.verify_object("photos", "a", digest).verdict is Verdict.VERIFIED
    assert [listed.version for listed in renumbered.list_objects("photos")] == [second.version]
    aside = renumbered.quarantine_object("photos", "a", "job")
    bucket, _, key = aside.partition("/")
    assert renumbered.verify_object(bucket, key, digest).verdict is Verdict.VERIFIED
    assert renumbered.delete_object("photos", "a", condition=Match(second.version))
    assert not renumbered.object_exists("photos", "a")


def test_a_file_that_was_placed_keeps_its_digest_where_inode_numbers_change(
    renumbered: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may place a file and report an error: what is there has its digest."""
    link = os.link

    def fail(source: str, name: str, **how: Any) -> None:
        link(source, name, **how)
        if name == "a":
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, "link", fail)
        with pytest.raises(StorageError):
            renumbered.write_object("photos", "a", io.BytesIO(b"bytes"), condition="create_only")
    assert renumbered.stat_object("photos", "a").sha256 == hashlib.sha256(b"bytes").hexdigest()


def test_a_disk_may_return_fewer_bytes_than_are_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar that is read in pieces is that of its object, and no file of another program."""
    store = Store(FilesystemDriver("nas", FilesystemConfig(root=root)))
    store.write_object("photos", "a", io.BytesIO(b"one"))
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: read(fd, min(size, 10)))
    _, digest = store.write_object("photos", "a", io.BytesIO(b"two"))
    assert [listed.key for listed in store.list_objects("photos")] == ["a"]
    assert store.stat_object("photos", "a").sha256 == digest.sha256
    assert [seen.stored_sha256 for seen in store.verify_objects([("photos", "a", digest)])] == [digest.sha256]
    assert sorted(path.name for path in (root / "photos").iterdir()) == ["a", "a.sha256"]


@pytest.mark.parametrize("what", ["photos", "photos/.zot-tmp-*"])
def test_a_write_whose_place_another_program_removed_is_tried_again(root: Path, what: str) -> None:
    """It is a conflict that may pass, and not an object that does not exist."""
    store = Store(FilesystemDriver("nas", FilesystemConfig(root=root)))

    class Removing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            if not data:
                for path in root.glob(what):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            return data

    with pytest.raises(Conflict, match="nas: photos/a: another program removed .* try again"):
        store.write_object("photos", "a", Removing(b"bytes"))
    store.write_object("photos", "a", io.BytesIO(b"bytes"))
    assert store.verify_object("photos", "a").verdict is Verdict.VERIFIED


def test_the_file_system_of_a_file_is_known() -> None:
    """Those of the kernel itself number a file once."""
    assert inode_numbers.file_system_of(Path("/proc/self/mountinfo").stat().st_dev) == "proc"
    assert inode_numbers.file_system_of(0) == ""
