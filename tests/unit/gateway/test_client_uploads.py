"""The client sends jobs and files over a gateway that really serves, and needs neither the broker nor a shared disk."""

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers.proxy import Fault, FaultyProxy, Request, Reset
from tests.unit.gateway.conftest import Gateway
from tests.unit.gateway.test_client_bytes import CONTENT
from tests.waiting import WITHIN
from zot_artifact_client import (
    ArtifactClient,
    ClientError,
    GatewayUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    JobState,
    NotAllowed,
    Progress,
    UnknownJob,
    file_upload,
)
from zot_artifact_client.contract import VerifyRequest

MIB = 1 << 20


@pytest.fixture
def over_gateway(gateway_with_broker: Gateway) -> Iterator[ArtifactClient]:
    with ArtifactClient(gateway=gateway_with_broker.url, token=gateway_with_broker.token()) as made:
        yield made


def test_jobs_go_over_the_gateway(over_gateway: ArtifactClient, gateway_with_broker: Gateway) -> None:
    """A job is sent, found by its id, and cancelled; a key is one job; what the gateway refuses is told."""
    job = over_gateway.verify("releases", "app.tgz", idempotency_key="Bau ü 17")
    assert over_gateway.verify("releases", "app.tgz", idempotency_key="Bau ü 17").id == job.id
    with pytest.raises(IdempotencyMismatch):
        over_gateway.verify("releases", "other.tgz", idempotency_key="Bau ü 17")
    assert job.state is JobState.QUEUED
    assert over_gateway.status(job.id).state is JobState.QUEUED
    assert job.cancel() is True
    jobs = over_gateway.submit_many(
        [VerifyRequest(bucket="releases", key="a"), VerifyRequest(bucket="releases", key="b")]
    )
    assert len({each.id for each in jobs}) == 2
    with pytest.raises(UnknownJob):
        over_gateway.job("no-such-job").wait(WITHIN)
    with pytest.raises(InvalidRequest, match="files of the worker's machine"):
        over_gateway.upload_dir("/srv/in", "releases")
    with pytest.raises(InvalidRequest, match="give broker_url"):
        over_gateway.sweep_verify()
    with pytest.raises(NotAllowed):
        over_gateway.verify("other", "app.tgz")
    gateway_with_broker.store("app.tgz", b"release")
    assert [each.key for each in over_gateway.list("releases").artifacts] == ["app.tgz"]
    assert over_gateway.show("releases", "app.tgz").size == 7


def test_services_share_no_upload(gateway_with_broker: Gateway, tmp_path: Path) -> None:
    """The same idempotency key of two services with one token names two files that are sent."""
    way, ids = {"gateway": gateway_with_broker.url, "token": gateway_with_broker.token()}, set()
    for service in ("billing", "shipping"):
        (tmp_path / "file").write_text(service)
        with ArtifactClient(**way, service=service) as client:
            ids.add(client.upload_file(tmp_path / "file", "releases", service, idempotency_key="17").id)
    assert len(ids) == 2


@pytest.fixture
def sending(over_gateway: ArtifactClient, monkeypatch: pytest.MonkeyPatch) -> ArtifactClient:
    """Return a client that sends files in small parts."""
    monkeypatch.setattr("zot_artifact_client.file_upload._PART", 8 * MIB)
    monkeypatch.setattr("zot_artifact_client.file_upload._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("zot_artifact_client.file_upload._LONGEST_PAUSE", 0.1)
    return over_gateway


def staged(gateway: Gateway) -> list[bytes]:
    return [
        path.read_bytes()
        for path in (gateway.settings.home / "staging").rglob("*")
        if path.is_file() and path.stat().st_size > 1000
    ]


def test_a_file_is_sent_without_a_shared_disk(
    sending: ArtifactClient, gateway_with_broker: Gateway, tmp_path: Path
) -> None:
    """All bytes of a file arrive and are announced by their digest, a job is sent, and progress counts them.

    What is cancelled while the digest is computed announces nothing.
    """
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    seen: list[int] = []
    job = sending.upload_file(
        tmp_path / "app.tgz", "releases", "app.tgz", on_progress=lambda told: seen.append(told.bytes_done)
    )
    assert (job.kind, job.state) == ("upload", JobState.QUEUED)
    assert staged(gateway_with_broker) == [CONTENT]
    assert (seen[0], seen[-1], seen == sorted(seen)) == (0, len(CONTENT), True)
    (tmp_path / "empty").touch()
    assert sending.upload_file(tmp_path / "empty", "releases", "empty").state is JobState.QUEUED
    with pytest.raises(FileNotFoundError):
        sending.upload_file(tmp_path / "absent", "releases", "absent")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="no regular file"):
        sending.upload_file(tmp_path / "fifo", "releases", "fifo")
    with pytest.raises(NotAllowed):
        sending.upload_file(tmp_path / "app.tgz", "other", "app.tgz")

    def cancel(told: Progress) -> None:
        raise ClientError(told.step)

    uploads = list(gateway_with_broker.settings.staging_dir.iterdir())
    with pytest.raises(ClientError, match="hashing"):
        sending.upload_file(tmp_path / "app.tgz", "releases", "app.tgz", on_progress=cancel)
    assert list(gateway_with_broker.settings.staging_dir.iterdir()) == uploads


def test_a_broken_line_loses_no_byte(
    sending: ArtifactClient, gateway_with_broker: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload whose connections break continues after the bytes that have arrived, until none arrive any more."""
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    pieces, breaks = file_upload._pieces, [0]

    def breaking(file: Any, offset: int, *more: Any) -> Iterator[bytes]:
        for number, piece in enumerate(pieces(file, offset, *more)):
            if number == 3 and breaks[0] < 8:
                breaks[0] += 1
                raise ConnectionResetError("the line broke")
            yield piece

    monkeypatch.setattr(file_upload, "_pieces", breaking)
    sending.upload_file(tmp_path / "app.tgz", "releases", "app.tgz")
    assert breaks == [8]
    assert staged(gateway_with_broker) == [CONTENT]

    def silent(*_: Any) -> Iterator[bytes]:
        raise ConnectionResetError("the line broke")
        yield b""

    monkeypatch.setattr(file_upload, "_pieces", silent)
    with pytest.raises(GatewayUnavailable):
        sending.upload_file(tmp_path / "app.tgz", "releases", "other.tgz")


def test_an_upload_outlives_a_gateway_that_is_away_for_longer_than_a_query(
    gateway_with_broker: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question how much has arrived is asked again too: a gateway that was killed takes seconds to be back."""
    for module in ("gateway", "file_upload"):
        monkeypatch.setattr(f"zot_artifact_client.{module}._FIRST_PAUSE", 0.01)
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    refused: list[str] = []

    def away(request: Request) -> Fault:
        if request.method in {"PATCH", "HEAD"} and len(refused) < 8:
            refused.append(request.method)
            return Reset()
        return None

    with FaultyProxy(httpx.URL(gateway_with_broker.url).port or 0, away) as proxy:
        way = {"gateway": f"http://127.0.0.1:{proxy.port}", "token": gateway_with_broker.token()}
        with ArtifactClient(**way) as client:
            client.upload_file(tmp_path / "app.tgz", "releases", "app.tgz")
    assert refused == ["PATCH", *["HEAD"] * 7]
    assert staged(gateway_with_broker) == [CONTENT]


def test_a_request_that_the_gateway_still_takes_is_waited_for(
    sending: ArtifactClient, gateway_with_broker: Gateway, tmp_path: Path
) -> None:
    """A part is sent again until the gateway has given up the broken request that holds the upload."""
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    held: list[int] = []

    def hold(told: Progress) -> None:
        if told.step == "sending" and not held:
            [source] = gateway_with_broker.settings.staging_dir.glob("*/source")
            held.append(os.open(source, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)
            threading.Timer(0.1, os.close, held).start()

    sending.upload_file(tmp_path / "app.tgz", "releases", "app.tgz", on_progress=hold)
    assert staged(gateway_with_broker) == [CONTENT]


def test_a_killed_sender_is_followed_by_another_one(
    sending: ArtifactClient, gateway_with_broker: Gateway, tmp_path: Path
) -> None:
    """Another process with the same idempotency key continues where the killed one was, and it is one job."""
    (tmp_path / "app.tgz").write_bytes(CONTENT)

    def send(on_progress: Callable[[Progress], object]) -> str:
        return sending.upload_file(
            tmp_path / "app.tgz", "releases", "app.tgz", idempotency_key="build-17", on_progress=on_progress
        ).id

    child = os.fork()
    if child == 0:
        try:
            send(lambda told: os.kill(os.getpid(), signal.SIGKILL) if told.bytes_done > 20 * MIB else None)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    seen: list[Progress] = []
    job = send(seen.append)
    assert next(told.bytes_done for told in seen if told.step == "sending") >= 16 * MIB
    assert staged(gateway_with_broker) == [CONTENT]
    assert send(lambda told: None) == job
