"""A few workers of one data directory, a store whose requests can be held, and a client."""

import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import redis

from tests.conformance.targets import make_s3_bucket
from tests.servers import Ministack, Valkey
from tests.servers.proxy import FaultyProxy, Request
from tests.servers.worker import Worker
from tests.waiting import WITHIN
from worker.catalogue import Catalogue, JobRecord
from worker.storage.keys import PROBE_BUCKET
from zot_artifact_client import ArtifactClient

MIB = 1 << 20
PARTS = 8
QUICK = {
    "jobs__lease": "2s",
    "jobs__grace": "0s",
    "retry__max_crashes": "3",
    "sweep__recover__every": "1s",
    "sweep__recover__after": "1s",
    "sweep__recover__again": "3s",
    "sweep__verify__enabled": "false",
    "sweep__probe__enabled": "false",
}


class Gate:
    """Lets the parts of an upload through, and holds the one that is named until it is opened; probes do not count."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.parts: list[int] = []
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, request: Request) -> None:
        if request.method == "PUT" and "partNumber=" in request.path and PROBE_BUCKET not in request.path:
            self.parts.append(int(request.path.partition("partNumber=")[2].partition("&")[0]))
            if len(self.parts) >= self.at:
                self.reached.set()
                self.open.wait(WITHIN)


class Fleet:
    """Workers of one data directory on one broker, a store whose requests can be held, and a client."""

    def __init__(self, valkey: Valkey, ministack: Ministack, gate: Gate, directory: Path) -> None:
        self.gate = gate
        valkey.empty()
        self.broker = valkey.url
        self.redis = redis.Redis.from_url(self.broker)
        self._directory = directory
        self.bucket = f"real-{uuid.uuid4().hex[:8]}"
        make_s3_bucket(ministack, self.bucket)
        self._proxy = FaultyProxy(ministack.port, gate)
        self._key = (ministack.access_key_id, ministack.secret_access_key)
        self.client = ArtifactClient(self.broker)
        self.catalogue = Catalogue(f"sqlite:///{directory / 'catalogue.sqlite3'}")

    def worker(self, name: str, *, beat: bool = False, concurrency: int = 1, broker: str | None = None) -> Worker:
        """Return a worker, to be entered; it may have a way of its own to the broker."""
        cloud = {
            "type": "s3", "bucket": self.bucket, "endpoint": self._proxy.endpoint, "part_size": "5MiB",
            "access_key_id": self._key[0], "secret_access_key": self._key[1],
        }  # fmt: skip
        settings = QUICK | {
            "stores": json.dumps({"cloud": cloud}),
            "sources__roots": json.dumps([str(self._directory / "in")]),
            "catalogue": f"sqlite:///{self._directory / 'catalogue.sqlite3'}",
        }
        broker = broker or self.broker
        return Worker(self._directory / name, broker, concurrency=concurrency, beat=beat, **settings)

    def source(self, size: int = PARTS * 5 * MIB) -> Path:
        path = self._directory / "in" / f"{size}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(size))
        return path

    def record(self, job: Any) -> JobRecord:
        found = self.catalogue.ledger.get(job.id)
        assert found is not None
        return found

    def __enter__(self) -> Self:
        self._proxy.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.gate.open.set()
        self.client.close()
        self.catalogue.close()
        self.redis.close()
        self._proxy.__exit__(*exc_info)


@contextmanager
def fleet_of(valkey: Valkey, ministack: Ministack, tmp_path: Path, *, at: int = 99) -> Iterator[Fleet]:
    with Fleet(valkey, ministack, Gate(at), tmp_path) as fleet:
        yield fleet
