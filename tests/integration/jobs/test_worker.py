"""Real worker processes over a real Valkey: what Celery and the ledger promise together."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery
from redis import Redis

from tests.servers.worker import Worker
from tests.unit.alarms.receivers import Posted, http_receiver, raw_receiver
from tests.waiting import WITHIN, until
from zot_artifact_client import ArtifactClient, JobCancelled, JobFailed
from zot_artifact_client.contract import (
    QUERIES,
    REPLICATE,
    SWEEP_LEFTOVERS,
    TASKS,
    VERIFY,
    JobState,
    Progress,
    Queue,
)

MIB = 1 << 20
LONG = 80
"""MiB; writing them to `dr`, which is limited, takes three seconds."""


@pytest.fixture(scope="module")
def incoming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("incoming")


@pytest.fixture(scope="module")
def webhook() -> Iterator[tuple[str, list[Posted]]]:
    with http_receiver() as opened:
        yield opened


@pytest.fixture(scope="module")
def garbage() -> Iterator[str]:
    with raw_receiver(lambda connection: connection.sendall(b"PAYLOAD\n\n")) as opened:
        yield opened


@pytest.fixture(scope="module")
def worker(valkey, tmp_path_factory, incoming, webhook, garbage) -> Iterator[Worker]:
    settings = {
        "sources__roots": json.dumps([str(incoming)]),
        "sources__hosts": json.dumps([f"http://{garbage}"]),
        "breaker__enabled": "false",  # attempts are counted here, and it spares them
        "store_limits": json.dumps({"dr": {"bytes_per_second": "20MiB"}}),  # a job on it takes seconds
        "retry__max_attempts": "2",
        "retry__backoff": "4s",
        "retry__jitter": "false",
        "jobs__lease": "3s",
        "webhooks": json.dumps({"ci": {"url": webhook[0], "secret": "a secret of the receiver"}}),
        "job_webhooks__every": "1s",
        "sweep__verify__every": "1s",
        "sweep__verify__period": "2s",
    }
    with Worker(tmp_path_factory.mktemp("worker"), valkey.url, beat=True, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(valkey) -> Iterator[ArtifactClient]:
    with ArtifactClient(valkey.url) as opened:
        yield opened


@pytest.fixture
def source(incoming, request) -> Callable[..., str]:
    def lay(content: bytes = b"release one") -> str:
        path = incoming / request.node.name
        path.write_bytes(content)
        return str(path)

    return lay


def test_a_job_is_in_the_ledger_under_its_celery_id(client, catalogue, source):
    """What the client waited for is what the ledger says, under the same id."""
    job = client.upload(source(), "releases", "ledger.tgz")
    result = job.wait(WITHIN)
    record = catalogue.ledger.get(job.id)
    assert record is not None
    assert (record.state, record.attempts, record.kind) == ("succeeded", 1, "upload")
    assert record.result == result.model_dump(mode="json")


def test_a_fault_that_stays_ends_as_dead_with_its_cause_and_attempts(client, worker, catalogue, source, valkey):
    """A store that does not come back uses up the attempts; the job is dead, and says why and after how many.

    A sweep has failed then, and so has a job that a sweep has sent: the next run does the same.
    """
    client.upload(source(), "releases", "once.tgz", stores=["primary"]).wait(WITHIN)
    away = worker.home / "stores" / "dr"
    away.rename(away.with_name("unplugged"))
    try:
        job = client.upload(source(), "releases", "dead.tgz")
        with Celery(broker=valkey.url, backend=valkey.url, set_as_current=False) as beat:
            sweep = beat.send_task(SWEEP_LEFTOVERS.name, queue=Queue.SWEEP.value)
            asked = {"bucket": "releases", "key": "once.tgz", "to": ["dr"]}
            sent = beat.send_task(REPLICATE.name, kwargs=asked, queue=Queue.SWEEP.value, parent_id=sweep.id)
            by_sweeps = {each.id: str(each.get(timeout=WITHIN, propagate=False)) for each in (sweep, sent)}
        with pytest.raises(JobFailed, match="dr") as failed:
            job.wait(WITHIN)
    finally:
        away.with_name("unplugged").rename(away)
    assert (failed.value.state, failed.value.attempts, job.state) == ("dead", 2, JobState.DEAD)
    ends = {job.id: "dead"} | dict.fromkeys(by_sweeps, "failed")
    assert all("dr" in error for error in by_sweeps.values())
    for id_, state in ends.items():
        record = catalogue.ledger.get(id_)
        assert (record.state, record.attempts, record.error["type"]) == (state, 2, "Unavailable")


def test_a_fault_that_passes_costs_an_attempt_and_not_the_job(client, worker, catalogue, source):
    """A store that comes back before the attempts are used up gets its copy."""
    away = worker.home / "stores" / "dr"
    away.rename(away.with_name("unplugged"))
    try:
        job = client.upload(source(), "releases", "passes.tgz")
        until(lambda: (record := catalogue.ledger.get(job.id)) and record.state == "retrying")
    finally:
        away.with_name("unplugged").rename(away)
    assert [copy.outcome for copy in job.wait(WITHIN).copies] == ["already_there", "stored"]
    assert catalogue.ledger.get(job.id).attempts == 2


def test_a_permanent_failure_is_told_at_once(client, catalogue):
    """What cannot succeed is not tried again."""
    job = client.verify("releases", "absent.tgz")
    with pytest.raises(JobFailed, match="not in the catalogue"):
        job.wait(WITHIN)
    assert catalogue.ledger.get(job.id).attempts == 1


def test_no_answer_of_a_host_is_kept(client, worker, catalogue, valkey, garbage):
    """What a host sends in place of an answer, which may be bytes of an artifact, is in no result, row or log."""
    job = client.upload(f"http://{garbage}/app.tgz", "releases", "garbage.tgz")
    with pytest.raises(JobFailed, match="ProtocolError"):
        job.wait(WITHIN)
    record = catalogue.ledger.get(job.id)
    assert "BadStatusLine" in record.error["traceback"]
    with Redis.from_url(valkey.url) as redis:
        kept = (record.error, redis.get(f"celery-task-meta-{job.id}"), worker.log)
    assert not [each for each in kept if "PAYLOAD" in str(each)]


def test_the_effect_of_a_message_that_comes_twice_happens_once(client, catalogue, source):
    """Two messages with one id are one job with one attempt."""
    path = source()
    first = client.upload(path, "releases", "twice.tgz", idempotency_key="twice")
    second = client.upload(path, "releases", "twice.tgz", idempotency_key="twice")
    assert first.id == second.id
    assert first.wait(WITHIN) == second.wait(WITHIN)
    until(lambda: catalogue.ledger.get(first.id).state == "succeeded")
    assert catalogue.ledger.get(first.id).attempts == 1


@pytest.mark.usefixtures("worker")
def test_progress_is_seen_in_bytes_at_most_once_a_second(client, valkey, source):
    """A long upload shows how far it is, and not more often than promised."""
    path = source(os.urandom(MIB) * LONG)
    seen: list[Progress] = []
    begun = time.monotonic()
    job = client.upload(path, "releases", "progress.bin", stores=["dr"])
    job.wait(WITHIN, on_progress=seen.append)
    seconds = time.monotonic() - begun
    Path(path).unlink()
    distinct = [progress for n, progress in enumerate(seen) if n == 0 or progress != seen[n - 1]]
    in_bytes = [progress for progress in seen if progress.bytes_total is not None]  # the first may tell a step alone
    assert all(progress.bytes_done <= progress.bytes_total == 2 * LONG * MIB for progress in in_bytes)
    assert any(progress.bytes_done > 0 for progress in in_bytes)
    assert len(distinct) <= seconds + 1


def test_a_running_job_can_be_cancelled_and_leaves_nothing(client, worker, catalogue, source):
    """Cancelling a running upload ends it as cancelled, with no object and no temporary file."""
    path = source(os.urandom(MIB) * LONG)
    job = client.upload(path, "releases", "cancelled.bin", stores=["dr"])
    until(lambda: job.progress)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.wait(WITHIN)
    Path(path).unlink()
    assert catalogue.ledger.get(job.id).state == "cancelled"
    assert not list((worker.home / "stores" / "dr" / "releases").glob("*cancelled*"))
    assert not list((worker.home / "stores" / "dr" / "releases").glob(".zot-tmp-*"))


def test_the_ends_of_jobs_are_told_to_the_webhook_that_they_name(client, catalogue, source, webhook):
    """An upload, a batch and a job that names an unknown receiver: the webhook gets the end of each."""
    upload = client.upload(source(), "webhooks", "app.tgz", notify="ci")
    upload.wait(WITHIN)
    batch = client.batch("verify", "webhooks", notify=["ci"])
    assert batch.wait(WITHIN).good
    unknown = client.verify("webhooks", "app.tgz", notify=["ci", "cj"])
    with pytest.raises(JobFailed, match=r"no webhook 'cj'; there are: ci"):
        unknown.wait(WITHIN)
    ends = {upload.id: "job.succeeded", batch.id: "job.succeeded", unknown.id: "job.failed"}

    def told() -> dict[str, str]:
        found = [json.loads(body) for _, body in webhook[1]]
        return {each["data"]["job"]: each["type"] for each in found if each["data"]["job"] in ends}

    until(lambda: told() == ends)
    result = next(each for each in (json.loads(body) for _, body in webhook[1]) if each["data"]["job"] == upload.id)
    assert result["data"]["result"] == catalogue.ledger.get(upload.id).result


def test_a_killed_child_does_not_take_its_job_with_it(client, worker, catalogue, source):
    """The child that runs a job is killed; the job is taken up by another one and ends well."""
    path = source(os.urandom(MIB) * LONG)
    job = client.upload(path, "releases", "killed.bin", stores=["dr"])
    until(lambda: job.progress)
    owner = catalogue.ledger.get(job.id).lease_owner.split(":")
    os.kill(int(owner[1]), signal.SIGKILL)
    assert job.wait(WITHIN).size == LONG * MIB
    Path(path).unlink()
    assert catalogue.ledger.get(job.id).attempts == 2


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        (VERIFY.name, {"bucket": "releases", "kye": "a"}, "kye"),
        (VERIFY.name, {"bucket": "releases", "key": 7}, "key"),
        ("artifact.verify.v9", {"bucket": "releases", "key": "a"}, "artifact.verify.v9"),
    ],
)
def test_a_message_that_is_no_request_is_refused_by_name_and_recorded(valkey, worker, catalogue, name, fields, says):
    """A malformed message and an unknown version get an error that names them, a record, and nothing happens."""
    with Celery(broker=valkey.url, backend=valkey.url, set_as_current=False) as outsider:
        sent = outsider.send_task(name, kwargs=fields, queue=Queue.INTERACTIVE.value)
        with pytest.raises(Exception, match=says):
            sent.get(timeout=WITHIN)
    record = until(lambda: catalogue.ledger.get(sent.id))
    assert record.state == "refused"
    assert says in record.error["message"]


def test_the_sweep_reads_every_copy_by_itself(client, catalogue, source):
    """Without any request a copy is read in full again and again, within the period that is configured."""
    client.upload(source(), "releases", "swept.tgz").wait(WITHIN)

    def verdicts() -> list[str]:
        return [
            row["store"] for row in catalogue.verifications.of("releases", "swept.tgz") if row["verdict"] == "verified"
        ]

    assert until(lambda: verdicts().count("primary") >= 2 and verdicts().count("dr") >= 2)


def test_the_sweep_finds_rot_and_says_so(client, worker, catalogue, source):
    """A bit that flips on disk is found by the sweep, recorded as corrupt, and logged as an error."""
    client.upload(source(b"release one"), "releases", "rotten.tgz").wait(WITHIN)
    path = worker.home / "stores" / "dr" / "releases" / "rotten.tgz"
    path.write_bytes(b"release 0ne")
    until(lambda: "corrupt" in {row["verdict"] for row in catalogue.verifications.of("releases", "rotten.tgz")})
    assert "ERROR" in next(line for line in worker.log.splitlines() if "rotten.tgz is corrupt" in line)


def test_every_task_of_the_contract_is_registered(valkey, worker):
    """The worker has each task that the contract names, and no other one of ours."""
    with Celery(broker=valkey.url, set_as_current=False) as outsider:
        registered = next(iter(outsider.control.inspect(timeout=WITHIN, limit=1).registered().values()))
    assert {name.split(" ")[0] for name in registered if name.startswith(("artifact.", "sweep."))} == {
        *TASKS,
        *QUERIES,
    }


def test_a_refused_message_is_one_line_in_the_log_and_its_content_none(valkey, worker, catalogue):
    """Nonsense that carries a secret is logged by name only, without a traceback."""
    with Celery(broker=valkey.url, set_as_current=False) as outsider:
        names = ("artifact.verify.v9", VERIFY.name)
        sent = [outsider.send_task(name, kwargs={"token": "hunter2"}, queue=Queue.INTERACTIVE.value) for name in names]
    for message in sent:
        until(lambda id_=message.id: catalogue.ledger.get(id_))
    log = worker.log
    assert "Traceback" not in log
    assert "hunter2" not in log
    for message in sent:
        assert sum(message.id in line and "ERROR" in line for line in log.splitlines()) == 1
    assert "hunter2" not in json.dumps([dict(catalogue.ledger.get(message.id).request) for message in sent])
