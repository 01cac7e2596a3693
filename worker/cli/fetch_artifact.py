"""Write an artifact, or a part of it, to a file of this machine: verified bytes or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.catalogue import Artifact, Copy
from worker.cli.atomic_file import complete_file
from worker.cli.errors import WAYS_OUT_OF_WRITE, Failure, Status
from worker.cli.output import note
from worker.cli.session import Session
from worker.storage import Store
from worker.storage.errors import AccessDenied, StorageError, TransientError
from worker.storage.integrity.manifest import CHUNK_SIZE, Manifest
from worker.storage.integrity.verifying_reader import OnBytes, save


@dataclass(frozen=True, slots=True)
class Fetched:
    """An artifact that was written to a file, and the store it came from. Without a path it went to stdout."""

    artifact: Artifact
    store: str
    path: Path | None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an artifact, in bytes."""

    offset: int
    length: int


def fetch(session: Session, artifact: Artifact, path: Path, on_bytes: OnBytes, part: Part | None = None) -> Fetched:
    """Write an artifact, or a part of it, to a file: verified bytes or nothing, from the first copy that is right.

    Raises:
        Failure: no copy is right; the error of each has been printed.
    """
    unread, manifest = False, _manifest(session, artifact, part)
    copies = [copy for copy in session.catalogue.artifacts.copies(artifact).values() if copy.state.present]
    for copy in sorted(copies, key=_trust):
        if copy.store not in session.settings.stores:
            note(f"{copy.store}: has a copy of {artifact.path}, but is not configured; see `zot-artifacts stores`")
            continue
        try:
            with _writable(path, session.settings.spool_dir) as file:
                _read(session.stores[copy.store], artifact, file, on_bytes, part=part, manifest=manifest)
        except StorageError as error:
            note(f"{error.message}; trying the next copy")
            unread |= isinstance(error, TransientError | AccessDenied)
        else:
            return Fetched(artifact, copy.store, path)
    raise Failure(
        f"{artifact.path}: no copy could be read and verified; see `zot-artifacts verify {artifact.path}`",
        Status.UNKNOWN if unread else Status.BAD,
        type_="NoGoodCopy",
    )


def _trust(copy: Copy) -> tuple[bool, bool]:
    return not copy.state.good, copy.last_verified_at is None


@contextmanager
def _writable(path: Path, spool_dir: Path) -> Iterator[int]:
    """Yield the descriptor of a file whose bytes appear at `path` when the block ends; see `complete_file`."""
    try:
        with complete_file(path, spool_dir) as file:
            yield file.fileno()
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        way_out = WAYS_OUT_OF_WRITE.get(error.errno or 0, "name another DEST")
        raise Failure(f"{path} cannot be written: {error.strerror}; {way_out}", type_="CannotWrite") from error


def _manifest(session: Session, artifact: Artifact, part: Part | None) -> Manifest | None:
    """Return the digests of a large artifact's chunks, and always those that a part is verified with.

    Raises:
        Failure: only a part is wanted, and the catalogue has none.
    """
    if part is None and artifact.digest.size <= CHUNK_SIZE:
        return None
    manifest = session.catalogue.artifacts.manifest(artifact)
    if part and manifest is None:
        raise Failure(
            f"{artifact.path}: its chunks have no recorded digests, so a part of it cannot be verified; get it whole",
            type_="Unverifiable",
        )
    return manifest


def _read(
    store: Store, artifact: Artifact, file: int, on_bytes: OnBytes, *, part: Part | None, manifest: Manifest | None
) -> None:
    """Write a copy, or a part of it, to an empty file: every byte in it is verified when this returns."""
    at, seen = (artifact.bucket, artifact.key), 0

    def count(size: int) -> None:
        nonlocal seen
        seen += size
        on_bytes(size)

    try:
        if part:
            with store.read_object_range(*at, part.offset, part.length, manifest=manifest) as reader:
                save(reader, file, count)
        else:
            store.download_object(*at, file, artifact.digest, manifest=manifest, on_bytes=count)
    except StorageError:
        on_bytes(-seen)  # the next copy is read from its beginning
        raise
