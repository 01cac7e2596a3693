"""Peak memory of a worker that uploads and verifies a large file, against the same for a small one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.running_stores import HashingOnceS3
from benchmarks.harness.testbed import GIB, MIB, WAIT, Testbed, shown
from benchmarks.harness.transfer_in_process import high_water

SMALL = 64 * MIB
MOST_TIMES = Target(1.2)
MOST = Target(256, unit=" MiB")
STORE = "measured"


class Peak(NamedTuple):
    """The peak memory of the two kinds of process of one worker, in MiB."""

    child: float
    main: float


def measure_filesystem(testbed: Testbed) -> list[Row]:
    """Measure on a store in a directory."""
    return _compare(
        testbed, "filesystem", lambda: {"type": "filesystem", "root": str(_made(testbed.directory / "disk"))}
    )


def measure_s3(testbed: Testbed) -> list[Row]:
    """Measure on a store that an S3 server keeps in another process."""
    with HashingOnceS3(testbed.directory / "rclone") as server:
        (server.files / "artifacts").mkdir()
        config = {
            "type": "s3", "bucket": "artifacts", "endpoint": server.endpoint,
            "access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key,
        }  # fmt: skip
        return _compare(testbed, "s3", lambda: config)


def _compare(testbed: Testbed, kind: str, config: Callable[[], dict[str, str]]) -> list[Row]:
    large, rounds = (2 * GIB, 1) if testbed.quick else (8 * GIB, 2)
    testbed.need(2 * large + SMALL)
    peaks: dict[int, list[Peak]] = {SMALL: [], large: []}
    for _ in range(rounds):
        for size, seen in peaks.items():
            seen.append(_peak(testbed, kind, config(), size))
    child = {size: Samples([peak.child for peak in seen], " MiB") for size, seen in peaks.items()}
    main = {size: Samples([peak.main for peak in seen], " MiB") for size, seen in peaks.items()}
    what = f"{kind}: peak memory, upload and verify {shown(large)}"
    return [
        Row(f"{what}, worker child, against {shown(SMALL)}", child[large], child[SMALL], MOST_TIMES),
        Row(f"{what}, worker child, in all", child[large], target=MOST),
        Row(f"{what}, worker's main process, against {shown(SMALL)}", main[large], main[SMALL]),
    ]


def _peak(testbed: Testbed, kind: str, config: dict[str, str], size: int) -> Peak:
    """Upload and verify one file in a new worker, and measure its processes."""
    key = f"{size}.bin"
    with (
        testbed.file(key, size) as source,
        testbed.worker(f"memory-{kind}", 1, stores=json.dumps({STORE: config})) as worker,
        testbed.client() as client,
    ):
        client.upload(source, "memory", key).wait(WAIT)
        source.unlink()
        if not client.verify("memory", key).wait(WAIT).good:
            raise NotMeasured(f"the {kind} store does not hold what was uploaded to it")
        children = worker.children()
        if len(children) != 1:
            raise NotMeasured(f"a worker with one child was expected, it has {len(children)}")
        peak = Peak(high_water(children[0]), high_water(worker.pid))
        client.delete("memory", key, allow_last=True).wait(WAIT)
    return peak


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory
