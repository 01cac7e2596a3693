"""The client against a real Valkey and a real worker process that speaks the contract."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from billiard import util
from celery import Celery

from tests.servers import Valkey
from tests.servers.process import REPOSITORY, free_port, freeze, thaw
from tests.waiting import WITHIN
from worker.embedded.parent_death import die_with_parent
from zot_artifact_client import (
    ArtifactClient,
    AsyncArtifactClient,
    AsyncJobs,
    BrokerUnavailable,
    IdempotencyMismatch,
    JobCancelled,
    JobFailed,
    Jobs,
    JobState,
    Progress,
    UnknownJob,
    WaitTimeout,
)
from zot_artifact_client.contract import UPLOAD, VERIFY, Queue, TaskSpec, UploadRequest, UploadResult

"""Seconds that a job of this worker takes at the very most."""


@pytest.fixture(scope="module")
def broker(valkey: Valkey) -> str:
    return valkey.url


@pytest.fixture(scope="module")
def worker(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run the worker of contract_worker.py with one child process."""
    log = (tmp_path_factory.mktemp("worker") / "worker.log").open("wb")
    queues = ",".join(Queue)
    options = ("worker", "--concurrency=1", "--queues", queues, "--without-gossip", "--without-mingle")
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.integration.client.contract_worker", *options],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "TEST_BROKER": broker,
            "TEST_RESULTS": broker,
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "api_client/src"))),
        },
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - the only way to ask for it on behalf of a child
    )
    yield
    process.send_signal(signal.SIGQUIT)
    try:
        process.wait(WITHIN)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    log.close()


@pytest.fixture
def client(broker: str) -> Iterator[ArtifactClient]:
    with ArtifactClient(broker) as client:
        yield client


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Valkey]:
    """Return a Valkey that a test may kill."""
    with Valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def mute() -> Iterator[int]:
    """Return a port that accepts connections and never says a word, as a host behind a broken firewall."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def release(client: ArtifactClient, job_id: str) -> None:
    """Let a held job go on."""
    client._jobs.results._app.backend.client.rpush(f"release:{job_id}", "go")


def until_running(client: ArtifactClient, job_id: str) -> Progress:
    """Return the progress of a held job, once it has reported it."""
    seen: list[Progress] = []

    class Seen(Exception):
        pass

    def stop(progress: Progress) -> None:
        seen.append(progress)
        raise Seen

    with pytest.raises(Seen):
        client.job(job_id).wait(WITHIN, on_progress=stop)
    return seen[0]


def refused_url() -> str:
    return f"redis://service:hunter2@127.0.0.1:{free_port()}/0"


def test_a_job_goes_round(client: ArtifactClient, worker: None) -> None:
    """A request reaches the worker, and its result comes back as its model, newer fields left out."""
    job = client.upload("/srv/in/app.tgz", "releases", "app.tgz", sha256="A" * 64, stores="primary")
    assert job.wait(WITHIN) == UploadResult(
        bucket="releases", key="app.tgz", version=1, size=7, sha256="a" * 64, unchanged=False, copies=()
    )
    assert (job.kind, job.state, job.progress) == ("upload", JobState.SUCCEEDED, None)


def test_a_result_is_there_for_later(client: ArtifactClient, broker: str, worker: None) -> None:
    """A job that ended before any wait returns its result at once to a client that knows its id, without a kind."""
    job = client.verify("releases", "app.tgz", stores=["primary", "dr"])
    result = job.wait(WITHIN)
    with ArtifactClient(broker) as other:
        assert other.job(job.id, "verify").wait(0) == result
        assert other.job(job.id, "verify").result == result
        assert other.job(job.id).result == result.model_dump(mode="json")


def test_progress_and_states_are_seen(client: ArtifactClient, worker: None) -> None:
    """A running job tells its bytes, to `progress` and to `on_progress`; its result is None until it ends."""
    job = client.upload("/in", "releases", "hold/progress")
    assert until_running(client, job.id) == Progress(bytes_done=3, bytes_total=7, step="reading")
    assert (job.state, job.result) == (JobState.RUNNING, None)
    assert job.progress == Progress(bytes_done=3, bytes_total=7, step="reading")
    release(client, job.id)
    assert job.wait(WITHIN).key == "hold/progress"


def test_progress_of_before_is_told(client: ArtifactClient, broker: str, worker: None) -> None:
    """Who begins to wait after the last word of a running job is told that word at once."""
    job = client.upload("/in", "releases", "hold/quiet")
    until_running(client, job.id)
    with ArtifactClient(broker) as late:
        started = time.monotonic()
        assert until_running(late, job.id).bytes_done == 3
        assert time.monotonic() - started < 60
    release(client, job.id)
    job.wait(WITHIN)


def test_a_wait_ends_in_time(client: ArtifactClient, worker: None) -> None:
    """A job that takes longer than the caller waits is WaitTimeout, and can be waited for again."""
    job = client.upload("/in", "releases", "hold/timeout")
    started = time.monotonic()
    with pytest.raises(WaitTimeout, match=job.id):
        job.wait(0.3)
    assert time.monotonic() - started < 60
    release(client, job.id)
    job.wait(WITHIN)


def test_a_failure_keeps_its_cause(client: ArtifactClient, worker: None) -> None:
    """What the worker says of a failed job arrives: message, type, state and attempts."""
    job = client.upload("/in", "releases", "dead/1")
    with pytest.raises(JobFailed, match="Unavailable: store dr did not answer") as caught:
        job.wait(WITHIN)
    assert (caught.value.type, caught.value.state, caught.value.attempts) == ("Unavailable", "dead", 5)
    assert job.state is JobState.DEAD
    with pytest.raises(JobFailed):
        job.result  # noqa: B018 - asking is the test


@pytest.mark.parametrize(("key", "kind"), [("foreign/1", "KeyError"), ("lost/1", "WorkerLostError")])
def test_a_foreign_failure_is_a_job_that_failed(client: ArtifactClient, worker: None, key: str, kind: str) -> None:
    """An unexpected exception, and a killed child, end as JobFailed with their type in one line."""
    with pytest.raises(JobFailed) as caught:
        client.upload("/in", "releases", key).wait(WITHIN)
    assert (caught.value.type, caught.value.state) == (kind, "failed")
    assert "\n" not in str(caught.value)


def test_a_task_of_tomorrow_is_refused(client: ArtifactClient, worker: None) -> None:
    """A task version that the worker does not know is a refused job that names it."""
    newer = TaskSpec("artifact.upload.v9", "upload", UploadRequest, UploadResult, Queue.TRANSFER)
    job = client.submit(newer, UploadRequest(bucket="b", key="k", source="/in"))
    with pytest.raises(JobFailed, match=r"artifact\.upload\.v9"):
        job.wait(WITHIN)
    assert job.state is JobState.REFUSED


def test_a_queued_job_is_cancelled(client: ArtifactClient, broker: str, worker: None) -> None:
    """A job that is cancelled while another one runs is never begun."""
    running = client.upload("/in", "releases", "hold/before")
    until_running(client, running.id)
    queued = client.upload("/in", "releases", "dead/if-it-ever-began")
    assert queued.state is JobState.QUEUED
    queued.cancel()
    asked = Celery(broker=broker, set_as_current=False).control.inspect(timeout=1)
    deadline = time.monotonic() + WITHIN
    while not any(queued.id in ids for ids in (asked.revoked() or {}).values()):
        assert time.monotonic() < deadline
    release(client, running.id)
    with pytest.raises(JobCancelled, match=queued.id):
        queued.wait(WITHIN)
    assert client.job(queued.id).state is JobState.CANCELLED


def test_a_running_job_is_cancelled(client: ArtifactClient, worker: None) -> None:
    """A job that runs finds the wish to cancel under the contract's key and ends as cancelled."""
    job = client.upload("/in", "releases", "hold/cancelled")
    until_running(client, job.id)
    job.cancel()
    with pytest.raises(JobCancelled, match=job.id):
        job.wait(WITHIN)
    assert job.state is JobState.CANCELLED


def test_an_idempotency_key_is_one_job(client: ArtifactClient, worker: None) -> None:
    """The same key sent twice is the same job; of another kind, it is another job."""
    first = client.upload("/in", "releases", "app.tgz", idempotency_key="build-17")
    again = client.upload("/in", "releases", "app.tgz", idempotency_key="build-17")
    other = client.verify("releases", "app.tgz", idempotency_key="build-17")
    assert first == again
    assert other.id != first.id
    assert first.wait(WITHIN) == again.wait(WITHIN)


def test_plain_celery_is_enough(broker: str, worker: None) -> None:
    """A service without this library sends the same message and gets the same result."""
    app = Celery(broker=broker, backend=broker, set_as_current=False)
    kwargs = {"bucket": "releases", "key": "app.tgz", "stores": ["dr"]}
    sent = app.send_task("artifact.verify.v1", kwargs=kwargs, queue="interactive")
    assert sent.get(timeout=WITHIN)["copies"] == [
        {"store": "dr", "verdict": "verified", "sha256": None, "detail": None}
    ]
    with ArtifactClient(broker) as client:
        assert client.job(sent.id, "verify").wait(WITHIN).good


def test_threads_share_a_client(client: ArtifactClient, worker: None) -> None:
    """Several threads send and wait over one client, and each gets its own result."""
    keys: dict[str, str] = {}

    def run(name: str) -> None:
        keys[name] = client.verify("releases", name).wait(WITHIN).key

    threads = [threading.Thread(target=run, args=(f"app-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert keys == {f"app-{number}": f"app-{number}" for number in range(8)}


def test_no_broker_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that refuses is BrokerUnavailable within seconds, naming host and port but no credential."""
    url = refused_url()
    started = time.monotonic()
    with ArtifactClient(url) as client, pytest.raises(BrokerUnavailable) as caught:
        client.verify("b", "k")
    assert time.monotonic() - started < 60
    assert url.rpartition("@")[2] in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_is_told_as_such(unserved: str) -> None:
    """A broker that refuses the password is no broker that cannot be reached, and the message has no credential."""
    url = unserved.replace("://", "://zot:hunter2@")
    with (
        ArtifactClient(url) as client,
        pytest.raises(BrokerUnavailable, match="refuses the user or password") as caught,
    ):
        client.verify("b", "k")
    assert "hunter2" not in str(caught.value)


def test_cancelling_without_a_broker_is_told_in_seconds(broker: str) -> None:
    """A broker that is away when a job is cancelled is BrokerUnavailable within seconds as well."""
    started = time.monotonic()
    with ArtifactClient(refused_url(), broker) as client, pytest.raises(BrokerUnavailable, match="broker"):
        client.job("some-job").cancel()
    assert time.monotonic() - started < 60


def test_a_mute_broker_is_told_in_seconds(mute: int) -> None:
    """A broker that accepts and never answers is BrokerUnavailable too."""
    started = time.monotonic()
    with ArtifactClient(f"redis://127.0.0.1:{mute}/0") as client, pytest.raises(BrokerUnavailable, match=str(mute)):
        client.verify("b", "k")
    assert time.monotonic() - started < 60


def test_sending_needs_no_result_backend(valkey: Valkey) -> None:
    """With the result backend away, a job is sent at once; only asking for it is BrokerUnavailable."""
    with ArtifactClient(valkey.database(1), refused_url()) as client:
        started = time.monotonic()
        job = client.upload("/in", "releases", "app.tgz")
        assert time.monotonic() - started < 60
        for ask in (lambda: job.state, lambda: job.wait(1), lambda: job.result, job.cancel):
            with pytest.raises(BrokerUnavailable, match="result backend"):
                ask()
        assert time.monotonic() - started < 60


def test_the_environment_of_the_service_stays_out(broker: str, worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service whose own Celery is configured by the environment still reaches the worker, not its own broker."""
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(name, refused_url())
    with ArtifactClient(broker) as client:
        job = client.verify("releases", "app.tgz")
        assert job.wait(WITHIN).good


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # by Celery 5.7, of redis-py 8
def test_a_backend_that_dies_ends_the_wait(doomed: Valkey) -> None:
    """A wait without a timeout ends as BrokerUnavailable when the result backend dies, and works when it is back."""
    with ArtifactClient(doomed.url) as client:
        job = client.upload("/in", "releases", "app.tgz")
        killer = threading.Timer(0.5, doomed.kill)
        killer.start()
        with pytest.raises(BrokerUnavailable, match=str(doomed.port)):
            job.wait()
        killer.join()
        doomed.restart()
        answer = threading.Timer(0.5, finish, (doomed.url, job.id))
        answer.start()
        assert job.wait(WITHIN).key == "app.tgz"
        answer.join()


@pytest.mark.parametrize("timeout", [None, 20])
def test_a_silent_backend_ends_the_wait(doomed: Valkey, monkeypatch: pytest.MonkeyPatch, timeout: float | None) -> None:
    """A wait ends long before its timeout when the backend goes silent without closing its connections."""
    monkeypatch.setattr("zot_artifact_client.result_backend.LISTEN_FOR", 0.5)
    monkeypatch.setattr("zot_artifact_client.result_backend.SOCKET_TIMEOUT", 1.0)
    with ArtifactClient(doomed.url) as client:
        job = client.upload("/in", "releases", "app.tgz")
        silence = threading.Timer(0.7, freeze, (doomed.pid,))
        silence.start()
        try:
            with pytest.raises(BrokerUnavailable, match=str(doomed.port)):
                job.wait(timeout)
        finally:
            silence.join()
            thaw(doomed.pid)


def finish(url: str, job_id: str) -> None:
    """Store the result of an upload as a worker does."""
    result = {"bucket": "b", "key": "app.tgz", "version": 1, "size": 0, "sha256": "0" * 64}
    app = Celery(broker=url, backend=url, set_as_current=False)
    app.backend.store_result(job_id, {**result, "unchanged": False, "copies": []}, "SUCCESS")
    app.close()


def test_a_message_is_what_the_contract_says(valkey: Valkey) -> None:
    """The message is the request without its defaults, in the queue of its kind, and asks for its result."""
    with ArtifactClient(valkey.database(2)) as client:
        job = client.upload("/in", "releases", "app.tgz")
        with Celery(set_as_current=False).connection_for_read(valkey.database(2)) as connection:
            message = connection.SimpleQueue("transfer").get(timeout=WITHIN)
            message.ack()
    assert message.payload[1] == {"bucket": "releases", "key": "app.tgz", "source": "/in"}
    assert (message.headers["task"], message.headers["id"]) == (UPLOAD.name, job.id)
    assert message.headers["ignore_result"] is False


def test_a_key_with_another_request_is_a_mismatch(client: ArtifactClient, broker: str) -> None:
    """The same key with another request is an error that names the job and sends nothing, also in a list."""
    key = f"key-{time.monotonic_ns()}"
    first = client.verify("releases", "a", idempotency_key=key)
    assert client.verify("releases", "a", idempotency_key=key).id == first.id
    with pytest.raises(IdempotencyMismatch, match=first.id):
        client.verify("releases", "b", idempotency_key=key)
    many = [VERIFY.request(bucket="releases", key=f"{n}") for n in range(3)]
    client.submit_many(many, idempotency_key=key)
    with pytest.raises(IdempotencyMismatch, match="and 1 more"):
        client.submit_many([many[0], many[2], many[1]], idempotency_key=key)
    with ArtifactClient(broker, service="billing") as other:
        assert other.verify("releases", "b", idempotency_key=key).id != first.id


def test_an_unknown_job_is_not_queued(client: ArtifactClient, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id of which nothing is known is `unknown`, and an error for who waits or cancels; a queued job is queued."""
    job = client.job("00000000-0000-4000-8000-000000000000", "upload")
    assert job.state is JobState.UNKNOWN
    with pytest.raises(UnknownJob, match=job.id):
        job.wait(0.1)
    monkeypatch.setattr("zot_artifact_client.result_backend.UNKNOWN_FOR", 0.0)
    monkeypatch.setattr("zot_artifact_client.result_backend.LISTEN_FOR", 0.1)
    with pytest.raises(UnknownJob, match=job.id):
        job.wait()
    with ArtifactClient(valkey.database(1)) as unserved:
        assert unserved.verify("releases", "a").state is JobState.QUEUED
    with pytest.raises(UnknownJob, match=job.id):
        job.cancel()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_job_is_not_lost_because_no_worker_answers(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    """The wait for many goes on until a worker says that the ledger has none of them, or its time is over."""
    monkeypatch.setattr("zot_artifact_client.job._STALLED", 0.0)
    for module in ("result_backend", "async_results"):
        monkeypatch.setattr(f"zot_artifact_client.{module}.LEDGER_AT_THE_END", 0.1)

    def wait(url: str) -> None:
        with ArtifactClient(url) as unserved:
            Jobs(map(unserved.job, ("one", "two")), results=unserved.job("one").results).wait(0.5)

    async def wait_async(url: str) -> None:
        async with AsyncArtifactClient(url) as unserved:
            await AsyncJobs(map(unserved.job, ("one", "two")), results=unserved.job("one").results).wait(0.5)

    with pytest.raises(WaitTimeout):
        asyncio.run(wait_async(valkey.database(1))) if is_async else wait(valkey.database(1))


def test_an_ended_job_is_not_cancelled(client: ArtifactClient, worker: None) -> None:
    """Cancelling a job that has ended says that nothing was cancelled."""
    job = client.upload("/srv/in/app.tgz", "releases", "app.tgz")
    job.wait(WITHIN)
    assert job.cancel() is False


def test_a_client_made_before_a_fork_works_in_both_processes(client: ArtifactClient, worker: None) -> None:
    """A client of a module works in the children of a prefork pool, and works on in their parent."""
    client.upload("/srv/in/app.tgz", "releases", "app.tgz").wait(WITHIN)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            util._run_after_forkers()  # as a child of Celery's pool does, which closes the pools of the parent
            jobs = [client.upload("/srv/in/app.tgz", "releases", "app.tgz") for _ in range(3)]
            status = 0 if all(job.wait(WITHIN).version == 1 for job in jobs) else 2
        finally:
            os._exit(status)
    assert client.upload("/srv/in/app.tgz", "releases", "app.tgz").wait(WITHIN).version == 1
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
