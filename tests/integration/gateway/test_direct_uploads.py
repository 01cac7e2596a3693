"""Bytes that a client sends to a cloud store with signed URLs, past the gateway, and that an upload job reads there."""

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from azure.storage.blob import BlobServiceClient
from pydantic import SecretStr

from tasks.sweeps.cleanup import sweep_cleanup
from tasks.upload import remove_source, upload
from tests.conformance import targets
from tests.integration.storage.originals import _service_account
from tests.integration.tasks.conftest import NullReporter
from tests.servers import Azurite, FakeGcs, Valkey
from tests.servers.s3 import RcloneS3
from tests.unit.gateway.conftest import serving
from worker import clock
from worker.artifacts import parts_staged_in_store
from worker.artifacts.sources import SourceRefused
from worker.catalogue import Leased, Scope
from worker.context import Context
from worker.gateway.access import TokenVerb, new_token
from worker.gateway.staging import Staging, request_of
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.settings import Settings
from worker.settings.section_models import GatewaySettings
from worker.storage import FilesystemConfig, StoreConfig
from worker.storage.errors import DigestMismatch, SizeMismatch
from worker.storage.keys import UPLOADS_BUCKET
from zot_artifact_client import ArtifactClient, ClientError, signed_parts
from zot_artifact_client.contract import SweepLeftoversRequest, UploadRequest
from zot_artifact_client.errors import GatewayUnavailable

MIB = 1 << 20
CONTENT = os.urandom(3 * MIB + 17)


def _s3(request: pytest.FixtureRequest, _: Path) -> StoreConfig:
    server: RcloneS3 = request.getfixturevalue("rclone")
    config = targets.s3_config(server)
    targets.make_s3_bucket(server, str(config.bucket))
    return config


def _gcs(request: pytest.FixtureRequest, directory: Path) -> StoreConfig:
    server: FakeGcs = request.getfixturevalue("fake_gcs")
    key = directory / "account.json"
    key.write_text(json.dumps(_service_account(request.getfixturevalue("tokens"))))
    config = targets.gcs_config(server, anonymous=False, credentials_file=str(key))
    targets.make_gcs_bucket(server, str(config.bucket))
    return config


def _azure(request: pytest.FixtureRequest, _: Path) -> StoreConfig:
    server: Azurite = request.getfixturevalue("azurite")
    config = targets.azure_config(server, api_version=targets.AZURITE_API)
    with BlobServiceClient.from_connection_string(server.connection_string, api_version=targets.AZURITE_API) as service:
        service.create_container(str(config.container))
    return config


@pytest.fixture(params=["s3", "gcs", "azure"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, valkey: Valkey) -> Settings:
    cloud = {"s3": _s3, "gcs": _gcs, "azure": _azure}[request.param](request, tmp_path)
    (tmp_path / "disk").mkdir()
    return Settings(
        home=tmp_path / "home",
        broker=SecretStr(valkey.url),
        stores={"cloud": cloud, "disk": FilesystemConfig(root=tmp_path / "disk")},
        placement=("disk",),
        gateway=GatewaySettings(staging_store="cloud"),
    )


@pytest.fixture
def context(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setattr(parts_staged_in_store, "PART", MIB)
    settings.prepare()
    opened = Context.open(settings)
    yield opened
    opened.close()


@pytest.fixture
def client(settings: Settings, context: Context) -> Iterator[ArtifactClient]:
    record, text = new_token("ci", ["releases"], list(TokenVerb), now=clock.now(), expires_at=None)
    assert context.catalogue.access_tokens.add(record)
    with serving(settings) as url, ArtifactClient(gateway=url, token=text) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "app.tgz"
    path.write_bytes(CONTENT)
    return path


def run(context: Context, job_id: str, work: Any, request: Any) -> Any:
    """Run a job under its id, as the ledger would hand it out."""
    lease = context.settings.jobs.lease
    begun = context.catalogue.ledger.acquire(
        job_id, "upload", request.payload(), owner="test", writes_to=None, parent=None, now=clock.now(), lease=lease
    )
    assert isinstance(begun, Leased)
    with RunningJob(begun.record, context, NullReporter()) as job:
        return work(request, job)


def staged(context: Context) -> list[str]:
    return [row.key for row in context.stores["cloud"].list_objects(UPLOADS_BUCKET)]


def sent(context: Context, job_id: str) -> UploadRequest:
    """Return the request that the gateway has sent for an upload."""
    state = Staging(context.settings).find(job_id)
    assert state is not None
    assert state.sent
    return request_of(state, Path("/none"))


def test_bytes_go_past_the_gateway_and_arrive(client: ArtifactClient, context: Context, file: Path) -> None:
    """A file sent in parts to signed URLs becomes the artifact, byte for byte, and its parts are removed."""
    seen: list[int] = []
    job = client.upload_file(file, "releases", "app.tgz", on_progress=lambda p: seen.append(p.bytes_done))
    assert seen[-1] == len(CONTENT)
    assert staged(context) == [f"{job.id}/{number:05}" for number in range(1, 5)]
    assert not list(context.settings.staging_dir.glob("*/source"))
    request = sent(context, job.id)
    done = run(context, job.id, upload, request)
    assert (done.size, done.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    with context.stores["disk"].read_object("releases", "app.tgz") as reader:
        assert b"".join(iter(lambda: reader.read(MIB), b"")) == CONTENT
    remove_source(request, context, job.id)
    assert staged(context) == []


@pytest.mark.parametrize("settings", ["s3"], indirect=True)
def test_a_client_that_was_killed_continues_where_it_stopped(
    client: ArtifactClient, context: Context, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that arrived are not sent again, except one that has another size."""
    real, put = signed_parts._put, list[int]()

    def dies(handle: Any, part: Any, told: Any) -> None:
        if len(put) == 2:
            raise KeyboardInterrupt
        put.append(part.offset)
        real(handle, part, told)

    monkeypatch.setattr(signed_parts, "_TOGETHER", 1)
    monkeypatch.setattr(signed_parts, "_put", dies)
    with pytest.raises(KeyboardInterrupt):
        client.upload_file(file, "releases", "app.tgz", idempotency_key="build-1")
    first, _ = staged(context)
    cut = context.stores["cloud"].sign_put(UPLOADS_BUCKET, first, 5, 60)
    with file.open("rb", buffering=0) as handle:
        real(
            handle,
            signed_parts._Part(offset=0, size=5, url=cut.url, headers=cut.headers),
            signed_parts._Told(0, 5, None),
        )
    monkeypatch.setattr(signed_parts, "_put", lambda *given: (put.append(given[1].offset), real(*given))[1])
    job = client.upload_file(file, "releases", "app.tgz", idempotency_key="build-1")
    assert sorted(put) == [0, 0, MIB, 2 * MIB, 3 * MIB]
    assert client.upload_file(file, "releases", "app.tgz", idempotency_key="build-1").id == job.id
    assert run(context, job.id, upload, sent(context, job.id)).size == len(CONTENT)


@pytest.mark.parametrize("settings", ["s3"], indirect=True)
def test_other_bytes_than_were_announced_fail_the_job(client: ArtifactClient, context: Context, file: Path) -> None:
    """What the parts hold is compared with the digest that the client has announced, and another job reads none."""
    job = client.upload_file(file, "releases", "app.tgz", sha256="0" * 64)
    request = sent(context, job.id)
    with pytest.raises(SourceRefused, match="another job"):
        run(context, "thief", upload, request)
    with pytest.raises(DigestMismatch):
        run(context, job.id, upload, request)
    assert context.catalogue.artifacts.current("releases", "app.tgz") is None
    remove_source(request, context, "thief")
    assert len(staged(context)) == 4
    context.catalogue.pauses.begin(Scope.STORE, "cloud", reason="", now=clock.now())
    remove_source(request, context, job.id)
    assert len(staged(context)) == 4, "a paused store is not asked to delete anything"


@pytest.mark.parametrize("settings", ["azure"], indirect=True)
@pytest.mark.parametrize("listed", [True, False], ids=["before the job", "while the job reads"])
def test_parts_above_the_announced_size_are_not_spooled(
    listed: bool, client: ArtifactClient, context: Context, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that its client replaces by a larger one, by the same URL, fails the job before it fills the disk."""
    job = client.upload_file(file, "releases", "app.tgz")
    cloud, [last] = context.stores["cloud"], staged(context)[-1:]
    before = list(cloud.list_objects(UPLOADS_BUCKET))
    cloud.write_object(UPLOADS_BUCKET, last, BytesIO(bytes(3 * MIB)))
    if not listed:
        monkeypatch.setattr(LimitedStore, "list_objects", lambda *_, **__: iter(before))
    written: list[int] = []
    monkeypatch.setattr(parts_staged_in_store, "write_at", lambda *given: written.append(given[2] + len(given[1])))
    with pytest.raises(SizeMismatch, match="not the announced"):
        run(context, job.id, upload, sent(context, job.id))
    assert max(written, default=0) <= len(CONTENT)
    assert context.catalogue.artifacts.current("releases", "app.tgz") is None


def test_a_source_of_an_earlier_version_is_read() -> None:
    """The source of a job that an earlier version has sent has no size, and names the same parts."""
    assert parts_staged_in_store.read_source("staged://cloud/some-upload") == ("cloud", "some-upload", None)
    made = parts_staged_in_store.source_of("cloud", "some-upload", 5)
    assert parts_staged_in_store.read_source(made) == ("cloud", "some-upload", 5)


@pytest.mark.parametrize("settings", ["s3", "azure"], indirect=True)  # fake-gcs-server checks no signatures
def test_a_url_is_for_one_part_alone(context: Context, client: ArtifactClient) -> None:
    """A URL writes its part alone: with the key of another upload in it, the store refuses it."""
    del client
    parts = parts_staged_in_store.StagedParts("some-upload", 5)
    put = parts.sign(context.stores["cloud"], parts.all()[0], 60)
    url = urlsplit(put.url)

    def send(path: str) -> int:
        connection = HTTPConnection(str(url.hostname), url.port, timeout=60)
        connection.request("PUT", f"{path}?{url.query}", b"bytes", dict(put.headers))
        status = connection.getresponse().status
        connection.close()
        return status

    assert send(url.path.replace("some-upload", "other-upload")) == 403
    assert send(url.path) in {200, 201}
    assert "Signature" not in repr(put)
    assert put.url not in repr(put)


@pytest.mark.parametrize("settings", ["s3"], indirect=True)
def test_what_is_not_completed_expires(client: ArtifactClient, context: Context, file: Path, monkeypatch: Any) -> None:
    """The cleanup sweep removes old parts that no job needs, none that a waiting job needs, and nothing else."""
    waits = client.upload_file(file, "releases", "app.tgz")
    context.catalogue.ledger.acquire(
        waits.id, "upload", sent(context, waits.id).payload(), owner="test", writes_to=None, parent=None,
        now=clock.now(), lease=context.settings.jobs.lease,
    )  # fmt: skip
    parts = parts_staged_in_store.StagedParts("left", 2 * MIB)
    put = parts.sign(context.stores["cloud"], parts.all()[0], 60)
    with file.open("rb", buffering=0) as handle:
        signed_parts._put(
            handle,
            signed_parts._Part(offset=0, size=MIB, url=put.url, headers=put.headers),
            signed_parts._Told(0, MIB, None),
        )
    context.stores["cloud"].write_object(UPLOADS_BUCKET, "notes.txt", BytesIO(b"of others"))
    assert len(staged(context)) == 6
    now = clock.now() + timedelta(days=2)
    monkeypatch.setattr(clock, "now", lambda: now)
    monkeypatch.setattr("worker.artifacts.cleanup.unneeded_sources._waiting", lambda _: set())
    run(context, "cleans", sweep_cleanup, SweepLeftoversRequest(store="cloud"))
    assert {key.partition("/")[0] for key in staged(context)} == {waits.id, "notes.txt"}


def test_a_store_that_refuses_parts_is_named_without_the_url(file: Path) -> None:
    """The error names the host of the store, and neither the path nor the signature of the URL."""
    part = signed_parts._Part(offset=0, size=10, url="http://127.0.0.1:9/secret/path?X-Amz-Signature=abc", headers={})
    with file.open("rb", buffering=0) as handle, pytest.raises(GatewayUnavailable) as raised:
        signed_parts._put(handle, part, signed_parts._Told(0, 10, None))
    assert "127.0.0.1" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "abc" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["https://h:port/?sig=abc", "https://[::1/?sig=abc", "https:///?sig=abc", "ftp://h/?sig=abc"]
)
def test_what_is_no_url_of_a_store_is_an_error_of_ours(file: Path, url: str) -> None:
    """A gateway or a proxy may answer anything, and the URL is shown in no error."""
    with (
        file.open("rb", buffering=0) as handle,
        pytest.raises(ClientError, match=r"^the gateway returned what is no URL"),
    ):
        signed_parts._put(
            handle, signed_parts._Part(offset=0, size=10, url=url, headers={}), signed_parts._Told(0, 10, None)
        )
