"""Peak memory of one transfer on every kind of store: a fresh process puts, another gets, a large file and a small."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from pathlib import Path

from benchmarks.harness import running_stores, transfer_in_process
from benchmarks.harness.result_rows import FAILURES, Line, Missing, NotMeasured, Row, Samples, Target
from benchmarks.harness.running_stores import RunningStore
from benchmarks.harness.testbed import GIB, MIB, Testbed, shown
from tests.servers.process import REPOSITORY

SMALL = 64 * MIB
MOST_TIMES = Target(1.2)
OPERATIONS = ("put", "get")
GCS = "gcs (fake-gcs-server)"
STORES: Mapping[str, Callable[[Path], AbstractContextManager[RunningStore]]] = {
    name: partial(running_stores.gcs, on_disk=True) if name == GCS else opened
    for name, opened in running_stores.STORES.items()
    if name != "s3 (ministack)"  # left out: it would need 8 GiB for the same requests
}
AS_WORKERS = {"MALLOC_ARENA_MAX": "2"}
"""What `up` and docker-compose.yml give every worker."""
COMPOSING = 4.5
"""How many times the size of an object must be free for fake-gcs-server, which took 4.1 to compose one in files."""


def measure(testbed: Testbed) -> Iterator[Line]:
    """Compare the two sizes on each store, a new process for each transfer, because the mark never goes down."""
    large = GIB if testbed.quick else 8 * GIB
    testbed.need(3 * large)
    with ExitStack() as stack:
        files: dict[int, Path] = {}
        for name in STORES:
            if not testbed.wants(f"{name}: peak memory"):
                continue
            size = _sized_to_memory(name, large)
            for needed in {SMALL, size} - files.keys():
                files[needed] = stack.enter_context(testbed.file(f"{needed}.bin", needed))
            yield from _on(testbed.directory / "place", name, files[SMALL], files[size])


def _sized_to_memory(place: str, size: int) -> int:
    """Return the size, halved until it fits this machine's memory if the server holds it whole."""
    while place == GCS and COMPOSING * size > _available() and size > SMALL:
        size //= 2
    return size


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise NotMeasured("the kernel does not tell how much memory there is")


def _on(directory: Path, name: str, small: Path, large: Path) -> Iterator[Line]:
    size = large.stat().st_size
    what = {verb: f"{name}: peak memory, {verb} {shown(size)}, against {shown(SMALL)}" for verb in OPERATIONS}
    try:
        with STORES[name](directory) as place:
            least, most = (_peaks(place, source) for source in (small, large))
    except FAILURES as error:
        yield from (Missing(line, str(error)) for line in what.values())
    else:
        yield from (Row(line, most[verb], least[verb], MOST_TIMES) for verb, line in what.items())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _peaks(place: RunningStore, source: Path) -> dict[str, Samples]:
    """Put a file and get it again to /dev/null, without a third copy on disk; return the peak of each process."""
    with closing(transfer_in_process.open_configured(place.config)) as store:
        store.create_bucket(transfer_in_process.BUCKET)
        peaks = {verb: _peak(place, verb, source) for verb in OPERATIONS}
        store.delete_object(transfer_in_process.BUCKET, source.name)
        return peaks


def _peak(place: RunningStore, operation: str, source: Path) -> Samples:
    asked = json.dumps({"config": place.config, "operation": operation, "key": source.name, "path": str(source)})
    done = subprocess.run(
        (sys.executable, "-m", "benchmarks.harness.transfer_in_process"),
        cwd=REPOSITORY, env={**os.environ, **AS_WORKERS}, input=asked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise NotMeasured(f"{operation} of {shown(source.stat().st_size)} failed and said: {said[-1]}")
    told = json.loads(done.stdout)
    if told["size"] != source.stat().st_size:
        raise NotMeasured(f"{operation}: {told['size']} bytes of {source.stat().st_size} were moved")
    return Samples([told["peak"]], " MiB")
