"""The states and results of jobs in the result backend."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest
import redis
from celery import Celery
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from tests.waiting import WITHIN
from worker.catalogue import JobRecord
from worker.jobs import result_backend
from worker.jobs.outbox import keys_of_taken
from worker.jobs.result_backend import fence_request, keep_result, use_atomic_result_backend
from zot_artifact_client.contract import JobState, VerifyRequest
from zot_artifact_client.errors import JobFailed
from zot_artifact_client.idempotency_conflicts import digest_of
from zot_artifact_client.outgoing_messages import MESSAGES
from zot_artifact_client.snapshot import snapshot_of


def record(job: str, fence: int) -> JobRecord:
    """Return a running job of the ledger."""
    return JobRecord(job, "verify", {"bucket": "releases", "key": "a"}, JobState.RUNNING, 1, fence, datetime.now(UTC))


@pytest.fixture
def app(valkey):
    """Return an application that keeps its results as a worker does."""
    with Celery("test", backend=valkey.url, broker=valkey.url, set_as_current=False) as made:
        use_atomic_result_backend(made)
        made.conf.result_expires = 600
        yield made


@pytest.fixture
def job():
    return uuid4().hex


def test_a_success_stays_whatever_is_said_later(app, job):
    """A worker that has lost a job, and does not know it yet, cannot make it look undone to a waiting client."""
    app.backend.store_result(job, {"is": "done"}, "SUCCESS")
    for late in ("STARTED", "PROGRESS", "FAILURE", "SUCCESS"):
        app.backend.store_result(job, ValueError("late") if late == "FAILURE" else {"is": "late"}, late)
    kept = app.backend.get_task_meta(job)
    assert (kept["status"], kept["result"]) == ("SUCCESS", {"is": "done"})


def test_the_last_word_before_a_success_is_kept_told_and_passes(app, valkey, job):
    """A subscriber gets each state, a poll gets the last, and no client has to delete it."""
    key = app.backend.get_key_for_task(job).decode()
    with redis.Redis.from_url(valkey.url) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(key)
        heard.get_message(timeout=WITHIN)
        for state in ("STARTED", "RETRY", "SUCCESS"):
            app.backend.store_result(job, ValueError("again") if state == "RETRY" else None, state)
            told = heard.get_message(timeout=WITHIN)
            assert told is not None
            assert json.loads(told["data"])["status"] == app.backend.get_task_meta(job)["status"] == state
        assert 0 < client.ttl(key) <= app.conf.result_expires


def test_a_state_of_a_job_takes_it_out_of_the_outbox_in_the_same_round_trip(app, valkey, job, monkeypatch):
    """A state without a fencing token may be of another message with this id, and takes nothing out."""
    outbox = keys_of_taken("transfer")
    request = Context({"id": job, "task": "artifact.upload.v1", "delivery_info": {"routing_key": "transfer"}})
    with redis.Redis.from_url(valkey.url) as client:

        def kept():
            hashes = [client.hkeys(key) for key in outbox[:2]]
            return [
                {each.decode() for each in ids} & {job, f"{job}-2"}
                for ids in (*hashes, client.zrange(outbox[2], 0, -1))
            ]

        for key in outbox[:2]:
            client.hset(key, mapping={job: "x", f"{job}-2": "x"})
        client.zadd(outbox[2], {job: 1, f"{job}-2": 1})
        app.backend.store_result(job, None, "PROGRESS", request=request)
        assert kept() == [{job, f"{job}-2"}] * 3
        fence_request(request, record(job, 1))
        sent: list[object] = []
        send = redis.Connection.send_packed_command
        monkeypatch.setattr(
            redis.Connection, "send_packed_command", lambda *args, **kw: sent.append(1) or send(*args, **kw)
        )
        app.backend.store_result(job, None, "PROGRESS", request=request)
        monkeypatch.undo()
        assert (len(sent), kept()) == (1, [{f"{job}-2"}] * 3)
        client.hdel(outbox[0], f"{job}-2")
        client.hdel(outbox[1], f"{job}-2")
        client.zrem(outbox[2], f"{job}-2")
    assert app.backend.get_task_meta(job)["status"] == "PROGRESS"


def test_a_state_takes_a_job_out_of_the_outbox_of_another_redis(valkey, job):
    """While the outbox has the job, `sweep.recover` finds that no end is stored."""
    request = Context({"id": job, "task": "artifact.upload.v1"})
    fence_request(request, record(job, 1))
    with (
        Celery(backend=valkey.database(1), broker=valkey.url, set_as_current=False) as app,
        redis.Redis.from_url(valkey.url) as client,
    ):
        use_atomic_result_backend(app)
        client.hset(MESSAGES, job, "x")
        app.backend.store_result(job, None, "SUCCESS", request=request)
        assert not client.hexists(MESSAGES, job)
        app.backend.client.flushdb()


def test_the_result_of_a_job_is_stored_in_place_of_what_its_task_returns(app, job):
    """Celery tells the latter in an event; any other state is stored as it is."""
    request = Context({"id": job, "task": "artifact.upload.v1"})
    keep_result(request, {"copies": ["all"]})
    app.backend.store_result(job, {"bytes_done": 1}, "PROGRESS", request=request)
    assert app.backend.get_task_meta(job)["result"] == {"bytes_done": 1}
    app.backend.mark_as_done(job, {"outcomes": {"stored": 1}}, request=request)
    assert app.backend.get_task_meta(job)["result"] == {"copies": ["all"]}


def test_results_are_kept_after_the_backend_has_forgotten_how(app, valkey, job):
    """A Redis that was started again has no scripts."""
    app.backend.store_result(job, None, "STARTED")
    with redis.Redis.from_url(valkey.url) as client:
        client.script_flush()
    app.backend.store_result(job, {"is": "done"}, "SUCCESS")
    assert app.backend.get_task_meta(job)["status"] == "SUCCESS"


def test_an_end_is_replaced_by_no_later_state_and_by_no_strangers_message(app, job):
    """A message with a copied id cannot make an ended job look open, nor a running one look refused or cancelled."""
    for end, value in (("FAILURE", ValueError("gone")), ("REVOKED", TaskRevokedError("job x was cancelled"))):
        id_ = f"{job}-{end}"
        app.backend.store_result(id_, value, end)
        app.backend.store_result(id_, None, "STARTED")
        assert app.backend.get_task_meta(id_)["status"] == end
    app.backend.store_result(job, None, "STARTED")
    app.backend.store_result(job, TaskRevokedError("expired"), "REVOKED")
    app.backend.store_result(job, JobFailed("bad", "InvalidMessage", "refused", 0), "FAILURE")
    assert app.backend.get_task_meta(job)["status"] == "STARTED"


def test_a_message_that_was_not_accepted_stores_no_end(app, valkey, job):
    """Celery does not know whether a message was that of the job with its id: a task finds out."""
    valkey.empty()
    with redis.Redis.from_url(valkey.url) as broker:
        app.backend.store_result(job, TaskRevokedError("expired"), "REVOKED")
        app.backend.store_result(job, JobFailed("bad", "InvalidMessage", "refused", 0), "FAILURE")
        assert app.backend.get_task_meta(job)["status"] == "PENDING"
        sent = [json.loads(message)["headers"]["task"] for message in broker.lrange("interactive", 0, -1)]
        assert sent == ["door.refused.v1"] * 2


def test_no_argument_and_no_large_text_is_stored(app, valkey, job):
    """What a request held is in no stored result, and what an error says of it is bounded."""
    app.conf.result_extended = True
    request = Context({"id": job, "task": "artifact.verify.v1", "args": ["hunter2"], "kwargs": {"password": "hunter2"}})
    app.backend.store_result(job, JobFailed("x\n" * 100_000), "FAILURE", request=request)
    app.backend.store_result(f"{job}-large", {"is": "x" * (2 << 20)}, "SUCCESS", request=request)
    with redis.Redis.from_url(valkey.url) as client:
        kept = client.get(app.backend.get_key_for_task(job))
        assert b"hunter2" not in kept
        assert b"artifact.verify.v1" in kept
        assert len(kept) < 10_000
        assert client.strlen(app.backend.get_key_for_task(f"{job}-large")) < 10_000


def test_a_state_with_a_lower_fencing_token_or_none_replaces_none_with_a_higher_one(app, job):
    """A delivery that lost its lease, and a message that never had one, change nothing; a later lease does."""

    def store(state: str, fence: int | None) -> str:
        request = Context({"id": job, "task": "artifact.verify.v1"})
        if fence is not None:
            fence_request(request, record(job, fence))
        app.backend.store_result(job, ValueError("x") if state in {"RETRY", "FAILURE"} else {}, state, request=request)
        return app.backend.get_task_meta(job)["status"]

    assert store("STARTED", 2) == "STARTED"
    for stale in (None, 1):
        assert [store(state, stale) for state in ("RETRY", "FAILURE", "SUCCESS")] == ["STARTED"] * 3
    assert store("FAILURE", 2) == "FAILURE"
    assert store("STARTED", 2) == "FAILURE"
    assert store("STARTED", 3) == "STARTED"


def test_a_state_has_the_digest_of_the_request(app, job):
    """A client that sent another request under the id of the job finds that out, also while the job runs."""
    running = record(job, 1)
    request = Context({"id": job, "task": "artifact.verify.v1"})
    fence_request(request, running)
    app.backend.store_result(job, None, "STARTED", request=request)
    sent = VerifyRequest(bucket="releases", key="a")
    assert snapshot_of(job, app.backend.get_task_meta(job)).request_sha256 == digest_of("verify", sent.payload())
    assert snapshot_of(job, {"status": "STARTED", "request_sha256": 5}).request_sha256 is None


def test_a_full_backend_is_one_line_per_minute(app, job, monkeypatch, caplog):
    """However often a state is stored again, the log has one line without a traceback."""
    monkeypatch.setattr(result_backend._retries, "_passed", None)
    refusals = [redis.OutOfMemoryError("OOM command not allowed")] * 3
    store = app.backend._store_state

    def refuse(*args, **kwargs):
        if refusals:
            raise refusals.pop()
        return store(*args, **kwargs)

    monkeypatch.setattr(app.backend, "_store_state", refuse)
    app.backend.always_retry = True
    app.backend.store_result(job, {"is": "done"}, "SUCCESS")
    assert refusals == []
    lines = [record for record in caplog.records if record.name == "celery.backends.base"]
    assert [line.exc_info for line in lines] == [None]
    assert "OOM" in lines[0].getMessage()
