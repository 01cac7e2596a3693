"""The canaries of a store: write them, and damage one as rot does."""

import hashlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from worker import clock
from worker.catalogue import Artifact, Catalogue, CopyState
from worker.storage import Digest, Store
from worker.storage.config import FilesystemConfig, StoreConfig
from worker.storage.keys import CANARY_BUCKET

_SIZE = 4096
_SPOT = 1000
"""The byte that is damaged."""


def key_of(store: str, number: int) -> str:
    """Return the key of a store's canary: the name of the store, with unusual characters replaced, and a hash of it."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", store)
    return f"{name}-{hashlib.sha256(store.encode()).hexdigest()[:8]}/{number}"


def content_of(key: str) -> bytes:
    """Return the bytes of a canary: always the same."""
    line = f"zot-artifacts wrote the canary {key} and damages it on purpose\n".encode()
    return (line * (_SIZE // len(line) + 1))[:_SIZE]


def damaged(content: bytes) -> bytes:
    """Return the bytes with one flipped bit."""
    return content[:_SPOT] + bytes([content[_SPOT] ^ 1]) + content[_SPOT + 1 :]


def ensure(catalogue: Catalogue, stores: Sequence[Store], key: str) -> Artifact:
    """Return a canary; write and record the copies that these stores lack.

    Raises:
        StorageError: a store did not take its copy.
    """
    content = content_of(key)
    digest = Digest(len(content), hashlib.sha256(content).hexdigest())
    names = [store.name for store in stores]
    artifact = catalogue.artifacts.record(CANARY_BUCKET, key, digest, {}, clock.now(), stores=names).artifact
    there = catalogue.artifacts.copies(artifact)
    for store in stores:
        if there[store.name].state is CopyState.WRITING:
            write(catalogue, store, artifact)
    return artifact


def write(catalogue: Catalogue, store: Store, artifact: Artifact) -> None:
    """Write the right bytes of a canary into a store, and record that."""
    store.create_bucket(artifact.bucket)
    stat, _ = store.write_object(artifact.bucket, artifact.key, io.BytesIO(content_of(artifact.key)))
    catalogue.artifacts.finish_copy(artifact, store.name, tag=stat.version, evidence={}, now=clock.now())


def damage(store: Store, config: StoreConfig, key: str) -> None:
    """Damage a canary; a second time changes nothing more.

    In a directory one bit of the file flips, and neither its time nor its digest beside it changes. Elsewhere other
    bytes are written under the key, because no provider lets rot be made.
    """
    bad = damaged(content_of(key))
    if not isinstance(config, FilesystemConfig):
        store.write_object(CANARY_BUCKET, key, io.BytesIO(bad))
        return
    path = Path(config.root, CANARY_BUCKET, key)
    before = path.stat()
    with path.open("r+b") as file:
        file.write(bad)
        file.flush()
        os.fsync(file.fileno())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
