"""A filesystem store survives the death of its writers at any system call, a full disk, and many writers at once.

The processes here are real: each is forked, dies by SIGKILL where it is told to, and what it leaves is judged by a
driver that knows nothing of it.
"""

import errno
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.faults.filesystem_crashes import (
    CALLS,
    GROUP,
    GROUP_MAY_BE,
    NEW,
    OLD,
    SCENES,
    THIRD,
    content_of,
    contents_after_a_death,
    end,
    half_replaced,
    in_child,
    old,
    original,
    prepare,
    start,
    store_at,
    two,
    write,
    write_group,
    writes_over_directories_of_dead_writers,
)
from tests.open_files import open_below
from worker.embedded.parent_death import die_with_parent
from worker.storage.driver import HashedBytes, SmallPut
from worker.storage.errors import (
    AccessDenied,
    AlreadyExists,
    NotDeleted,
    NotFound,
    OutOfSpace,
    StorageError,
    Unavailable,
)
from worker.storage.filesystem import bulk_write
from worker.storage.filesystem.layout import ObjectPath
from worker.storage.integrity.verdict import Verdict, Verification
from worker.storage.store import Store


@pytest.fixture(scope="session")
def small_process() -> Iterator[Executor]:
    """Return what runs functions of tests/faults/filesystem_crashes.py in a process that has imported little else."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=die_with_parent) as process:
        yield process


@pytest.mark.parametrize("name", SCENES)
def test_death_at_any_call_leaves_one_of_the_two_whole(quick: Path, small_process: Executor, name: str) -> None:
    """Wherever a writer dies, each key holds the old or the new content with its own digest; the next write heals."""
    seen = small_process.submit(contents_after_a_death, quick / "root", name).result()
    assert seen == SCENES[name].may_be


def test_a_key_can_be_written_where_a_dead_writer_left_a_directory(quick: Path, small_process: Executor) -> None:
    """A directory that a dead writer made for `d/e/k` and never filled is not in the way of the key `d`."""
    contents = small_process.submit(writes_over_directories_of_dead_writers, quick / "root").result()
    assert set(contents) == {THIRD}


def _twice(store: Store) -> None:
    write(store, "k", NEW)
    write(store, "k", THIRD)


def _anew(store: Store) -> None:
    store.delete_object("b", "k")
    write(store, "k", NEW)


READS: dict[str, tuple[Callable[[Path], None], Callable[[Store], Any], str, set[bytes | None]]] = {
    "replaced": (old, lambda s: write(s, "k", NEW), "k", {OLD, NEW}),
    "replaced by a group": (old, lambda s: write_group(s, {"k": NEW}), "k", {OLD, NEW}),
    "replaced twice": (old, _twice, "k", {OLD, THIRD}),
    "deleted": (old, lambda s: s.delete_object("b", "k"), "k", {OLD, None}),
    "written anew": (old, _anew, "k", {OLD, NEW}),
    "copied over": (two, lambda s: s._driver.copy("b", "other", "b", "k"), "k", {OLD, NEW}),
    "healed": (half_replaced, _anew, "k", {THIRD, NEW}),
    "moved from the original's place": (original, lambda s: write(s, "k", NEW), "k.sha256", {OLD}),
    "replaced at the original's place": (original, lambda s: write(s, "k.sha256", NEW), "k.sha256", {OLD, NEW}),
}


@pytest.mark.parametrize("name", READS)
def test_a_change_between_any_two_calls_of_a_reader_shows_it_one_of_the_two(quick: Path, name: str) -> None:
    """A reader takes no lock: whenever a whole change comes between, it sees one content with its own digest."""
    before, change, key, may_be = READS[name]
    for count in itertools.count():
        root = quick / str(count)
        root.mkdir()
        before(root)
        found, reached = _read_with_change(store_at(root), key, count, change)
        if not reached:
            break
        assert found in may_be, count
        shutil.rmtree(root)
    assert count > 10


def _read_with_change(store: Store, key: str, count: int, change: Callable[[Store], Any]) -> tuple[bytes | None, bool]:
    """Read while another writer changes the key before call number `count`; return the bytes, and if it came so far."""
    counter = itertools.count()
    reached = False

    def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            nonlocal reached
            if not reached and next(counter) == count:
                reached = True
                change(store)
            return call(*args, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "stat", "fstat", "read", "pread"):
            patch.setattr(os, name, interrupted(getattr(os, name)))
        return content_of(store, key), reached


def test_a_listing_shows_only_keys_that_are_written(quick: Path) -> None:
    """Whenever a delete ends, and whenever the key is written again, a listing beside it shows no other key."""
    store = store_at(quick)

    def half_deleted() -> None:
        write(store, "k", OLD)
        (quick / "b" / "k").unlink()  # as a delete does first

    half_deleted()
    _, calls = _listed_during(store, {})
    assert calls > 10
    for deleted, written in itertools.combinations(range(calls + 5), 2):
        half_deleted()
        changes = {deleted: (quick / "b" / "k.sha256").unlink, written: lambda: write(store, "k", NEW)}
        keys, _ = _listed_during(store, changes)
        assert keys <= {"k"}, (deleted, written)


def _listed_during(store: Store, changes: Mapping[int, Callable[[], Any]]) -> tuple[set[str], int]:
    """List while each change is made before the call of its number; return the keys, and how many calls there were."""
    counter = itertools.count()
    changing = False

    def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            nonlocal changing
            if not changing and (change := changes.get(next(counter))):
                changing = True
                change()
                changing = False
            return call(*args, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "stat", "fstat", "read", "pread", "scandir"):
            patch.setattr(os, name, interrupted(getattr(os, name)))
        return {row.key for row in store.list_objects("b")}, next(counter)


def calls_of(root: Path, change: Callable[[Store], Any]) -> list[str]:
    """Return what a change asks of the disk, in order: its calls that change something, and on what."""
    calls: list[str] = []
    store = store_at(root)

    def told(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            thing = str(Path(f"/proc/self/fd/{args[0]}").readlink()) if name == "fsync" else str(args[-1])
            thing = thing.replace(f"{root}/", "")
            result = call(*args, **options)
            if name in {"rename", "fsync", "unlink"} and ".zot-tmp-" not in str(args[0]) + thing:
                calls.append(f"{name} {thing}")
            elif name == "rename":
                calls.append(f"rename {thing}")
            elif name == "fsync":
                calls.append("fsync temp")
            return result

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename", "unlink"):
            patch.setattr(os, name, told(name, getattr(os, name)))
        change(store)
    return calls


def test_every_step_is_on_the_disk_before_the_next_begins(tmp_path: Path) -> None:
    """Power may fail as well as a process: contents are synced before they are placed, names before the next step."""
    write(store_at(tmp_path), "other", OLD)
    write(store_at(tmp_path), "other", OLD)  # so that our own directories are made
    created = calls_of(tmp_path, lambda store: write(store, "k", OLD))
    replaced = calls_of(tmp_path, lambda store: write(store, "k", NEW))
    deleted = calls_of(tmp_path, lambda store: store.delete_object("b", "k"))
    intent = ObjectPath("b", "k").intent

    assert created == ["fsync temp", "fsync temp", "rename k.sha256", "rename k", "fsync b"]
    assert replaced == [
        "fsync temp", "fsync temp", f"rename {intent}", "fsync .zot/intents", "rename k", "fsync b",
        "fsync temp", "rename k.sha256", "fsync b", f"unlink {intent}",
    ]  # fmt: skip
    assert deleted == ["unlink k", "fsync b", "unlink k.sha256"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_group_is_on_the_disk_before_any_of_it_is_visible(tmp_path: Path, whole: bool) -> None:
    """Of a group, all contents are synced before the first is placed, and each directory once after the last.

    `whole`: the disk is synced as a whole, and no file by itself.
    """
    calls: list[str] = []
    store = store_at(tmp_path)
    write(store, "other", OLD)
    real_fsync, real_link, real_sync_disks = os.fsync, os.link, bulk_write.sync_disks

    def fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        calls.append("fsync file" if path.name.endswith("(deleted)") else f"fsync {path.name}")
        real_fsync(fd)

    def link(source: str, target: str, **options: Any) -> None:
        calls.append(f"link {target}")
        real_link(source, target, **options)

    def sync_disks(directories: Iterable[int]) -> bool:
        real_sync_disks(directories)
        calls.append("sync disk")
        return whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "link", link)
        patch.setattr(bulk_write, "sync_disks", sync_disks)
        write_group(store, {"k": OLD, "k2": NEW})
    synced = ["sync disk"] if whole else ["sync disk", *["fsync file"] * 4]
    assert calls == [*synced, "link k.sha256", "link k", "link k2.sha256", "link k2", "fsync b"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_call_of_a_group_is_of_its_own_object(quick: Path, error: int) -> None:
    """Whichever call fails, each object of a group is there with its digest, or has an error of its own."""
    for count in itertools.count():
        root = quick / str(count)
        root.mkdir()
        store = store_at(root)
        write(store, "k", OLD)
        puts = [SmallPut("b", key, HashedBytes.of(content)) for key, content in GROUP.items()]
        with failing_at(count, error) as reached:
            written = store.write_objects(puts)
        for put, result in zip(puts, written, strict=True):
            found = content_of(store, put.key)
            assert found in GROUP_MAY_BE[put.key], count
            assert isinstance(result, StorageError) or found == put.body.data, "a write that succeeds is there"
        if not reached:
            break
        write_group(store, GROUP)
        assert {key: content_of(store, key) for key in GROUP} == GROUP
        shutil.rmtree(root)
    assert count > 20


def _hammer(root: Path, writer: int, rounds: int) -> None:
    store = store_at(root)
    for number in range(rounds):
        content = bytes([writer]) * (1 + 7919 * (number % 13) * (writer + 1))
        write(store, "k", content)
        if writer == 0 and number % 5 == 0:
            with suppress(NotDeleted):  # another writer wrote it meanwhile
                store.delete_object("b", "k")


def _watch(root: Path, rounds: int) -> None:
    store = store_at(root)
    for _ in range(rounds):
        content_of(store, "k")
        assert {row.key for row in store.list_objects("b")} <= {"k"}


def test_many_writers_and_readers_never_see_a_mixture(tmp_path: Path) -> None:
    """Processes that write, delete and read one key see whole contents with their own digests only."""
    works = [*(partial(_hammer, tmp_path, writer, 60) for writer in range(4)), *[partial(_watch, tmp_path, 1500)] * 2]
    children = [start(work) for work in works]
    assert [end(child) for child in children] == [0] * len(children)
    store = store_at(tmp_path)
    assert content_of(store, "k") is not None
    assert list(store.iter_stale_uploads()) == []


def test_only_one_of_many_creates(tmp_path: Path) -> None:
    """Of many processes that create the same key only if it is absent, one succeeds in each round."""
    for number in range(10):
        closed, go = os.pipe()

        def create(key: str = f"k{number}", closed: int = closed, go: int = go) -> None:
            os.close(go)
            os.read(closed, 1)  # returns for all of them at once, when the last writing end is closed
            try:
                write(store_at(tmp_path), key, str(os.getpid()).encode(), condition="create_only")
            except AlreadyExists:
                os._exit(3)

        children = [start(create) for _ in range(4)]
        os.close(closed)
        os.close(go)
        ends = [end(child) for child in children]
        assert sorted(ends) == [0, 3, 3, 3]
        assert content_of(store_at(tmp_path), f"k{number}") is not None


def test_writers_and_deleters_do_not_fall_over_empty_directories(tmp_path: Path) -> None:
    """A directory that a delete finds empty and a write finds there: neither fails because of the other."""

    def cycle(name: str) -> None:
        store = store_at(tmp_path)
        for _ in range(60):
            write(store, f"d/e/{name}", NEW)
            assert content_of(store, f"d/e/{name}") == NEW
            assert store.delete_object("b", f"d/e/{name}")

    children = [start(partial(cycle, name)) for name in "abc"]
    assert [end(child) for child in children] == [0, 0, 0]
    assert list((tmp_path / "b").iterdir()) == []


def assert_refused_for_space(root: Path, size: int) -> None:
    """Fail to write, keep what was there, leave nothing, and go on writing what fits."""
    store = store_at(root)
    write(store, "k", OLD)
    for key in ("k", "d/new"):
        with pytest.raises(OutOfSpace, match=f"main: b/{key}: "):
            write(store, key, bytes(size))
    assert content_of(store, "k") == OLD
    assert [row.key for row in store.list_objects("b")] == ["k"]
    assert list(store.iter_stale_uploads()) == []
    assert not (root / "b" / "d").exists()
    write(store, "k", NEW)
    assert content_of(store, "k") == NEW


def test_a_file_limit_leaves_the_previous_content(tmp_path: Path) -> None:
    """A write beyond what the system allows is OutOfSpace, and nothing is half-written."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        assert_refused_for_space(tmp_path, 3 << 20)

    assert in_child(work) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a disk of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"a small disk can only be mounted by root: {made.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_the_previous_content(small_disk: Path) -> None:
    """A write to a disk that is full is OutOfSpace, and nothing is half-written."""
    assert_refused_for_space(small_disk, 16 << 20)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("there", [True, False])
def test_an_error_at_any_call_leaves_one_of_the_two_whole(quick: Path, error: int, there: bool) -> None:
    """Whichever call of a write fails, once, the key holds the old or the new content; no success is a lie."""
    for count in itertools.count():
        root = quick / str(count)
        root.mkdir()
        store = store_at(root)
        if there:
            write(store, "k", OLD)
        failed, reached = _write_with_error(store, count, error)
        if not reached:
            break
        found = content_of(store, "k")
        assert found in ({OLD, NEW} if there else {None, NEW}), count
        assert failed or found == NEW, "a write that succeeds is there"
        assert found is not None or not store.bucket_exists("b"), f"call {count} failed and left something"
        write(store, "k", THIRD)
        assert content_of(store, "k") == THIRD
        shutil.rmtree(root)
    assert count > 10


def _write_with_error(store: Store, count: int, error: int) -> tuple[bool, bool]:
    """Write NEW while changing call number `count` fails; return whether the write failed and if it came so far."""
    with failing_at(count, error) as reached:
        try:
            write(store, "k", NEW)
        except StorageError:
            return True, bool(reached)
    return False, bool(reached)


@contextmanager
def failing_at(count: int, error: int, calls: Iterable[str] = CALLS) -> Iterator[list[str]]:
    """Let call number `count` of these fail; yield a list that has its name once it was reached.

    A close that fails has closed the file, as in the kernel.
    """
    counter = itertools.count()
    reached: list[str] = []

    def failing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            if next(counter) == count:
                reached.append(name)
                if name == "close":
                    call(*args)
                raise OSError(error, os.strerror(error))
            return call(*args, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, failing(name, getattr(os, name)))
        yield reached


LOOKS = ["stat", "fstat", "read", "pread", "preadv", "getxattr", "listxattr", "scandir", "dup"]
"""The calls by which the driver looks at the disk."""
FAULTS = {errno.EIO: Unavailable, errno.EDQUOT: OutOfSpace, errno.EROFS: AccessDenied}


@pytest.mark.parametrize("name", SCENES)
def test_an_error_at_any_call_is_of_its_class_and_leaves_nothing(
    quick: Path, small_process: Executor, name: str
) -> None:
    """Whichever call of a change fails: no object is lost, no file stays open or behind, and a repeat succeeds.

    The errors take turns. A scene begins with another one than the scene before it, and most scenes share calls.
    """
    scene, errors = SCENES[name], list(FAULTS)
    keys, first = list(scene.may_be), list(SCENES).index(name)
    wanted: dict[str, bytes | None] = {}
    for count in itertools.count(-1):  # no call fails in the first round
        root = quick / str(count)
        small_process.submit(prepare, root, name).result()
        store = store_at(root, scene.digest)
        before, raised, error = open_below(root), None, errors[(first + count) % len(errors)]
        with failing_at(count, error, [*CALLS, *LOOKS]) as reached:
            try:
                scene.change(store)
            except StorageError as failed:
                raised = type(failed)
        assert raised in {None, FAULTS[error]}, (count, reached)
        assert open_below(root) == before, (count, reached)
        found = {key: content_of(store, key) for key in keys}
        assert all(found[key] in scene.may_be[key] for key in keys), (count, reached, found)
        wanted = wanted or found
        with suppress(AlreadyExists, NotFound):  # it was done, and told as an error
            scene.change(store)
        assert {key: content_of(store, key) for key in keys} == wanted, (count, reached)
        assert all(store.remove_stale_upload(left) for left in list(store.iter_stale_uploads())), (count, reached)
        assert list(root.rglob(".zot-tmp-*")) == [], (count, reached)
        shutil.rmtree(root)
        if count >= 0 and not reached:
            break
    assert count > 20


READINGS: dict[str, tuple[Literal["sidecar", "xattr"], Callable[[Store], Any]]] = {
    "read": ("sidecar", lambda s: content_of(s, "d/e/k")),
    "read with an attribute": ("xattr", lambda s: content_of(s, "d/e/k")),
    "stat with an attribute": ("xattr", lambda s: s.stat_object("b", "d/e/k")),
    "verify by the attribute": ("xattr", lambda s: s.verify_object("b", "d/e/k")),
    "verify in a page": ("sidecar", lambda s: list(s.verify_objects([("b", "d/e/k", HashedBytes.of(NEW).digest)]))),
    "list": ("sidecar", lambda s: [row.key for row in s.list_objects("b")]),
}


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", READINGS)
def test_an_error_at_any_call_of_a_reader_is_no_finding(quick: Path, name: str, error: int) -> None:
    """Whichever call of a reader fails: it returns what is there, or tells an error that may pass."""
    digest, look = READINGS[name]
    write(store_at(quick, digest), "d/e/k", NEW)
    right = look(store_at(quick, digest))
    for count in itertools.count():
        store = store_at(quick, digest)
        before = open_below(quick)
        seen = None
        with failing_at(count, error, [*CALLS, *LOOKS, "close"]) as reached, suppress(Unavailable):
            seen = look(store)
        for judged in seen if name == "verify in a page" and seen else [seen]:
            if isinstance(judged, Verification) and judged.verdict is Verdict.UNREADABLE:
                assert isinstance(judged.error, Unavailable), (count, reached)
                seen = None
        assert seen in (None, right) or store.advice(), (count, reached, seen)
        assert reached == ["close"] or open_below(quick) == before, (count, reached)
        if not reached:
            break
    assert count > 5
