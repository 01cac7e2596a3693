"""Peak memory of one transfer on every kind of store: a fresh process puts, another gets, a large file and a small."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from benchmarks import places, transfer
from benchmarks.measured import NotMeasured, Row, Samples, Target
from benchmarks.places import Place
from benchmarks.scene import GIB, MIB, Scene, shown
from tests.servers.process import REPOSITORY
from worker.storage import Store

SMALL = 64 * MIB
MOST_TIMES = Target(1.2)
OPERATIONS = ("put", "get")
PLACES: Sequence[Callable[[Path], AbstractContextManager[Place]]] = (
    places.filesystem,
    places.s3_rclone,
    partial(places.gcs, on_disk=True),
    places.azure,
)
COMPOSING = 5
"""Times the size of an object: the memory to have for fake-gcs-server, which took 4.1 to compose one that it files."""


def measure(scene: Scene) -> list[Row]:
    """Compare the two sizes on each store, a new process for each transfer, because the mark never goes down."""
    large = GIB if scene.quick else 8 * GIB
    scene.need(3 * large)
    rows: list[Row] = []
    for opened in PLACES:
        with opened(scene.directory) as place:
            size = _bearable(place, large)
            print(f"  {place.name}, {shown(size)} …", file=sys.stderr, flush=True)
            rows += _on(scene, place, size)
    return rows


def _bearable(place: Place, size: int) -> int:
    """Return the size, or as many times smaller as this machine's memory asks for where the server holds it whole."""
    while place.name.startswith("gcs") and COMPOSING * size > _available() and size > SMALL:
        size //= 2
    return size


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise NotMeasured("the kernel does not tell how much memory there is")


def _on(scene: Scene, place: Place, large: int) -> list[Row]:
    store = transfer.open_configured(place.config)
    try:
        store.create_bucket(transfer.BUCKET)
        peaks = {size: _peaks(scene, place, store, size) for size in (SMALL, large)}
    finally:
        store.close()
    return [
        Row(
            f"{place.name}: peak memory, {operation} {shown(large)}, against {shown(SMALL)}",
            peaks[large][operation],
            peaks[SMALL][operation],
            MOST_TIMES,
        )
        for operation in OPERATIONS
    ]


def _peaks(scene: Scene, place: Place, store: Store, size: int) -> dict[str, Samples]:
    """Put a file and get it again, and return the peak of each process. Only two copies are on the disk at once."""
    key, got = f"{size}.bin", scene.directory / "got"
    with scene.file(key, size) as source:
        put = _peak(place, "put", key, source)
    try:
        get = _peak(place, "get", key, got)
        if got.stat().st_size != size:
            raise NotMeasured(f"{place.name}: {got.stat().st_size} bytes of {size} came back")
    finally:
        got.unlink(missing_ok=True)
        store.delete_object(transfer.BUCKET, key)
    return {"put": put, "get": get}


def _peak(place: Place, operation: str, key: str, path: Path) -> Samples:
    asked = json.dumps({"config": place.config, "operation": operation, "key": key, "path": str(path)})
    done = subprocess.run(
        (sys.executable, "-m", "benchmarks.transfer"),
        cwd=REPOSITORY, input=asked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise NotMeasured(f"{place.name}: {operation} of {path} failed and said: {said[-1]}")
    return Samples([float(done.stdout)], " MiB")
