"""A worker that is killed in the middle of a large upload: the next one sends only what is missing."""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.targets import make_s3_bucket
from tests.servers import Ministack, Valkey
from tests.servers.kill_during_upload import Killing
from tests.servers.proxy import FaultyProxy
from tests.servers.worker import Worker
from tests.waiting import WITHIN
from zot_artifact_client import ArtifactClient

MIB = 1 << 20
PARTS = 16
PART = 5 * MIB


@pytest.fixture
def line(ministack: Ministack) -> Iterator[tuple[FaultyProxy, Killing]]:
    killing = Killing(at=PARTS // 2)
    with FaultyProxy(ministack.port, killing) as proxy:
        yield proxy, killing


@pytest.fixture
def bucket(ministack: Ministack) -> str:
    name = f"real-{uuid.uuid4().hex[:8]}"
    make_s3_bucket(ministack, name)
    return name


def test_a_killed_upload_sends_at_most_two_parts_again(
    valkey: Valkey, ministack: Ministack, line: tuple[FaultyProxy, Killing], bucket: str, tmp_path: Path
) -> None:
    """The whole worker is killed at half of an upload; the job goes on, and what was confirmed is not sent again."""
    proxy, killing = line
    source = tmp_path / "in" / "large.bin"
    source.parent.mkdir()
    source.write_bytes(os.urandom(PARTS * PART))
    cloud = {
        "type": "s3",
        "bucket": bucket,
        "endpoint": proxy.endpoint,
        "access_key_id": ministack.access_key_id,
        "secret_access_key": ministack.secret_access_key,
        "part_size": "5MiB",
    }
    settings = {
        "stores": json.dumps({"cloud": cloud}),
        "sources__roots": json.dumps([str(source.parent)]),
        "jobs__lease": "2s",
        "sweep__verify__enabled": "false",
    }
    with Worker(tmp_path / "worker", valkey.url, **settings) as worker, ArtifactClient(valkey.url) as client:
        killing.worker = worker
        job = client.upload(source, "releases", "large.bin", idempotency_key="one upload")
        while worker.running:
            job.progress  # noqa: B018 - each poll waits for an answer; the kill itself sends no event
        worker.start()
        again = client.upload(source, "releases", "large.bin", idempotency_key="one upload")
        assert again.id == job.id
        assert again.wait(WITHIN).size == PARTS * PART
        assert client.verify("releases", "large.bin").wait(WITHIN).good
    assert set(killing.passed) == set(range(1, PARTS + 1))
    assert killing.sent <= (PARTS + 2) * PART
