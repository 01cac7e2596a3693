"""A real worker, and invalid messages that are put directly into its broker."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis
from celery import Celery

from tests.hostile_messages import HOSTILE, JOB, SECRET, encoded, envelope
from tests.servers.process import REPOSITORY, free_port
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import cli
from worker.intake.message_filter import Connection
from worker.intake.message_rules import Reason, Rejection
from worker.intake.rejected import KEPT, LATEST, RejectedMessage, RejectedMessages
from worker.report import broker_checks
from worker.settings import load_settings
from zot_artifact_client.contract import VERIFY

FIELDS = {"bucket": "releases", "key": "absent.tgz"}


@pytest.fixture(scope="module")
def worker(valkey, tmp_path_factory) -> Iterator[Worker]:
    with Worker(tmp_path_factory.mktemp("filter"), valkey.url) as running:
        yield running


@pytest.fixture
def broker(valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture
def ended(catalogue) -> Callable[[str], Any]:
    def wait(job: str) -> Any:
        return until(lambda: (found := catalogue.ledger.get(job)) and found.finished_at and found)

    return wait


def test_hostile_messages_are_rejected_and_the_good_one_behind_them_runs(worker, broker, ended):
    """None stops or blocks the worker: each is rejected with its reason, and nothing of it stays in the queue.

    Many of them have one id: together they are one refused job.
    """
    pids = (worker.pid, worker.children())
    before, said = RejectedMessages(broker).counts(), len(worker.log)
    for raw, _ in HOSTILE.values():
        broker.lpush("interactive", raw)
    good = str(uuid4())
    broker.lpush("interactive", json.dumps(envelope(good, FIELDS)))

    assert ended(good).error["type"] == "NotFound"
    assert (worker.pid, worker.children()) == pids
    assert worker.running
    kept = RejectedMessages(broker).latest(len(HOSTILE))
    assert [message.reason for message in reversed(kept)] == [reason for _, reason in HOSTILE.values()]
    assert [message.size for message in reversed(kept)] == [len(raw) for raw, _ in HOSTILE.values()]
    counts = RejectedMessages(broker).counts()
    assert sum(counts.values()) - sum(before.values()) == len(HOSTILE)
    until(lambda: not broker.llen("interactive") and not broker.hlen("unacked") and not broker.zcard("unacked_index"))
    assert SECRET not in worker.log
    assert "Traceback" not in worker.log[said:]
    assert SECRET.encode() not in b"".join(broker.lrange("zot-artifacts:refused", 0, -1))
    assert ended(JOB).state == "refused"


def test_a_client_that_waits_for_a_refused_job_is_told(valkey, worker, broker, ended):
    """A refused message whose id can be read is refused in the ledger, and in the result that its sender waits for."""
    job = str(uuid4())
    message = envelope(job, FIELDS)
    message["headers"]["timelimit"] = SECRET
    broker.lpush("interactive", json.dumps(message))
    with (
        Celery(broker=valkey.url, backend=valkey.url, set_as_current=False) as outsider,
        pytest.raises(Exception, match="timelimit"),
    ):
        outsider.AsyncResult(job).get(timeout=WITHIN)
    record = ended(job)
    assert (record.state, record.error["type"]) == ("refused", "InvalidMessage")
    assert dict(record.request) == {}


def test_a_hostile_message_cannot_take_over_the_end_of_a_job(worker, broker, catalogue, ended):
    """A refused message with the id of a job that has ended changes neither the ledger nor the result."""
    job = str(uuid4())
    broker.lpush("interactive", json.dumps(envelope(job, FIELDS)))
    first = ended(job)
    result = until(lambda: (kept := broker.get(f"celery-task-meta-{job}")) and b"NotFound" in kept and kept)
    counted = RejectedMessages(broker).counts().get("content", 0)
    broker.lpush("interactive", json.dumps(envelope(job, FIELDS) | {"content-type": "text/plain"}))
    until(lambda: RejectedMessages(broker).counts().get("content", 0) > counted)
    marker = str(uuid4())
    broker.lpush("interactive", json.dumps(envelope(marker, FIELDS)))  # runs behind what records the refusal
    ended(marker)
    assert catalogue.ledger.get(job) == first
    assert broker.get(f"celery-task-meta-{job}") == result


@pytest.mark.parametrize(
    ("channel", "data"),
    [
        ("/0.celery.pidbox", b"[]"),
        ("/0.celery.pidbox", b"[" * 100_000),
        ("/0.celery.pidbox", b"\xff"),
        ("/0.celery.pidbox", b'{"properties": {}, "headers": null, "body": "e30="}'),
        ("/0.celeryev/worker.heartbeat", b"[]"),
        ("/0.celeryev/worker.heartbeat", json.dumps(envelope("x", {}) | {"body": "!"}).encode()),
        (
            "/0.celeryev/worker.heartbeat",
            json.dumps(envelope("x", {}) | {"headers": {}, "body": encoded([1])}).encode(),
        ),
        ("/0.celery.pidbox", json.dumps(envelope("x", {}) | {"headers": {}, "body": encoded([SECRET])}).encode()),
        ("/0.celery.pidbox", json.dumps(envelope("x", {}) | {"headers": {"clock": SECRET}}).encode()),
        (
            "/0.celery.pidbox",
            json.dumps(envelope("x", {}) | {"content-type": "text/x", "body": "aHVudGVyMg=="}).encode(),
        ),
    ],
)
def test_what_is_published_does_not_end_the_worker_either(worker, broker, valkey, channel, data):
    """Nonsense on the channels by which workers talk is dropped, and remote control goes on."""
    pids = (worker.pid, worker.children())
    broker.publish(channel, data)
    with Celery(broker=valkey.url, set_as_current=False) as outsider:
        assert until(lambda: outsider.control.ping(timeout=2))
    assert (worker.pid, worker.children()) == pids
    assert worker.running
    assert SECRET not in worker.log


def test_tag_and_routing_of_a_message_are_the_workers(worker, broker, ended):
    """Whatever its sender wrote there, a message that waits can make no other vanish, and returns to its own queue."""
    message = envelope(job := str(uuid4()), FIELDS)
    message["properties"] |= {
        "delivery_info": {"exchange": "celery", "routing_key": "zot-artifacts:refused"},
        "delivery_tag": "one-for-all",
    }
    message["headers"]["eta"] = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    broker.lpush("interactive", json.dumps(message))
    tag, held = until(
        lambda: next((each for each in broker.hgetall("unacked").items() if job.encode() in each[1]), None)
    )
    assert tag != b"one-for-all"
    assert json.loads(held)[1:] == ["", "interactive"]
    assert ended(job).error["type"] == "NotFound"


def test_a_message_that_was_never_acknowledged_passes_the_filter_again(worker, broker, valkey, ended):
    """What a worker took and did not finish is put back into its queue as it was, and is taken in again."""
    job, tag = str(uuid4()), str(uuid4())
    message = envelope(job, FIELDS)
    broker.hset("unacked", tag, json.dumps([message, "", "interactive"]))
    broker.zadd("unacked_index", {tag: 0})
    with Connection(valkey.url) as connection:
        connection.default_channel.qos.restore_by_tag(tag)
    assert ended(job).error["type"] == "NotFound"


def test_the_first_version_of_celerys_protocol_works(worker, broker, ended):
    """A client of Celery's first protocol can enqueue a job."""
    job = str(uuid4())
    body = {"task": VERIFY.name, "id": job, "args": [], "kwargs": FIELDS}
    broker.lpush("interactive", json.dumps(envelope(job, {}) | {"headers": {}, "body": encoded(body)}))
    assert ended(job).error["type"] == "NotFound"


def test_celerys_own_clients_work(valkey, worker, ended):
    """`send_task` and `celery call` need nothing of ours."""
    with Celery(broker=valkey.url, set_as_current=False) as outsider:
        sent = outsider.send_task(
            VERIFY.name, kwargs=FIELDS, queue="interactive", countdown=0.5, expires=60, time_limit=30
        )
    assert ended(sent.id).error["type"] == "NotFound"
    call = (sys.executable, "-m", "celery", "-b", valkey.url, "call", VERIFY.name, "--queue", "interactive")
    called = subprocess.run(
        (*call, "--kwargs", json.dumps(FIELDS)), capture_output=True, text=True, timeout=WITHIN, check=True
    )
    assert ended(called.stdout.split()[-1]).error["type"] == "NotFound"


def test_flower_can_send_a_job(valkey, worker, ended, tmp_path):
    """Flower's REST API enqueues a job like any client."""
    port = free_port()
    flower = (sys.executable, "-m", "celery", "-b", valkey.url, "flower", f"--port={port}", "--address=127.0.0.1")
    with (
        (tmp_path / "flower.log").open("wb") as log,
        subprocess.Popen(
            (*flower, "--basic-auth=a:b"), stdout=log, stderr=log, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}
        ) as process,
    ):
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("a", "b"), trust_env=False) as web:
                until(lambda: _answers(web))
                asked = {"kwargs": FIELDS, "queue": "interactive"}
                sent = web.post(f"/api/task/send-task/{VERIFY.name}", json=asked).raise_for_status().json()
        finally:
            process.terminate()
    assert ended(sent["task-id"]).error["type"] == "NotFound"


def _answers(web: httpx.Client) -> bool:
    try:
        return web.get("/healthcheck").is_success
    except httpx.TransportError:
        return False


def test_rejected_messages_are_shown(worker, valkey, broker, monkeypatch, capsys):
    """`jobs --refused` lists the messages with their reasons and counts them, and doctor mentions them."""
    broker.lpush("interactive", b"[]")
    until(lambda: (latest := RejectedMessages(broker).latest(1)) and latest[0].size == 2)
    monkeypatch.setenv("ZOT_HOME", str(worker.home))
    monkeypatch.setenv("ZOT_BROKER", valkey.url)
    assert cli.run(["jobs", "--refused", "--limit", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["counts"] == RejectedMessages(broker).counts()
    [message] = shown["messages"]
    assert (message["queue"], message["reason"], message["size"]) == ("interactive", "envelope", 2)
    assert message["sha256"] == hashlib.sha256(b"[]").hexdigest()
    assert cli.run(["jobs", "--refused"]) == 0
    table = capsys.readouterr().out
    assert "it is no JSON object but a list" in table
    assert f"{sum(shown['counts'].values())} rejected: " in table
    [check] = broker_checks._rejected(load_settings())
    assert (check.outcome, check.detail in table) == ("good", True)


def test_a_broker_that_is_away_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    """Asked for what was refused while the broker is away, the command says so and ends."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path))
    monkeypatch.setenv("ZOT_BROKER", f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    assert cli.run(["jobs", "--refused"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be reached" in said
    assert SECRET not in said


def test_the_latest_are_remembered_and_all_are_counted(broker):
    """The list of rejected messages is bounded, whatever is sent; the counters continue."""
    message = RejectedMessage.of(Rejection(Reason.BODY, "body: it is no JSON"), b"x", "interactive", datetime.now(UTC))
    before = RejectedMessages(broker).counts().get("body", 0)
    for _ in range(KEPT + 5):
        RejectedMessages(broker).add(message)
    assert len(RejectedMessages(broker).latest(2 * KEPT)) == KEPT
    assert RejectedMessages(broker).counts()["body"] == before + KEPT + 5
    assert RejectedMessages(broker).latest(1) == [message]
    broker.lpush(LATEST, b"[" * 100_000)  # of another program
    assert RejectedMessages(broker).latest(2) == [message]
    broker.lpop(LATEST)


def test_a_refused_message_that_cannot_be_recorded_ends_nothing(worker, broker, ended):
    """Where the list of refused messages cannot be written, the log has them, and the worker goes on."""
    pids = (worker.pid, worker.children())
    broker.delete(LATEST)
    broker.set(LATEST, "no list")
    broker.lpush("interactive", b"[]")
    broker.lpush("interactive", json.dumps(envelope(good := str(uuid4()), FIELDS)))
    try:
        assert ended(good).error["type"] == "NotFound"
    finally:
        broker.delete(LATEST)
    assert (worker.pid, worker.children()) == pids
    assert "the rejected message could not be recorded: ResponseError" in worker.log
