"""Adopt files of 16 KiB in one batch, against one job for each: `python -m benchmarks.adopting [PAIRS]`."""

import hashlib
import json
import os
import sys
import tempfile
from collections import deque
from pathlib import Path
from time import perf_counter

from benchmarks.harness.result_rows import Row, Samples
from benchmarks.harness.table import brief
from benchmarks.harness.testbed import KIB, WAIT, Testbed
from tests.servers import Valkey
from zot_artifact_client import ArtifactClient

FILES = 2_000
_IN_FLIGHT = 32
"""Jobs that the command `adopt` had in flight when it sent one for each object."""


def measure(testbed: Testbed) -> Row:
    """Adopt a new directory in each of the two ways in turn, after one of each that is not counted."""
    root = testbed.directory / "root"
    settings = {"stores": json.dumps({"only": {"type": "filesystem", "root": str(root)}}), "placement": '["only"]'}
    batches: list[float] = []
    singles: list[float] = []
    with testbed.worker("adopting", 2, **settings), testbed.client() as client:
        for number in range((testbed.pairs or 3) + 1):
            for way, rates in ((_one_by_one, singles), (_in_a_batch, batches)):
                prefix = f"{way.__name__}-{number}/"
                keys = _lay(root / "adopting", prefix)
                os.sync()
                begun = perf_counter()
                way(client, prefix, keys)
                rates.append(len(keys) / (perf_counter() - begun))
    what = f"adopt {FILES:,} files of 16 KiB with their digests, against a job for each"
    return Row(what, Samples(batches[1:], " a second"), Samples(singles[1:], " a second"))


def _lay(bucket: Path, prefix: str) -> list[str]:
    """Write files as another program does, each with its digest beside it, and return their keys."""
    (bucket / prefix).mkdir(parents=True)
    keys = [f"{prefix}{number:07d}.bin" for number in range(FILES)]
    for key in keys:
        data = os.urandom(16 * KIB)
        (bucket / key).write_bytes(data)
        (bucket / f"{key}.sha256").write_text(hashlib.sha256(data).hexdigest())
    return keys


def _one_by_one(client: ArtifactClient, _prefix: str, keys: list[str]) -> None:
    jobs = deque(client.adopt("adopting", key, store="only") for key in keys[:_IN_FLIGHT])
    for key in keys[_IN_FLIGHT:]:
        jobs.popleft().wait(WAIT)
        jobs.append(client.adopt("adopting", key, store="only"))
    for job in jobs:
        job.wait(WAIT)


def _in_a_batch(client: ArtifactClient, prefix: str, keys: list[str]) -> None:
    result = client.batch("adopt", "adopting", prefix, stores="only").wait(WAIT)
    assert result.outcomes == {"adopted": len(keys)}, result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="zot-bench-") as made, Valkey(Path(made) / "valkey") as valkey:
        print(brief(measure(Testbed(Path(made), valkey, quick=False, pairs=int((sys.argv[1:] or ["3"])[0])))))
