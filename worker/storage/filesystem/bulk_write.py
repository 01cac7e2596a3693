"""Write groups of small objects: each is atomic by itself, and all become durable with few waits for the disk.

One object costs two files and three or four waits for the disk. In a group, all files are written first, without names.
Then their disk is synced as a whole, or, where that would wait for other programs, each file by one of several threads,
so that the disk serves their waits together. Then each object is placed under its lock, and each directory is synced
once.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Self, cast

from worker.storage.driver import Condition, Match, ObjectStat, SmallPut
from worker.storage.errors import StorageError
from worker.storage.filesystem.atomic_write import ObjectFiles
from worker.storage.filesystem.layout import LOCKS, ObjectPath, object_stat
from worker.storage.filesystem.open_without_symlinks import Tree, translate, translate_write
from worker.storage.filesystem.temp_files import NoUnnamedFiles, TempFile, UnnamedFile
from worker.storage.filesystem.whole_disk_sync import sync_disks
from worker.storage.transfer.do_in_threads import do_all

_WRITERS = 4
"""Most threads that write files; more of them take the processor from each other."""
_SYNCERS = 16
"""Threads that wait for the disk."""
_RACES = 100


@dataclass(frozen=True, slots=True)
class Rules:
    """The checks of the driver before an object is placed; each raises the error that forbids it."""

    name: Callable[[ObjectPath], None]
    directories: Callable[[int, ObjectPath], None]
    condition: Callable[[int, ObjectPath, Condition], None]


@dataclass(slots=True)
class _Item:
    """An object of the group, and the state of its write."""

    put: SmallPut
    path: ObjectPath
    data: TempFile | None = None
    sidecar: TempFile | None = None
    stat: ObjectStat | None = None
    error: StorageError | None = None

    @property
    def files(self) -> list[TempFile]:
        return [file for file in (self.data, self.sidecar) if file is not None]


class BulkWrite:
    """Writes groups of objects into one tree."""

    def __init__(self, store: str, tree: Tree, files: ObjectFiles, *, attributes: bool, rules: Rules) -> None:
        """Prepare to write.

        Args:
            store: its name, for messages.
            tree: the directories.
            files: the objects in them.
            attributes: digests are kept in attributes where the disk has them.
            rules: what the driver checks.
        """
        self._store = store
        self._tree = tree
        self._files = files
        self._attributes = attributes
        self._rules = rules

    def put_many(self, puts: Sequence[SmallPut]) -> list[ObjectStat | StorageError]:
        """Write the objects; see `FullDriver.put_many`."""
        items = [_Item(put, ObjectPath(put.bucket, put.key)) for put in puts]
        fresh: set[str] = set()
        with _Directories(self._tree) as directories:
            try:
                with ThreadPoolExecutor(_SYNCERS, thread_name_prefix="bulk") as pool:
                    self._write(items, directories, fresh, pool)
                self._place(items, directories)
                self._sync_directories(items, directories)
            finally:
                for file in [file for item in items for file in item.files]:
                    file.close()
                self._prune([item for item in items if item.stat is None or item.error], fresh)
        return [item.error or cast("ObjectStat", item.stat) for item in items]

    def _write(self, items: Sequence[_Item], directories: "_Directories", fresh: set[str], pool: Executor) -> None:
        """Write and sync the files: to make a file without a name waits for the disk's journal, as a sync does."""

        def write(item: _Item) -> None:
            with self._errors_of(item):
                directories.use(item.path.parents, partial(self._write_one, item))

        def sync(item: _Item) -> None:
            with self._errors_of(item):
                for file in item.files:
                    file.sync()

        for item in items:
            with self._errors_of(item):
                self._rules.name(item.path)
                if item.path.bucket not in directories.buckets and self._tree.make((item.path.bucket,)):
                    fresh.add(item.path.bucket)
                directories.open(item.path.parents)
        do_all(pool, write, [item for item in items if item.error is None], _WRITERS, begin=1)
        written = [item for item in items if item.error is None]
        if sync_disks(directories.opened):
            for item in written:
                with self._errors_of(item):
                    for file in item.files:
                        file.check_size()
        else:
            do_all(pool, sync, written, _SYNCERS)

    def _write_one(self, item: _Item, directory: int) -> None:
        self._rules.directories(directory, item.path)
        self._rules.condition(directory, item.path, item.put.condition)
        sha256 = item.put.body.digest.sha256
        item.data = item.data or self._file(directory, item.put.body.data)
        if not (self._attributes and item.data.keep_digest(sha256)):
            item.sidecar = self._file(directory, sha256.encode())
            item.sidecar.keep_digest(sha256)  # the mark of ours

    def _file(self, directory: int, content: bytes) -> TempFile:
        try:
            file: TempFile = UnnamedFile(directory, self._tree.file_mode)
        except NoUnnamedFiles:
            file = TempFile(directory, self._tree.file_mode)
        try:
            file.write(content)
            file.stamp()
        except BaseException:
            file.close()
            raise
        return file

    def _place(self, items: Sequence[_Item], directories: "_Directories") -> None:
        for item in items:
            if item.error is None:
                with self._errors_of(item):
                    locks = directories.open(LOCKS)
                    directories.use(item.path.parents, partial(self._place_one, item, locks))

    def _place_one(self, item: _Item, locks: int, directory: int) -> None:
        path, put, data = item.path, item.put, item.data
        assert data is not None
        for file in item.files:
            file.move_to(directory)
        with self._tree.locked(path.lock, locks=locks):
            self._rules.name(path)  # again: another writer may have taken the name meanwhile
            created = not isinstance(put.condition, Match) and self._files.create(
                directory, path, data, item.sidecar, exclusive=True
            )
            if not created:
                self._files.prepare(directory, path)
                self._rules.condition(directory, path, put.condition)
                exclusive = put.condition == "create_only"
                self._files.commit(directory, path, data, put.body.digest.sha256, exclusive=exclusive)
            item.stat = object_stat(path, data.stat, put.body.digest.sha256)

    def _sync_directories(self, items: Sequence[_Item], directories: "_Directories") -> None:
        placed: dict[tuple[str, ...], list[_Item]] = {}
        for item in items:
            if item.error is None:
                placed.setdefault(item.path.parents, []).append(item)
        for parents, there in placed.items():
            try:
                os.fsync(directories.open(parents))
            except OSError as error:
                for item in there:
                    item.error = translate(error, f"{self._store}: {item.path}", self._tree.root)

    def _prune(self, failed: Sequence[_Item], fresh: set[str]) -> None:
        """Remove the directories that were made for objects that failed."""
        for item in failed:
            with suppress(OSError, StorageError):
                self._tree.prune(item.path.parents, keep=0 if item.path.bucket in fresh else 1)

    @contextmanager
    def _errors_of(self, item: _Item) -> Iterator[None]:
        """Record an error for one object, so that it does not stop the others."""
        try:
            yield
        except StorageError as error:
            item.error = error
        except OSError as error:
            item.error = translate_write(error, f"{self._store}: {item.path}", self._tree.root)


class _Directories:
    """The open directories of a group, each made durably when it is opened."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._open: dict[tuple[str, ...], int] = {}
        self._forgotten: list[int] = []
        self._lock = threading.Lock()
        self.buckets: set[str] = set()

    def open(self, parents: tuple[str, ...]) -> int:
        """Return a directory; it stays open to the end of the group."""
        with self._lock:
            fd = self._open.get(parents)
            if fd is None:
                fd = self._open[parents] = self._made(parents)
                self.buckets.add(parents[0])
            return fd

    @property
    def opened(self) -> list[int]:
        """Return all directories that were opened for the group, those first that were removed meanwhile."""
        return [*self._forgotten, *self._open.values()]

    def use(self, parents: tuple[str, ...], do: Callable[[int], None]) -> None:
        """Call `do` with a directory, and again if a delete has meanwhile removed the directory as empty."""
        for left in reversed(range(_RACES)):
            fd = self.open(parents)
            try:
                do(fd)
            except OSError:
                if os.fstat(fd).st_nlink or not left:
                    raise
                with self._lock:
                    if self._open.get(parents) == fd:
                        self._forgotten.append(self._open.pop(parents))
            else:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for fd in self.opened:
            os.close(fd)

    def _made(self, parents: tuple[str, ...]) -> int:
        for _ in range(_RACES):
            with suppress(FileNotFoundError):  # pruned between the making and the opening
                return self._tree.create_directory(parents)[0]
        return self._tree.create_directory(parents)[0]
