"""Replication inside one provider: the bytes do not pass through the worker, and no copy counts before a full read."""

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient

from tasks.replicate import NoGoodSource, replicate
from tasks.sweeps.cleanup import sweep_cleanup
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance import targets
from tests.conformance.bodies import some_bytes
from tests.conformance.bodies import source as as_source
from tests.integration.tasks.conftest import end_and_delete
from tests.servers.proxy import Fault, FaultyProxy, Lose, Request, Say
from worker import clock
from worker.catalogue import LostLease
from worker.context import Context
from worker.jobs.running_job import Cancelled
from worker.settings import Settings
from worker.settings.section_models import CleanupSweepSettings, ReplicationSettings, SourceSettings, SweepSettings
from worker.storage import FilesystemConfig, StoreConfig
from worker.storage.azure import copy as azure_copy
from worker.storage.errors import StorageError, Unavailable
from zot_artifact_client.contract import ReplicateRequest, SweepLeftoversRequest, UploadRequest, VerifyRequest

PLACE = {"bucket": "releases", "key": "app one.tgz"}
CONTENT = some_bytes(200_000)
TO_FAR = ReplicateRequest(**PLACE, to=("far",))
MAKES = {
    "s3": lambda request: request.method == "POST" and "uploadId" in request.path,
    "gcs": lambda request: "/rewriteTo/" in request.path,
    "azure": lambda request: "x-ms-copy-source" in request.headers,
}
"""The request that makes a copy visible."""


class Line:
    """A proxy before a provider: it records every request, and makes those fail that it is told to."""

    def __init__(self, kind: str, upstream: int) -> None:
        self.kind = kind
        self.fault: Callable[[Request], Fault] = lambda _: None
        self.proxy = FaultyProxy(upstream, self.decide)

    def configs(self, request: pytest.FixtureRequest, endpoint: str) -> dict[str, StoreConfig]:
        """Return two stores with a real bucket of their own, both behind this line."""
        make = {"s3": _s3, "gcs": _gcs, "azure": _azure}[self.kind]
        return {name: make(request, endpoint, f"{name}-{uuid.uuid4().hex[:8]}") for name in ("near", "far")}

    def decide(self, request: Request) -> Fault:
        return self.fault(request)

    @property
    def copies(self) -> list[Request]:
        return [request for request in self.proxy.requests if MAKES[self.kind](request)]

    @property
    def sent(self) -> int:
        """Return how many bytes went out to the provider."""
        return sum(int(request.headers.get("Content-Length") or 0) for request in self.proxy.requests)

    @property
    def downloads(self) -> list[str]:
        """Return what was read of objects, as `near` or `far`."""
        asked = [
            request.path
            for request in self.proxy.requests
            if request.method == "GET" and "uploadId" not in request.path
        ]
        read = [path for path in asked if "app" in path and (self.kind != "gcs" or path.startswith("/download"))]
        return ["near" if "/near-" in path else "far" for path in read]

    def once(self, fault: Fault) -> None:
        """Let the first request that makes a copy go wrong."""
        left = [fault]
        self.fault = lambda request: left.pop() if left and MAKES[self.kind](request) else None


def _s3(request: pytest.FixtureRequest, endpoint: str, real: str) -> StoreConfig:
    server = request.getfixturevalue("ministack")
    targets.make_s3_bucket(server, real)
    return targets.s3_config(server, bucket=real, endpoint=endpoint)


def _gcs(request: pytest.FixtureRequest, endpoint: str, real: str) -> StoreConfig:
    server = request.getfixturevalue("strict_gcs")
    targets.make_gcs_bucket(server, real)
    config = targets.gcs_config(server, bucket=real, endpoint=endpoint)
    return config.model_copy(update={"data_path": "sdk"})  # a Line counts downloads as the SDK asks for them


def _azure(request: pytest.FixtureRequest, endpoint: str, real: str) -> StoreConfig:
    server = request.getfixturevalue("azurite")
    with BlobServiceClient.from_connection_string(server.connection_string, api_version=targets.AZURITE_API) as made:
        made.create_container(real)
    address = f"{endpoint}/{server.account}"
    return targets.azure_config(server, container=real, account_url=address, api_version=targets.AZURITE_API)


def port_of(request: pytest.FixtureRequest, kind: str) -> int:
    if kind == "gcs":
        return int(request.getfixturevalue("strict_gcs").endpoint.rpartition(":")[2])
    return int(request.getfixturevalue({"s3": "ministack", "azure": "azurite"}[kind]).port)


@pytest.fixture(params=MAKES)
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    """Return the way to one provider after the other."""
    line = Line(request.param, port_of(request, request.param))
    with line.proxy:
        yield line


@pytest.fixture
def settings(tmp_path: Path, source_root: Path, line: Line, request: pytest.FixtureRequest) -> Settings:
    stores = line.configs(request, line.proxy.endpoint) | {"disk": FilesystemConfig(root=tmp_path / "disk")}
    (tmp_path / "disk").mkdir()
    return Settings(home=tmp_path / "home", stores=stores, sources=SourceSettings(roots=(source_root,)))


@pytest.fixture
def uploaded(run, source, context: Context, line: Line) -> None:
    """Have the artifact in `near`, and nothing written down yet."""
    run(upload, UploadRequest(**PLACE, source=source(CONTENT), stores=("near",)))
    line.proxy.requests.clear()


def content(context: Context, store: str) -> bytes:
    with context.stores[store].read_object(PLACE["bucket"], PLACE["key"]) as reader:
        return b"".join(reader)


def there(context: Context, store: str) -> bool:
    return context.stores[store].object_exists(PLACE["bucket"], PLACE["key"])


def state(context: Context, store: str) -> Any:
    artifact = context.catalogue.artifacts.current(PLACE["bucket"], PLACE["key"])
    assert artifact
    return context.catalogue.artifacts.copies(artifact)[store]


def clean_up(run, context: Context) -> Any:
    """Run the cleanup for all that is left, however young it is."""
    sweep = SweepSettings(cleanup=CleanupSweepSettings(age=timedelta(0)))
    aged = dataclasses.replace(context, settings=context.settings.model_copy(update={"sweep": sweep}))
    return run(sweep_cleanup, SweepLeftoversRequest(), context=aged)


def overwrite(context: Context, store: str) -> bytes:
    """Put other bytes of the same size where the artifact was, behind the catalogue's back."""
    other = some_bytes(len(CONTENT), 1)
    context.stores[store].write_object(PLACE["bucket"], PLACE["key"], as_source(other))
    return other


@pytest.mark.usefixtures("uploaded")
def test_only_the_read_back_passes_through_us(run, context: Context, line: Line):
    """The provider copies, we read the copy in full and nothing else, and that is the progress of the job."""
    done = list[int]()

    def replicate_and_look(request, job):
        result = replicate(request, job)
        done.append(job.progress.bytes_done)
        return result

    result = run(replicate_and_look, TO_FAR)

    assert [(copy.store, copy.outcome, copy.source) for copy in result.copies] == [("far", "stored", "near")]
    assert (len(line.copies), line.downloads) == (1, ["far"])
    assert line.sent < 5_000
    assert done == [len(CONTENT)]
    assert content(context, "far") == CONTENT


@pytest.mark.usefixtures("uploaded")
def test_what_was_read_back_is_on_record_as_verified(run, context: Context):
    """Whatever `replication.proof` says, a copy that the provider made has been verified when its job is done."""
    assert context.settings.replication.proof == "provider"
    run(replicate, TO_FAR)
    copy = state(context, "far")
    assert (copy.state, copy.last_verified_at is not None) == ("verified", True)
    stat = context.stores["far"].stat_object(PLACE["bucket"], PLACE["key"])
    assert copy.tag == stat.version
    assert run(replicate, TO_FAR).unchanged


@pytest.mark.usefixtures("uploaded")
def test_a_rotten_original_is_copied_and_never_believed(run, context: Context, line: Line):
    """Wrong bytes are found when the copy is read: it is removed, and the original is named and on record."""
    overwrite(context, "near")
    line.proxy.requests.clear()
    with pytest.raises(NoGoodSource, match=r"near: .*SHA-256"):
        run(replicate, TO_FAR)
    assert len(line.copies) == 1
    assert not there(context, "far")
    assert (state(context, "near").state, state(context, "far").state) == ("corrupt", "writing")


@pytest.mark.usefixtures("uploaded")
def test_after_a_rotten_original_the_next_is_tried(run, context: Context, line: Line):
    """When the provider's own original has rotted, the copy comes from another store."""
    run(replicate, ReplicateRequest(**PLACE, to=("disk",)))
    run(verify, VerifyRequest(**PLACE, stores=("near",)))  # so that it is asked first
    overwrite(context, "near")
    line.proxy.requests.clear()

    result = run(replicate, TO_FAR)

    assert (len(line.copies), result.copies[0].source) == (1, "disk")
    assert content(context, "far") == CONTENT
    assert state(context, "near").state == "corrupt"


@pytest.mark.usefixtures("uploaded")
def test_it_can_be_switched_off(run, context: Context, line: Line):
    """Without `replication.server_side` the bytes pass through us, hashed on the way."""
    off = ReplicationSettings(server_side=False)
    streaming = dataclasses.replace(context, settings=context.settings.model_copy(update={"replication": off}))
    run(replicate, TO_FAR, context=streaming)
    assert "near" in line.downloads
    assert content(context, "far") == CONTENT
    assert state(context, "far").state == "stored"


@pytest.mark.usefixtures("uploaded")
def test_an_existing_object_is_replaced_by_hashed_bytes_only(run, source, context: Context, line: Line):
    """Over an older version nothing is copied that was not hashed: a rotten original leaves the older one as it was."""
    run(replicate, TO_FAR)
    newer = some_bytes(200_000, 2)
    run(upload, UploadRequest(**PLACE, source=source(newer), stores=("near",)))
    overwrite(context, "near")
    line.proxy.requests.clear()
    with pytest.raises(NoGoodSource):
        run(replicate, TO_FAR)
    assert line.copies == []
    assert content(context, "far") == CONTENT


@pytest.mark.usefixtures("uploaded")
def test_a_lost_answer_is_settled(run, context: Context, line: Line):
    """A copy whose answer is lost is recognised by its writer's token, and is no conflict with itself."""
    line.once(Lose())
    assert run(replicate, TO_FAR).copies[0].outcome == "stored"
    assert "near" not in line.downloads
    assert content(context, "far") == CONTENT


@pytest.mark.usefixtures("uploaded")
def test_what_the_provider_does_not_do_we_do(run, context: Context, line: Line):
    """A provider that refuses to copy is no reason to have no replica: the bytes pass through us."""
    refusal = {"s3": b"<Error><Code>NotImplemented</Code></Error>", "gcs": b"{}", "azure": b""}[line.kind]
    copying = {"s3": lambda r: "x-amz-copy-source" in r.headers}.get(line.kind, MAKES[line.kind])
    line.fault = lambda request: Say(403, refusal) if copying(request) else None
    assert run(replicate, TO_FAR).copies[0].outcome == "stored"
    assert "near" in line.downloads
    assert content(context, "far") == CONTENT
    assert list(context.stores["far"].iter_stale_uploads()) == []


@pytest.mark.usefixtures("uploaded")
@pytest.mark.parametrize("rotten", [False, True])
def test_an_unrecorded_copy_is_read_first(run, context: Context, monkeypatch, rotten):
    """After a death between the copy and its reading, the next attempt believes nothing that it has not read."""
    far = context.stores["far"]
    with monkeypatch.context() as dying:
        dying.setattr(far, "verify_object", lambda *_args, **_kwargs: (_ for _ in ()).throw(SystemExit(1)))
        with pytest.raises(SystemExit):
            run(replicate, TO_FAR)
    assert (there(context, "far"), state(context, "far").state) == (True, "writing")
    bad = overwrite(context, "far") if rotten else b""

    [copy] = run(replicate, TO_FAR).copies

    assert content(context, "far") == CONTENT
    assert copy.outcome == ("stored" if rotten else "already_there")
    if rotten:
        bucket, _, key = copy.quarantined.partition("/")
        with far.read_object(bucket, key) as reader:
            assert b"".join(reader) == bad


@pytest.mark.usefixtures("uploaded")
def test_a_job_that_is_cancelled_leaves_no_copy(run, context: Context, monkeypatch):
    """Who cancels a replication while its copy is read finds nothing at the destination."""

    def cancelled(*_args: Any, **_kwargs: Any) -> None:
        raise Cancelled("job was cancelled")

    monkeypatch.setattr(context.stores["far"], "verify_object", cancelled)
    with pytest.raises(Cancelled):
        run(replicate, TO_FAR)
    assert not there(context, "far")


@pytest.mark.usefixtures("uploaded")
def test_between_two_endpoints_the_bytes_pass_through_us(run, context: Context, line: Line, request, source_root):
    """Two ways to one server are two providers for us: when in doubt, the bytes are read and written."""
    with FaultyProxy(port_of(request, line.kind), lambda _: None) as other:
        elsewhere = line.configs(request, other.endpoint)["far"]
        stores = context.settings.stores | {"far": elsewhere}
        apart = Context.open(context.settings.model_copy(update={"stores": stores}))
        run(replicate, TO_FAR, context=apart)
        assert (line.copies, line.downloads) == ([], ["near"])
        assert content(apart, "far") == CONTENT
        apart.close()


@pytest.mark.parametrize("line", ["s3"], indirect=True)
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.usefixtures("uploaded")
def test_the_upload_of_a_copy_that_was_killed_is_known_to_be_ours(run, context: Context, line: Line, again):
    """A multipart upload that a killed copy has begun is taken up by the next attempt, or removed by cleanup."""
    dead: list[bool] = []

    def die(request: Request) -> Fault:
        if "x-amz-copy-source" in request.headers:
            dead.append(True)
        return Say(403, b"<Error><Code>AccessDenied</Code></Error>") if dead else None

    line.fault = die
    with pytest.raises(StorageError):
        run(replicate, TO_FAR)
    line.fault = lambda _: None
    [left] = context.stores["far"].iter_stale_uploads()
    assert not left.ours  # as far as the store can tell
    if again:
        assert run(replicate, TO_FAR).copies[0].outcome == "stored"
        assert len(line.copies) == 1
    else:
        result = clean_up(run, context)
        assert (result.removed["far"], result.foreign) == (1, {})
    assert list(context.stores["far"].iter_stale_uploads()) == []


@pytest.mark.parametrize("line", ["s3"], indirect=True)
@pytest.mark.usefixtures("uploaded")
def test_a_copy_that_was_made_after_its_artifact_was_deleted_goes(run, context: Context, line: Line, monkeypatch):
    """The worker was frozen in the last request; another one ended its job, and the artifact was deleted meanwhile."""
    uptime, lease = clock.uptime, context.settings.jobs.lease

    def freeze(request: Request) -> Fault:
        if MAKES["s3"](request) and not line.copies[1:]:
            end_and_delete(context, "far", **PLACE)
            monkeypatch.setattr(clock, "uptime", lambda: uptime() + 2 * lease.total_seconds())
        return None

    line.fault = freeze
    with pytest.raises(LostLease):
        run(replicate, TO_FAR)
    assert there(context, "far")
    assert clean_up(run, context).removed["far"] == 1
    assert not there(context, "far")


@pytest.mark.parametrize("line", ["gcs"], indirect=True)
@pytest.mark.usefixtures("uploaded")
def test_a_rewrite_goes_on_with_its_token(run, context: Context, line: Line):
    """A copy that Cloud Storage does in parts continues with the token that it gave."""
    unfinished = {"done": False, "rewriteToken": "so-far", "totalBytesRewritten": "1", "objectSize": "200000"}
    line.once(Say(200, json.dumps(unfinished).encode()))
    run(replicate, TO_FAR)
    assert ["rewriteToken=so-far" in request.path for request in line.copies] == [False, True]
    assert content(context, "far") == CONTENT


def telling(status: str, times: int) -> Callable[[Request], Fault]:
    """Return what answers so many questions for the copy as Azure does while, or after, it has this status."""
    metadata: dict[str, str] = {}
    left = [None] * times

    def decide(request: Request) -> Fault:
        if "x-ms-copy-source" in request.headers:
            metadata.update({name: value for name, value in request.headers.items() if name.startswith("x-ms-meta-")})
        if not metadata or request.method != "HEAD" or "/far-" not in request.path or not left:
            return None
        left.pop()
        facts = {"ETag": '"0x1"', "Last-Modified": "Sun, 22 Nov 2026 14:00:00 GMT", "x-ms-blob-type": "BlockBlob"}
        return Say(200, b"", facts | metadata | {"x-ms-copy-id": "copy", "x-ms-copy-status": status})

    return decide


@pytest.mark.parametrize("line", ["azure"], indirect=True)
@pytest.mark.usefixtures("uploaded")
def test_a_copy_that_is_pending_is_waited_for(run, context: Context, line: Line, monkeypatch):
    """A copy that Azure has only begun is asked after until it has succeeded, and only then read and recorded."""
    monkeypatch.setattr(azure_copy, "COPY_POLL", 0.0)
    line.fault = telling("pending", 3)
    run(replicate, TO_FAR)
    asked = [request.method for request in line.proxy.requests if "/far-" in request.path and "app%20" in request.path]
    assert asked == ["HEAD", "PUT", "HEAD", "HEAD", "HEAD", "HEAD", "GET"]
    assert state(context, "far").state == "verified"


@pytest.mark.parametrize("line", ["azure"], indirect=True)
@pytest.mark.parametrize("status", ["failed", "aborted"])
@pytest.mark.usefixtures("uploaded")
def test_a_copy_that_failed_is_none(context: Context, line: Line, status):
    """A copy that Azure gives up is an error, and what is there of it is deleted in the version that was seen."""
    line.fault = telling(status, 1)
    artifact = context.catalogue.artifact(**PLACE)
    with pytest.raises(Unavailable, match=f"the copy is {status}"):
        context.stores["far"].copy_object(context.stores["near"], *PLACE.values(), artifact.digest)
    [deletion] = [request for request in line.proxy.requests if request.method == "DELETE"]
    assert deletion.headers["If-Match"] == '"0x1"'


@pytest.mark.parametrize("line", ["azure"], indirect=True)
def test_a_flipped_bit_in_the_providers_own_file_is_found(run, source, context: Context, azurite):
    """Rot that changes neither version nor metadata travels with the provider's copy, and is found by reading it."""
    rare = some_bytes(100_000, 3)
    run(upload, UploadRequest(**PLACE, source=source(rare), stores=("near",)))
    files = [path for path in (azurite.directory / "data" / "__blobstorage__").iterdir() if path.is_file()]
    [(path, at)] = [(path, at) for path in files if (at := path.read_bytes().find(rare)) >= 0]
    with path.open("r+b") as file:
        file.seek(at + 1000)
        file.write(bytes([rare[1000] ^ 1]))
    with pytest.raises(NoGoodSource, match=r"near: .*SHA-256"):
        run(replicate, TO_FAR)
    assert not there(context, "far")
    assert state(context, "near").state == "corrupt"


@pytest.mark.parametrize("line", ["s3"], indirect=True)
def test_a_store_that_copies_nothing_is_found_out(run, source, context: Context, rclone):
    """A store that answers that it has copied, and stores 0 bytes, gets the bytes from us instead."""
    stores: dict[str, StoreConfig] = {}
    for name in ("near", "far"):
        real = f"{name}-{uuid.uuid4().hex[:8]}"
        targets.make_s3_bucket(rclone, real)
        stores[name] = targets.s3_config(rclone, bucket=real, conditional_writes=True)  # which is not true
    lying = Context.open(context.settings.model_copy(update={"stores": stores}))
    run(upload, UploadRequest(**PLACE, source=source(CONTENT), stores=("near",)), context=lying)
    made = lying.stores["far"].copy_object
    refused = list[Any]()

    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            return made(*args, **kwargs)
        except Exception as error:
            refused.append(error.args[0])
            assert not there(lying, "far")
            raise

    lying.stores["far"].copy_object = watched  # type: ignore[method-assign]
    run(replicate, TO_FAR, context=lying)
    assert ["the store copied 0 bytes of 200000" in message for message in refused] == [True]
    assert content(lying, "far") == CONTENT
    lying.close()
