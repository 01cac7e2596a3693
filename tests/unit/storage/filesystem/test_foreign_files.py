"""Test that files of other programs in a directory store are objects that nothing else replaces or hides."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import source
from worker.storage import FilesystemConfig, Store, Verdict
from worker.storage.driver import HashedBytes, SmallPut
from worker.storage.errors import AccessDenied, AlreadyExists, StorageError, Unavailable
from worker.storage.filesystem import open_without_symlinks, stale_files
from worker.storage.filesystem.atomic_write import ObjectFiles
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.filesystem.layout import ObjectPath
from worker.storage.filesystem.open_without_symlinks import Tree, translate

DATA, OTHER = b"right bytes", b"other bytes"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    path = tmp_path / "root" / "b"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def store(bucket: Path) -> Store:
    return Store(FilesystemDriver("main", FilesystemConfig(root=bucket.parent)))


def _published(data: bytes = DATA) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()}  x\n".encode()


def _keys(store: Store) -> list[str]:
    return [row.key for row in store.list_objects("b")]


@pytest.mark.parametrize(
    "content",
    [
        _published(),
        b"no digest at all",
        b"",
        b"\xff" * 1000,
        hashlib.sha256(DATA).hexdigest().encode() + b"\n\n\n",
        hashlib.sha256(DATA).hexdigest().encode() + b" " * 200 + b"of another program",
    ],
)
def test_a_foreign_checksum_file_is_an_object(store: Store, bucket: Path, content: bytes) -> None:
    """What has a sidecar's name and is none is listed, read, and kept when its neighbour is written and deleted."""
    (bucket / "x.sha256").write_bytes(content)
    assert _keys(store) == ["x.sha256"]
    for data in (DATA, OTHER):
        store.write_object("b", "x", source(data))
        assert store.stat_object("b", "x").sha256 == hashlib.sha256(data).hexdigest()
        assert store.verify_object("b", "x").verdict == Verdict.VERIFIED
    assert _keys(store) == ["x", "x.sha256"]
    assert store.delete_object("b", "x")
    assert (bucket / "x.sha256").read_bytes() == content
    assert sorted(path.name for path in bucket.iterdir()) == ["x.sha256"]
    with store.read_object("b", "x.sha256") as reader:
        assert b"".join(reader) == content


def test_a_checksum_file_is_evidence_until_we_write(store: Store, bucket: Path) -> None:
    """The digest that `sha256sum` published is that of its file, so that other bytes do not verify."""
    (bucket / "x").write_bytes(DATA)
    (bucket / "x.sha256").write_bytes(_published())
    assert store.stat_object("b", "x").sha256 == hashlib.sha256(DATA).hexdigest()
    (bucket / "x").write_bytes(OTHER)
    assert store.verify_object("b", "x").verdict == Verdict.CORRUPT
    (bucket / "y").write_bytes(DATA)
    (bucket / "y.sha256").write_bytes(_published())
    assert store.stat_object("b", "y").sha256 is None, "the line names another file"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x", "{}  x\n"),
        ("x", "{} *x\r\n"),
        ("x", "{}  ./dist/x\n"),
        ("x", "SHA256 (x) = {}\n"),
        ("x", "SHA256 (dist/x) = {}"),
        ("x", "SHA2-256(x)= {}\n"),
        ("a\\b", "\\{}  a\\\\b\n"),
        ("x", f"{'0' * 64}  y\n{{}}  x\n"),
        ("x", "{}\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_spelling_of_a_checksum_line_is_read(
    store: Store, bucket: Path, name: str, line: str, encoding: str
) -> None:
    """Whatever program wrote a checksum file, its digest is known, so that rotten bytes are not adopted."""
    digest = hashlib.sha256(DATA).hexdigest()
    (bucket / name).write_bytes(OTHER)
    for each in (digest, digest.upper()):
        content = line.format(each).encode(encoding)
        (bucket / f"{name}.sha256").write_bytes(content)
        assert store.stat_object("b", name).sha256 == digest


def test_a_program_that_replaces_a_sidecar_keeps_its_file(store: Store, bucket: Path) -> None:
    """A checksum file that another program writes over our sidecar is its own from then on."""
    store.write_object("b", "x", source(DATA))
    (bucket / "x.sha256").write_bytes(_published())
    store.write_object("b", "x", source(OTHER))
    assert (bucket / "x.sha256").read_bytes() == _published()
    assert store.stat_object("b", "x").sha256 == hashlib.sha256(OTHER).hexdigest()
    (bucket / "x.sha256").unlink()
    assert store.stat_object("b", "x").sha256 == hashlib.sha256(OTHER).hexdigest()
    store.write_object("b", "x", source(DATA))
    assert sorted(path.name for path in bucket.iterdir()) == ["x", "x.sha256"]
    assert store.stat_object("b", "x").sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_foreign_checksum_file_is_replaced_and_deleted_under_its_own_key(store: Store, bucket: Path) -> None:
    """A write and a delete that name the checksum file itself mean it."""
    (bucket / "x.sha256").write_bytes(_published())
    store.write_object("b", "x.sha256", source(OTHER))
    with store.read_object("b", "x.sha256") as reader:
        assert b"".join(reader) == OTHER
    (bucket / "x.sha256").write_bytes(_published())
    assert _keys(store) == ["x.sha256"]
    (bucket / "y.sha256").write_bytes(_published())
    assert store.delete_object("b", "y.sha256")
    assert not store.object_exists("b", "y.sha256")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Return the names of directories and files that the system refuses to read; root may read all others."""
    names: set[str] = set()
    scan, stat_of, open_ = os.scandir, open_without_symlinks.stat_of, os.open

    def opened(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path in names and (flags & os.O_DIRECTORY or str(path).endswith(".sha256")):
            raise PermissionError(13, "Permission denied", path)
        return open_(path, flags, mode, dir_fd=dir_fd)

    def scandir(fd: int) -> object:
        if Path(f"/proc/self/fd/{fd}").readlink().name in names:
            raise PermissionError(13, "Permission denied")
        return scan(fd)

    def stat(directory: int, name: str) -> os.stat_result:
        if name in names:
            raise OSError(5, "Input/output error")
        return stat_of(directory, name)

    monkeypatch.setattr("os.scandir", scandir)
    monkeypatch.setattr("os.open", opened)
    monkeypatch.setattr("worker.storage.filesystem.listing.stat_of", stat)
    return names


def test_an_unreadable_directory_does_not_end_a_listing(store: Store, bucket: Path, refused: set[str]) -> None:
    """A listing and a search for stale uploads pass over what cannot be read, and report each with its path."""
    for key in ("a", "m/private/k", "m/z", "n", "z"):
        store.write_object("b", key, source(DATA))
    (bucket.parent / "teamx").mkdir()
    (bucket / "z2").write_bytes(b"of another program")
    (bucket / os.fsdecode(b"caf\xe9")).write_bytes(b"with a name of Latin-1")
    refused |= {"private", "n", "teamx"}
    assert _keys(store) == ["a", "m/z", "z", "z2"]
    assert list(store.iter_stale_uploads()) == []
    assert len(store.advice()) == 4
    assert any("b/m/private: Permission denied" in line for line in store.advice())
    assert any(r"b/caf\xe9: its name is not UTF-8" in line for line in store.advice())


def test_an_unreadable_sidecar_is_named(store: Store, bucket: Path, refused: set[str]) -> None:
    """The data beside it can be read: the error of the sidecar says which file needs other rights."""
    store.write_object("b", "x", source(DATA))
    refused.add("x.sha256")
    with pytest.raises(AccessDenied, match=r": b/x: its digest in x\.sha256: Permission denied; the worker's user"):
        store.stat_object("b", "x")


def test_an_unreadable_bucket_is_an_error_of_its_listing(store: Store, refused: set[str]) -> None:
    """A bucket that cannot be read is not an empty bucket."""
    refused.add("b")
    with pytest.raises(AccessDenied, match="listing b"):
        _keys(store)


@pytest.mark.parametrize("code", ["EMFILE", "ENFILE", "EIO", "ESTALE", "ETIMEDOUT"])
def test_errors_of_the_machine_are_transient(code: str) -> None:
    """What a later attempt may not meet again does not fail a job for good."""
    number = getattr(__import__("errno"), code)
    assert isinstance(translate(OSError(number, code), "main: b/k", Path("/mnt")), Unavailable)


def test_a_lock_that_another_process_keeps_ends_the_wait(
    store: Store, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write waits for a lock for a bounded time, and the error names the lock's file."""
    monkeypatch.setattr(open_without_symlinks, "LOCK_SECONDS", 0.2)
    tree = Tree("main", bucket.parent)
    store.write_object("b", "k", source(DATA))
    name = next((bucket.parent / ".zot" / "locks").iterdir()).name
    with tree.locked(name), pytest.raises(Unavailable, match=rf"another process has locked .*\.zot/locks/{name}"):
        store.write_object("b", "k", source(OTHER))
    store.write_object("b", "k", source(OTHER))


def test_a_name_without_room_for_a_sidecar_is_an_object(store: Store, bucket: Path) -> None:
    """A file with the longest name that a disk has is listed, read and deleted."""
    name = "n" * 255
    (bucket / name).write_bytes(DATA)
    assert _keys(store) == [name]
    assert store.verify_object("b", name).verdict == Verdict.UNVERIFIABLE
    assert store.delete_object("b", name)
    assert not (bucket / name).exists()


HEX = hashlib.sha256(b"what another program published").hexdigest().encode()


@pytest.fixture(params=["sidecar", "xattr", "no attributes"])
def any_store(request: pytest.FixtureRequest, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store with each way to keep a digest, also on a disk that has no extended attributes."""
    if request.param == "no attributes":
        monkeypatch.setattr("worker.storage.filesystem.temp_files.write_digest", lambda *_: False)
    digest = "xattr" if request.param == "xattr" else "sidecar"
    return Store(FilesystemDriver("main", FilesystemConfig(root=bucket.parent, digest=digest)))


@pytest.mark.parametrize("grouped", [False, True])
def test_bare_hex_without_its_object_belongs_to_another_program(any_store: Store, bucket: Path, grouped: bool) -> None:
    """A file `x.sha256` of bare hex is an object while there is no `x`, and remains one when `x` comes and goes."""
    store, published = any_store, bucket / "x.sha256"
    published.write_bytes(HEX)
    assert _keys(store) == ["x.sha256"]
    assert not store.delete_object("b", "x")
    assert [store.remove_stale_upload(stale) for stale in store.iter_stale_uploads()] == []
    for data in (DATA, OTHER):
        if grouped:
            _put_many(store, "x", data)
        else:
            store.write_object("b", "x", source(data))
        assert store.stat_object("b", "x").sha256 == hashlib.sha256(data).hexdigest()
        assert _keys(store) == ["x", "x.sha256"]
        assert published.read_bytes() == HEX
    assert store.delete_object("b", "x")
    assert [path.name for path in bucket.iterdir()] == ["x.sha256"]
    with store.read_object("b", "x.sha256") as reader:
        assert b"".join(reader) == HEX
    assert store.delete_object("b", "x.sha256")
    assert list(bucket.iterdir()) == []


def _put_many(store: Store, key: str, data: bytes) -> None:
    [put] = store.write_objects([SmallPut("b", key, HashedBytes.of(data))])
    assert not isinstance(put, StorageError)


@pytest.mark.parametrize("any_store", ["xattr", "no attributes"], indirect=True)
def test_a_file_that_another_program_places_at_the_last_moment_stays(
    any_store: Store, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A create-only write replaces no file of a program that takes no locks, whenever that came."""
    commit = ObjectFiles.commit

    def late(files: ObjectFiles, directory: int, path: ObjectPath, *given: Any, **more: Any) -> None:
        (bucket / path.leaf).write_bytes(OTHER)
        commit(files, directory, path, *given, **more)

    monkeypatch.setattr(ObjectFiles, "commit", late)
    (bucket / "y.sha256").write_bytes(b"0 y\n")  # its checksum file may come first
    for key in ("x", "y"):
        with pytest.raises(AlreadyExists):
            any_store.write_object("b", key, source(DATA), condition="create_only")
        assert (bucket / key).read_bytes() == OTHER
        assert any_store.stat_object("b", key).sha256 is None, "it is not our digest"
    assert _keys(any_store) == ["x", "y", "y.sha256"]


@pytest.mark.parametrize(
    ("any_store", "content"),
    [("sidecar", HEX), ("xattr", HEX), ("no attributes", b"0 x.sha256\n"), ("sidecar", b"0 x.sha256\n")],
    indirect=["any_store"],
)
def test_a_checksum_of_a_checksum_file_stays(any_store: Store, bucket: Path, content: bytes) -> None:
    """A file `x.sha256.sha256` of another program stays when `x` is written and deleted."""
    (bucket / "x.sha256.sha256").write_bytes(content)
    any_store.write_object("b", "x", source(DATA))
    assert "x.sha256.sha256" in _keys(any_store)
    assert any_store.delete_object("b", "x")
    assert (bucket / "x.sha256.sha256").read_bytes() == content


def test_our_own_sidecar_without_its_object_is_no_object(store: Store, bucket: Path) -> None:
    """The sidecar of an object whose data another program removed is neither listed nor in the way."""
    store.write_object("b", "x", source(DATA))
    (bucket / "x").unlink()
    assert _keys(store) == []
    store.write_object("b", "x", source(OTHER))
    assert (bucket / "x.sha256").read_text() == hashlib.sha256(OTHER).hexdigest()
    (bucket / "x").unlink()
    assert not store.delete_object("b", "x")
    assert list(bucket.iterdir()) == []


def test_a_sidecar_that_a_killed_write_left_goes(store: Store, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stale with its directory, unless its data is there by now; what another program keeps is not."""
    for key in ("x", "deep/x"):
        store.write_object("b", key, source(DATA))
        (bucket / key).unlink()
    (bucket / "theirs.sha256").write_bytes(HEX)
    stale = list(store.iter_stale_uploads())
    assert sorted(each.token[1:] for each in stale) == [("deep", "x.sha256"), ("x.sha256",)]

    def refuse(*_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(stale_files, "is_orphan", refuse)
        assert list(store.iter_stale_uploads()) == []

    store.write_object("b", "x", source(OTHER))
    assert [store.remove_stale_upload(each) for each in sorted(stale, key=lambda each: each.token)] == [True, False]
    assert sorted(path.name for path in bucket.iterdir()) == ["theirs.sha256", "x", "x.sha256"]
    assert store.verify_object("b", "x").verdict is Verdict.VERIFIED


def test_a_hidden_sidecar_that_a_killed_delete_left_goes(store: Store, bucket: Path) -> None:
    """A hidden sidecar without data is stale, and one with data is not."""
    (bucket / "x.sha256").write_bytes(HEX)
    store.write_object("b", "x", source(DATA))
    assert list(store.iter_stale_uploads()) == []
    (bucket / "x").unlink()
    assert [store.remove_stale_upload(stale) for stale in store.iter_stale_uploads()] == [True]
    assert [path.name for path in bucket.iterdir()] == ["x.sha256"]
