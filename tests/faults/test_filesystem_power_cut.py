"""A filesystem store survives a power cut between any two system calls, on a disk that keeps no more than it must.

A change is played once, with a record of its calls. For each moment, the directories are built again as a disk may have
them after the power is back: what was synced, and of the rest of each directory any number of the first calls, because
ext4, XFS and btrfs keep the changes of one directory in their order. A file whose bytes were not synced is empty then.
Files are linked and not copied, because intents know their inodes.
"""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.filesystem_crashes import SCENES, THIRD, Scene, content_of, store_at, write
from worker.storage.filesystem import bulk_write

Names = dict[str, str]
"""The names in a directory, each with the id of a file, or with `/` for a directory."""
Change = tuple[str | None, str | None, str]
"""A call that changes a directory: the name that goes, the name that comes, and the id of what has it."""


_link = os.link


class Disk:
    """What a disk has of one root: for each directory what is certain, and the changes that are not."""

    def __init__(self, root: Path, files: Path) -> None:
        """Take all that is below `root` as certain; `files` gets a link to each file, named by its id."""
        self.root, self.files = root, files
        self.lock = threading.RLock()
        self.certain: dict[str, Names] = {}
        self.pending: dict[str, list[Change]] = {}
        self.synced: set[str] = set()
        self.moments: list[Moment] = []
        for path, directories, names in os.walk(root):
            where = os.path.relpath(path, root)
            self.certain[where] = dict.fromkeys(directories, "/") | {
                name: self.keep(Path(path, name)) for name in names
            }
            self.synced.update(self.certain[where].values())

    def keep(self, path: Path) -> str:
        """Return the id of a file; it exists as long as the test."""
        number = str(path.stat().st_ino)
        if not (self.files / number).exists():
            _link(path, self.files / number)
        return number

    def where(self, directory: int) -> str | None:
        path = Path(f"/proc/self/fd/{directory}").readlink()
        inside = path.is_relative_to(self.root)
        return os.path.relpath(path, self.root) if inside else None

    def changed(self, directory: int, gone: str | None, come: str | None, what: str = "") -> None:
        if (where := self.where(directory)) is not None:
            self.pending.setdefault(where, []).append((gone, come, what))

    def fsynced(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            self.settle(os.path.relpath(path, self.root))
        else:
            self.synced.add(str(os.fstat(fd).st_ino))

    def settle(self, where: str) -> None:
        names = self.certain.setdefault(where, {})
        for change in self.pending.pop(where, []):
            _apply(names, change)

    def sync(self) -> None:
        self.synced.update(path.name for path in self.files.iterdir())
        for number in _numbers_of_open_files():
            self.synced.add(number)
        for where in list(self.pending):
            self.settle(where)

    def moment(self) -> None:
        certain = {where: dict(names) for where, names in self.certain.items()}
        pending = {where: tuple(changes) for where, changes in self.pending.items() if changes}
        self.moments.append(Moment(certain, pending, frozenset(self.synced)))


class Moment:
    """The state of a disk between two calls."""

    def __init__(
        self, certain: dict[str, Names], pending: dict[str, tuple[Change, ...]], synced: frozenset[str]
    ) -> None:
        self.certain, self.pending, self.synced = certain, pending, synced

    def states(self) -> Iterator[dict[str, Names]]:
        """Yield the directories as the disk may have them."""
        choices = [
            [(where, changes[:kept]) for kept in range(len(changes) + 1)] for where, changes in self.pending.items()
        ]
        for chosen in itertools.product(*choices):
            state = {where: dict(names) for where, names in self.certain.items()}
            for where, changes in chosen:
                for change in changes:
                    _apply(state.setdefault(where, {}), change)
            yield state

    def build(self, state: dict[str, Names], files: Path, root: Path) -> None:
        pending = ["."]
        root.mkdir()
        while pending:
            where = pending.pop()
            for name, what in state.get(where, {}).items():
                path = root / where / name
                if what == "/":
                    path.mkdir()
                    pending.append(os.path.normpath(f"{where}/{name}"))
                elif what in self.synced:
                    os.link(files / what, path)
                else:
                    path.touch()


def _apply(names: Names, change: Change) -> None:
    gone, come, what = change
    if gone is not None:
        names.pop(gone, None)
    if come is not None:
        names[come] = what


def _numbers_of_open_files() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
        try:
            yield str(os.stat(f"/proc/self/fd/{name}").st_ino)  # noqa: PTH116
        except OSError:
            continue


@contextmanager
def recorded(disk: Disk, *, whole: bool) -> Iterator[None]:
    """Record what is asked of a disk; `whole`: groups are synced with the whole disk."""

    def after(call: Callable[..., Any], record: Callable[..., None]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            with disk.lock:
                result = call(*args, **options)
                record(result, *args, **options)
                disk.moment()
                return result

        return called

    def opened(fd: int, name: Any, flags: int, *_: Any, dir_fd: int | None = None) -> None:
        if flags & os.O_CREAT and dir_fd is not None and (where := disk.where(dir_fd)) is not None:
            known = where in disk.certain and name in disk.certain[where]
            if not known and all(come != name for _, come, _ in disk.pending.get(where, [])):
                disk.changed(dir_fd, None, name, disk.keep(disk.root / where / name))

    def renamed(_: None, name: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        assert os.path.samestat(os.fstat(src_dir_fd), os.fstat(dst_dir_fd)), "a rename is within one directory"
        disk.changed(dst_dir_fd, name, to, str(os.stat(to, dir_fd=dst_dir_fd, follow_symlinks=False).st_ino))

    def linked(_: None, _name: str, to: str, *, dst_dir_fd: int, **_options: Any) -> None:
        where = disk.where(dst_dir_fd)
        assert where is not None
        disk.changed(dst_dir_fd, None, to, disk.keep(disk.root / where / to))

    def made(_: None, name: str, *, dir_fd: int) -> None:
        disk.changed(dir_fd, None, name, "/")

    def removed(_: None, name: str, *, dir_fd: int) -> None:
        disk.changed(dir_fd, name, None)

    def sync_disks(_directories: Iterable[int]) -> bool:
        with disk.lock:
            if whole:
                disk.sync()
            return whole

    records: dict[str, Callable[..., None]] = {
        "open": opened, "rename": renamed, "link": linked, "mkdir": made, "unlink": removed, "rmdir": removed,
        "fsync": lambda _, fd: disk.fsynced(fd),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, record in records.items():
            patch.setattr(os, name, after(getattr(os, name), record))
        patch.setattr(bulk_write, "sync_disks", sync_disks)
        yield


def assert_survives(quick: Path, scene: Scene, *, whole: bool, unsynced: str | None = None) -> int:
    """Play a scene and judge all that a disk may have of it; return how many states that were.

    `unsynced`: a file of before whose bytes are not on the disk.
    """
    root, files = quick / "root", quick / "files"
    root.mkdir()
    files.mkdir()
    scene.before(root)
    disk = Disk(root, files)
    if unsynced:
        disk.synced.remove(str((root / "b" / unsynced).stat().st_ino))
    store = store_at(root, scene.digest)
    with recorded(disk, whole=whole):
        scene.change(store)
    done = {key: content_of(store, key) for key in scene.may_be}
    seen: set[str] = set()
    for number, moment in enumerate(disk.moments):
        for state in moment.states():
            what = repr((sorted((where, sorted(names.items())) for where, names in state.items()), moment.synced))
            acknowledged = number == len(disk.moments) - 1
            if what in seen and not acknowledged:
                continue
            seen.add(what)
            moment.build(state, files, quick / "after")
            may_be = {key: {done[key]} for key in done} if acknowledged else scene.may_be
            judge(quick / "after", scene, may_be, beside={unsynced}, number=number)
            shutil.rmtree(quick / "after")
    return len(seen)


def judge(
    root: Path, scene: Scene, may_be: Mapping[str, set[bytes | None]], *, beside: AbstractSet[str | None], number: int
) -> None:
    """Assert that each key has one of these contents with its own digest, also after a cleanup, and can be written.

    `beside`: further keys, which are not judged.
    """
    store = store_at(root, scene.digest)
    for _ in ("as it is", "cleaned up"):
        found = {key: content_of(store, key) for key in may_be}
        assert all(found[key] in may_be[key] for key in found), (number, found)
        listed = {row.key for row in store.list_objects("b")} - beside
        assert listed <= {key for key in found if found[key] is not None}, (number, listed)
        for left in list(store.iter_stale_uploads()):
            store.remove_stale_upload(left)  # one may be gone with another
        assert list(store.iter_stale_uploads()) == [], number
    for key in may_be:
        write(store, key, THIRD)
        assert content_of(store, key) == THIRD
    assert list(root.rglob(".zot-tmp-*")) == []


@pytest.mark.parametrize("name", SCENES)
def test_a_power_cut_at_any_call_leaves_one_of_the_two_whole(quick: Path, name: str) -> None:
    """What a write or a delete has acknowledged is there after a power cut; before that, it is there or not at all."""
    assert assert_survives(quick, SCENES[name], whole=False) > 5


@pytest.mark.parametrize("name", [name for name in SCENES if "group" in name])
def test_a_power_cut_at_any_call_of_a_group_that_is_synced_with_its_disk(quick: Path, name: str) -> None:
    """The sync of the whole disk is worth as much as that of each file."""
    assert assert_survives(quick, SCENES[name], whole=True) > 10


def test_a_copy_by_link_is_durable_where_its_source_is_not(quick: Path) -> None:
    """Another program may have written the source just before, and synced nothing."""
    scene = SCENES["copy"]
    copy = Scene(scene.before, scene.change, {"k": scene.may_be["k"]})
    assert assert_survives(quick, copy, whole=False, unsynced="other") > 5
