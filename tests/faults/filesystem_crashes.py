"""Crashes of a filesystem store's writers, played in a small process that forks them.

The kernel copies the page tables of a process that forks. For the process of the tests, and for its fork server, this
takes several times as long as for one that has imported the store alone, and hundreds of writers have to die.
"""

import gc
import hashlib
import io
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worker.storage.config import FilesystemConfig
from worker.storage.driver import HashedBytes, Match, SmallPut
from worker.storage.errors import NotFound, StorageError
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.filesystem.layout import ObjectPath
from worker.storage.store import Store

OLD, NEW, THIRD = b"old content", b"new content, which is longer", b"third"

CALLS = ["open", "mkdir", "write", "utime", "setxattr", "fsync", "rename", "link", "unlink", "rmdir"]
"""All calls by which the driver changes the disk; a process dies before one of them. Dying before one that only looks
is the same as dying after the change before it."""


def store_at(root: Path, digest: Literal["sidecar", "xattr"] = "sidecar") -> Store:
    return Store(FilesystemDriver("main", FilesystemConfig(root=root, digest=digest)))


def write(store: Store, key: str, content: bytes, **options: Any) -> None:
    store.write_object("b", key, io.BytesIO(content), **options)


def content_of(store: Store, key: str) -> bytes | None:
    """Return an object's bytes after holding them to the digest beside them, or None if there is no object."""
    try:
        with store.read_object("b", key) as reader:
            assert reader.verified, f"{key} has lost its digest"
            return b"".join(reader)
    except NotFound:
        return None


def start(work: Callable[[], None]) -> int:
    """Run something in a forked process; return its process id."""
    child = os.fork()
    if child:
        return child
    gc.disable()  # a collection would copy all that this process shares with its parent
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - nothing of pytest may run on in the child
        print(f"in the child: {error!r}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def end(child: int) -> int:
    """Wait for a process; return its exit status, negative for the signal it died of."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(work: Callable[[], None]) -> int:
    """Run something in a forked process to its end; return its exit status."""
    return end(start(work))


def die_at(count: int, *, only: Callable[[str, tuple[Any, ...]], bool] = lambda _name, _args: True) -> None:
    """From now on, kill this process before its call number `count`, of all those that `only` counts."""
    counter = itertools.count()

    def dying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            if only(name, args) and next(counter) == count:
                if name == "write":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])  # a write may also die half way
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return called

    for name in CALLS:
        setattr(os, name, dying(name, getattr(os, name)))


@dataclass(frozen=True)
class Scene:
    """What was there, what is tried, and which contents a survivor may find under which key."""

    before: Callable[[Path], None]
    change: Callable[[Store], Any]
    may_be: dict[str, set[bytes | None]]
    digest: Literal["sidecar", "xattr"] = "sidecar"


def _nothing(_root: Path) -> None:
    pass


def old(root: Path) -> None:
    write(store_at(root), "k", OLD)


def two(root: Path) -> None:
    old(root)
    write(store_at(root), "other", NEW)


def half_replaced(root: Path) -> None:
    """Leave a replacement by THIRD whose writer died between the data and the sidecar."""
    old(root)

    def replace() -> None:
        real = os.rename

        def rename(source: str, target: str, **options: Any) -> None:
            real(source, target, **options)
            if target == "k":
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = rename  # type: ignore[assignment]
        write(store_at(root), "k", THIRD)

    assert in_child(replace) == -signal.SIGKILL
    assert content_of(store_at(root), "k") == THIRD
    assert (root / "b" / "k.sha256").read_text() == hashlib.sha256(OLD).hexdigest()


def original(root: Path) -> None:
    """Leave an object whose name is that of a sidecar, as the original store wrote it."""
    (root / "b").mkdir()
    (root / "b" / "k.sha256").write_bytes(OLD)
    (root / "b" / "k.sha256.sha256").write_text(hashlib.sha256(OLD).hexdigest())


def unmarked(root: Path) -> None:
    """Leave an object whose sidecar has no mark, as the original store wrote it."""
    (root / "b").mkdir()
    (root / "b" / "k").write_bytes(OLD)
    (root / "b" / "k.sha256").write_text(hashlib.sha256(OLD).hexdigest())


def write_group(store: Store, contents: dict[str, bytes]) -> None:
    """Write some objects as one group; raise the first error."""
    puts = [SmallPut("b", key, HashedBytes.of(content)) for key, content in contents.items()]
    for written in store.write_objects(puts):
        if isinstance(written, StorageError):
            raise written


GROUP = {"d/e/k": NEW, "k": THIRD, "other": NEW}
GROUP_MAY_BE: dict[str, set[bytes | None]] = {"d/e/k": {None, NEW}, "k": {OLD, THIRD}, "other": {None, NEW}}


def _match(store: Store) -> Match:
    return Match(store.stat_object("b", "k").version)


SCENES = {
    "create": Scene(_nothing, lambda s: write(s, "k", NEW), {"k": {None, NEW}}),
    "create in new directories": Scene(_nothing, lambda s: write(s, "d/e/k", NEW), {"d/e/k": {None, NEW}}),
    "create only": Scene(_nothing, lambda s: write(s, "k", NEW, condition="create_only"), {"k": {None, NEW}}),
    "replace": Scene(old, lambda s: write(s, "k", NEW), {"k": {OLD, NEW}}),
    "replace a version": Scene(old, lambda s: write(s, "k", NEW, condition=_match(s)), {"k": {OLD, NEW}}),
    "delete": Scene(old, lambda s: s.delete_object("b", "k"), {"k": {OLD, None}}),
    "delete without a mark": Scene(unmarked, lambda s: s.delete_object("b", "k"), {"k": {OLD, None}}),
    "copy": Scene(two, lambda s: s._driver.copy("b", "other", "b", "k"), {"k": {OLD, NEW}, "other": {NEW}}),
    "replace the half replaced": Scene(half_replaced, lambda s: write(s, "k", NEW), {"k": {THIRD, NEW}}),
    "delete the half replaced": Scene(half_replaced, lambda s: s.delete_object("b", "k"), {"k": {THIRD, None}}),
    "create with an attribute": Scene(_nothing, lambda s: write(s, "k", NEW), {"k": {None, NEW}}, "xattr"),
    "replace with an attribute": Scene(old, lambda s: write(s, "k", NEW), {"k": {OLD, NEW}}, "xattr"),
    "write a group": Scene(old, lambda s: write_group(s, GROUP), GROUP_MAY_BE),
    "write a group with attributes": Scene(old, lambda s: write_group(s, GROUP), GROUP_MAY_BE, "xattr"),
    "write beside the original's": Scene(original, lambda s: write(s, "k", NEW), {"k": {None, NEW}, "k.sha256": {OLD}}),
    "replace the original's": Scene(original, lambda s: write(s, "k.sha256", NEW), {"k.sha256": {OLD, NEW}}),
}


def prepare(root: Path, name: str) -> None:
    """Make a directory with what was there before the change of a scene."""
    root.mkdir()
    SCENES[name].before(root)


def crashes(root: Path, name: str) -> Iterator[int]:
    """Play a scene again and again, dying one call later each time, until it is played to its end."""
    for count in itertools.count():
        shutil.rmtree(root, ignore_errors=True)
        prepare(root, name)

        def play(count: int = count) -> None:
            store = store_at(root, SCENES[name].digest)
            die_at(count)
            SCENES[name].change(store)

        status = in_child(play)
        yield count
        if status != -signal.SIGKILL:
            assert status == 0
            return


def contents_after_a_death(root: Path, name: str) -> dict[str, set[bytes | None]]:
    """Return what each key of a scene holds when its writer dies, at any call; assert that the store heals then."""
    scene = SCENES[name]
    seen: dict[str, set[bytes | None]] = {key: set() for key in scene.may_be}
    count = 0
    for count in crashes(root, name):
        store = store_at(root)
        found = {key: content_of(store, key) for key in scene.may_be}
        assert all(found[key] in scene.may_be[key] for key in found), (count, found)
        assert [row.key for row in store.list_objects("b")] == sorted(key for key in found if found[key] is not None)
        for key, content in found.items():
            seen[key].add(content)
        assert all(store.remove_stale_upload(left) for left in store.iter_stale_uploads()), "its writer is dead"
        assert found == {key: content_of(store, key) for key in scene.may_be}
        assert_heals(store, root, list(scene.may_be))
    assert count > 10, count
    return seen


def assert_heals(store: Store, root: Path, keys: list[str]) -> None:
    """Write and delete after a crash as if nothing had been, and leave nothing in the end."""
    for key in keys:
        write(store, key, THIRD)
        place = ObjectPath("b", key)
        parent = root.joinpath(*place.parents)
        assert content_of(store, key) == THIRD
        assert (parent / place.sidecar).read_text() == hashlib.sha256(THIRD).hexdigest()
    assert list(store.iter_stale_uploads()) == []
    for row in list(store.list_objects("b")):
        assert store.delete_object("b", row.key)
    assert [path for path in (root / "b").rglob("*") if not path.is_dir()] == []
    assert {path.name for path in root.iterdir()} <= {".zot", "b"}


def writes_over_directories_of_dead_writers(root: Path) -> list[bytes | None]:
    """Return what the key `d` holds once it is written, for each call at which no object of `d/e/k` is left."""
    contents = []
    for _ in crashes(root, "create in new directories"):
        store = store_at(root)
        if content_of(store, "d/e/k") is None:
            write(store, "d", THIRD)
            contents.append(content_of(store, "d"))
    return contents
