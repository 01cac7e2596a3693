"""The command that brings an artifact back: get."""

import errno
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from worker.catalogue import Artifact, Copy
from worker.cli.failure import Failure, Status
from worker.cli.output import AsJson, note, out, print_json, size
from worker.cli.place import Place, PlaceText, opened
from worker.cli.waiting import bar
from worker.context import Context
from worker.storage.errors import AccessDenied, StorageError, TransientError
from worker.storage.verifying import OnBytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """An artifact that lies in a file now, and the store it came from."""

    artifact: Artifact
    store: str
    path: Path


def get(
    place: PlaceText,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A file, or a directory to put it into.")],
    as_json: AsJson = False,
) -> None:
    """Bring an artifact's bytes into a file, proved to be those that were recorded."""
    at = Place.parse(place)
    with opened() as context, bar("reading") as shown:
        artifact = context.artifact(at.bucket, at.key)
        shown.expect(artifact.digest.size, "reading")
        fetched = fetch(context, artifact, _file(dest, artifact), shown.moved)
    if as_json:
        digest = artifact.digest
        document = {"bucket": at.bucket, "key": at.key, "version": artifact.version, "size": digest.size}
        print_json({**document, "sha256": digest.sha256, "store": fetched.store, "path": str(fetched.path)})
        return
    line = f"{fetched.path} {size(artifact.digest.size)} sha256 {artifact.digest.sha256} from {fetched.store}"
    out().print(line, markup=False)


def fetch(context: Context, artifact: Artifact, path: Path, on_bytes: OnBytes) -> Fetched:
    """Write an artifact to a file, whole and right or not at all, from the first copy that proves right.

    Raises:
        Failure: no copy does; what is wrong with each has been told.
    """
    untold = False
    copies = [copy for copy in context.catalogue.artifacts.copies(artifact).values() if copy.state.present]
    for copy in sorted(copies, key=_trust):
        if copy.store not in context.settings.stores:
            note(f"{copy.store}: holds a copy of {artifact.path}, but is no longer configured")
            continue
        try:
            _write(context, artifact, copy.store, path, on_bytes)
        except StorageError as error:
            note(f"{error.message}; trying the next copy")
            untold |= isinstance(error, TransientError | AccessDenied)
        else:
            return Fetched(artifact, copy.store, path)
    raise Failure(
        f"{artifact.path}: no copy could be read whole and right; `zot-artifacts verify {artifact.path}` tells more",
        Status.UNKNOWN if untold else Status.BAD,
        type_="NoGoodCopy",
    )


def _trust(copy: Copy) -> tuple[bool, bool]:
    return not copy.state.good, copy.last_verified_at is None


def _file(dest: Path, artifact: Artifact) -> Path:
    path = dest.expanduser().absolute()
    return path / artifact.key.rpartition("/")[2] if path.is_dir() else path


def _write(context: Context, artifact: Artifact, store: str, path: Path, on_bytes: OnBytes) -> None:
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("xb", buffering=0) as file:
            _copy(context, artifact, store, file, on_bytes)
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        way_out = "make room there" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "name another DEST"
        raise Failure(f"{path} cannot be written: {error.strerror}; {way_out}", type_="CannotWrite") from error
    finally:
        temporary.unlink(missing_ok=True)


def _copy(context: Context, artifact: Artifact, store: str, file: BinaryIO, on_bytes: OnBytes) -> None:
    seen = 0
    with context.stores[store].read_object(artifact.bucket, artifact.key, expected=artifact.digest) as reader:
        try:
            for piece in reader:
                left = memoryview(piece)
                while left:
                    left = left[file.write(left) :]
                seen += len(piece)
                on_bytes(len(piece))
        except StorageError:
            on_bytes(-seen)  # the next copy is read from its beginning
            raise


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
