"""One suite for every client: the in-memory one for tests of services, and the real one with a real worker."""

import asyncio
import hashlib
import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery

from tests.servers import Valkey
from tests.servers.gateway import GatewayProcess
from tests.servers.worker import Worker
from tests.waiting import WITHIN
from worker import clock
from worker.catalogue import Catalogue
from worker.gateway.access import TokenVerb, new_token
from zot_artifact_client import (
    ArtifactChanged,
    ArtifactClient,
    ArtifactNotFound,
    AsyncArtifactClient,
    AsyncJob,
    AsyncJobs,
    ClientError,
    IdempotencyMismatch,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobState,
    NoGoodCopy,
    UnknownJob,
    WaitTimeout,
)
from zot_artifact_client.contract import QUERY_SHOW, VERIFY, UploadRequest, VerifyRequest
from zot_artifact_client.testing import AsyncInMemoryArtifactClient, InMemoryArtifactClient

BYTES = b"release one"
SHA256 = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture(scope="module")
def incoming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("incoming")


@pytest.fixture(scope="module")
def broker(valkey: Valkey) -> str:
    return valkey.url


@pytest.fixture(scope="module")
def worker(broker: str, incoming: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    settings = {"sources__roots": json.dumps([str(incoming)])}
    with Worker(tmp_path_factory.mktemp("worker"), broker, **settings) as running:
        yield running


class Side(SimpleNamespace):
    """A client, and what a test does to its stores as a failing disk or another program does."""

    client: Any
    bucket: str


class Blocking:
    """An asynchronous client, job or handle as a synchronous one: each coroutine is run to its end."""

    def __init__(self, of: Any, run: Callable[[Any], Any]) -> None:
        self.of = of
        self._run = run

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.of, name)
        return (lambda *args, **fields: self._unwrapped(found(*args, **fields))) if callable(found) else found

    def __iter__(self) -> Iterator[Any]:
        return iter([self._unwrapped(each) for each in self.of])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocking) and self.of == other.of

    __hash__ = None

    def _unwrapped(self, value: Any) -> Any:
        if inspect.isasyncgen(value):
            value = collected(value)
        if inspect.iscoroutine(value):
            value = self._run(value)
        return Blocking(value, self._run) if isinstance(value, AsyncJob | AsyncJobs) else value


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(scope="module")
def over_gateway(worker: Worker, broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return what a service is given that reaches the gateway alone: its URL and a token."""
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), worker.home, broker) as gateway:
        catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
        record, text = new_token("service", ["*"], list(TokenVerb), now=clock.now(), expires_at=None)
        assert catalogue.access_tokens.add(record)
        catalogue.close()
        yield {"gateway": gateway.url, "token": text}


OVER_BROKER = ["twin", "real", "async twin", "async real"]


@pytest.fixture(params=[*OVER_BROKER, "gateway", "async gateway"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    bucket = f"b-{uuid4().hex[:8]}"
    if request.param == "twin":
        twin = InMemoryArtifactClient()
        yield Side(client=twin, bucket=bucket, corrupt=twin.corrupt, lose=twin.lose, put=twin.put_object)
        return
    if request.param == "async twin":
        memory = (asynchronous := AsyncInMemoryArtifactClient()).memory
        with asyncio.Runner() as runner:
            client = Blocking(asynchronous, runner.run)
            yield Side(client=client, bucket=bucket, corrupt=memory.corrupt, lose=memory.lose, put=memory.put_object)
        return
    worker, broker = request.getfixturevalue("worker"), request.getfixturevalue("broker")

    def path(bucket: str, key: str, store: str) -> Path:
        return worker.home / "stores" / store / bucket / key

    def corrupt(bucket: str, key: str, store: str) -> None:
        body = path(bucket, key, store).read_bytes()
        path(bucket, key, store).write_bytes(bytes([body[0] ^ 1]) + body[1:])

    def put(bucket: str, key: str, store: str, body: bytes, *, sha256: str | None = None) -> None:
        path(bucket, key, store).parent.mkdir(parents=True, exist_ok=True)
        path(bucket, key, store).write_bytes(body)
        if sha256 is not None:
            path(bucket, f"{key}.sha256", store).write_text(sha256)

    done = {"bucket": bucket, "corrupt": corrupt, "lose": lambda *at: path(*at).unlink(), "put": put}
    way = request.getfixturevalue("over_gateway") if "gateway" in request.param else {"broker_url": broker}
    if request.param.startswith("async"):
        with asyncio.Runner() as runner:
            client = Blocking(AsyncArtifactClient(**way), runner.run)
            yield Side(client=client, **done)
            client.close()
        return
    with ArtifactClient(**way) as real:
        yield Side(client=real, **done)


@pytest.fixture
def source(incoming: Path) -> str:
    (incoming / "app.tgz").write_bytes(BYTES)
    return str(incoming / "app.tgz")


@pytest.fixture
def uploaded(side: Side, source: str) -> Any:
    return side.client.upload(source, side.bucket, "app.tgz", metadata={"by": "ci"}).wait(WITHIN)


def test_an_upload_is_shown_and_listed(side: Side, uploaded: Any, source: str) -> None:
    """What an upload recorded is what `show` and `list` return: version, digest, metadata and copies."""
    shown = side.client.show(side.bucket, "app.tgz")
    assert (shown.version, shown.size, shown.sha256) == (uploaded.version, len(BYTES), SHA256)
    assert shown.metadata == {"by": "ci"}
    assert [(copy.store, copy.state) for copy in shown.copies] == [("dr", "stored"), ("primary", "stored")]
    side.client.upload(source, side.bucket, "app-2.tgz").wait(WITHIN)
    first = side.client.list(side.bucket, "app", limit=1)
    assert [(each.key, each.sha256) for each in first.artifacts] == [("app-2.tgz", SHA256)]
    rest = side.client.list(side.bucket, "app", after=first.next)
    assert ([each.key for each in rest.artifacts], rest.next) == (["app.tgz"], None)
    assert side.client.list(side.bucket, "nothing").artifacts == ()


def test_a_verdict_is_shown(side: Side, uploaded: Any) -> None:
    """After a verification each copy has the state of its verdict, and the time of its last good read."""
    side.corrupt(side.bucket, "app.tgz", "dr")
    result = side.client.verify(side.bucket, "app.tgz").wait(WITHIN)
    assert not result.good
    assert {copy.store: copy.verdict for copy in result.copies} == {"dr": "corrupt", "primary": "verified"}
    copies = {copy.store: copy for copy in side.client.show(side.bucket, "app.tgz").copies}
    assert {name: copy.state for name, copy in copies.items()} == {"dr": "corrupt", "primary": "verified"}
    assert copies["primary"].last_verified_at is not None
    assert (copies["dr"].last_verified_at, copies["dr"].last_attempt_at is None) == (None, False)


def test_what_is_not_there(side: Side, uploaded: Any) -> None:
    """An absent artifact is ArtifactNotFound for `show`, and a failed job for `verify`, both naming it."""
    with pytest.raises(ArtifactNotFound, match=f"{side.bucket}/absent"):
        side.client.show(side.bucket, "absent")
    with pytest.raises(JobFailed, match=f"{side.bucket}/absent") as failed:
        side.client.verify(side.bucket, "absent").wait(WITHIN)
    assert (failed.value.type, failed.value.state) == ("NotFound", "failed")
    with pytest.raises(JobFailed, match=f"{side.bucket}/absent") as failed:
        side.client.delete(side.bucket, "absent").wait(WITHIN)
    assert failed.value.type == "NotFound"
    side.client.delete(side.bucket, "app.tgz", stores="dr").wait(WITHIN)
    with pytest.raises(JobFailed, match="has no copy in 'dr'") as failed:
        side.client.verify(side.bucket, "app.tgz", stores="dr").wait(WITHIN)
    assert failed.value.type == "NotFound"


def test_a_deleted_artifact_is_not_there(side: Side, uploaded: Any, source: str) -> None:
    """Deleting it again changes nothing, and the same bytes are another version."""
    assert not side.client.delete(side.bucket, "app.tgz").wait(WITHIN).unchanged
    with pytest.raises(ArtifactNotFound):
        side.client.show(side.bucket, "app.tgz")
    assert side.client.delete(side.bucket, "app.tgz").wait(WITHIN).unchanged
    assert side.client.upload(source, side.bucket, "app.tgz").wait(WITHIN).version == 2


def test_a_key_that_no_store_can_have_is_refused(side: Side, source: str) -> None:
    """An upload to it fails, or is refused by the gateway, with the rule; no other request fails."""
    for bucket, key, rule in ((side.bucket, "../x", "path segments"), ("zot-uploads", "x", "reserved")):
        with pytest.raises((JobFailed, InvalidRequest), match=rule):
            side.client.upload(source, bucket, key).wait(WITHIN)
    with pytest.raises(JobFailed) as failed:
        side.client.upload("app.tgz", side.bucket, "x").wait(WITHIN)
    assert failed.value.type == "SourceRefused"


def test_a_lost_copy_is_replicated_again(side: Side, uploaded: Any) -> None:
    """A copy that is lost is missing, and a replication repairs it from the other one."""
    side.lose(side.bucket, "app.tgz", "dr")
    assert side.client.verify(side.bucket, "app.tgz", stores="dr").wait(WITHIN).copies[0].verdict == "missing"
    repaired = side.client.replicate(side.bucket, "app.tgz", to="dr").wait(WITHIN)
    assert [(copy.store, copy.outcome, copy.source) for copy in repaired.copies] == [("dr", "repaired", "primary")]
    assert side.client.verify(side.bucket, "app.tgz").wait(WITHIN).good


def test_the_same_upload_again(side: Side, uploaded: Any, source: str) -> None:
    """The same bytes and metadata are no new version, other metadata are one, and what is not named is kept."""
    again = side.client.upload(source, side.bucket, "app.tgz").wait(WITHIN)
    assert (again.version, again.unchanged) == (1, True)
    other = side.client.upload(source, side.bucket, "app.tgz", metadata={"by": "hand"}).wait(WITHIN)
    assert other.version == 2
    assert side.client.show(side.bucket, "app.tgz").metadata == {"by": "hand"}


def test_a_wrong_digest_changes_nothing(side: Side, source: str) -> None:
    """An upload whose bytes have another digest fails, and there is no artifact after it."""
    with pytest.raises(JobFailed) as failed:
        side.client.upload(source, side.bucket, "app.tgz", sha256="0" * 64).wait(WITHIN)
    assert failed.value.type == "DigestMismatch"
    with pytest.raises(ArtifactNotFound):
        side.client.show(side.bucket, "app.tgz")


def test_the_last_good_copy_stays(side: Side, uploaded: Any) -> None:
    """A delete that would leave no good copy fails; one that may, leaves the artifact without copies, which is bad."""
    side.client.delete(side.bucket, "app.tgz", stores="dr").wait(WITHIN)
    with pytest.raises(JobFailed) as failed:
        side.client.delete(side.bucket, "app.tgz", stores="primary").wait(WITHIN)
    assert failed.value.type == "LastCopy"
    assert [copy.store for copy in side.client.show(side.bucket, "app.tgz").copies] == ["primary"]
    side.client.delete(side.bucket, "app.tgz", stores="primary", allow_last=True).wait(WITHIN)
    assert side.client.show(side.bucket, "app.tgz").copies == ()
    verified = side.client.verify(side.bucket, "app.tgz").wait(WITHIN)
    assert (verified.copies, verified.good) == ((), False)
    assert side.client.batch("verify", side.bucket).wait(WITHIN).outcomes == {"missing": 1}


def test_a_companion_is_named_shown_and_deleted_with_its_artifact(side: Side, uploaded: Any, incoming: Path) -> None:
    """Each of both names the other, and a delete names what it took along; there is no companion of nothing."""
    file = incoming / f"{side.bucket}.json"
    file.write_bytes(b"{}")
    side.client.upload(file, side.bucket, "sboms/app.json", companion_of="app.tgz").wait(WITHIN)
    assert side.client.show(side.bucket, "app.tgz").companions == ("sboms/app.json",)
    assert side.client.show(side.bucket, "sboms/app.json").companion_of == "app.tgz"
    with pytest.raises(JobFailed) as failed:
        side.client.upload(file, side.bucket, "other.json", companion_of="gone").wait(WITHIN)
    assert failed.value.type == "NotFound"
    assert side.client.delete(side.bucket, "app.tgz").wait(WITHIN).companions == ("sboms/app.json",)


def test_a_signature_of_an_attestation_belongs_to_the_artifact(side: Side, uploaded: Any, incoming: Path) -> None:
    """A key with two suffixes of companions names the artifact, unless that is deleted."""
    file = incoming / f"{side.bucket}.sig"
    file.write_bytes(b"signature")
    side.client.upload(file, side.bucket, "app.tgz.att.sig").wait(WITHIN)
    assert side.client.show(side.bucket, "app.tgz").companions == ("app.tgz.att.sig",)
    assert side.client.show(side.bucket, "app.tgz.att.sig").companion_of == "app.tgz"
    side.client.delete(side.bucket, "app.tgz").wait(WITHIN)
    side.client.upload(file, side.bucket, "app.tgz.att.sig").wait(WITHIN)
    assert side.client.show(side.bucket, "app.tgz.att.sig").companion_of is None


def test_another_programs_object_is_adopted(side: Side) -> None:
    """An object with a digest beside it becomes an artifact; one with a wrong digest does not."""
    side.put(side.bucket, "good", "dr", BYTES, sha256=SHA256)
    side.put(side.bucket, "bad", "dr", BYTES, sha256="0" * 64)
    adopted = side.client.adopt(side.bucket, "good", store="dr").wait(WITHIN)
    assert (adopted.evidence, adopted.sha256) == ("sha256 kept by the store", SHA256)
    assert [(copy.store, copy.state) for copy in side.client.show(side.bucket, "good").copies] == [("dr", "verified")]
    with pytest.raises(JobFailed) as failed:
        side.client.adopt(side.bucket, "bad", store="dr").wait(WITHIN)
    assert failed.value.type == "DigestMismatch"
    result = side.client.batch("adopt", side.bucket, stores="dr").wait(WITHIN)
    assert result.outcomes == {"already_there": 1, "DigestMismatch": 1}
    assert [(each.key, each.outcome) for each in result.failures] == [("bad", "DigestMismatch")]


@pytest.mark.parametrize("side", OVER_BROKER, indirect=True)  # a directory of the worker is not for the gateway
def test_a_directory_is_one_handle(side: Side, incoming: Path) -> None:
    """A directory is uploaded by one job, whose result counts its files; the keys are their paths below the prefix."""
    top = incoming / uuid4().hex
    (top / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", "c.tmp"):
        (top / name).write_bytes(name.encode())
    result = side.client.upload_dir(top, side.bucket, "2026", exclude=["*.tmp"]).wait(WITHIN)
    assert (result.good, result.objects, result.outcomes) == (True, 2, {"stored": 2})
    assert [each.key for each in side.client.list(side.bucket).artifacts] == ["2026/a", "2026/sub/b"]
    verified = side.client.batch("verify", side.bucket).wait(WITHIN)
    assert verified.outcomes == {"verified": 2}


@pytest.mark.parametrize("side", OVER_BROKER, indirect=True)
def test_a_dry_run_of_a_directory_uploads_nothing(side: Side, incoming: Path) -> None:
    """It counts what the patterns select, and names what would be refused."""
    top = incoming / uuid4().hex
    (top / "sub/deep").mkdir(parents=True)
    for name in ("a.tmp", "sub/b.tmp", "sub/deep/c.tmp", "sub/d"):
        (top / name).write_bytes(name.encode())
    (top / "link").symlink_to("a.tmp")

    def counted(**fields: Any) -> tuple[int, int, dict[str, int], list[str]]:
        found = side.client.upload_dir(top, side.bucket, dry_run=True, **fields).wait(WITHIN)
        return found.objects, found.bytes, found.outcomes, [each.key for each in found.failures]

    assert counted() == (4, 33, {"would_upload": 4}, [])
    assert counted(exclude=["sub/*.tmp"]) == (3, 24, {"would_upload": 3}, [])
    assert counted(include=["**/*.tmp"]) == (3, 28, {"would_upload": 3}, [])
    assert counted(include=["sub"], exclude=["deep"]) == (2, 14, {"would_upload": 2}, [])
    assert counted(include=["link"], symlinks="follow") == (1, 5, {"would_upload": 1}, [])
    assert counted(include=["sub/d"], symlinks="error") == (2, 5, {"would_upload": 1, "failed": 1}, ["link"])
    assert side.client.list(side.bucket).artifacts == ()
    with pytest.raises(JobFailed, match="no file there") as failed:
        counted(include=["none"])
    assert failed.value.type == "NotFound"


WITH_BYTES = ["twin", "async twin", "gateway", "async gateway"]


@pytest.mark.parametrize("side", WITH_BYTES, indirect=True)
def test_a_file_of_the_client_is_sent_and_read(side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path may be relative, its bytes are those of the call, and what is wrong with them is told at once."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(BYTES)
    told: list[Any] = []
    job = side.client.upload_file("file", side.bucket, "k", idempotency_key=side.bucket, on_progress=told.append)
    assert job.wait(WITHIN).sha256 == SHA256
    assert (told[0].step, told[-1].bytes_done, told[-1].bytes_total) == ("hashing", len(BYTES), len(BYTES))
    assert side.client.upload_file("file", side.bucket, "k", idempotency_key=side.bucket).id == job.id
    assert side.client.get(side.bucket, "k", "got", on_progress=told.append).sha256 == SHA256
    assert (Path("got").read_bytes(), told[-1].step, told[-1].bytes_done) == (BYTES, "downloading", len(BYTES))
    Path("file").write_bytes(b"other")
    with pytest.raises(IdempotencyMismatch):
        side.client.upload_file("file", side.bucket, "k", idempotency_key=side.bucket)
    with pytest.raises(JobFailed) as failed:
        side.client.upload_file("file", side.bucket, "k", sha256=SHA256).wait(WITHIN)
    assert failed.value.type == "DigestMismatch"
    with pytest.raises(FileNotFoundError):
        side.client.upload_file("absent", side.bucket, "k")
    with pytest.raises(FileNotFoundError):
        side.client.get(side.bucket, "k", "absent/got")
    with pytest.raises(InvalidRequest, match="path segments"):
        side.client.upload_file("file", side.bucket, "../k")
    with pytest.raises(ArtifactNotFound):
        side.client.get(side.bucket, "absent", "other")
    assert not Path("other").exists()


@pytest.mark.parametrize("side", ["twin", "gateway"], indirect=True)
def test_an_open_file_stays_one_version(side: Side, tmp_path: Path) -> None:
    """It is read from the end too, and after another upload it raises, as it does where no copy is right."""
    (tmp_path / "file").write_bytes(BYTES)
    side.client.upload_file(tmp_path / "file", side.bucket, "k").wait(WITHIN)
    with side.client.open(side.bucket, "k") as file:
        file.seek(-3, 2)
        assert file.read() == BYTES[-3:]
        with pytest.raises(ValueError, match="no place"):
            file.seek(-99, 2)
    earlier = side.client.open(side.bucket, "k")
    (tmp_path / "file").write_bytes(b"other")
    side.client.upload_file(tmp_path / "file", side.bucket, "k").wait(WITHIN)
    with pytest.raises(ArtifactChanged):
        earlier.read()
    for store in ("primary", "dr"):
        side.corrupt(side.bucket, "k", store)
    with side.client.open(side.bucket, "k") as file, pytest.raises(NoGoodCopy):
        file.read()


def test_a_closed_client_says_so(side: Side) -> None:
    """No call is answered after `close`."""
    side.client.close()
    with pytest.raises(ClientError, match="is closed"):
        side.client.show(side.bucket, "app.tgz")
    with pytest.raises(ClientError, match="is closed"):
        side.client.verify(side.bucket, "app.tgz")


def test_many_requests_are_one_handle(side: Side, source: str) -> None:
    """One handle waits for all, tells each end, yields jobs as they end, and gives the results in order."""
    requests = [UploadRequest(source=source, bucket=side.bucket, key=f"{number}") for number in range(5)]
    jobs = side.client.submit_many(requests, idempotency_key=side.bucket)
    told: list[tuple[int, int]] = []
    results = jobs.wait(WITHIN, on_end=lambda done, total: told.append((done, total)))
    assert [result.key for result in results] == ["0", "1", "2", "3", "4"]
    assert told == [(number, 5) for number in range(1, 6)]
    assert {job.id for job in jobs.as_completed(WITHIN)} == {job.id for job in jobs}
    assert side.client.submit_many(requests, idempotency_key=side.bucket) == jobs
    assert jobs.cancel() == 0
    absent = side.client.submit_many([VerifyRequest(bucket=side.bucket, key="absent")])
    with pytest.raises(JobFailed):
        absent.wait(WITHIN)


def test_a_job_by_its_id(side: Side, uploaded: Any, source: str) -> None:
    """Any process gets the state and the typed result of a job from its id; an unknown id is `unknown`."""
    job = side.client.upload(source, side.bucket, "app.tgz", idempotency_key=side.bucket)
    result = job.wait(WITHIN)
    status = side.client.status(job.id)
    assert (status.kind, status.state, status.result, status.error) == ("upload", JobState.SUCCEEDED, result, None)
    assert side.client.upload_job(job.id).wait(WITHIN) == result
    failed = side.client.verify(side.bucket, "absent")
    with pytest.raises(JobFailed):
        side.client.verify_job(failed.id).wait(WITHIN)
    told = side.client.status(failed.id)
    assert (told.state, told.result, str(told.error).partition(":")[0]) == (JobState.FAILED, None, "NotFound")
    assert side.client.status("no-such-job").state is JobState.UNKNOWN
    with pytest.raises(UnknownJob):
        side.client.job("no-such-job").wait(0)


def test_who_waits_for_a_job_whose_result_redis_lost_is_told_the_end_of_the_ledger(
    side: Side, uploaded: Any, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result backend was started empty, for example: a worker is asked before the job counts as unknown."""
    for module in ("result_backend", "async_results"):
        for name, seconds in (("UNKNOWN_FOR", 0.0), ("LEDGER_WITHIN", WITHIN)):
            monkeypatch.setattr(f"zot_artifact_client.{module}.{name}", seconds)
    job = side.client.verify(side.bucket, "app.tgz")
    job.wait(WITHIN)
    with redis.Redis.from_url(broker) as server:
        server.delete(f"celery-task-meta-{job.id}")
    assert job.wait(WITHIN).good


def test_a_job_that_is_lost_ends_the_wait_for_many(side: Side, uploaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis has lost it before a worker recorded it: who waits for it among others is told, and not kept for ever."""
    monkeypatch.setattr("zot_artifact_client.job._STALLED", 0.0)
    jobs = side.client.submit_many([VerifyRequest(bucket=side.bucket, key="app.tgz")])
    lost = side.client.job("no-such-job")
    jobs.append(getattr(lost, "of", lost))
    with pytest.raises(UnknownJob):
        jobs.wait(WITHIN)


def test_a_result_that_has_expired_ends_the_wait_for_many(
    side: Side, uploaded: Any, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the ledger has, as for who waits for that job alone."""
    monkeypatch.setattr("zot_artifact_client.job._STALLED", 0.0)
    jobs = side.client.submit_many([VerifyRequest(bucket=side.bucket, key="app.tgz")])
    [result] = jobs.wait(WITHIN)
    with redis.Redis.from_url(broker) as server:
        server.delete(*(f"celery-task-meta-{job.id}" for job in jobs))
    assert jobs.wait(WITHIN) == [result]
    assert [each.result() if callable(each.result) else each.result for each in jobs] == [result]


def test_a_key_names_one_request(side: Side, uploaded: Any) -> None:
    """The same request under a key is the same job, another request is an error."""
    job = side.client.verify(side.bucket, "app.tgz", idempotency_key=side.bucket)
    assert side.client.verify(side.bucket, "app.tgz", idempotency_key=side.bucket).id == job.id
    with pytest.raises(IdempotencyMismatch, match=job.id):
        side.client.verify(side.bucket, "other", idempotency_key=side.bucket)
    job.wait(WITHIN)


@pytest.mark.parametrize("side", OVER_BROKER, indirect=True)  # the gateway chooses the ids of jobs
def test_an_id_of_the_caller_names_one_request(side: Side, uploaded: Any) -> None:
    """It is compared as the id of an idempotency key is: another request under it is not sent."""
    first = VerifyRequest(bucket=side.bucket, key="app.tgz")
    job = side.client.submit(VERIFY, first, job_id=side.bucket)
    assert side.client.submit(VERIFY, first, job_id=side.bucket).wait(WITHIN).good
    with pytest.raises(IdempotencyMismatch, match=job.id):
        side.client.submit(VERIFY, VerifyRequest(bucket=side.bucket, key="other"), job_id=side.bucket)


@pytest.mark.parametrize("side", OVER_BROKER, indirect=True)  # the gateway gets one request after the other
def test_a_list_that_is_not_sent_takes_no_key(side: Side, uploaded: Any) -> None:
    """One of its requests is another one than before: the keys of those that are new stay free."""
    one, two, three = (VerifyRequest(bucket=side.bucket, key=key) for key in ("app.tgz", "two", "three"))
    side.client.submit_many([one], idempotency_key=side.bucket)
    with pytest.raises(IdempotencyMismatch):
        side.client.submit_many([two, three], idempotency_key=side.bucket)
    assert len(list(side.client.submit_many([one, one], idempotency_key=side.bucket).wait(WITHIN))) == 2


@pytest.mark.parametrize("side", OVER_BROKER, indirect=True)  # the gateway sends valid requests only
def test_the_id_of_a_refused_job_is_free(side: Side, uploaded: Any) -> None:
    """A refused request has done nothing: a corrected one may be sent under its key, and its own end is told."""
    unheard = replace(VERIFY, name="artifact.unheard.v1")
    memory = getattr(side.client, "memory", side.client)
    if isinstance(memory, InMemoryArtifactClient):
        memory.fail_next(JobFailed("no task is named so", "UnknownTask", "refused", 0))
    wrong = VerifyRequest(bucket=side.bucket, key="wrong")
    refused = side.client.submit(unheard, wrong, idempotency_key=side.bucket)
    with pytest.raises(JobFailed) as told:
        refused.wait(WITHIN)
    assert told.value.state == JobState.REFUSED
    corrected = side.client.verify(side.bucket, "app.tgz", idempotency_key=side.bucket)
    assert corrected.id == refused.id
    assert corrected.wait(WITHIN).good


def forget(broker: str, job_id: str) -> None:
    """Remove what Redis keeps of a request and its result, as time does, and a Redis that is lost."""
    with redis.Redis.from_url(broker) as server:
        server.delete(f"zot-artifacts:idempotency:{job_id}", f"celery-task-meta-{job_id}")


@pytest.mark.parametrize("side", ["real", "async real", "gateway", "async gateway"], indirect=True)
def test_a_key_names_one_request_although_redis_has_forgotten_it(
    side: Side, uploaded: Any, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger knows the first request: another one under its key is told so, and the first one stays the job."""
    for module in ("result_backend", "async_results"):
        for name, seconds in (("UNKNOWN_FOR", 0.0), ("LEDGER_WITHIN", WITHIN), ("LISTEN_FOR", 0.2)):
            monkeypatch.setattr(f"zot_artifact_client.{module}.{name}", seconds, raising=False)

    def send(key: str) -> Any:
        return side.client.verify(side.bucket, key, idempotency_key=side.bucket)

    job = send("app.tgz")
    job.wait(WITHIN)
    forget(broker, job.id)
    with pytest.raises(IdempotencyMismatch, match=job.id):
        send("other").wait(WITHIN)
    with pytest.raises(IdempotencyMismatch, match=job.id):
        send("other")  # now at once
    assert send("app.tgz").wait(WITHIN).good
    forget(broker, job.id)
    assert send("app.tgz").wait(WITHIN).good


@pytest.mark.parametrize("side", ["real", "async real"], indirect=True)
def test_a_handle_on_the_job_of_another_request_tells_nothing_of_it(side: Side, uploaded: Any, broker: str) -> None:
    """Neither its state nor its result, whether a worker has stored them or says them; and it cancels nothing."""

    def send(key: str) -> Any:
        return side.client.verify(side.bucket, key, idempotency_key=side.bucket)

    send("app.tgz").wait(WITHIN)
    with redis.Redis.from_url(broker) as server:
        server.delete(f"zot-artifacts:idempotency:{send('app.tgz').id}")
    other = send("other")
    with pytest.raises(IdempotencyMismatch):
        other.cancel()
    for name in ("wait", "result", "state", "progress"):
        with pytest.raises(IdempotencyMismatch):
            (found := getattr(other, name)) and callable(found) and found()
    forget(broker, other.id)
    for timeout in (WITHIN, 0.0):  # at first, the message may still wait for the worker
        with pytest.raises(IdempotencyMismatch):
            other.wait(timeout)


def test_a_bad_request_is_not_sent(side: Side) -> None:
    """A request that breaks the contract is refused in one line that names the field, a query as well."""
    for call in (
        lambda: side.client.upload("/in", "", "k"),
        lambda: side.client.show("", "k"),
        lambda: side.client.list("b", limit=0),
        lambda: side.client.status("no id"),
        lambda: side.client.verify("b", "k", idempotency_key="\ud800"),
        lambda: side.client.upload_dir("/in", "b", include=["[z-a]"]),
    ):
        with pytest.raises(InvalidRequest) as refused:
            call()
        assert "\n" not in str(refused.value)


# What only the real client has.


def test_a_query_leaves_no_history(broker: str, worker: Worker, source: str) -> None:
    """A query has no entry in the outbox and no row in the ledger, and its answer expires within a minute."""
    with ArtifactClient(broker) as client, redis.Redis.from_url(broker) as server:
        before = server.hlen("zot-artifacts:outbox")
        with pytest.raises(ArtifactNotFound):
            client.show("nothing", "here")
        [key] = [name for name in server.scan_iter("celery-task-meta-query-*") if b"nothing/here" in server.get(name)]
        assert 0 < server.ttl(key) <= 60
        assert server.hlen("zot-artifacts:outbox") == before
        assert client.status(key.decode().removeprefix("celery-task-meta-")).kind is None
        assert b"unknown" in worker_answer(broker, key.decode().removeprefix("celery-task-meta-"))


def worker_answer(broker: str, job: str) -> bytes:
    """Ask for the status of a job in the ledger, as a program without this library does."""
    with Celery(broker=broker, backend=broker, set_as_current=False) as app:
        sent = app.send_task(
            "artifact.status.v1", kwargs={"job": job}, task_id=f"query-{uuid4().hex}", queue="interactive"
        )
        return json.dumps(sent.get(timeout=WITHIN)).encode()


def test_a_job_whose_result_has_expired_is_in_the_ledger(broker: str, worker: Worker, source: str) -> None:
    """The status of a job whose result has expired is that of the ledger, with its typed result."""
    with ArtifactClient(broker) as client, redis.Redis.from_url(broker) as server:
        job = client.upload(source, f"b-{uuid4().hex[:8]}", "app.tgz")
        result = job.wait(WITHIN)
        server.delete(f"celery-task-meta-{job.id}")
        status = client.status(job.id)
        assert (status.kind, status.state, status.result) == ("upload", JobState.SUCCEEDED, result)


def test_a_query_that_no_worker_answers_ends_in_time(valkey: Valkey) -> None:
    """Without a worker a query is WaitTimeout, and its message carries the time after which it is dropped."""
    url = valkey.database(1)
    with ArtifactClient(url) as client, redis.Redis.from_url(url) as server:
        started = time.monotonic()
        with pytest.raises(WaitTimeout, match="no worker has answered the show query within 0.3 s"):
            client.show("b", "k", timeout=0.3)
        assert time.monotonic() - started < 60
        message = json.loads(server.rpop(QUERY_SHOW.queue.value))
        assert message["headers"]["expires"] is not None


def test_a_cancelled_job_is_told_by_its_status(valkey: Valkey) -> None:
    """A job that was cancelled in memory ends as cancelled for every way to ask."""
    twin = InMemoryArtifactClient(sources={"/in": b""})
    twin.paused = True
    job = twin.upload("/in", "b", "k")
    assert job.cancel()
    assert twin.status(job.id).state is JobState.CANCELLED
    with pytest.raises(JobCancelled):
        job.wait(0)
