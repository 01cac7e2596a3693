"""Write an artifact, or a part of it, to a file of this machine: verified bytes or nothing."""

import socket
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from worker.artifacts.reading_order import reading_order
from worker.catalogue import Artifact, Copy
from worker.cli.atomic_file import complete_file
from worker.cli.errors import Failure
from worker.cli.output import note
from worker.cli.session import Session
from worker.exit_status import Status
from worker.storage import Store
from worker.storage.cloud.proxies import proxies_for
from worker.storage.config import StoreConfig
from worker.storage.errors import AccessDenied, StorageError, TransientError
from worker.storage.integrity.manifest import CHUNK_SIZE, Manifest
from worker.storage.integrity.verifying_reader import OnBytes, save
from zot_artifact_client.http_urls import parse_endpoint

_CONNECTS_WITHIN = 3.0


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

    While there is another copy, a cloud to which no connection can be made is tried last.

    Raises:
        Failure: no copy is right, where the error of each has been printed; or the file cannot be written.
    """
    unread, manifest = False, _manifest(session, artifact, part)
    waiting = deque(_copies(session, artifact))
    while waiting:
        copy = waiting.popleft()
        if waiting and not session.avoided.has(copy.store) and not _connects(session.settings.stores[copy.store]):
            session.avoided.add(copy.store)
            waiting.append(copy)
            continue
        try:
            with complete_file(path, session.settings.spool_dir) as file:
                _read(session.stores[copy.store], artifact, file.fileno(), on_bytes, part=part, manifest=manifest)
        except StorageError as error:
            note(f"{error.message}; trying the next copy")
            if isinstance(error, TransientError | AccessDenied):
                unread = True
                session.avoided.add(copy.store)
        else:
            return Fetched(artifact, copy.store, path)
    raise Failure(
        f"{artifact.path}: no copy could be read and verified; see `zot-artifacts verify {quote(artifact.path)}`",
        Status.UNKNOWN if unread else Status.BAD,
        type_="NoGoodCopy",
    )


def _copies(session: Session, artifact: Artifact) -> list[Copy]:
    """Return the copies that can be read, in the order in which they are tried."""
    found, stores = [], session.settings.stores
    for copy in session.catalogue.artifacts.copies(artifact).values():
        if copy.state.present and copy.store in stores:
            found.append(copy)
        elif copy.state.present:
            note(f"{copy.store}: has a copy of {artifact.path}, but is not configured; see `zot-artifacts status`")
    return reading_order(found, stores, session.avoided)


def _connects(config: StoreConfig) -> bool:
    """Return False if no connection can be made to the endpoint of a cloud; its SDK takes half a minute to say so."""
    url = getattr(config, "endpoint", None) or getattr(config, "account_url", None)
    if url is None or proxies_for(url):
        return True
    endpoint = parse_endpoint(url, example=url, credentials="")
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=_CONNECTS_WITHIN).close()
    except OSError:
        return False
    return True


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
