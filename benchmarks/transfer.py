"""One transfer, as a job does it; as a program, it runs one in a fresh process and prints its peak memory."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from worker.storage import Store, StoreConfig, Stores
from worker.storage.integrity.manifest import compute_digests

BUCKET = "measured"


def open_configured(config: Mapping[str, object]) -> Store:
    """Return the store of a configuration as a file holds it."""
    checked: StoreConfig = TypeAdapter[Any](StoreConfig).validate_python(config)
    return Stores({"measured": checked})["measured"]


def put(store: Store, path: Path, key: str) -> None:
    """Hash a file, and write it, hashed again on its way: what an upload does, without catalogue and queue."""
    with path.open("rb", buffering=0) as file:
        digest, _ = compute_digests(file, size=os.fstat(file.fileno()).st_size, what=str(path))
        file.seek(0)
        store.write_object(BUCKET, key, file, size=digest.size, sha256=digest.sha256, condition="create_only")


def get(store: Store, key: str, path: Path) -> int:
    """Read an object into a file, which verifies its SHA-256 at the end, and return its size."""
    with store.read_object(BUCKET, key) as reader, path.open("wb") as file:
        return sum(file.write(piece) for piece in reader)


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
        size = get(store, key, path)
    print(json.dumps({"peak": high_water("self"), "size": size}))


if __name__ == "__main__":
    main()
