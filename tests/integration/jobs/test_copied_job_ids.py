"""Messages with the ids of other jobs, and a real worker: no state and no result of those jobs changes."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import redis

from tests.hostile_messages import encoded, envelope
from tests.servers.silent_host import SilentHost
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from zot_artifact_client import ArtifactClient, JobCancelled, JobFailed
from zot_artifact_client.cancellation import add_requests
from zot_artifact_client.contract import DELETE, SWEEP_ALARMS, UPLOAD, VERIFY
from zot_artifact_client.outgoing_messages import MESSAGES

ABSENT = {"bucket": "releases", "key": "absent.tgz"}


@pytest.fixture(scope="module")
def url(valkey) -> str:
    return valkey.url


@pytest.fixture(scope="module")
def silent() -> Iterator[SilentHost]:
    with SilentHost() as host:
        yield host


@pytest.fixture(scope="module")
def worker(url, silent, tmp_path_factory) -> Iterator[Worker]:
    sources = tmp_path_factory.mktemp("sources")
    settings = {"sources__roots": json.dumps([str(sources)]), "sources__hosts": json.dumps([silent.origin])}
    with Worker(tmp_path_factory.mktemp("strangers"), url, concurrency=2, **settings) as running:
        yield running


@pytest.fixture
def broker(url, worker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def client(url) -> Iterator[ArtifactClient]:
    with ArtifactClient(url) as opened:
        yield opened


@pytest.fixture
def run(broker, catalogue) -> Callable[[], None]:
    """Return a function that waits until all messages before it were handled."""

    def wait() -> None:
        marker = str(uuid4())
        broker.lpush("interactive", json.dumps(envelope(marker, ABSENT)))
        until(lambda: (found := catalogue.ledger.get(marker)) and found.finished_at)
        until(lambda: not broker.llen("interactive"))

    return wait


def forged(job: str, **headers: object) -> list[str]:
    """Return messages with the id of a job: other requests, invalid ones, and ones that expire."""
    now = datetime.now(UTC)
    in_time = {"eta": (now + timedelta(seconds=2)).isoformat(), "expires": (now + timedelta(seconds=1)).isoformat()}
    messages = [
        envelope(job, {"bucket": "releases", "key": "other.tgz"}),
        envelope(job, ABSENT | {"allow_last": True}, task=DELETE.name),
        envelope(job, ABSENT | {"source": "/etc/passwd"}, task=UPLOAD.name),
        envelope(job, {"bucket": "releases"}),
        envelope(job, ABSENT, task="artifact.unheard.v1"),
        envelope(job, ABSENT) | {"content-type": "text/plain"},
    ]
    for changed in (in_time, {"expires": "2020-01-01T00:00:00+00:00"}, {"_zot_fence": 99}):
        messages.append(envelope(job, {"bucket": "releases", "key": "other.tgz"}))
        messages[-1]["headers"] |= changed
    for message in messages:
        message["headers"] |= headers
    return [json.dumps(message) for message in messages]


def test_a_job_that_waits_is_shown_as_waiting_whatever_is_sent_under_its_id(broker, client, catalogue, run):
    """Messages with the id of a job in the outbox neither start nor end it; its own message then runs."""
    id_ = str(uuid4())
    own = json.dumps(envelope(id_, ABSENT))
    broker.hset(MESSAGES, id_, own)
    broker.lpush("interactive", *forged(id_))
    run()
    job = client.job(id_, VERIFY.kind)
    assert catalogue.ledger.get(id_) is None
    assert job.state == "queued"
    broker.lpush("interactive", own)
    with pytest.raises(JobFailed, match="not in the catalogue"):
        job.wait(WITHIN)


def test_a_running_job_is_shown_as_running_whatever_is_sent_under_its_id(broker, client, catalogue, run, silent):
    """Messages with the id of a running job change neither the ledger nor what the result backend shows of it."""
    job = client.upload(f"{silent.origin}/app.tgz", "releases", "app.tgz")
    until(lambda: job.state == "running")
    before = json.loads(broker.get(f"celery-task-meta-{job.id}"))
    broker.lpush("interactive", *forged(job.id))
    run()
    after = json.loads(broker.get(f"celery-task-meta-{job.id}"))
    assert (job.state, catalogue.ledger.get(job.id).state) == ("running", "running")
    assert after["fence"] == before["fence"] == catalogue.ledger.get(job.id).fence == 1
    job.cancel()
    with pytest.raises(JobCancelled):
        job.wait(WITHIN)


def test_an_own_message_that_is_rejected_is_told_to_its_client(broker, client, run):
    """A job whose own message no worker accepts ends as refused, and leaves the outbox."""
    id_ = str(uuid4())
    own = json.dumps(envelope(id_, ABSENT, task="artifact.of_a_newer_client.v1"))
    broker.hset(MESSAGES, id_, own)
    broker.lpush("interactive", own)
    with pytest.raises(JobFailed, match="no task is named"):
        client.job(id_).wait(WITHIN)
    until(lambda: not broker.hexists(MESSAGES, id_))


def test_a_job_of_another_program_is_shown_as_no_end_before_its_own(broker, client, catalogue, run, silent):
    """Forged messages with the id of a job that waits without an outbox entry end neither it nor its state.

    The job waits behind others in a queue, or for its eta. A job whose only message is invalid is told as refused.
    """
    queued, later, none = (str(uuid4()) for _ in range(3))
    held = [client.upload(f"{silent.origin}/{n}.tgz", "releases", f"{n}.tgz") for n in range(2)]
    until(lambda: all(job.state == "running" for job in held))
    own = envelope(queued, ABSENT)
    delayed = envelope(later, ABSENT)
    delayed["headers"]["eta"] = (datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    states: dict[str, set[str]] = {queued: set(), later: set()}
    broker.lpush("interactive", json.dumps(delayed))
    broker.lpush("transfer", json.dumps(own), *(json.dumps(envelope(str(uuid4()), ABSENT)) for _ in range(3)))
    forgeries = [*forged(queued)[3:], *forged(later)[3:], *forged(none)[3:6]]
    record = [queued, "artifact.verify.v1", "InvalidMessage", "forged"]
    forgeries += [json.dumps(envelope(str(uuid4()), {}, task="door.refused.v1") | {"body": encoded([record, {}, {}])})]
    broker.lpush("interactive", *forgeries)
    for job in held:
        job.cancel()

    def ended() -> bool:
        for id_, seen in states.items():
            seen.add(str(client.job(id_).state))
        return all((found := catalogue.ledger.get(id_)) and found.state == "failed" for id_ in states)

    until(ended)
    assert not (states[queued] | states[later]) & {"refused", "cancelled", "dead", "succeeded"}
    for id_ in states:
        with pytest.raises(JobFailed, match="not in the catalogue"):
            client.job(id_, VERIFY.kind).wait(WITHIN)
    until(lambda: client.job(none).state == "refused")


def failure(client: ArtifactClient, id_: str) -> str:
    """Wait for the end of a job that fails, and return its error."""
    with pytest.raises(JobFailed) as failed:
        client.job(id_, VERIFY.kind).wait(WITHIN)
    return str(failed.value)


def test_a_refused_id_is_no_obstacle_to_a_valid_request(broker, client, catalogue):
    """A job runs although an invalid message with its id came first and was recorded."""
    id_ = str(uuid4())
    broker.lpush("interactive", forged(id_)[4])
    until(lambda: (found := catalogue.ledger.get(id_)) and found.state == "refused")
    broker.lpush("interactive", json.dumps(envelope(id_, ABSENT)))
    # Its result is stored only after the ledger has its end.
    assert until(lambda: "not in the catalogue" in failure(client, id_))


def test_a_message_that_expired_in_the_worker_is_no_obstacle_to_a_valid_request(broker, client, worker):
    """Celery revokes the id of a message that expires while it waits, and would drop the job that has the id."""
    id_ = str(uuid4())
    broker.lpush("interactive", forged(id_)[6])
    until(lambda: id_ in worker.log)
    broker.lpush("interactive", json.dumps(envelope(id_, ABSENT)))
    assert until(lambda: "not in the catalogue" in failure(client, id_))


def test_an_expired_sweep_leaves_no_row_in_the_ledger(broker, catalogue, worker, run):
    """Beat sends the next one: after a time without workers the ledger would have a refused job for each of them."""
    id_ = str(uuid4())
    message = envelope(id_, {}, task=SWEEP_ALARMS.name)
    message["headers"]["expires"] = "2020-01-01T00:00:00+00:00"
    broker.lpush("sweep", json.dumps(message))
    until(lambda: id_ in worker.log)
    run()
    run()
    assert catalogue.ledger.get(id_) is None


def test_a_waiting_job_is_cancelled_without_a_command_to_the_workers(broker, client, catalogue, silent):
    """A request that a service may record, and could not broadcast, ends a job behind busy children within seconds."""
    held = [client.upload(f"{silent.origin}/{n}.tgz", "releases", f"{n}.tgz") for n in range(2)]
    until(lambda: all(job.state == "running" for job in held))
    waiting = client.verify("releases", "absent.tgz")
    add_requests(broker, [waiting.id])
    with pytest.raises(JobCancelled):
        waiting.wait(WITHIN)
    assert {str(job.state) for job in held} == {"running"}
    for job in held:
        job.cancel()
    until(lambda: all(job.state == "cancelled" for job in held))


def test_no_message_joins_a_batch_that_has_not_planned_it(broker, client, catalogue, run):
    """Messages under the ids of a batch's jobs are neither done nor recorded before the batch has planned them."""
    batch = str(uuid4())
    first, later = f"{batch}.00000001", f"{batch}.00000003"
    for id_ in (first, later):
        broker.lpush("interactive", *forged(id_), *forged(id_, parent_id=batch))
    run()
    until(lambda: not broker.hlen("unacked"))
    assert [catalogue.ledger.get(id_) for id_ in (first, later)] == [None, None]
    assert {client.job(id_).state for id_ in (first, later)} <= {"unknown", "queued"}
