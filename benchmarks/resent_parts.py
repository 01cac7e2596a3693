"""Measure which bytes are sent again after a worker is killed in a large upload and another one resumes it."""

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import GIB, MIB, WAIT, Testbed, shown
from tests.conformance.targets import make_s3_bucket
from tests.servers import Ministack
from tests.servers.kill_during_upload import Killing
from tests.servers.proxy import FaultyProxy
from tests.servers.worker import Worker
from zot_artifact_client import ArtifactClient

PART = 16 * MIB
"""The default part size of an s3 store, which applies to these sizes."""
REAL, BUCKET = "artifacts", "resent"
TARGET = Target(2, unit=" parts")


def measure(testbed: Testbed) -> Iterator[Row]:
    """Upload to a server behind a proxy that counts the parts; kill -9 the worker when half of them have arrived."""
    size, rounds = (128 * MIB, 1) if testbed.quick else (GIB, 2)
    testbed.need(size)
    with Ministack(testbed.directory / "ministack") as server, testbed.file("resent.bin", size) as source:
        make_s3_bucket(server, REAL)
        again = [_sent(testbed, server, source, f"{number}.bin") - size for number in range(rounds)]
    what = f"s3: sent again after kill -9 at half of an upload of {shown(size)} in parts of {shown(PART)}"
    yield Row(f"{what}, most of {rounds}", Samples([max(again) / PART], " parts", 1), target=TARGET)


def _sent(testbed: Testbed, server: Ministack, source: Path, key: str) -> int:
    """Return how many bytes two workers sent until the object was complete. A part that was cut off counts in full."""
    size = source.stat().st_size
    killing = Killing(at=size // PART // 2)
    with (
        FaultyProxy(server.port, killing) as proxy,
        testbed.worker("resent", 1, stores=_stores(server, proxy), jobs__lease="2s") as worker,
        testbed.client() as client,
    ):
        killing.worker = worker
        _upload_twice(client, worker, source, key)
        if killing.worker or not client.verify(BUCKET, key).wait(WAIT).good:
            raise NotMeasured(f"the worker was not killed, or the object is not what was uploaded: {killing.passed}")
        client.delete(BUCKET, key, allow_last=True).wait(WAIT)
    return killing.sent


def _upload_twice(client: ArtifactClient, worker: Worker, source: Path, key: str) -> None:
    """Upload until the worker is dead, start another one, and send the same request again: it resumes the job."""
    job = client.upload(source, BUCKET, key, idempotency_key=key)
    while worker.running:
        job.progress  # noqa: B018 - each poll waits for an answer; the kill itself sends no event
    worker.start()
    client.upload(source, BUCKET, key, idempotency_key=key).wait(WAIT)


def _stores(server: Ministack, proxy: FaultyProxy) -> str:
    cloud = {
        "type": "s3", "bucket": REAL, "endpoint": proxy.endpoint,
        "access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key, "part_size": PART,
    }  # fmt: skip
    return json.dumps({"cloud": cloud})
