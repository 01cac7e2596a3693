"""Write many artifacts into a directory: each is verified first, and files with the right bytes are skipped."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from worker.artifacts.directory_listing import Filters
from worker.catalogue import Artifact
from worker.cli.arguments import local_path
from worker.cli.errors import Failure, of_file
from worker.cli.fetch_artifact import fetch
from worker.cli.keys_of_written_files import KeysOfFiles
from worker.cli.output import complain, print_json, say
from worker.cli.progress import Bar
from worker.cli.session import Session
from worker.counted import counted
from worker.exit_status import Status
from worker.readable import size
from worker.storage.errors import InvalidKey, StorageError
from worker.storage.keys import check_bucket, check_key_prefix
from zot_artifact_client.globs import selector

_THREADS = 8
_PAGE = 1000
_PIECE = 1 << 20
_MAX_NAMED = 100


class Refused(Exception):
    """The key of an artifact cannot be a file below the directory."""


@dataclass(slots=True)
class FetchCounts:
    """Counts of the artifacts. `failures` are the first of those that `failed`, each with its reason."""

    written: int = 0
    already_there: int = 0
    size: int = 0
    failed: int = 0
    unknown: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)

    def fail(self, path: str, reason: str) -> None:
        """Count an artifact that was not written."""
        self.failed += 1
        if len(self.failures) < _MAX_NAMED:
            self.failures.append((path, reason))


class Reading(NamedTuple):
    """An artifact that is being read, and its key as disks compare names that ignore case and Unicode normal forms."""

    artifact: Artifact
    name: str


@dataclass(slots=True)
class Target:
    """The directory, and the key of each file in it: no two keys may have the same file."""

    root: Path
    placed: KeysOfFiles = field(default_factory=KeysOfFiles)

    def path_of(self, relative: str) -> Path:
        """Return the path of an artifact's file; its directory is made.

        Raises:
            Refused: it would be outside the directory, or where another artifact is.
            OSError: its directory cannot be made.
        """
        parts = relative.split("/")
        if any(part in {"", ".", ".."} or "\0" in part for part in parts):
            raise Refused("the key would leave the directory, or is no file name")
        path = self.root.joinpath(*parts)
        if self.root not in Path(os.path.realpath(path)).parents:
            raise Refused("a symbolic link in the directory leads out of it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise Refused("another artifact, or another file, is where its directory should be") from None
        if path.is_symlink():
            raise Refused("a symbolic link is in its place")
        if path.is_dir():
            raise Refused("a directory is in its place")
        if path.exists() and not path.is_file():  # to open it may never end
            raise Refused("a FIFO, a device or a socket is in its place")
        self.check(path, relative)
        return path

    def check(self, path: Path, relative: str) -> None:
        """Raise Refused if the file at this path was written for another key, with the same name on this disk."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return
        owner = self.placed.owner(found.st_dev, found.st_ino, relative)
        if owner == relative:
            return
        if self._is_at(owner, found):
            raise Refused(f"the disk does not tell its name from that of {owner}")
        self.placed.replace(found.st_dev, found.st_ino, relative)

    def _is_at(self, relative: str, file: os.stat_result) -> bool:
        """Return whether a file is still that of another key, and not a new one with the numbers of a replaced one."""
        try:
            return os.path.samestat(self.root.joinpath(*relative.split("/")).stat(), file)
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Selection:
    """The artifacts of BUCKET, or below BUCKET/PREFIX, that filters leave: how many, and their bytes."""

    bucket: str
    prefix: str
    wants: Callable[[str], bool]
    count: int
    size: int

    def artifacts(self, session: Session) -> Iterator[tuple[Artifact, str]]:
        """Yield each with the path of its file below DEST."""
        yield from _wanted(session, self.bucket, self.prefix, self.wants)


def selection_of(session: Session, source: str, filters: Filters) -> Selection:
    """Return the artifacts that BUCKET or BUCKET/PREFIX and filters name.

    Raises:
        Failure: there is none.
        InvalidKey: naming the rule that bucket or prefix breaks.
    """
    bucket, _, prefix = source.partition("/")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    count, total = session.catalogue.artifacts.measure(check_bucket(bucket), check_key_prefix(prefix))
    if not count:
        raise Failure(f"{bucket}/{prefix}: there is no artifact below it; see `zot-artifacts ls`", type_="NotFound")
    wants = selector(filters.include, filters.exclude)
    if filters.include or filters.exclude:
        count = total = 0
        for artifact, _ in _wanted(session, bucket, prefix, wants):
            count, total = count + 1, total + artifact.digest.size
        if not count:
            raise Failure(f"{bucket}/{prefix}: no artifact below it matches --include and --exclude", type_="NotFound")
    return Selection(bucket, prefix, wants, count, total)


def dry_run(chosen: Selection, *, as_json: bool) -> None:
    """Print what would be read."""
    if as_json:
        print_json({"objects": chosen.count, "bytes": chosen.size})
    else:
        say(f"{counted(chosen.count, 'artifact')}, {size(chosen.size)} would be read; nothing was written")


def get_directory(session: Session, chosen: Selection, dest: str, shown: Bar) -> FetchCounts:
    """Write all artifacts of a selection into a directory that is made if it is not there.

    Raises:
        Failure: the directory cannot be made.
    """
    target = Target(_made(dest))
    shown.start(chosen.size, f"reading {counted(chosen.count, 'artifact')}")
    done = FetchCounts()
    with closing(target.placed), ThreadPoolExecutor(_THREADS, thread_name_prefix="get") as pool:
        waiting: dict[Future[bool], Reading] = {}
        for artifact, relative in chosen.artifacts(session):
            name = unicodedata.normalize("NFC", relative).casefold()
            # Two keys that the disk may take for one are read one after the other, so that the second finds the first.
            while len(waiting) >= 4 * _THREADS or any(name == each.name for each in waiting.values()):
                _collect(waiting, done)
            waiting[pool.submit(_get_one, session, artifact, target, relative, shown)] = Reading(artifact, name)
        while waiting:
            _collect(waiting, done)
    return done


def finish(done: FetchCounts, *, as_json: bool) -> Status:
    """Print what was written, and return the exit status."""
    if as_json:
        print_json(
            {"written": done.written, "already_there": done.already_there, "bytes": done.size, "failed": done.failed,
             "failures": [{"path": path, "message": reason} for path, reason in done.failures]}
        )  # fmt: skip
    else:
        say(f"{done.written} written, {done.already_there} already there, {size(done.size)}, verified")
    for path, reason in done.failures:
        complain(f"{path}: {reason}")
    if done.failed > len(done.failures):
        complain(f"and {done.failed - len(done.failures)} more")
    if not done.failed:
        return Status.GOOD
    return Status.UNKNOWN if done.unknown else Status.BAD


def _made(dest: str) -> Path:
    root = local_path(dest)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{root}: {error.strerror}; name another DEST", type_="CannotWrite") from error
    return root.resolve()


def _wanted(session: Session, bucket: str, prefix: str, wants: Callable[[str], bool]) -> Iterator[tuple[Artifact, str]]:
    after = ""
    while page := session.catalogue.artifacts.page(bucket, prefix, (bucket, after), _PAGE):
        yield from ((each, each.key[len(prefix) :]) for each in page if wants(each.key[len(prefix) :]))
        after = page[-1].key


def _get_one(session: Session, artifact: Artifact, target: Target, relative: str, shown: Bar) -> bool:
    """Write an artifact; return False if the file was there already."""
    path = target.path_of(relative)
    if _has(path, artifact):
        shown.advance(artifact.digest.size)
        return False
    fetch(session, artifact, path, shown.advance)
    target.check(path, relative)
    return True


def _has(path: Path, artifact: Artifact) -> bool:
    """Return whether a file has the recorded bytes; they are read."""
    try:
        if path.stat().st_size != artifact.digest.size:
            return False
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == artifact.digest.sha256


def _collect(waiting: dict[Future[bool], Reading], done: FetchCounts) -> None:
    """Count the artifacts that have ended; wait for one at least."""
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        artifact = waiting.pop(future).artifact
        try:
            written = future.result()
        except Failure as error:
            done.unknown |= error.status is Status.UNKNOWN
            done.fail(artifact.path, str(error))
        except (Refused, InvalidKey) as error:
            done.fail(artifact.path, str(error))
        except StorageError as error:
            done.fail(artifact.path, error.message)
        except OSError as error:
            done.fail(artifact.path, of_file(error, "name another DEST"))
        else:
            done.written += written
            done.already_there += not written
            done.size += artifact.digest.size
