"""The in-memory client has the methods of the real one and the semantics of the worker."""

import asyncio
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zot_artifact_client import (
    ArtifactClient,
    AsyncArtifactClient,
    IdempotencyMismatch,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobState,
    Progress,
    UnknownJob,
    WaitTimeout,
)
from zot_artifact_client.contract import VERIFY
from zot_artifact_client.job import ResultBackend
from zot_artifact_client.query_messages import read_answer
from zot_artifact_client.result_backend import CeleryResultBackend
from zot_artifact_client.snapshot import Snapshot
from zot_artifact_client.testing import AsyncInMemoryArtifactClient, InMemoryArtifactClient, InMemoryJobs

APP = b"the bytes of app.tgz"


@pytest.fixture
def client() -> InMemoryArtifactClient:
    return InMemoryArtifactClient(sources={"/in/app.tgz": APP, "/in/other.tgz": b"other bytes"})


@pytest.fixture
def uploaded(client: InMemoryArtifactClient) -> InMemoryArtifactClient:
    client.upload("/in/app.tgz", "releases", "app.tgz").wait()
    return client


def verdicts(client: InMemoryArtifactClient) -> dict[str, str]:
    return {copy.store: copy.verdict for copy in client.verify("releases", "app.tgz").wait().copies}


def surface(of: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(of, callable)
        if not name.startswith("_") or name in {"__enter__", "__exit__"}
    }


def test_it_has_the_surface_of_the_client() -> None:
    """Every public method of the client is there with the same signature, and its jobs keep the same promises."""
    for client, in_memory in (
        (ArtifactClient, InMemoryArtifactClient),
        (AsyncArtifactClient, AsyncInMemoryArtifactClient),
    ):
        real, twin = surface(client), surface(in_memory)
        assert {name: twin.get(name) for name in real} == real
    missing = surface(ArtifactClient).keys() - surface(AsyncArtifactClient).keys()
    assert missing == {"open", "__enter__", "__exit__"}  # it has `read`
    results = surface(ResultBackend)
    for kept in (CeleryResultBackend, InMemoryJobs):
        assert {name: surface(kept).get(name) for name in results} == results


def test_an_upload_goes_to_all_stores(client: InMemoryArtifactClient) -> None:
    """An upload that names no store puts the bytes into each, and says so with digest, size and version."""
    job = client.upload("/in/app.tgz", "releases", "app.tgz", sha256=hashlib.sha256(APP).hexdigest())
    result = job.wait(0)
    assert (result.version, result.size, result.sha256) == (1, len(APP), hashlib.sha256(APP).hexdigest())
    assert [(copy.store, copy.outcome) for copy in result.copies] == [("primary", "stored"), ("dr", "stored")]
    assert client.content("releases", "app.tgz", "dr") == APP
    assert (job.state, job.result, job.progress) == (JobState.SUCCEEDED, result, None)


def test_a_source_may_be_a_file(client: InMemoryArtifactClient, tmp_path: Path) -> None:
    """A source that was not given as bytes is read from this machine."""
    (tmp_path / "f").write_bytes(b"on disk")
    assert client.upload(tmp_path / "f", "releases", "f").wait().size == 7


def test_the_same_bytes_again_change_nothing(uploaded: InMemoryArtifactClient) -> None:
    """The same bytes are the same version, unchanged; other bytes are the next version."""
    again = uploaded.upload("/in/app.tgz", "releases", "app.tgz").wait()
    other = uploaded.upload("/in/other.tgz", "releases", "app.tgz").wait()
    assert (again.version, again.unchanged) == (1, True)
    assert (other.version, other.unchanged) == (2, False)
    assert verdicts(uploaded) == {"primary": "verified", "dr": "verified"}


@pytest.mark.parametrize(
    ("send", "kind"),
    [
        (lambda c: c.upload("/in/app.tgz", "releases", "app.tgz", sha256="0" * 64), "DigestMismatch"),
        (lambda c: c.upload("/in/nowhere", "releases", "new"), "NotFound"),
        (lambda c: c.upload("/in/app.tgz", "releases", "new", stores="tape"), "UnknownStore"),
        (lambda c: c.upload("/in/app.tgz", "releases", "new", storage_classes={"tape": "COLD"}), "UnknownStore"),
        (lambda c: c.replicate("releases", "nothing", to="dr"), "NotFound"),
        (lambda c: c.verify("releases", "nothing"), "NotFound"),
        (lambda c: c.verify("releases", "app.tgz", version=7), "NotFound"),
        (lambda c: c.delete("releases", "app.tgz", stores=["primary", "dr"]), "LastCopy"),
    ],
)
def test_what_the_worker_refuses_fails(
    uploaded: InMemoryArtifactClient, send: Callable[[InMemoryArtifactClient], Any], kind: str
) -> None:
    """A job that the worker would fail is sent, fails with its type, and changes nothing."""
    job = send(uploaded)
    with pytest.raises(JobFailed) as caught:
        job.wait()
    assert caught.value.type == kind
    assert job.state is JobState.FAILED
    assert verdicts(uploaded) == {"primary": "verified", "dr": "verified"}


def test_rot_is_found_and_repaired(uploaded: InMemoryArtifactClient) -> None:
    """A flipped bit is corrupt, a lost copy is missing, and replication repairs both from the copy that is right."""
    uploaded.corrupt("releases", "app.tgz", "dr")
    assert verdicts(uploaded) == {"primary": "verified", "dr": "corrupt"}
    repaired = uploaded.replicate("releases", "app.tgz", to="dr").wait()
    assert [(copy.outcome, copy.source) for copy in repaired.copies] == [("repaired", "primary")]
    uploaded.lose("releases", "app.tgz", "primary")
    assert verdicts(uploaded) == {"primary": "missing", "dr": "verified"}
    uploaded.replicate("releases", "app.tgz", to="primary").wait()
    assert verdicts(uploaded) == {"primary": "verified", "dr": "verified"}


def test_rot_is_never_copied(uploaded: InMemoryArtifactClient) -> None:
    """With no copy right, replication fails and copies nothing."""
    uploaded.corrupt("releases", "app.tgz", "primary")
    uploaded.lose("releases", "app.tgz", "dr")
    with pytest.raises(JobFailed, match="primary"):
        uploaded.replicate("releases", "app.tgz", to="dr").wait()
    assert uploaded.content("releases", "app.tgz", "dr") is None


def test_the_last_good_copy_stays(uploaded: InMemoryArtifactClient) -> None:
    """A copy beside a rotten one is the last good one: it goes only with `allow_last`, or with all of the artifact."""
    uploaded.corrupt("releases", "app.tgz", "dr")
    with pytest.raises(JobFailed, match="allow_last"):
        uploaded.delete("releases", "app.tgz", stores="primary").wait()
    assert uploaded.content("releases", "app.tgz", "primary") == APP
    gone = uploaded.delete("releases", "app.tgz", stores="primary", allow_last=True).wait()
    assert (gone.everywhere, gone.unchanged) == (False, False)
    assert uploaded.delete("releases", "app.tgz").wait().everywhere
    again = uploaded.delete("releases", "app.tgz", stores="dr").wait()
    assert [(copy.store, copy.outcome) for copy in again.copies] == [("dr", "already_gone")]
    assert again.unchanged


def test_a_key_is_done_once(client: InMemoryArtifactClient) -> None:
    """Sent twice under one idempotency key, a request is done and recorded once."""
    first = client.upload("/in/app.tgz", "releases", "app.tgz", idempotency_key="build-17")
    assert client.upload("/in/app.tgz", "releases", "app.tgz", idempotency_key="build-17") == first
    assert [request.payload() for request in client.submitted] == [
        {"bucket": "releases", "key": "app.tgz", "source": "/in/app.tgz"}
    ]
    assert client.job(first.id, "upload").wait() == first.wait()


def test_a_test_decides_how_a_job_ends(client: InMemoryArtifactClient) -> None:
    """The next job ends as the test says, and only that one."""
    client.fail_next(JobFailed("dr did not answer", "Unavailable", "dead", 5))
    job = client.upload("/in/app.tgz", "releases", "app.tgz")
    assert job.state is JobState.DEAD
    with pytest.raises(JobFailed, match="dr did not answer"):
        job.result  # noqa: B018 - asking is the test
    assert client.upload("/in/app.tgz", "releases", "app.tgz").wait().version == 1


def test_a_paused_worker_leaves_jobs_queued(client: InMemoryArtifactClient) -> None:
    """While it is paused, jobs wait, can be waited for in vain, and can be cancelled; resuming does the others."""
    client.paused = True
    kept = client.upload("/in/app.tgz", "releases", "app.tgz")
    dropped = client.upload("/in/other.tgz", "releases", "other.tgz")
    assert (kept.state, kept.result) == (JobState.QUEUED, None)
    with pytest.raises(WaitTimeout):
        kept.wait(0.01)
    dropped.cancel()
    client.resume()
    assert kept.wait().version == 1
    with pytest.raises(JobCancelled):
        dropped.wait()
    assert client.content("releases", "other.tgz", "dr") is None


def test_a_sweep_counts_what_it_would_read(uploaded: InMemoryArtifactClient) -> None:
    """A sweep claims the copies of the store named, or of all."""
    assert uploaded.sweep_verify().wait().claimed == {"primary": 1, "dr": 1}
    assert uploaded.sweep_verify("dr").wait().claimed == {"dr": 1}


def test_what_another_program_wrote_is_adopted(client: InMemoryArtifactClient) -> None:
    """An object with its digest becomes an artifact, is known the second time, and others of its bytes are copies."""
    client.put_object("releases", "old", "dr", APP, sha256=hashlib.sha256(APP).hexdigest())
    found = client.adopt("releases", "old", store="dr").wait()
    assert (found.version, found.evidence, found.unchanged) == (1, "sha256 kept by the store", False)
    assert client.adopt("releases", "old", store="dr").wait().unchanged
    client.put_object("releases", "old", "primary", APP)
    assert client.adopt("releases", "old", store="primary").wait().evidence == "sha256 in the catalogue"
    assert client.verify("releases", "old").wait().good


def test_what_cannot_be_proved_is_not_adopted(uploaded: InMemoryArtifactClient) -> None:
    """Rot, bytes that nothing vouches for, and other bytes than the known ones each fail by name."""
    uploaded.put_object("releases", "rotten", "dr", b"rot", sha256="0" * 64)
    uploaded.put_object("releases", "bare", "dr", b"bare")
    uploaded.put_object("releases", "app.tgz", "dr", b"other")
    for key, error in [("rotten", "DigestMismatch"), ("bare", "Unverifiable"), ("app.tgz", "OtherContent")]:
        with pytest.raises(JobFailed) as failed:
            uploaded.adopt("releases", key, store="dr").wait()
        assert failed.value.type == error
    assert uploaded.adopt("releases", "bare", store="dr", first_read=True).wait().evidence == "first read"


def test_a_batch_does_one_verb_to_many(client: InMemoryArtifactClient) -> None:
    """Every artifact below a prefix is done and counted; what is wrong is named, and fails nothing else."""
    for key in ("v1/a", "v1/b", "v2/a"):
        client.upload("/in/app.tgz", "releases", key)
    client.corrupt("releases", "v1/b", "dr")

    result = client.batch("verify", "releases", "v1/").wait()

    assert (result.objects, result.outcomes, result.good) == (2, {"verified": 1, "corrupt": 1}, False)
    assert result.bytes == 2 * len(APP)
    assert [(each.key, each.outcome) for each in result.failures] == [("v1/b", "corrupt")]
    assert client.batch("replicate", "releases", "v1/", to="dr").wait().outcomes == {"already_there": 1, "repaired": 1}
    assert client.batch("delete", "releases", everything=True).wait().outcomes == {"deleted": 3}
    assert client.batch("delete", "releases", "v1/").wait().objects == 0
    with pytest.raises(JobFailed, match="no artifact there"):
        client.batch("verify", "releases").wait()


def test_a_batch_adopts_what_a_store_has(client: InMemoryArtifactClient, tmp_path: Path) -> None:
    """Each object has the outcome of a single adoption; a failure has the type of its error."""
    client.put_object("releases", "v1/a", "dr", b"a", sha256=hashlib.sha256(b"a").hexdigest())
    client.put_object("releases", "v1/b", "dr", b"b")
    result = client.batch("adopt", "releases", "v1/", stores="dr").wait()
    assert (result.outcomes, result.bytes) == ({"adopted": 1, "Unverifiable": 1}, 2)
    assert [(each.key, each.outcome) for each in result.failures] == [("v1/b", "Unverifiable")]
    listed = tmp_path / "list"
    line = {"bucket": "releases", "key": "v1/b", "sha256": hashlib.sha256(b"b").hexdigest()}
    listed.write_text(f"releases/v1/a\n{json.dumps(line)}\n")
    assert client.batch("adopt", keys_from=listed, stores="dr").wait().outcomes == {"already_there": 1, "adopted": 1}
    with pytest.raises(JobFailed, match="no object below"):
        client.batch("adopt", "releases", "v2/", stores="dr").wait()


def test_a_batch_follows_a_list(client: InMemoryArtifactClient, tmp_path: Path) -> None:
    """What the file names is done; what is not there fails by name, and a line that names nothing refuses the whole."""
    client.upload("/in/app.tgz", "releases", "a")
    listed = tmp_path / "list"
    listed.write_text("releases/a\nreleases/b\n")
    result = client.batch("verify", keys_from=listed).wait()
    assert (result.objects, result.outcomes) == (2, {"verified": 1, "failed": 1})
    assert "no artifact releases/b" in result.failures[0].message
    listed.write_text("releases/a\nb\n")
    with pytest.raises(JobFailed, match="line 2"):
        client.batch("delete", keys_from=listed).wait()
    assert client.verify("releases", "a").wait().good


def test_a_key_names_one_request(client: InMemoryArtifactClient) -> None:
    """Another request under the same key is an error, and sends nothing; services have keys of their own."""
    first = client.verify("b", "k", idempotency_key="x")
    with pytest.raises(IdempotencyMismatch, match=first.id):
        client.verify("b", "other", idempotency_key="x")
    assert client.verify("b", "k", idempotency_key="x") == first
    assert len(client.submitted) == 1
    assert InMemoryArtifactClient(service="billing").verify("b", "k", idempotency_key="x").id != first.id


def test_an_unknown_job_is_no_queued_one(client: InMemoryArtifactClient) -> None:
    """An id that is wrong has a state of its own; waiting for it and cancelling it are errors."""
    job = client.job("00000000-0000-4000-8000-000000000000", "verify")
    assert job.state is JobState.UNKNOWN
    for act in (job.wait, job.cancel, lambda: job.result):
        with pytest.raises(UnknownJob, match=job.id):
            act()


def test_only_a_batch_sends_under_ids_of_its_own_jobs(client: InMemoryArtifactClient) -> None:
    """An id of the form of a batch's job is refused, so that no stranger can fail a batch."""
    with pytest.raises(InvalidRequest, match="batch"):
        client.submit(VERIFY, VERIFY.request(bucket="b", key="k"), job_id="batch.00000003")


def test_an_older_worker_answers_no_query(monkeypatch: pytest.MonkeyPatch, client: InMemoryArtifactClient) -> None:
    """With a worker that knows no queries, the status of an unknown job is `unknown`, and `show` says why it fails."""

    def refused(*_: Any, **__: Any) -> Snapshot:
        error = JobFailed("no task is named 'artifact.show.v1'", "UnknownTask", JobState.REFUSED.value, 0)
        return Snapshot(JobState.REFUSED, error=error)

    def query(spec: Any, request: Any, *, timeout: float = 1) -> Any:
        return read_answer(spec, refused(), timeout)

    monkeypatch.setattr(client, "query", query)
    assert client.status("no-such-job").state is JobState.UNKNOWN
    with pytest.raises(JobFailed, match="no task is named"):
        client.show("releases", "app.tgz")


def test_what_on_progress_raises_ends_the_call(tmp_path: Path) -> None:
    """The asynchronous client calls it in the event loop, and raises what it raised."""
    (tmp_path / "f").write_bytes(b"x")

    def stop(_: Progress) -> None:
        raise KeyError("stop")

    async def run() -> None:
        client = AsyncInMemoryArtifactClient()
        with pytest.raises(KeyError, match="stop"):
            await client.upload_file(tmp_path / "f", "releases", "f", on_progress=stop)
        await client.upload_file(tmp_path / "f", "releases", "f")
        with pytest.raises(KeyError, match="stop"):
            await client.get("releases", "f", tmp_path / "got", on_progress=stop)

    asyncio.run(run())


def test_an_argument_that_no_upload_has_is_refused(client: InMemoryArtifactClient, tmp_path: Path) -> None:
    """A misspelt argument raises TypeError, and nothing is sent."""
    (tmp_path / "f").write_bytes(b"x")
    misspelt: dict[str, Any] = {"store": "dr"}
    real = ArtifactClient(gateway="http://127.0.0.1:1", token="t")
    for upload in (client.upload, client.upload_file, real.upload, real.upload_file):
        with pytest.raises(TypeError, match="'store'"):
            upload(tmp_path / "f", "releases", "f", **misspelt)
    assert client.submitted == []
