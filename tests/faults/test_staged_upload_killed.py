"""The gateway or the client of a staged upload is killed at each step: resumed, it ends right and leaves nothing."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conformance import targets
from tests.faults.dying_gateway import POINTS
from tests.servers import Valkey
from tests.servers.gateway import GatewayProcess
from tests.servers.s3 import RcloneS3
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import clock
from worker.catalogue import Catalogue
from worker.gateway.access import TokenVerb, new_token
from worker.storage import FilesystemConfig, Stores
from worker.storage.keys import UPLOADS_BUCKET
from zot_artifact_client import ArtifactClient, file_upload
from zot_artifact_client.contract import Progress
from zot_artifact_client.errors import BrokerUnavailable, GatewayUnavailable

MIB = 1 << 20
CONTENT = os.urandom(3 * MIB + 17)
DIRECT = {"part signed, not answered", "job sent, not recorded"}
IN_GATEWAY = [
    *(pytest.param(point, False, id=point) for point in POINTS if point != "part signed, not answered"),
    *(pytest.param(point, True, id=f"{point}, direct") for point in POINTS if point in DIRECT),
]


class DyingGateway(GatewayProcess):
    """A gateway that carries out the order in its directory."""

    def command(self) -> Sequence[str]:
        return (sys.executable, "-m", "tests.faults.dying_gateway", str(self.port), str(self.directory))


@pytest.fixture(scope="module")
def stores(rclone: RcloneS3, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cloud = targets.s3_config(rclone)
    targets.make_s3_bucket(rclone, str(cloud.bucket))
    return {"cloud": cloud, "disk": FilesystemConfig(root=tmp_path_factory.mktemp("disk"))}


@pytest.fixture(scope="module")
def worker(
    valkey: Valkey, rclone: RcloneS3, stores: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    shown = {
        "disk": {"type": "filesystem", "root": str(stores["disk"].root)},
        "cloud": {
            "type": "s3", "bucket": stores["cloud"].bucket, "endpoint": rclone.endpoint,
            "access_key_id": rclone.access_key_id, "secret_access_key": rclone.secret_access_key,
        },
    }  # fmt: skip
    settings = {"stores": json.dumps(shown), "placement": '["disk"]'}
    with Worker(tmp_path_factory.mktemp("worker"), valkey.url, concurrency=1, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def serving(
    worker: Worker, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[bool], DyingGateway]]:
    """Return what gives the gateway whose uploads go through it, or that with a staging store."""
    running: dict[bool, DyingGateway] = {}

    def serving(direct: bool) -> DyingGateway:
        if direct not in running:
            made = DyingGateway(tmp_path_factory.mktemp("gateway"), worker.home, valkey.url)
            made._settings |= {name: value for name, value in worker.environment().items() if name.startswith("ZOT_")}
            if direct:
                made._settings["ZOT_GATEWAY__STAGING_STORE"] = "cloud"
            running[direct] = made.__enter__()
        return running[direct]

    yield serving
    for each in running.values():
        each.kill()


@pytest.fixture
def known(worker: Worker) -> Iterator[Catalogue]:
    opened = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def client_of(known: Catalogue) -> Iterator[Callable[[DyingGateway], ArtifactClient]]:
    """Return what makes a client with a token."""
    made: list[ArtifactClient] = []

    def client_of(gateway: DyingGateway) -> ArtifactClient:
        record, text = new_token(uuid4().hex, ["releases"], list(TokenVerb), now=clock.now(), expires_at=None)
        assert known.access_tokens.add(record)
        made.append(ArtifactClient(gateway=gateway.url, token=text))
        return made[-1]

    yield client_of
    for each in made:
        each.close()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_upload, "_PART", MIB)
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    return tmp_path / "app.tgz"


@pytest.fixture
def ends_right(worker: Worker, known: Catalogue, stores: dict[str, Any]) -> Callable[[ArtifactClient, str, str], None]:
    """Return what checks, in the catalogue and on the disk, that an upload became one version and left nothing."""

    def ends_right(client: ArtifactClient, key: str, job: str) -> None:
        assert client.upload_job(job).wait(timeout=WITHIN).size == len(CONTENT)
        versions = [known.artifacts.version("releases", key, number) for number in (1, 2)]
        assert (versions[0] is not None, versions[1]) == (True, None)
        assert (stores["disk"].root / "releases" / key).read_bytes() == CONTENT
        record = known.ledger.get(job)
        assert record is not None
        assert (record.state, record.attempts) == ("succeeded", 1)
        until(lambda: not (worker.home / "staging" / job / "source").exists())
        with closing(Stores(stores)) as opened:
            until(lambda: not list(opened["cloud"].list_objects(UPLOADS_BUCKET, f"{job}/")))

    return ends_right


@pytest.mark.parametrize(("point", "direct"), IN_GATEWAY)
def test_an_upload_whose_gateway_is_killed_is_resumed(
    serving, client_of, file: Path, point: str, direct: bool, ends_right, stores: dict[str, Any]
) -> None:
    """Wherever the gateway dies, the same call ends as one job and one version, and nothing half is visible before."""
    gateway, key = serving(direct), f"{'direct' if direct else 'through'}/{point.replace(' ', '-')}"
    client, seen = client_of(gateway), set[bytes]()
    path, over = stores["disk"].root / "releases" / key, threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            if path.exists():
                seen.add(path.read_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    (gateway.directory / "order").write_text(point)
    try:
        for last in (False, False, True):
            try:
                job = client.upload_file(file, "releases", key, idempotency_key=key)
                break
            except (GatewayUnavailable, BrokerUnavailable):
                if last:
                    raise
        assert not (gateway.directory / "order").exists(), "the gateway never came to this point"
        ends_right(client, key, job.id)
        assert client.upload_file(file, "releases", key, idempotency_key=key).id == job.id
    finally:
        over.set()
        looking.join()
    assert seen <= {CONTENT}


@pytest.mark.parametrize("at", [0, 2 * MIB, len(CONTENT)], ids=["announced", "half sent", "all sent"])
@pytest.mark.parametrize("direct", [False, True], ids=["through", "direct"])
def test_an_upload_whose_client_is_killed_is_resumed(
    serving, client_of, file: Path, at: int, direct: bool, ends_right
) -> None:
    """A second process with the same idempotency key resumes after the bytes that arrived, and both have one job."""
    client, key = client_of(serving(direct)), f"client/{direct}/{at}"

    def send(on_progress: Callable[[Progress], object]) -> str:
        return client.upload_file(file, "releases", key, idempotency_key=key, on_progress=on_progress).id

    child = os.fork()
    if child == 0:
        try:
            send(
                lambda told: (
                    os.kill(os.getpid(), signal.SIGKILL) if (told.step, told.bytes_done) >= ("sending", at) else None
                )
            )
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    ends_right(client, key, send(lambda _: None))
