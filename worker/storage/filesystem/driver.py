"""Store objects as files below a directory, with each object's SHA-256 in a sidecar file.

File names are decided in `layout`, the pairing of an object and its sidecar in `atomic_write`. `a` and `a/b` cannot
both be objects, nor `a` and `a.sha256/b`. Links below the root are never followed.
The root itself is never created here.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from worker.storage.config import FilesystemConfig
from worker.storage.driver import (
    BUFFER_SIZE,
    Body,
    Capabilities,
    Condition,
    ListedObject,
    Match,
    ObjectStat,
    SmallPut,
    StaleUpload,
    WriteInfo,
)
from worker.storage.errors import (
    AlreadyExists,
    Conflict,
    InvalidKey,
    NotFound,
    PreconditionFailed,
    StorageError,
)
from worker.storage.exception_boundary import exception_boundary
from worker.storage.filesystem.atomic_write import ObjectFiles, OpenObject
from worker.storage.filesystem.bulk_write import BulkWrite, Rules
from worker.storage.filesystem.layout import LOCKS, ObjectPath, object_stat, version_of
from worker.storage.filesystem.listing import Listing
from worker.storage.filesystem.open_without_symlinks import (
    Tree,
    is_link_refusal,
    regular_stat,
    translate,
    translate_write,
)
from worker.storage.filesystem.reader import FilesystemReader
from worker.storage.filesystem.small_reads import FilesystemSmallReads
from worker.storage.filesystem.stale_files import StaleFiles
from worker.storage.filesystem.temp_files import LinkedTempFile, TempFile, sync_at_once
from worker.storage.integrity.manifest import CHUNK_SIZE
from worker.storage.integrity.verifying_reader import VerifyingReader

_Result = TypeVar("_Result")

_RACES = 100
"""Attempts at a step that fails while another process removes the same empty directory."""

_CAPABILITIES = Capabilities(
    needs_digest_first=False,
    conditional_writes=True,
    implicit_buckets=True,
    prefix_keys=False,
    user_metadata=False,
    max_object_size=None,
    copies=True,
    impossible_keys=re.compile(r"^/|//|/$"),
    groups=CHUNK_SIZE,
    local=True,
)


class _Again(Exception):
    """A file was replaced meanwhile, so the step must start again."""


class _NoLinks(Exception):
    """The disk makes no hard link between the two directories."""


@exception_boundary
class FilesystemDriver:
    """A store whose objects are files below one root."""

    capabilities = _CAPABILITIES

    def __init__(self, name: str, config: FilesystemConfig) -> None:
        self.name = name
        self._root = config.root
        self._tree = Tree(name, config.root, file_mode=config.file_mode, dir_mode=config.dir_mode)
        self._files = ObjectFiles(name, self._tree)
        self._listing = Listing(self._tree)
        self._stale = StaleFiles(name, self._tree, self._files, self._listing)
        self._attributes = config.digest == "xattr"
        self._verify_cached = config.verify_cached
        self._new_file = partial(TempFile, mode=config.file_mode)
        rules = Rules(self._check_name, self._remove_empty_directories, self._check_condition)
        self._bulk = BulkWrite(name, self._tree, self._files, attributes=self._attributes, rules=rules)

    # Objects

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        del info  # the body checks size and digest itself
        path = ObjectPath(bucket, key)
        with self._writing(path, condition, self._new_file) as (directory, temp):
            while data := body.read(BUFFER_SIZE):
                temp.write(data)
            temp.stamp()
            digest = body.digest.sha256
            in_attribute = self._attributes and temp.keep_digest(digest)
            creates = condition == "create_only" or (condition is None and self._files.current(directory, path) is None)
            if in_attribute or not creates:
                temp.sync()
                return self._commit(directory, path, temp, digest, condition)
            with self._errors(path, translate_write), closing(self._new_file(directory)) as sidecar:
                sidecar.write(digest.encode())
                sidecar.stamp()
                sidecar.keep_digest(digest)  # the mark of ours
                sync_at_once(temp, sidecar)
                return self._commit(directory, path, temp, digest, condition, sidecar=sidecar)

    def put_many(self, puts: Iterable[SmallPut]) -> list[ObjectStat | StorageError]:
        return self._bulk.put_many(list(puts))

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> FilesystemReader:
        path = ObjectPath(bucket, key)
        return FilesystemReader(
            self.name, path, self._find(path), root=self._root, offset=offset, length=length, uncached=uncached
        )

    def small_reads(self) -> FilesystemSmallReads:
        return FilesystemSmallReads(self._tree, cached=self._verify_cached)

    def stat(self, bucket: str, key: str) -> ObjectStat:
        path = ObjectPath(bucket, key)
        found = self._find(path)
        os.close(found.fd)
        return object_stat(path, found.stat, found.sha256)

    def find_version(self, bucket: str, key: str) -> str | None:
        path = ObjectPath(bucket, key)
        found = self._in_directory(path, lambda directory: self._files.current(directory, path))
        return version_of(found) if found else None

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        path = ObjectPath(bucket, key)
        try:
            return bool(self._in_directory(path, lambda directory: self._delete(directory, path, condition)))
        finally:
            self._tree.prune(path.parents, keep=1)

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> ObjectStat:
        source, path = ObjectPath(bucket, key), ObjectPath(to_bucket, to_key)
        for _ in range(_RACES):
            with FilesystemReader(self.name, source, self._find(source), root=self._root) as reader, self._errors(path):
                try:
                    return self._copy_link(source, reader, path)
                except _NoLinks:
                    return self._copy_bytes(reader, path)
                except _Again:
                    continue
        raise self._busy(source)

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        return self._translated(self._listing.rows(bucket, prefix, after), f"listing {bucket}")

    # Buckets

    def create_bucket(self, bucket: str) -> bool:
        return self._tree.make((bucket,))

    def list_buckets(self) -> list[str]:
        self.check()  # a root that is missing is no store without buckets
        with self._errors("its buckets"):
            return list(self._tree.scan((), strict=True)[1])

    def bucket_exists(self, bucket: str) -> bool:
        with self._tree.directory_or_none((bucket,)) as directory:
            return directory is not None

    # Stale uploads

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        return self._translated(self._stale.rows(), "looking for stale writes")

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        return self._stale.discard(stale.token)

    # The store itself

    def check(self) -> None:
        """Write a file and remove it.

        Nothing stays in a root without a directory of the worker: its disk may not be mounted.
        """
        with self._errors(self._root), self._tree.directory_or_none(LOCKS) as locks:
            if locks is None:
                with self._tree.directory(()) as root:
                    self._try_to_write(root)
            else:
                with self._tree.locked("check", locks=locks):
                    self._try_to_write(locks)

    def advice(self) -> list[str]:
        advice = [f"listings pass over {error.message}" for error in self._tree.unreadable.values()]
        if folds := self._tree.folds_names:
            advice.append(f"the disk does not tell {folds} apart in names: keys that differ only in that are refused")
        return advice

    def close(self) -> None:
        """Do nothing, because no file is open between calls."""

    # Internals

    def _try_to_write(self, directory: int) -> None:
        with closing(self._new_file(directory)) as temp:
            temp.write(b"zot")
            temp.finish()

    def _translate_os_error(self, error: OSError, what: str) -> StorageError:
        return translate(error, what, self._root)

    @contextmanager
    def _errors(self, what: object, by: Callable[[OSError, str, Path], StorageError] = translate) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise by(error, f"{self.name}: {what}", self._root) from error

    def _find(self, path: ObjectPath) -> OpenObject:
        try:
            if self._tree.other_name((*path.parents, path.leaf)):
                raise NotFound(f"{self.name}: {path} does not exist")
            return self._files.find(path)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            # Another store may hold it; here it is absent, or a delete of all copies could never end.
            raise NotFound(f"{self.name}: {path} does not exist: the disk has no name of this length") from None

    def _in_directory(self, path: ObjectPath, work: Callable[[int], _Result]) -> _Result | None:
        """Return what `work` makes of the directory of an object; None if the disk has no such object."""
        try:
            if self._tree.other_name((*path.parents, path.leaf)):
                return None
            with self._tree.directory(path.parents) as directory:
                return work(directory)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return None

    def _translated(self, rows: Iterator[_Result], what: str) -> Iterator[_Result]:
        while True:
            with self._errors(what):
                row = next(rows, None)
            if row is None:
                return
            yield row

    @contextmanager
    def _writing(
        self, path: ObjectPath, condition: Condition, begin: Callable[[int], TempFile]
    ) -> Iterator[tuple[int, TempFile]]:
        """Yield an object's directory and a new file in it; remove both unless the file is placed."""
        directory: int | None = None
        fresh = placed = False
        try:
            self._check_name(path)
            for _ in range(_RACES):
                try:
                    directory, made = self._tree.create_directory(path.parents)
                    fresh = fresh or made
                    self._remove_empty_directories(directory, path)
                    self._check_condition(directory, path, condition)  # again at the end, but gigabytes sooner
                    temp = begin(directory)
                    break
                except FileNotFoundError:  # pruned since it was made
                    if directory is not None:
                        os.close(directory)
                        directory = None
            else:
                raise self._busy(path)
            try:
                yield directory, temp
            finally:
                temp.close()
            placed = True
        finally:
            if directory is not None:
                os.close(directory)
            if not placed:
                with suppress(OSError, StorageError):
                    self._tree.prune(path.parents, keep=0 if fresh else 1)

    def _commit(
        self,
        directory: int,
        path: ObjectPath,
        temp: TempFile,
        sha256: str | None,
        condition: Condition,
        *,
        sidecar: TempFile | None = None,
    ) -> ObjectStat:
        exclusive = condition == "create_only"
        with self._errors(path, translate_write), self._tree.locked(path.lock):
            self._check_name(path)  # checked again: another writer may have taken the name
            if sidecar and self._files.create(directory, path, temp, sidecar, exclusive=exclusive):
                os.fsync(directory)
            else:
                self._files.prepare(directory, path)
                self._check_condition(directory, path, condition)
                self._files.commit(directory, path, temp, sha256, exclusive=exclusive)
            return object_stat(path, temp.stat, sha256)

    def _delete(self, directory: int, path: ObjectPath, condition: Match | None) -> bool:
        with self._tree.locked(path.lock):
            self._files.prepare(directory, path)
            current = self._files.current(directory, path)
            if current is not None:
                self._check_condition(directory, path, condition)
            self._files.remove(directory, path)
            return current is not None

    def _copy_link(self, source: ObjectPath, reader: FilesystemReader, path: ObjectPath) -> ObjectStat:
        def begin(directory: int) -> TempFile:
            try:
                with self._tree.directory(source.parents) as parent:
                    return LinkedTempFile(directory, reader.found.fd, parent, reader.found.name)
            except FileNotFoundError as error:  # one of the directories does not exist, or the source was replaced
                raise _Again from error
            except OSError as error:
                if is_link_refusal(error):
                    raise _NoLinks from error
                raise

        with self._writing(path, None, begin) as (directory, temp):
            temp.sync()  # another program may have written the source just now
            return self._commit(directory, path, temp, reader.stat.sha256, None)

    def _copy_bytes(self, reader: FilesystemReader, path: ObjectPath) -> ObjectStat:
        """Copy the bytes with the digest that the source claims: so that corrupt bytes do not get a matching digest."""
        with self._writing(path, None, self._new_file) as (directory, temp):
            body = VerifyingReader(reader, size=reader.stat.size)
            while data := body.read(BUFFER_SIZE):
                temp.write(data)
            temp.finish()
            return self._commit(directory, path, temp, reader.stat.sha256, None)

    def _check_name(self, path: ObjectPath) -> None:
        """Raise for a name that the disk does not tell from another one, whose object a write would replace."""
        if other := self._tree.other_name((*path.parents, path.leaf), create=True):
            raise InvalidKey(
                f"{self.name}: {path}: {other!r} is there, and the disk does not tell {self._tree.folds_names} apart; "
                "use another key, or a store on another disk"
            )

    def _check_condition(self, directory: int, path: ObjectPath, condition: Condition) -> None:
        if condition is None:
            return
        current = self._files.current(directory, path)
        if condition == "create_only":
            if current is not None:
                raise AlreadyExists(f"{self.name}: {path} exists already, and was only to be created")
        elif current is None:
            raise PreconditionFailed(f"{self.name}: {path} does not exist, version {condition.version} was expected")
        elif version_of(current) != condition.version:
            raise PreconditionFailed(
                f"{self.name}: {path} has the version {version_of(current)}, {condition.version} was expected"
            )

    def _remove_empty_directories(self, directory: int, path: ObjectPath) -> None:
        """Remove empty directories that dead writers left under the object's names; raise if they contain more."""
        for name in (path.leaf, path.sidecar):
            try:
                regular_stat(directory, name)
            except IsADirectoryError:
                self._stale.clear((*path.parents, name))
                regular_stat(directory, name)

    def _busy(self, path: ObjectPath) -> Conflict:
        return Conflict(f"{self.name}: {path} is written and deleted again and again meanwhile; try again later")
