"""The command that brings an artifact back: get."""

import errno
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from worker.catalogue import Artifact, Copy
from worker.cli.arguments import Place, PlaceText, opened
from worker.cli.errors import Failure, Status
from worker.cli.output import AsJson, note, out, print_json, size
from worker.cli.progress import bar
from worker.context import Context
from worker.storage import VerifiedReader
from worker.storage.errors import AccessDenied, StorageError, TransientError
from worker.storage.integrity.verifying_reader import OnBytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """An artifact that lies in a file now, and the store it came from."""

    artifact: Artifact
    store: str
    path: Path


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an artifact, in bytes."""

    offset: int
    length: int


def get(
    place: PlaceText,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A file, or a directory to put it into.")],
    range_: Annotated[
        str | None, typer.Option("--range", metavar="FIRST-LAST", help="Only these bytes, the last one included.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring an artifact's bytes into a file, proved to be those that were recorded."""
    at = Place.parse(place)
    with opened() as context, bar("reading") as shown:
        artifact = context.artifact(at.bucket, at.key)
        part = _part(range_, artifact) if range_ else None
        shown.expect(part.length if part else artifact.digest.size, "reading")
        fetched = fetch(context, artifact, _file(dest, artifact), shown.moved, part)
    if part:
        _tell_part(fetched, part, as_json=as_json)
        return
    if as_json:
        digest = artifact.digest
        document = {"bucket": at.bucket, "key": at.key, "version": artifact.version, "size": digest.size}
        print_json({**document, "sha256": digest.sha256, "store": fetched.store, "path": str(fetched.path)})
        return
    line = f"{fetched.path} {size(artifact.digest.size)} sha256 {artifact.digest.sha256} from {fetched.store}"
    out().print(line, markup=False)


def fetch(context: Context, artifact: Artifact, path: Path, on_bytes: OnBytes, part: Part | None = None) -> Fetched:
    """Write an artifact, or a part of it, to a file, right or not at all, from the first copy that proves right.

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
            with _open(context, artifact, copy.store, part) as reader:
                _write(path, reader, on_bytes)
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


def _part(text: str, artifact: Artifact) -> Part:
    found = re.fullmatch(r"(\d+)-(\d*)", text)
    size_, first = artifact.digest.size, int(found[1]) if found else 0
    last = min(int(found[2]), size_ - 1) if found and found[2] else size_ - 1
    if not found or first > last:
        raise Failure(
            f"--range {text}: write it FIRST-LAST, such as 0-1023, or FIRST-; {artifact.path} has {size_} bytes",
            Status.USAGE,
            type_="BadRange",
        )
    return Part(first, last - first + 1)


def _tell_part(fetched: Fetched, part: Part, *, as_json: bool) -> None:
    if as_json:
        artifact = fetched.artifact
        document = {"bucket": artifact.bucket, "key": artifact.key, "version": artifact.version}
        print_json(
            {
                **document,
                "offset": part.offset,
                "length": part.length,
                "store": fetched.store,
                "path": str(fetched.path),
            }
        )
        return
    last = part.offset + part.length - 1
    out().print(f"{fetched.path} bytes {part.offset}-{last} from {fetched.store}, proved", markup=False)


def _open(context: Context, artifact: Artifact, store: str, part: Part | None) -> VerifiedReader:
    """Open a copy so that every byte that is given out is proved, at its end or before.

    Raises:
        Failure: only a part was asked for, and no digests of the artifact's chunks are on record.
    """
    opened_store = context.stores[store]
    if part is None:
        return opened_store.read_object(artifact.bucket, artifact.key, expected=artifact.digest)
    manifest = context.catalogue.artifacts.manifest(artifact)
    if manifest is None:
        raise Failure(
            f"{artifact.path}: no digests of its chunks are on record, so a part of it cannot be proved; get it whole",
            type_="ReadBackMismatch",
        )
    return opened_store.read_object_range(artifact.bucket, artifact.key, part.offset, part.length, manifest=manifest)


def _write(path: Path, reader: VerifiedReader, on_bytes: OnBytes) -> None:
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("xb", buffering=0) as file:
            _copy(reader, file, on_bytes)
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


def _copy(reader: VerifiedReader, file: BinaryIO, on_bytes: OnBytes) -> None:
    seen = 0
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
