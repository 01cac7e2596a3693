"""One transfer, as a job does it; as a program, it runs one in a fresh process and prints its peak memory."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from worker.storage import Digest, Store, StoreConfig, Stores, Verdict
from worker.storage.integrity.manifest import Manifest, compute_digests

BUCKET = "measured"


def open_configured(config: Mapping[str, object]) -> Store:
    """Return the store of a configuration as a file holds it."""
    checked: StoreConfig = TypeAdapter[Any](StoreConfig).validate_python(config)
    return Stores({"measured": checked})["measured"]


Recorded = tuple[Digest, Manifest]
"""What the catalogue keeps of an object: its digest, and the digests of its chunks."""


def recorded(path: Path) -> Recorded:
    """Hash a file, as the first step of an upload."""
    with path.open("rb", buffering=0) as file:
        return compute_digests(file, size=os.fstat(file.fileno()).st_size, what=str(path))


def put(store: Store, path: Path, key: str) -> Recorded:
    """Hash a file, and write it, hashed again on its way: what an upload does, without catalogue and queue."""
    digest, manifest = recorded(path)
    with path.open("rb", buffering=0) as file:
        store.write_object(
            BUCKET, key, file, size=digest.size, sha256=digest.sha256, condition="create_only", manifest=manifest
        )
    return digest, manifest


def get(store: Store, key: str, path: Path, known: Recorded) -> int:
    """Write an object to a file, every byte verified, and return its size: what `get` does, without its fsync."""
    digest, manifest = known
    with path.open("wb", buffering=0) as file:
        store.download_object(BUCKET, key, file.fileno(), digest, manifest=manifest)
    return digest.size


def verify(store: Store, key: str, known: Recorded) -> bool:
    """Read an object to its end and return whether it has the recorded bytes: what a verify job does."""
    digest, manifest = known
    return store.verify_object(BUCKET, key, digest, manifest=manifest).verdict is Verdict.VERIFIED


def high_water(process: int | str) -> float:
    """Return the peak memory of a process, in MiB.

    Raises:
        OSError: the kernel does not tell.
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"the kernel does not tell the peak memory of process {process}")


def main() -> None:
    """Run the transfer in a JSON document on standard input, which may hold credentials, unlike arguments."""
    asked = json.load(sys.stdin)
    store = open_configured(asked["config"])
    path, key = Path(asked["path"]), asked["key"]
    if asked["operation"] == "put":
        put(store, path, key)
        size = path.stat().st_size
    else:
        size = get(store, key, Path(os.devnull), recorded(path))
    print(json.dumps({"peak": high_water("self"), "size": size}))


if __name__ == "__main__":
    main()
