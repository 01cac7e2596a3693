"""Make the files in the data directory private to the worker's user."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

OWN_FOLDERS = ("run", "logs", "broker", "staging", "spool")
"""The folders of the data directory that only the worker writes to."""
_CATALOGUE_FILES = tuple(f"catalogue.sqlite3{end}" for end in ("", "-wal", "-shm", "-id", "-up"))
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_PRIVATE = 0o077

_users_umask: int | None = None


def make_files_private() -> None:
    """Set the umask of this process and its children, so that no other user can read their files."""
    global _users_umask  # noqa: PLW0603 - the umask belongs to the process, and cannot be read without setting it
    before = os.umask(_PRIVATE)
    _users_umask = before if _users_umask is None else _users_umask


def mode_for_the_user() -> int:
    """Return the mode of a new file for the user of a command, by the umask of the shell."""
    return 0o666 & ~(_PRIVATE if _users_umask is None else _users_umask)


def open_own(directory: Path, name: str, flags: int) -> int:
    """Open a file in one of the worker's directories, which is made if it is missing; neither may be a link.

    Raises:
        OSError: it cannot be opened; ELOOP or ENOTDIR where a link is.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=parent)
    finally:
        os.close(parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut: to sync a file itself does not keep its name."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def tighten(home: Path) -> None:
    """Remove the rights of other users from the worker's folders and files in a data directory.

    Links are not followed; files of another user, or on a disk without modes, do not change.
    """
    for path in _ours(home):
        try:
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # closing a descriptor would drop SQLite's locks
        except OSError:
            continue
        try:
            found = os.fstat(fd)
            ours = found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode)
            if ours and found.st_mode & _OTHERS:
                Path(f"/proc/self/fd/{fd}").chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
        except OSError:
            continue  # `doctor` reports it
        finally:
            os.close(fd)


def way_out_of_home(home: Path, error: OSError) -> str:
    """Return what to do about a data directory that cannot be used: a full disk needs room, and no other directory."""
    return make_room(home) if error.errno in {errno.ENOSPC, errno.EDQUOT} else "set ZOT_HOME to one that can"


def make_room(path: Path) -> str:
    """Return what to do about a full disk, which is named by the place where it is mounted."""
    disk = next((above for above in (path, *path.parents) if above.is_mount()), Path("/"))
    return f"make room on the disk that is mounted at {disk}"


def readable_by_others(paths: list[Path]) -> list[tuple[Path, int]]:
    """Return those of these paths that other users can use, each with its mode."""
    found = []
    for path in paths:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        if mode & _OTHERS:
            found.append((path, mode))
    return found


def is_volume_of_another_user(path: Path) -> bool:
    """Return whether a disk is mounted at this path that belongs to another user, such as the volume of a pod.

    Kubernetes makes an `emptyDir` with `fsGroup` of root and with the mode 2777, and a pod without rights can change
    neither.
    """
    return path.stat().st_uid != os.geteuid() and path.is_mount()


def private_paths(home: Path) -> list[Path]:
    """Return the paths that only the worker's user may use: the data directory, and the worker's own files in it."""
    return [home, *_ours(home)]


def out_of_place(home: Path) -> Iterator[str]:
    """Yield a sentence about each thing that is where a folder or a file of the worker belongs, with the way out.

    To open a FIFO there would never return, and the errors of the others name no way out.
    """
    for path in (home / folder for folder in OWN_FOLDERS):
        if path.is_symlink() and not path.exists():
            yield _leads_nowhere(path)
        elif path.exists() and not path.is_dir():
            yield f"{path} is no directory, and a directory belongs there: move it away, and the next command makes one"
    for path in (path for folder in ("run", "logs") for path in sorted((home / folder).glob("*"))):
        if path.is_symlink() and not path.resolve().parent.is_dir():
            yield _leads_nowhere(path)
        elif path.exists() and not path.is_file():
            yield no_file(path)


def no_file(path: Path) -> str:
    """Return the sentence about something that is where a file of `up` belongs."""
    return f"{path} is no file, and a file belongs there: move it away, and `zot-artifacts up` makes one"


def _leads_nowhere(path: Path) -> str:
    target = path.readlink()
    return f"{path} is a symbolic link to {target}, which is not there: mount its disk, make it, or remove the link"


def _ours(home: Path) -> Iterator[Path]:
    for name in (*OWN_FOLDERS, *_CATALOGUE_FILES):
        yield home / name
