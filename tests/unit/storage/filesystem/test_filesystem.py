"""The promises of a filesystem store alone: its layout, links, errors, and files of other programs."""

import ctypes
import errno
import fcntl
import hashlib
import io
import json
import mmap
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.storage.config import FilesystemConfig
from worker.storage.driver import Digest, Match, WriteInfo
from worker.storage.errors import (
    AccessDenied,
    AlreadyExists,
    DigestMismatch,
    InvalidKey,
    NotFound,
    OutOfSpace,
    PermanentError,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from worker.storage.filesystem import open_without_symlinks
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.filesystem.layout import ObjectPath, leaf_of, segment_of
from worker.storage.filesystem.open_without_symlinks import ERRORS, translate
from worker.storage.integrity.verdict import Verdict
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.keys import check_key
from worker.storage.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "its root"
    path.mkdir()
    return path


@pytest.fixture
def driver(root: Path) -> FilesystemDriver:
    return FilesystemDriver("main", FilesystemConfig(root=root))


@pytest.fixture
def store(driver: FilesystemDriver) -> Store:
    return Store(driver)


def write(store: Store, key: str, content: bytes, **options: Any) -> None:
    store.write_object("b", key, io.BytesIO(content), **options)


def read(store: Store, key: str) -> bytes:
    with store.read_object("b", key) as reader:
        return b"".join(reader)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def keys(store: Store, **options: str) -> list[str]:
    return [row.key for row in store.list_objects("b", **options)]


def as_the_original(root: Path, key: str, content: bytes, digest: str | None) -> None:
    path = root / "b" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if digest is not None:
        path.with_name(path.name + ".sha256").write_text(digest)


# The layout


def test_the_original_store_can_read_what_is_written(store: Store, root: Path) -> None:
    """The bytes lie at `root/bucket/key`, and beside them the bare hex of their SHA-256."""
    write(store, "d/app.tgz", b"content")
    assert (root / "b/d/app.tgz").read_bytes() == b"content"
    assert (root / "b/d/app.tgz.sha256").read_text() == sha256(b"content")
    assert sorted(path.name for path in (root / "b/d").iterdir()) == ["app.tgz", "app.tgz.sha256"]


@pytest.mark.parametrize("form", ["{}", "{}\n", "  {}\r\n"])
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_what_the_original_wrote_is_read(store: Store, root: Path, form: str, case: Callable[[str], str]) -> None:
    """A sidecar counts with or without a newline, in any case."""
    as_the_original(root, "k", b"content", form.format(case(sha256(b"content"))))
    assert store.stat_object("b", "k").sha256 == sha256(b"content")
    assert read(store, "k") == b"content"


@pytest.mark.parametrize("sidecar", [None, "", "not a digest", "ab" * 31, "ab" * 33])
def test_without_a_digest_nothing_is_claimed(store: Store, root: Path, sidecar: str | None) -> None:
    """An object without a sidecar, or with something else in it, is there and has no digest."""
    as_the_original(root, "k", b"content", sidecar)
    assert store.stat_object("b", "k").sha256 is None
    assert store.verify_object("b", "k").verdict is Verdict.UNVERIFIABLE
    write(store, "k", b"new")
    assert store.verify_object("b", "k").verdict is Verdict.VERIFIED


def test_a_key_that_looks_like_a_sidecar_is_none(store: Store, root: Path) -> None:
    """`x`, `x.sha256` and `x.%sha256` are three objects, each with its digest, whichever is deleted first."""
    names = ["x", "x.sha256", "x.%sha256", "x.sha256.sha256", ".sha256", "x.SHA256"]
    for key in names:
        write(store, key, key.encode())
    assert keys(store) == sorted(names)
    for key in names:
        assert read(store, key) == key.encode()
        assert store.stat_object("b", key).sha256 == sha256(key.encode())
    for key in names:
        assert store.delete_object("b", key)
        assert not store.object_exists("b", key)
    assert list((root / "b").iterdir()) == []


def test_a_lone_sidecar_is_nothing(store: Store, root: Path) -> None:
    """A digest of ours without data is no object, and not in the way of one."""
    write(store, "k", b"gone")
    (root / "b/k").unlink()
    assert keys(store) == []
    assert not store.object_exists("b", "k")
    assert not store.object_exists("b", "k.sha256")
    write(store, "k.sha256", b"own")
    write(store, "k", b"new")
    assert (read(store, "k"), read(store, "k.sha256")) == (b"new", b"own")


def test_an_object_of_the_original_that_looks_like_a_sidecar_survives(store: Store, root: Path) -> None:
    """`x.sha256` with a sidecar of its own is an object: listed, read, and still there after `x` was written."""
    content = b"0123 app.tgz\n"
    as_the_original(root, "x.sha256", content, sha256(content))
    assert keys(store) == ["x.sha256"]
    assert read(store, "x.sha256") == content

    write(store, "x", b"data")

    assert keys(store) == ["x", "x.sha256"]
    assert (read(store, "x"), read(store, "x.sha256")) == (b"data", content)
    assert store.stat_object("b", "x.sha256").sha256 == sha256(content)
    assert store.delete_object("b", "x.sha256")
    assert read(store, "x") == b"data"


def test_a_sidecar_without_data_does_not_make_the_next_sidecar_an_object(store: Store, root: Path) -> None:
    """Our `x.%sha256.sha256` without `x.%sha256` is nothing, also after `x` was written."""
    write(store, "x.sha256", b"gone")
    (root / "b/x.%sha256").unlink()
    write(store, "x", b"data")
    assert keys(store) == ["x"]
    assert not store.object_exists("b", "x.sha256")


def test_three_generations_of_checksums_are_refused(store: Store, root: Path) -> None:
    """Where the original's names cannot be told apart, a write is refused, says so, and changes nothing."""
    for name in ("x.sha256", "x.sha256.sha256", "x.sha256.sha256.sha256"):
        as_the_original(root, name, sha256(b"gone").encode(), None)
    with pytest.raises(PermanentError, match="objects of the old layout: move them away"):
        write(store, "x", b"data")
    assert not store.object_exists("b", "x")
    assert len(list((root / "b").iterdir())) == 3


@given(st.text(alphabet="ax.%sha256", max_size=12), st.text(alphabet="ax.%sha256", max_size=12))
def test_names_never_meet(one: str, other: str) -> None:
    """Every last segment has a name of its own, which leads back to it, and no name is another's sidecar."""
    assert segment_of(leaf_of(one)) == one
    assert (leaf_of(one) == leaf_of(other)) == (one == other)
    assert leaf_of(one) != leaf_of(other) + ".sha256"


def test_the_longest_keys_fit(store: Store) -> None:
    """A segment of the greatest length the rules allow can be stored, also when it needs the longest name."""
    key = "a" * 240 + ".sha256"
    assert check_key("b", key)
    write(store, key, b"content")
    assert keys(store) == [key]
    assert read(store, key) == b"content"


def test_the_deepest_keys_fit(store: Store, root: Path) -> None:
    """A key of 500 segments is written, listed, read and deleted, with its directories."""
    key = "/".join("d" * 500)
    write(store, key, b"content")
    assert keys(store) == [key]
    assert read(store, key) == b"content"
    assert store.delete_object("b", key)
    assert list((root / "b").iterdir()) == []


segments = st.one_of(
    st.text(alphabet="ab.%-é", min_size=1, max_size=3),
    st.sampled_from(["a", "A", "b", "a.sha256", "a.%sha256", "a.sha256.sha256", ".sha256", ".tmp", "e\u0301", "a0"]),
)


def _is_allowed(key: str) -> bool:
    try:
        return bool(check_key("b", key))
    except InvalidKey:
        return False


def _exclude_each_other(one: str, other: str) -> bool:
    """Return whether a disk cannot hold both: a file of one has the name of a directory of the other."""

    def files(key: str) -> set[str]:
        parent, slash, last = key.rpartition("/")
        return {f"{parent}{slash}{leaf_of(last)}", f"{parent}{slash}{leaf_of(last)}.sha256"}

    return any(below.startswith(f"{file}/") for above, below in ((one, other), (other, one)) for file in files(above))


allowed_keys = st.lists(segments, min_size=1, max_size=3).map("/".join).filter(_is_allowed)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(allowed_keys, st.booleans()), max_size=12), prefix=allowed_keys, after=allowed_keys)
def test_a_store_holds_what_was_put_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, bool]], prefix: str, after: str
) -> None:
    """Whatever was put, refused and deleted, a listing is what a dictionary would hold, by the UTF-8 order of keys."""
    store = Store(FilesystemDriver("main", FilesystemConfig(root=tmp_path_factory.mktemp("root"))))
    held: dict[str, bytes] = {}
    for number, (key, is_put) in enumerate(changes):
        content = f"{number} {key}".encode()
        if not is_put:
            assert store.delete_object("b", key) == (held.pop(key, None) is not None)
            continue
        try:
            write(store, key, content)
        except InvalidKey:
            assert key not in held, "what is there can be replaced"
            assert any(_exclude_each_other(key, other) for other in held)
        else:
            held[key] = content
    ordered = sorted(held, key=str.encode)
    assert keys(store) == ordered
    assert {key: read(store, key) for key in ordered} == held
    assert {key: store.stat_object("b", key).sha256 for key in ordered} == {k: sha256(held[k]) for k in ordered}
    assert keys(store, prefix=prefix) == [key for key in ordered if key.startswith(prefix)]
    assert keys(store, prefix=prefix[:1]) == [key for key in ordered if key.startswith(prefix[:1])]
    assert [keys(store, after=key) for key in ordered] == [ordered[at + 1 :] for at in range(len(ordered))]
    assert keys(store, after=after) == [key for key in ordered if key.encode() > after.encode()]


def test_a_listing_goes_on_after_any_key(store: Store) -> None:
    """By the UTF-8 order of whole keys, `a.b` comes before `a/b`, and a listing resumes inside a directory."""
    ordered = ["a.b", "a/b", "a/c/d", "a/c/e", "a0", "\uffee", "\U00010000"]
    for key in ordered:
        write(store, key, b"")
    assert keys(store) == ordered
    assert [keys(store, after=key) for key in ordered] == [ordered[at + 1 :] for at in range(len(ordered))]
    assert keys(store, prefix="a/", after="a/b") == ["a/c/d", "a/c/e"]


# Keys that exclude each other


@pytest.mark.parametrize(
    ("first", "second", "in_the_way"),
    [("a", "a/b", "b/a"), ("a/b", "a", "'a'"), ("a", "a.sha256/b", "b/a.sha256"), ("a.sha256/b", "a", "'a.sha256'")],
)
def test_a_key_below_a_key_is_refused(store: Store, first: str, second: str, in_the_way: str) -> None:
    """A key that the disk cannot hold beside another one is refused by an error that names both; nothing changes."""
    write(store, first, b"first")
    with pytest.raises(InvalidKey) as caught:
        write(store, second, b"second")
    assert f"main: b/{second}: " in str(caught.value)
    assert in_the_way in str(caught.value)
    assert keys(store) == [first]
    assert read(store, first) == b"first"
    assert not store.object_exists("b", second)
    assert not store.delete_object("b", second)
    assert list(store.iter_stale_uploads()) == []


def test_a_key_is_free_again_when_the_keys_below_it_are_gone(store: Store) -> None:
    """Deleting `a/b` removes the directory that was in the way of `a`."""
    write(store, "a/b", b"1")
    store.delete_object("b", "a/b")
    write(store, "a", b"2")
    assert keys(store) == ["a"]


def test_an_unfinished_write_below_a_key_is_in_its_way(store: Store, driver: FilesystemDriver) -> None:
    """During a write of `a/b`, `a` is refused; afterwards `a/b` is there."""

    class Interrupting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            with pytest.raises(InvalidKey):
                write(store, "a", b"other")
            return super().read(size)

    store.write_object("b", "a/b", Interrupting(b"content"))
    assert keys(store) == ["a/b"]


# Links and other things


def test_links_are_never_followed(store: Store, root: Path, tmp_path: Path) -> None:
    """A link to a file, a directory or a bucket is refused by name, is not listed, and nothing outside is touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    write(store, "own", b"own")
    (root / "b/file").symlink_to(outside / "secret")
    (root / "b/dir").symlink_to(outside)
    (root / "linked").symlink_to(outside)

    for bucket, key, name in [("b", "file", "file"), ("b", "dir/secret", "b/dir"), ("linked", "secret", "linked")]:
        for operation in (
            lambda b=bucket, k=key: store.read_object(b, k),
            lambda b=bucket, k=key: store.write_object(b, k, io.BytesIO(b"new")),
            lambda b=bucket, k=key: store.delete_object(b, k),
            lambda b=bucket, k=key: store._driver.copy("b", "own", b, k),
        ):
            with pytest.raises(PermanentError, match=f"'{name}' is a link"):
                operation()
        assert store.verify_object(bucket, key).verdict is Verdict.UNREADABLE
    assert keys(store) == ["own"]
    with pytest.raises(PermanentError, match="is a link"):
        list(store.list_objects("linked"))
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_linked_sidecar_claims_nothing(store: Store, root: Path, tmp_path: Path) -> None:
    """A digest is not read through a link, and never written through one."""
    outside = tmp_path / "outside"
    outside.write_text(sha256(b"content"))
    as_the_original(root, "k", b"content", None)
    (root / "b/k.sha256").symlink_to(outside)
    assert store.stat_object("b", "k").sha256 is None
    with pytest.raises(PermanentError, match=r"'k.sha256' is a link"):
        write(store, "k", b"new")
    assert outside.read_text() == sha256(b"content")


def test_our_own_directory_may_be_no_link_either(store: Store, root: Path, tmp_path: Path) -> None:
    """Where `.zot` is a link, nothing is written through it."""
    (root / ".zot").symlink_to(tmp_path)
    with pytest.raises(PermanentError, match="is a link"):
        write(store, "k", b"content")
    assert not (tmp_path / "locks").exists()


def test_a_pipe_is_no_object(store: Store, root: Path) -> None:
    """A special file is neither listed nor waited for."""
    (root / "b").mkdir()
    os.mkfifo(root / "b/pipe")
    assert keys(store) == []
    with pytest.raises(PermanentError, match="'pipe' is a link or a special file"):
        read(store, "pipe")


@pytest.mark.parametrize(
    "where", ["b/k", "b/k.sha256", "b", "b/.zot-tmp-00000000000000000000000000000000", ".zot/locks"]
)
@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_a_special_file_blocks_no_verb(store: Store, root: Path, where: str, kind: str, tmp_path_factory) -> None:
    """It is passed over, or an error, in place of an object, its sidecar, a bucket and our own files."""
    write(store, "k", b"content")
    place = root / where
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    else:
        short = tmp_path_factory.mktemp("s") / "s"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(short))
        short.rename(place)
    expected = Digest(7, sha256(b"content"))
    verbs: dict[str, Callable[[], object]] = {
        "stat": lambda: store.stat_object("b", "k"),
        "digest": lambda: store.stat_object("b", "k").sha256,
        "read": lambda: read(store, "k"),
        "verify": lambda: store.verify_object("b", "k", expected),
        "list": lambda: keys(store),
        "stale": lambda: [store.remove_stale_upload(each) for each in store.iter_stale_uploads()],
        "quarantine": lambda: store.quarantine_object("b", "k", "job"),
        "health": store.health_check,
        "write": lambda: write(store, "k", b"content"),
        "delete": lambda: store.delete_object("b", "k"),
    }
    for verb in verbs.values():
        with suppress(StorageError):
            verb()
    assert not place.exists() or not stat.S_ISREG(place.lstat().st_mode)


def test_the_root_may_be_a_link(root: Path, tmp_path: Path) -> None:
    """The administrator chooses where the store is, and may use a link."""
    (tmp_path / "link").symlink_to(root)
    store = Store(FilesystemDriver("main", FilesystemConfig(root=tmp_path / "link")))
    store.health_check()
    write(store, "k", b"content")
    assert (root / "b/k").read_bytes() == b"content"


def test_names_that_are_not_utf8_are_passed_over(store: Store, root: Path) -> None:
    """A foreign name that no key can be is not listed and stops nothing."""
    write(store, "k", b"content")
    (root / "b" / os.fsdecode(b"\xff")).write_bytes(b"foreign")
    (root / "b" / os.fsdecode(b"\xfe")).mkdir()
    assert keys(store) == ["k"]
    assert list(store.iter_stale_uploads()) == []
    store.delete_object("b", "k")
    assert (root / "b" / os.fsdecode(b"\xff")).exists()


# The root


@pytest.mark.parametrize(
    "operation",
    [
        lambda s: write(s, "k", b"x"),
        lambda s: s.read_object("b", "k"),
        lambda s: s.stat_object("b", "k"),
        lambda s: s.object_exists("b", "k"),
        lambda s: s.delete_object("b", "k"),
        lambda s: list(s.list_objects("b")),
        lambda s: s.create_bucket("b"),
        lambda s: s.bucket_exists("b"),
        lambda s: s.health_check(),
        lambda s: list(s.iter_stale_uploads()),
        lambda s: s._driver.copy("b", "k", "b", "l"),
    ],
)
def test_a_missing_root_is_not_an_empty_store(store: Store, root: Path, operation: Callable[[Store], Any]) -> None:
    """An unmounted disk is Unavailable, and never NotFound; the root is not made."""
    root.rmdir()
    with pytest.raises(Unavailable, match=f"main: its root {root} does not exist: mount the disk"):
        operation(store)
    assert not root.exists()
    assert store.verify_object("b", "k").verdict is Verdict.UNREADABLE


def test_what_a_root_needs_is_told(store: Store, root: Path) -> None:
    """The command that makes a missing root works as it is printed; there is none where a file is in its place."""
    root.rmdir()
    with pytest.raises(Unavailable, match=r"`mkdir -p .*`") as missing:
        store.health_check()
    subprocess.run(["sh", "-c", str(missing.value).split("`")[1]], check=True)
    store.health_check()
    root.rmdir()
    root.touch()
    with pytest.raises(Unavailable, match=f"main: its root {root} is not a directory: move the file"):
        store.health_check()


def test_a_missing_root_takes_nothing_from_the_source(driver: FilesystemDriver, root: Path) -> None:
    """Whether a store is there is asked before the first byte is read."""
    root.rmdir()
    source = io.BytesIO(b"content")
    with pytest.raises(Unavailable):
        driver.put("b", "k", VerifyingReader(source), WriteInfo())
    assert source.tell() == 0


def test_directories_that_are_no_buckets_are_not_touched(store: Store, root: Path) -> None:
    """What a disk has in its root beside buckets is not looked into."""
    (root / "lost+found").mkdir()
    (root / "lost+found/.zot-tmp-1").write_bytes(b"not ours")
    assert list(store.iter_stale_uploads()) == []


# Errors


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_of_the_system_has_a_meaning(code: int) -> None:
    """Each errno becomes one of our errors, in one line that names the store, the object and what needs a repair."""
    error = translate(OSError(code, os.strerror(code)), "main: b/k", Path("/mnt/main"))
    assert isinstance(error, ERRORS.get(code, Unavailable))
    assert str(error).startswith("main: b/k")
    assert isinstance(error, OutOfSpace | AccessDenied | Unavailable) == ("/mnt/main" in str(error))
    assert "\n" not in str(error)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENODEV, errno.ENOTCONN])
def test_a_sick_disk_may_get_well(code: int) -> None:
    """What is wrong with the disk or the machine, and not with the request, is worth another try."""
    assert type(translate(OSError(code, ""), "main", Path("/mnt"))) is Unavailable


def test_an_error_of_ours_stays_what_it_is() -> None:
    """NotFound is a FileNotFoundError too, and is not translated twice."""
    error = NotFound("main: b/k does not exist")
    assert translate(error, "elsewhere", Path("/mnt")) is error


def test_an_error_of_the_source_is_not_the_stores(store: Store) -> None:
    """What the body raises passes through untouched, and nothing is left, not even the bucket."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(4) or self._fail()

        def _fail(self) -> bytes:
            raise FileNotFoundError(errno.ENOENT, "the source is gone")

    with pytest.raises(FileNotFoundError, match="the source is gone") as caught:
        store.write_object("b", "d/e/k", Failing(b"content"))
    assert not isinstance(caught.value, StorageError)
    assert not store.bucket_exists("b")


def test_wrong_bytes_leave_what_was_there(store: Store, root: Path) -> None:
    """A source that is not what was announced leaves the previous content, and a bucket that was made before."""
    write(store, "k", b"old")
    with pytest.raises(DigestMismatch):
        write(store, "k", b"new", sha256=sha256(b"other"))
    with pytest.raises(DigestMismatch):
        write(store, "d/e/k", b"new", sha256=sha256(b"other"))
    assert read(store, "k") == b"old"
    assert sorted(path.name for path in (root / "b").iterdir()) == ["k", "k.sha256"]


# Versions and conditions


def test_every_write_has_another_version(store: Store) -> None:
    """Also the same bytes, written within the same tick of the kernel's clock, have another tag each time."""
    versions = set()
    for _ in range(50):
        write(store, "k", b"same")
        versions.add(store.stat_object("b", "k").version)
    assert len(versions) == 50


def test_the_bytes_and_the_digest_of_a_new_object_wait_for_the_disk_at_one_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new object waits twice for the disk: for its bytes and digest together, and for their names."""
    write(store, "other", b"so that its directories are made")
    together, waits, real = Barrier(2, timeout=60), [], os.fsync

    def fsync(fd: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            together.wait()  # raises where one file is synced after the other
        waits.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write(store, "k", b"content")
    assert len(waits) == 3


def test_a_condition_is_checked_before_the_bytes_are_read(store: Store, driver: FilesystemDriver) -> None:
    """A write that is bound to fail does not read its source first."""
    write(store, "k", b"old")
    for condition, error in (("create_only", AlreadyExists), (Match("other"), PreconditionFailed)):
        source = io.BytesIO(b"new")
        with pytest.raises(error, match="main: b/k"):
            driver.put("b", "k", VerifyingReader(source), WriteInfo(), condition=condition)  # type: ignore[arg-type]
        assert source.tell() == 0


def test_a_condition_is_checked_again_at_the_end(store: Store) -> None:
    """A writer that meets a conflict while its bytes come in is refused, and the other's content stays."""

    class WrittenMeanwhile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() == 0:
                write(store, "k", b"the other's")
            return super().read(size)

    with pytest.raises(AlreadyExists):
        store.write_object("b", "k", WrittenMeanwhile(b"mine"), condition="create_only")
    version = Match(store.stat_object("b", "k").version)
    with pytest.raises(PreconditionFailed):
        store.write_object("b", "k", WrittenMeanwhile(b"mine"), condition=version)
    assert read(store, "k") == b"the other's"
    assert list(store.iter_stale_uploads()) == []


def test_what_the_original_writes_meanwhile_under_the_name_of_a_sidecar_is_not_hidden(store: Store, root: Path) -> None:
    """A create-only write of `x.sha256` is refused if the original has written that object while the bytes came in."""

    class WrittenMeanwhile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            as_the_original(root, "x.sha256", b"the original's", sha256(b"the original's"))
            return super().read(size)

    with pytest.raises(AlreadyExists):
        store.write_object("b", "x.sha256", WrittenMeanwhile(b"mine"), condition="create_only")
    assert read(store, "x.sha256") == b"the original's"


# Copies


def test_an_intent_is_of_its_own_file_alone(
    store: Store, driver: FilesystemDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a dead writer was about to place gives its digest to no other file, neither to a reader nor for good."""
    write(store, "k", b"hello")
    found, intent = (root / "b" / "k").stat(), root / ".zot" / "intents" / ObjectPath("b", "k").intent
    own = {"inode": found.st_ino, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
    intent.parent.mkdir(parents=True, exist_ok=True)
    for other in (*own, None):
        data = {**own, other: own[other] + 1} if other else own
        intent.write_text(json.dumps({"bucket": "b", "key": "k", **data, "sha256": "0" * 64}))
        expected = sha256(b"hello") if other else "0" * 64
        assert driver.stat("b", "k").sha256 == expected
        with pytest.raises(PreconditionFailed):  # but it completes the intent first
            driver.delete("b", "k", condition=Match("another version"))
        assert (driver.stat("b", "k").sha256, intent.exists()) == (expected, False)
    intent.write_text(json.dumps({"bucket": "gone", "key": "d/k", **own, "sha256": "0" * 64}))
    left = intent.rename(intent.with_name(ObjectPath("gone", "d/k").intent))
    [stale] = store.iter_stale_uploads()
    with driver._tree.locked(ObjectPath("gone", "d/k").lock), monkeypatch.context() as writing:
        writing.setattr(open_without_symlinks, "LOCK_SECONDS", 0)
        with pytest.raises(Unavailable, match="has locked"):
            store.remove_stale_upload(stale)
    assert store.remove_stale_upload(stale)
    assert not left.exists()


def test_a_copy_has_a_life_of_its_own(store: Store, driver: FilesystemDriver) -> None:
    """A copy takes no room, and stays when the original is replaced or deleted."""
    write(store, "k", b"content")
    stat = driver.copy("b", "k", "other", "copy.sha256")
    write(store, "k", b"new")
    store.delete_object("b", "k")
    assert store.verify_object("other", "copy.sha256").verdict is Verdict.VERIFIED
    assert stat.sha256 == sha256(b"content")
    assert driver.copy("other", "copy.sha256", "other", "copy.sha256").sha256 == stat.sha256
    assert list(store.iter_stale_uploads()) == []


def test_a_copy_of_an_object_that_is_replaced_meanwhile_is_of_one_version(
    store: Store, driver: FilesystemDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link to the data is made by its name, which may be that of other data by then."""
    write(store, "k", b"content")
    link = os.link

    def late(*names: Any, **directories: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        write(store, "k", b"newer content")
        link(*names, **directories)

    monkeypatch.setattr(os, "link", late)
    driver.copy("b", "k", "b", "copy")
    assert store.verify_object("b", "copy").verdict is Verdict.VERIFIED


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_a_copy_never_blesses_what_has_rotted(
    store: Store, driver: FilesystemDriver, root: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """A copy keeps the digest that was recorded, also where the disk makes no links and the bytes are copied."""
    write(store, "k", b"content")
    (root / "b/k").write_bytes(b"c0ntent")
    if refusal is not None:

        def refuse(*_args: Any, **_options: Any) -> None:
            raise OSError(refusal, os.strerror(refusal))

        monkeypatch.setattr(os, "link", refuse)
    driver.copy("b", "k", "b", "copy")
    assert (root / "b/copy").read_bytes() == b"c0ntent"
    assert (root / "b/copy").samefile(root / "b/k") == (refusal is None)
    assert store.verify_object("b", "copy").verdict is Verdict.CORRUPT
    write(store, "new", b"new", condition="create_only")
    assert read(store, "new") == b"new"


# Reading


def test_a_reader_keeps_its_version(store: Store) -> None:
    """What is open stays what it was, with its stat, while the key is replaced and deleted."""
    write(store, "k", b"old content")
    with store.read_object("b", "k") as reader:
        write(store, "k", b"new")
        store.delete_object("b", "k")
        assert b"".join(reader) == b"old content"
        assert reader.stat.sha256 == sha256(b"old content")


def is_cached(path: Path) -> bool:
    """Return whether the page cache has a page of a file; to ask with a read would fill it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        there = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        try:
            assert ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), there) == 0
        finally:
            del first  # the mapping can be closed without it only
        return any(page & 1 for page in there)


def forget(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(path):
        pytest.skip("this file system has no page cache beside it")


def test_an_uncached_read_comes_from_the_disk(store: Store, driver: FilesystemDriver, root: Path) -> None:
    """Whole blocks do not pass through the page cache, and it has nothing of the file after its end was read."""
    content, file = os.urandom(9 * 4096 + 100), root / "b" / "k"
    write(store, "k", content)
    forget(file)
    file.read_bytes()
    assert is_cached(file)
    buffer = memoryview(mmap.mmap(-1, 2 * 4096))
    found = b""
    with driver.open("b", "k", uncached=True) as reader:
        assert not is_cached(file)  # also where the file system reads through the cache after all
        while len(found) < 8 * 4096:
            found += buffer[: reader.readinto(buffer)]
            assert not is_cached(file)
        while count := reader.readinto(buffer):
            found += buffer[:count]
    assert found == content
    assert not is_cached(file)
    with driver.open("b", "k", uncached=True) as reader:  # `read` passes through it, and empties it
        assert reader.read(len(content)) == content
    assert not is_cached(file)


@pytest.mark.parametrize(
    "span", [(0, None), (0, 4096), (4096, 3 * 4096), (10, 5), (10, 5000), (4096, 5000), (99_999, 1)]
)
@pytest.mark.parametrize("start", [0, 1, 512])
def test_an_uncached_read_returns_the_same_bytes(
    store: Store, driver: FilesystemDriver, span: tuple[int, int | None], start: int
) -> None:
    """A disk reads whole blocks into whole pages only; any range is read into any buffer nevertheless."""
    content = os.urandom(5 * 4096 + 123)
    write(store, "k", content)
    offset, length = span
    buffer = memoryview(mmap.mmap(-1, 3 * 4096))[start:]
    found = b""
    with driver.open("b", "k", offset=offset, length=length, uncached=True) as reader:
        while count := reader.readinto(buffer):
            found += buffer[:count]
    assert found == content[offset:][:length]


@pytest.mark.parametrize("code", [errno.ENODATA, errno.EILSEQ, errno.ENOLINK, errno.EINVAL])
def test_a_bad_sector_is_told_as_such(
    store: Store, driver: FilesystemDriver, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A direct read fails as a whole, with a number for each kind of damage; the page cache says EIO, where it is."""
    content, bad = os.urandom(4 * 4096), 2 * 4096
    write(store, "k", content)
    preadv = os.preadv

    def damaged(file: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(code, os.strerror(code))
        if offset >= bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(file, [buffers[0][: bad - offset]], offset)

    monkeypatch.setattr(os, "preadv", damaged)
    buffer = memoryview(mmap.mmap(-1, len(content)))
    with driver.open("b", "k", uncached=True) as reader:
        assert reader.readinto(buffer) == bad
        assert buffer[:bad] == content[:bad]
        with pytest.raises(Unavailable, match="main: b/k: Input/output error"):
            reader.readinto(buffer)
    bad = len(content)  # another program has mapped the file: the cache has what the disk cannot give
    with driver.open("b", "k", uncached=True) as reader:
        if code == errno.EINVAL:
            assert reader.readinto(buffer) == bad
        else:
            with pytest.raises(Unavailable, match="main: b/k: Input/output error"):
                reader.readinto(buffer)


# What dead writers left (that they died is shown in tests/faults)


def test_a_living_writers_file_is_not_discarded(store: Store, driver: FilesystemDriver, root: Path) -> None:
    """What is being written is listed as unfinished and stays; what its writer left goes, and its directory with it."""

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            unfinished = list(store.iter_stale_uploads())
            assert len(unfinished) == 1
            assert "main: temporary file b/d/.zot-tmp-" in unfinished[0].description
            assert not store.remove_stale_upload(unfinished[0])
            return super().read(size)

    store.write_object("b", "d/k", Watched(b"content"))
    assert list(store.iter_stale_uploads()) == []
    (root / "b/e").mkdir()
    (root / "b/e/.zot-tmp-1").write_bytes(b"left")
    (left,) = store.iter_stale_uploads()
    assert keys(store) == ["d/k"]
    assert store.remove_stale_upload(left)
    assert not store.remove_stale_upload(left)
    assert not (root / "b/e").exists()


def test_places_of_one_family_share_a_lock() -> None:
    """Keys whose writes may move each other's files exclude each other; others have locks of their own."""
    family = {ObjectPath("b", key).lock for key in ("d/x", "d/x.sha256", "d/x.%sha256", "d/x.sha256.sha256")}
    assert len(family) == 1
    assert len({ObjectPath("b", f"d/{number}").lock for number in range(200)}) > 50
    assert ObjectPath("b", "k").intent != ObjectPath("c", "k").intent
