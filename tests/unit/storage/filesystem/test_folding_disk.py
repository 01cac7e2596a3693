"""Test that a disk that does not tell names apart loses no object, on a simulation of such a disk."""

import errno
import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import digest_of, source
from worker.storage import FilesystemConfig, Store, Verdict
from worker.storage.driver import HashedBytes, SmallPut
from worker.storage.errors import InvalidKey, NotFound, StorageError
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.filesystem.layout import ObjectPath


def _case(name: str) -> str:
    return name.lower()


def _normalization(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@pytest.fixture(params=[_case, _normalization])
def fold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Make every system call that takes a name take it for one that is there already, as such a disk does."""
    same: Callable[[str], str] = request.param

    def there(name: Any, directory: int | None) -> Any:
        if directory is None or not isinstance(name, str) or "/" in name:
            return name
        return next((other for other in os.listdir(directory) if same(other) == same(name)), name)  # noqa: PTH208 - a descriptor

    def one(call: Callable[..., Any]) -> Callable[..., Any]:
        def folding(name: Any, *args: Any, dir_fd: int | None = None, **options: Any) -> Any:
            return call(there(name, dir_fd), *args, dir_fd=dir_fd, **options)

        return folding

    def two(call: Callable[..., Any]) -> Callable[..., Any]:
        def folding(name: str, to: str, *, src_dir_fd: int | None = None, dst_dir_fd: int, **options: Any) -> Any:
            names = there(name, src_dir_fd), there(to, dst_dir_fd)
            return call(*names, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **options)

        return folding

    for name in ("open", "stat", "unlink", "mkdir", "rmdir"):
        monkeypatch.setattr(os, name, one(getattr(os, name)))
    for name in ("rename", "link"):
        monkeypatch.setattr(os, name, two(getattr(os, name)))
    return same


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "root").mkdir()
    return Store(FilesystemDriver("nas", FilesystemConfig(root=tmp_path / "root")))


NAMES = {_case: ("Model.bin", "model.bin"), _normalization: ("caf\u00e9", "cafe\u0301")}


@pytest.mark.parametrize("form", ["{}", "{}/k", "d/{}", "{}.sha256"])
def test_a_second_spelling_neither_replaces_nor_deletes_the_first(
    fold: Callable[[str], str], store: Store, form: str
) -> None:
    """Where the disk takes two keys for one name, the second is refused, not there, and deletes nothing."""
    first, second = (form.format(name) for name in NAMES[fold])
    store.write_object("b", first, source(b"first"))
    with pytest.raises(InvalidKey, match="the disk does not tell") as refused:
        store.write_object("b", second, source(b"second"))
    assert NAMES[fold][0] in str(refused.value)
    assert ObjectPath("b", first).lock == ObjectPath("b", second).lock  # so that two writers at once are seen too
    with pytest.raises(NotFound):
        store.stat_object("b", second)
    assert not store.delete_object("b", second)
    assert store.verify_object("b", first).verdict == Verdict.VERIFIED
    assert [row.key for row in store.list_objects("b")] == [first]
    store.write_object("b", first, source(b"again"))
    assert store.delete_object("b", first)
    store.write_object("b", second, source(b"second"))


def test_a_spelling_that_is_written_meanwhile_is_not_replaced(fold: Callable[[str], str], store: Store) -> None:
    """The name is free when the second write begins, and is taken when its bytes have arrived."""
    first, second = NAMES[fold]

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if not store.object_exists("b", first):
                store.write_object("b", first, source(b"first"))
            return super().read(size)

    with pytest.raises(InvalidKey, match="the disk does not tell"):
        store.write_object("b", second, Slow(b"second"))
    assert store.verify_object("b", first, digest_of(b"first")).verdict == Verdict.VERIFIED


@pytest.mark.parametrize("form", ["{}", "{}/k", "d/{}"])
def test_two_spellings_in_one_page_are_one_object_and_one_error(
    fold: Callable[[str], str], store: Store, form: str
) -> None:
    """The second of two objects that are written together, for which the disk has one name, is refused."""
    first, second = (form.format(name) for name in NAMES[fold])
    puts = [SmallPut("b", key, HashedBytes(key.encode(), digest_of(key.encode()))) for key in (first, second)]
    written, refused = store.write_objects(puts)
    assert not isinstance(written, StorageError)
    assert isinstance(refused, InvalidKey)
    assert [row.key for row in store.list_objects("b")] == [first]
    assert store.verify_object("b", first, digest_of(first.encode())).verdict == Verdict.VERIFIED


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_was_full_or_read_only_is_tried_again(
    fold: Callable[[str], str], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A process that could not try the names of a disk once does not take all names for different ones for good."""
    first, second = NAMES[fold]
    store.write_object("b", first, source(b"first"))
    later = Store(FilesystemDriver("nas", FilesystemConfig(root=tmp_path / "root")))
    create = os.open

    def no_file(name: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(error, os.strerror(error))
        return create(name, flags, *args, **options)

    with monkeypatch.context() as failing:
        failing.setattr(os, "open", no_file)
        assert not later.object_exists("b", "another")
        assert fold is _normalization or not later.object_exists("b", second)  # that is seen without writing
    assert not later.delete_object("b", second)
    with pytest.raises(InvalidKey):
        later.write_object("b", second, source(b"second"))
    assert store.verify_object("b", first).verdict == Verdict.VERIFIED


def test_buckets_are_told_apart_too(fold: Callable[[str], str], store: Store) -> None:
    """A bucket that the disk takes for another one is refused."""
    if fold is _normalization:
        return  # names of buckets are ASCII
    store.write_object("Bucket", "k", source(b"first"))
    with pytest.raises(InvalidKey):
        store.write_object("bucket", "k", source(b"second"))
    assert not store.delete_object("bucket", "k")


def test_the_store_says_what_its_disk_does(fold: Callable[[str], str], store: Store) -> None:
    """The advice of the store, which `doctor` prints, names what the disk does not tell apart."""
    store.write_object("b", "k", source(b"of a probe"))  # as `doctor` does
    word = "case" if fold is _case else "NFC and NFD"
    assert any(word in line for line in store.advice())


def test_other_disks_keep_both(store: Store) -> None:
    """Where the disk tells names apart nothing is refused and nothing is said."""
    for names in NAMES.values():
        for name in names:
            store.write_object("b", name, source(name.encode()))
    assert len(list(store.list_objects("b"))) == 4
    assert store.advice() == []
