"""Write an object and its sidecar so that no reader, and no state after a crash, pairs the wrong two files.

A writer holds the lock of the object; a reader needs none.

- To create an object, the sidecar is written first and the data after it. The sidecar has a mark of ours, an extended
  attribute, so that without data it means nothing. Where the disk has no attributes, an object is created as it is
  replaced.
- To replace an object, an intent is written first: the digest of the new data, with its inode, size and time. Then the
  data is renamed over the old data, then the sidecar is written, then the intent is removed. Each step is durable
  before the next one begins.
- A reader that finds an intent for the data it has opened takes the digest from the intent, otherwise from the sidecar.
- A writer first completes an intent that a dead writer left.
- To delete an object, its sidecar gets its hidden name, then the data is removed, then the sidecar.
- A sidecar without data and without a mark is a file of another program: so no writer may leave one.
- A file may have its digest in an extended attribute instead, which is placed with the data in one step and needs no
  intent. It counts before intent and sidecar, and an older version's sidecar is removed after the data is placed.

A reader opens the data, reads the intent and the sidecar, and checks that the data is still the same file. If it is,
the sidecar belongs to it, because a sidecar only changes after its data. If it is not, the reader starts again.
"""

import errno
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from worker.storage.errors import Conflict
from worker.storage.filesystem.digest_attribute import read_digest
from worker.storage.filesystem.inode_numbers import inode_of
from worker.storage.filesystem.layout import (
    HIDDEN_SIDECAR,
    INTENTS,
    SIDECAR,
    SIDECAR_SIZES,
    ObjectPath,
    leaf_of,
    parse_checksum_line,
    parse_sidecar,
    segment_of,
    version_of,
)
from worker.storage.filesystem.open_without_symlinks import (
    Tree,
    exists,
    open_regular,
    read_small,
    read_up_to,
    regular_stat,
    remove,
    stat_of,
)
from worker.storage.filesystem.temp_files import TempFile, write_small

_READ_TRIES = 100
_INTENT_BYTES = 1 << 16
_SIDECAR_BYTES = 256
_CHECKSUM_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Intent:
    """The data that a replacement is about to place, and its digest."""

    bucket: str
    key: str
    inode: int
    size: int
    mtime_ns: int
    sha256: str | None

    def names(self, found: os.stat_result) -> bool:
        """Return whether this is the data that the replacement places."""
        return (self.inode, self.size, self.mtime_ns) == (inode_of(found), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class OpenObject:
    """An open object: its file name, its data, and the digest that belongs to exactly this data."""

    name: str
    fd: int
    stat: os.stat_result
    sha256: str | None


class ObjectFiles:
    """The data and sidecar files of the objects of one tree."""

    def __init__(self, store: str, tree: Tree) -> None:
        self._store = store
        self._tree = tree

    def find(self, path: ObjectPath) -> OpenObject:
        """Open an object without a lock; the caller closes it. Raise FileNotFoundError if there is none."""
        for _ in range(_READ_TRIES):
            with self._tree.directory(path.parents) as directory:
                found = self._open_once(directory, path)
            if found is not None:
                return found
        raise Conflict(f"{self._store}: {path} is replaced again and again while it is opened; try again later")

    def current(self, directory: int, path: ObjectPath) -> os.stat_result | None:
        """Return the stat of an object's data, or None if there is no object."""
        return regular_stat(directory, _name(directory, path))

    def prepare(self, directory: int, path: ObjectPath) -> None:
        """Complete what a dead writer left of an object, before it is written; under its lock."""
        self.settle(directory, path)
        mode = self._tree.file_mode
        _adopt(directory, path.leaf + SIDECAR, mode)
        if path.plain.endswith(SIDECAR):
            _adopt(directory, path.plain, mode)
            if is_foreign(directory, path.plain) and not _is_regular(directory, path.leaf):
                os.rename(path.plain, path.leaf, src_dir_fd=directory, dst_dir_fd=directory)
                os.fsync(directory)

    def commit(self, directory: int, path: ObjectPath, temp: TempFile, sha256: str | None, *, exclusive: bool) -> None:
        """Place a finished file as an object; under its lock and after `prepare`.

        Raises:
            FileExistsError: `exclusive`, and a program that takes no locks has put a file there.
        """
        if sha256 is not None and temp.digest == sha256:
            self._place(directory, path, temp, exclusive=exclusive)
        elif regular_stat(directory, path.leaf) is None and self._place_sidecar_first(directory, path, sha256):
            _create(directory, path, temp, exclusive=exclusive)
            os.fsync(directory)
        else:
            self._replace(directory, path, temp, _intent_for(path, temp.stat, sha256), exclusive=exclusive)

    def create(
        self, directory: int, path: ObjectPath, temp: TempFile, sidecar: TempFile | None, *, exclusive: bool
    ) -> bool:
        """Place finished files as a new object and its sidecar, if no file has their names; under its lock.

        No `prepare` is needed: what a dead writer left has no effect on an object without files. The directory is not
        synced: the caller does that, once for many objects. Returns False, with nothing changed, where another file has
        one of the names, the key has the name of a sidecar, or the sidecar has no mark.
        """
        if path.plain.endswith(SIDECAR) or (sidecar is not None and sidecar.digest is None):
            return False
        for name in (path.leaf, path.sidecar, path.hidden_sidecar, path.sidecar + SIDECAR):
            if exists(directory, name):
                return False
        if sidecar is not None:
            sidecar.place(path.sidecar)
        _create(directory, path, temp, exclusive=exclusive)
        return True

    def remove(self, directory: int, path: ObjectPath) -> None:
        """Remove an object and its sidecar; under its lock and after `prepare`."""
        if _is_sidecar(directory, path.sidecar) and not _is_marked(directory, path.sidecar):
            os.rename(path.sidecar, path.hidden_sidecar, src_dir_fd=directory, dst_dir_fd=directory)
        if remove(directory, path.leaf):
            os.fsync(directory)
        _remove_sidecars(directory, path)

    def remove_orphan(self, path: ObjectPath) -> bool:
        """Remove a sidecar that has no data; return False if it has data now."""
        with self._tree.directory_or_none(path.parents) as directory:
            if directory is None:
                return False
            with self._tree.locked(path.lock):
                self.prepare(directory, path)
                if self.current(directory, path) is not None:
                    return False
                _remove_sidecars(directory, path)
                return True

    def remove_hidden(self, parents: tuple[str, ...], name: str) -> bool:
        """Remove the hidden sidecar of this name, if it has no data; return False if it stays or is gone."""
        leaf = name.removeprefix(HIDDEN_SIDECAR)
        path = ObjectPath(parents[0], "/".join((*parents[1:], segment_of(leaf))))
        with self._tree.directory_or_none(parents) as directory:
            if directory is None:
                return False
            with self._tree.locked(path.lock):
                return not _is_regular(directory, leaf) and remove(directory, name)

    def settle(self, directory: int, path: ObjectPath) -> bool:
        """Complete an intent; return False if there is none. Under the object's lock."""
        with self._tree.directory_or_none(INTENTS) as intents:
            if intents is None or (intent := _read_intent(intents, path.intent)) is None:
                return False
            found = regular_stat(directory, path.leaf)
            if found is not None and intent.names(found):
                _place_sidecar(directory, path, intent.sha256, self._tree.file_mode)
                os.fsync(directory)
            return remove(intents, path.intent)

    def settle_intent(self, name: str) -> bool:
        """Complete the intent of this name; return False if it is gone."""
        with self._tree.directory(INTENTS) as intents:
            intent = _read_intent(intents, name)
            if intent is None:
                return remove(intents, name)
            path = ObjectPath(intent.bucket, intent.key)
            with self._tree.locked(path.lock), self._tree.directory_or_none(path.parents) as directory:
                return remove(intents, name) if directory is None else self.settle(directory, path)

    def _open_once(self, directory: int, path: ObjectPath) -> OpenObject | None:
        name = _name(directory, path)
        try:
            fd = open_regular(directory, name)
        except FileNotFoundError:
            if _name(directory, path) != name:
                return None
            raise
        try:
            stat = os.fstat(fd)
            sha256 = read_digest(fd, stat)
            intent = None if sha256 else self._intent(path)
            if intent is not None and intent.names(stat):
                return OpenObject(name, fd, stat, intent.sha256)
            sha256 = sha256 or _read_sidecar(directory, path, name)
            if _name(directory, path) == name and _is_still(directory, name, stat):
                return OpenObject(name, fd, stat, sha256)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def _intent(self, path: ObjectPath) -> Intent | None:
        with self._tree.directory_or_none(INTENTS) as intents:
            return None if intents is None else _read_intent(intents, path.intent)

    def _place(self, directory: int, path: ObjectPath, temp: TempFile, *, exclusive: bool) -> None:
        """Place a file that has its digest in an attribute, which counts before a sidecar."""
        foreign = is_foreign(directory, path.sidecar)
        if foreign:  # it must stay known as another program's, when the data is there
            write_small(directory, path.hidden_sidecar, (temp.digest or "").encode(), self._tree.file_mode)
        if exclusive:
            try:
                temp.link(path.leaf)
            except FileExistsError:
                if foreign and not _holds(directory, path.leaf, temp.stat):  # it would count for the other file
                    remove(directory, path.hidden_sidecar)
                raise
        else:
            temp.rename(path.leaf)
        os.fsync(directory)
        if not foreign:
            with suppress(OSError):
                _remove_sidecars(directory, path)

    def _place_sidecar_first(self, directory: int, path: ObjectPath, sha256: str | None) -> bool:
        """Place the sidecar of an object that is not there yet; return False where it could not be told as ours."""
        try:
            if sha256 is None:
                _remove_sidecars(directory, path)
            elif is_foreign(directory, path.sidecar):
                write_small(directory, path.hidden_sidecar, sha256.encode(), self._tree.file_mode)
            elif not _write_marked(directory, path.sidecar, sha256, self._tree.file_mode, only_marked=True):
                return False
            else:
                remove(directory, path.hidden_sidecar)
        except OSError:
            with suppress(OSError):  # there is no object that it could belong to
                _remove_sidecars(directory, path)
            raise
        return True

    def _replace(self, directory: int, path: ObjectPath, temp: TempFile, intent: Intent, *, exclusive: bool) -> None:
        intents, _ = self._tree.create_directory(INTENTS)
        try:
            write_small(intents, path.intent, json.dumps(asdict(intent)).encode(), self._tree.file_mode)
            os.fsync(intents)
        finally:
            os.close(intents)
        try:
            if exclusive:
                temp.link(path.leaf)
            else:
                temp.rename(path.leaf)
            os.fsync(directory)
        except OSError:
            with suppress(OSError):
                self.settle(directory, path)
            raise
        with suppress(OSError):  # the object is complete, with its digest in the intent
            self.settle(directory, path)


def _create(directory: int, path: ObjectPath, temp: TempFile, *, exclusive: bool) -> None:
    try:
        if exclusive:
            temp.link(path.leaf)
        else:
            temp.rename(path.leaf)
    except OSError:
        if not _holds(directory, path.leaf, temp.stat):
            _remove_sidecars(directory, path)
        raise


def _place_sidecar(directory: int, path: ObjectPath, sha256: str | None, mode: int | None) -> None:
    if sha256 is None:
        _remove_sidecars(directory, path)
    elif is_foreign(directory, path.sidecar):
        write_small(directory, path.hidden_sidecar, sha256.encode(), mode)
    else:
        _write_marked(directory, path.sidecar, sha256, mode)
        remove(directory, path.hidden_sidecar)


def _write_marked(directory: int, name: str, sha256: str, mode: int | None, *, only_marked: bool = False) -> bool:
    """Write a sidecar with a mark of ours where the disk has attributes; return whether it has the mark."""
    temp = TempFile(directory, mode)
    try:
        temp.write(sha256.encode())
        temp.stamp()
        marked = temp.keep_digest(sha256)
        if marked or not only_marked:
            temp.sync()
            temp.rename(name)
        return marked
    finally:
        temp.close()


def _remove_sidecars(directory: int, path: ObjectPath) -> None:
    """Remove an object's sidecars, and no file of another program."""
    if not is_foreign(directory, path.sidecar):
        with suppress(IsADirectoryError):
            remove(directory, path.sidecar)
    remove(directory, path.hidden_sidecar)


def _read_sidecar(directory: int, path: ObjectPath, name: str) -> str | None:
    """Return the digest that is recorded for a file: by its sidecar, or by a checksum file of another program."""
    if digest := _read_hidden(directory, path):
        return digest
    content = read_small(directory, name + SIDECAR, _CHECKSUM_BYTES) or b""
    # A delete may have given the sidecar its hidden name meanwhile.
    return parse_sidecar(content) or _read_hidden(directory, path) or parse_checksum_line(content, path.plain)


def _read_hidden(directory: int, path: ObjectPath) -> str | None:
    return parse_sidecar(read_small(directory, path.hidden_sidecar, _SIDECAR_BYTES) or b"")


def is_foreign(directory: int, name: str) -> bool:
    """Return whether a file with the name of a sidecar is another program's.

    It is if its content is not a SHA-256 in hex, if the object has its hidden sidecar, or if there is no object and no
    mark of ours. Without the object's lock, a file that is removed or replaced meanwhile is judged again: a sidecar
    that a delete removes between two of these questions has neither an object nor a mark.
    """
    for _ in range(_READ_TRIES):
        before = _file(directory, name)
        if before is None or not _seems_foreign(directory, name):
            return False
        if _is_still(directory, name, before):
            return True
    return False


def is_orphan(directory: int, name: str) -> bool:
    """Return whether a file is a sidecar of ours without data; one of the original store may belong to a moved file."""
    data = name.removesuffix(SIDECAR)
    return _is_sidecar(directory, name) and _is_marked(directory, name) and not _has_data(directory, data)


def _seems_foreign(directory: int, name: str) -> bool:
    content = read_small(directory, name, _SIDECAR_BYTES)
    data = name.removesuffix(SIDECAR)
    if content is None:
        return False
    if len(content) not in SIDECAR_SIZES or parse_sidecar(content) is None:
        return True
    if _is_regular(directory, HIDDEN_SIDECAR + data):
        return True
    if _has_data(directory, data) or _is_marked(directory, name):
        return False
    moved = leaf_of(data)  # by an `_adopt` that was interrupted
    return moved == data or read_small(directory, moved + SIDECAR, _SIDECAR_BYTES) != content


def _has_data(directory: int, name: str) -> bool:
    """Return whether a file is there that is no sidecar of ours itself."""
    return _is_regular(directory, name) and not (name.endswith(SIDECAR) and _is_marked(directory, name))


def _is_marked(directory: int, name: str) -> bool:
    """Return whether a file has the mark of our sidecars, with the digest that is its content."""
    try:
        fd = open_regular(directory, name)
    except FileNotFoundError:
        return False
    try:
        mark = read_digest(fd, os.fstat(fd))
        return mark is not None and mark == parse_sidecar(read_up_to(fd, _SIDECAR_BYTES))
    finally:
        os.close(fd)


def _adopt(directory: int, name: str, mode: int | None) -> None:
    """Move an object that the original wrote under a sidecar's name to its name in this layout, with its sidecar.

    A sidecar of ours without data, from a dead writer, is removed: with it, the next sidecar of this name would count
    as data.
    """
    marker = name + SIDECAR
    if not _is_sidecar(directory, marker):
        return
    if _is_regular(directory, marker + SIDECAR):
        raise OSError(
            errno.EINVAL, f"{name!r}, {marker!r} and its sidecar are objects of the old layout: move them away"
        )
    if _is_regular(directory, name):
        digest = parse_sidecar(read_small(directory, marker, _SIDECAR_BYTES) or b"")
        if digest is None:
            return  # it was replaced meanwhile
        _write_marked(directory, leaf_of(name) + SIDECAR, digest, mode)
        os.rename(name, leaf_of(name), src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    remove(directory, marker)
    os.fsync(directory)


def _name(directory: int, path: ObjectPath) -> str:
    """Return the file name of an object: only data of the original store or of another program has a sidecar's name."""
    plain = path.plain
    if plain.endswith(SIDECAR) and _is_regular(directory, plain):
        if _is_sidecar(directory, plain + SIDECAR):
            return plain
        if is_foreign(directory, plain) and not _is_regular(directory, path.leaf):
            return plain
    return path.leaf


def _is_sidecar(directory: int, name: str) -> bool:
    return _is_regular(directory, name) and not is_foreign(directory, name)


def _is_regular(directory: int, name: str) -> bool:
    return _file(directory, name) is not None


def _file(directory: int, name: str) -> os.stat_result | None:
    """Return the stat of a file, or None if the name does not exist, is no file's, or is too long."""
    try:
        return regular_stat(directory, name)
    except OSError as error:
        if error.errno in {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}:
            return None
        raise


def _is_still(directory: int, name: str, stat: os.stat_result) -> bool:
    """Return whether a name still refers to this file, and the file was not placed again meanwhile."""
    try:
        found = stat_of(directory, name)
    except FileNotFoundError:
        return False
    return _identity(found) == _identity(stat)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return inode_of(found), found.st_dev, found.st_ctime_ns, found.st_mtime_ns, found.st_size


def _holds(directory: int, name: str, stat: os.stat_result) -> bool:
    try:
        return version_of(stat_of(directory, name)) == version_of(stat)
    except FileNotFoundError:
        return False


def _intent_for(path: ObjectPath, stat: os.stat_result, sha256: str | None) -> Intent:
    return Intent(path.bucket, path.key, inode_of(stat), stat.st_size, stat.st_mtime_ns, sha256)


def _read_intent(intents: int, name: str) -> Intent | None:
    content = read_small(intents, name, _INTENT_BYTES)
    try:
        return None if content is None else Intent(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return None  # of another program: intents are written atomically
