"""Test groups of small writes to a directory store, and digests in attributes of files."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest

from tests.conformance.bodies import source
from worker.storage import FilesystemConfig, ObjectStat, Store, Verdict
from worker.storage.driver import Condition, HashedBytes, Match, SmallPut
from worker.storage.errors import AlreadyExists, InvalidKey, PreconditionFailed, StorageError
from worker.storage.filesystem import bulk_write, temp_files
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.filesystem.layout import HIDDEN_SIDECAR

OLD, NEW = b"old bytes", b"newer bytes"


def store_at(root: Path, digest: Literal["sidecar", "xattr"] = "sidecar") -> Store:
    return Store(FilesystemDriver("main", FilesystemConfig(root=root, digest=digest)))


@pytest.fixture(params=["sidecar", "xattr"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    return store_at(tmp_path, request.param)


def put(key: str, data: bytes = NEW, condition: Condition = None) -> SmallPut:
    return SmallPut("b", key, HashedBytes.of(data), condition)


def test_a_group_is_written_with_digests(store: Store, tmp_path: Path) -> None:
    """Every object of a group has its bytes, its digest and the version that the write returned."""
    puts = [put(f"d{number % 3}/k{number}", b"x" * number) for number in range(50)]
    written = store.write_objects(puts)
    for each, stat in zip(puts, written, strict=True):
        assert isinstance(stat, ObjectStat)
        assert store.stat_object("b", each.key) == stat
        assert store.verify_object("b", each.key).verdict == Verdict.VERIFIED
    assert len(list(store.list_objects("b"))) == 50
    assert list(store.iter_stale_uploads()) == []
    killed_delete = tmp_path / "b" / f"{HIDDEN_SIDECAR}left"
    killed_delete.write_text(hashlib.sha256(OLD).hexdigest())
    store.write_objects([put("left")])
    assert store.verify_object("b", "left").verdict == Verdict.VERIFIED


def test_each_object_of_a_group_has_its_own_condition(store: Store) -> None:
    """One that exists already, one of another version and an impossible one fail; the others are written."""
    store.write_object("b", "there", source(OLD))
    version = store.stat_object("b", "there").version
    written = store.write_objects(
        [
            put("there", condition="create_only"),
            put("new", condition="create_only"),
            put("absent", condition=Match(version)),
            put("there/below"),
            put("x//y"),
            put("d/new"),
        ]
    )
    kinds = [type(each) for each in written]
    assert kinds == [AlreadyExists, ObjectStat, PreconditionFailed, InvalidKey, InvalidKey, ObjectStat]
    assert [row.key for row in store.list_objects("b")] == ["d/new", "new", "there"]
    assert store.verify_object("b", "there").verdict == Verdict.VERIFIED
    (replaced,) = store.write_objects([put("there", condition=Match(version))])
    assert isinstance(replaced, ObjectStat)
    with store.read_object("b", "there") as reader:
        assert b"".join(reader) == NEW


def test_a_condition_counts_at_the_moment_an_object_is_placed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer may replace or delete an object while its group waits for the disk."""
    versions = {key: store.write_object("b", key, source(OLD))[0].version for key in ("replaced", "deleted")}
    sync = bulk_write.sync_disks

    def late(directories: Iterable[int]) -> bool:
        store.write_object("b", "replaced", source(b"of another"))
        store.delete_object("b", "deleted")
        return sync(directories)

    monkeypatch.setattr(bulk_write, "sync_disks", late)
    written = store.write_objects([put(key, condition=Match(version)) for key, version in versions.items()])
    assert [type(each) for each in written] == [PreconditionFailed] * 2
    assert [(row.key, row.size) for row in store.list_objects("b")] == [("replaced", len(b"of another"))]


def test_a_cleanup_takes_no_file_of_a_group_on_its_way_to_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that replaces another one has the name of a temporary file for a moment, and a writer that is alive."""
    store.write_object("b", "k", source(OLD))
    rename = os.rename

    def cleaned(*names: str, **directories: int) -> None:
        for stale in list(store.iter_stale_uploads()):
            if "temporary" in stale.description:
                assert not store.remove_stale_upload(stale)
        rename(*names, **directories)

    monkeypatch.setattr(os, "rename", cleaned)
    assert isinstance(store.write_objects([put("k")])[0], ObjectStat)
    monkeypatch.undo()
    assert b"".join(store.read_object("b", "k")) == NEW


def test_a_group_keeps_files_of_other_programs(store: Store, tmp_path: Path) -> None:
    """A checksum file that another program wrote under a sidecar's name stays as it is."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "k.sha256").write_bytes(b"no digest")
    assert isinstance(store.write_objects([put("k")])[0], ObjectStat)
    assert (tmp_path / "b" / "k.sha256").read_bytes() == b"no digest"
    assert store.verify_object("b", "k").verdict == Verdict.VERIFIED


def test_a_disk_without_unnamed_files_takes_groups_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files without a name are refused, hidden temporary files take their place."""

    class Refused(temp_files.UnnamedFile):
        def __init__(self, _directory: int, _mode: int | None = None) -> None:
            raise temp_files.NoUnnamedFiles

    monkeypatch.setattr("worker.storage.filesystem.bulk_write.UnnamedFile", Refused)
    store.write_object("b", "k", source(OLD))
    written = store.write_objects([put("k"), put("d/k")])
    assert not [each for each in written if isinstance(each, StorageError)]
    assert [store.verify_object("b", key).verdict for key in ("k", "d/k")] == [Verdict.VERIFIED] * 2
    assert list(store.iter_stale_uploads()) == []


def test_a_failed_group_leaves_no_directories(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories and the bucket that were made for a group are gone when nothing of it was written."""

    def fsync(fd: int) -> None:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
            raise OSError(28, "full")

    store.write_object("c", "k", source(OLD))
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(bulk_write, "sync_disks", lambda _: False)
    assert all(isinstance(each, StorageError) for each in store.write_objects([put("d/e/k"), put("k")]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".zot", "c"]


def test_a_directory_that_cannot_be_synced_fails_all_of_its_objects(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may take each of them; the objects of another directory are written."""
    store.write_objects([put("d/old"), put("e/old")])
    sync = os.fsync

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").resolve().parts[-2:] == ("b", "d"):
            raise OSError(errno.EIO, "the disk fails")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    written = store.write_objects([put("d/1"), put("e/1"), put("d/2")])
    assert [isinstance(each, StorageError) for each in written] == [True, False, True]


def test_groups_and_deletes_of_one_directory_do_not_fail(store: Store) -> None:
    """A directory that a delete finds empty and removes is made again by the group that writes into it."""
    failures: list[object] = []

    def delete(name: str) -> None:
        for _ in range(60):
            failures.extend(each for each in store.write_objects([put(f"d/e/{name}")]) if isinstance(each, Exception))
            store.delete_object("b", f"d/e/{name}")

    threads = [threading.Thread(target=delete, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_both_forms_of_digest_are_read_whatever_is_written(tmp_path: Path) -> None:
    """A store that writes attributes reads sidecars, and the other way round; a replacement has one right digest."""
    sidecar, xattr = store_at(tmp_path), store_at(tmp_path, "xattr")
    xattr.write_object("b", "k", source(OLD))
    if (tmp_path / "b" / "k.sha256").exists():
        pytest.skip("the disk has no extended attributes")
    for writer, data in ((sidecar, NEW), (xattr, OLD), (xattr, NEW), (sidecar, OLD)):
        writer.write_object("b", "k", source(data))
        assert (tmp_path / "b" / "k.sha256").exists() == (writer is sidecar)
        for reader in (sidecar, xattr):
            assert reader.stat_object("b", "k").sha256 == hashlib.sha256(data).hexdigest()
            assert reader.verify_object("b", "k").verdict == Verdict.VERIFIED
    assert xattr.delete_object("b", "k")
    assert list((tmp_path / "b").iterdir()) == []


def test_an_attribute_counts_no_more_after_a_write_by_another_program(tmp_path: Path) -> None:
    """A program that writes into the file with a sidecar of its own is believed: the attribute is of older bytes."""
    store = store_at(tmp_path, "xattr")
    store.write_object("b", "k", source(OLD))
    (tmp_path / "b" / "k").write_bytes(NEW)
    (tmp_path / "b" / "k.sha256").write_text(hashlib.sha256(NEW).hexdigest())
    assert store.stat_object("b", "k").sha256 == hashlib.sha256(NEW).hexdigest()
    assert store.verify_object("b", "k").verdict == Verdict.VERIFIED
