"""How one delivery of a job ends, with a Celery application without a Redis."""

import dataclasses
import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, Signature
from celery.app.trace import TraceInfo
from celery.exceptions import Ignore, Reject, Retry
from celery.states import REJECTED
from kombu.exceptions import OperationalError

import tasks.record_rejected
import tasks.sweeps.recover
import tasks.verify  # noqa: F401 - it registers the task
from worker import clock
from worker.catalogue import CatalogueUnavailable, Ledger
from worker.context import Context
from worker.intake.message_filter import RECORD_TASK
from worker.jobs import heartbeats
from worker.jobs.result_backend import use_atomic_result_backend
from worker.jobs.running_job import Cancelled, Requeue, RunningJob
from worker.jobs.task import Delivery
from worker.limits.snooze import Snooze
from worker.settings import Settings
from worker.settings.section_models import JobSettings
from worker.storage.errors import PermanentError, Unavailable
from zot_artifact_client.contract import SWEEP_RECOVER, VERIFY, JobState, VerifyRequest, VerifyResult
from zot_artifact_client.errors import JobFailed
from zot_artifact_client.idempotency_conflicts import compare, digest_of, replace_digest

FIELDS = {"bucket": "b", "key": "k"}


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    stores: Any = {"main": {"type": "filesystem", "root": str(tmp_path / "main")}}
    settings = Settings(home=tmp_path / "home", stores=stores)
    settings.home.mkdir()
    with closing(Context.open(settings)) as opened:
        yield opened


def _body(_task: Any, **_fields: Any) -> None:
    """Do nothing: the test calls the work itself."""


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "results").mkdir()
    with Celery(broker="memory://", backend=f"file://{tmp_path}/results", set_as_current=False) as app:
        made = app.task(name=VERIFY.name, bind=True, max_retries=None, shared=False)(_body)
        made.push_request(id="job-1", delivery_info={"routing_key": "transfer"}, called_directly=False, retries=0)
        yield made
        made.pop_request()


def work(_request: VerifyRequest, _job: RunningJob) -> VerifyResult:
    return VerifyResult(bucket="b", key="k", version=1, size=1, sha256="a" * 64, copies=())


def test_a_job_whose_end_the_disk_did_not_confirm_is_delivered_again(context, task, monkeypatch):
    """Nothing is told, cleaned up or recorded after it, and the next delivery answers with the recorded end."""
    ended: list[str] = []
    delivery = Delivery(task, VERIFY, context, writes=False, at_end=lambda _request, _context, job: ended.append(job))
    sync = os.fdatasync

    def work_and_note(request: VerifyRequest, job: RunningJob) -> VerifyResult:
        job.after_end.append(lambda: ended.append("noted"))
        return work(request, job)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(Retry):
        delivery.handle(work_and_note, (), FIELDS)
    assert ended == []
    monkeypatch.setattr(os, "fdatasync", sync)
    record = context.catalogue.ledger.get("job-1")
    assert record is not None
    assert (record.state, record.attempts) == (JobState.SUCCEEDED, 1)
    assert delivery.handle(work, (), FIELDS) == record.result
    assert ended == ["job-1"]


def test_a_job_that_cannot_be_cleaned_up_now_is_delivered_again(context, task):
    """It has succeeded, and must not be told as failed: the next delivery cleans up and answers with the end."""
    tries, states = iter([CatalogueUnavailable("locked")]), list[str]()

    def work_and_note(request: VerifyRequest, job: RunningJob) -> VerifyResult:
        job.after_end.append(lambda: states.append(job.catalogue.ledger.get("job-1").state))
        return work(request, job)

    def clean_up(*_: object) -> None:
        for error in tries:
            raise error

    for outcome in (pytest.raises(Retry), nullcontext()):
        delivery = Delivery(task, VERIFY, context, writes=False, at_end=clean_up)
        with outcome:
            assert delivery.handle(work_and_note, (), FIELDS)["version"] == 1
    assert states == [JobState.SUCCEEDED], "what waits for the end of a job is called once, after it is recorded"
    assert context.catalogue.ledger.get("job-1").state == JobState.SUCCEEDED


@pytest.mark.parametrize("retry", [{"backoff": "100ms"}, {"backoff_max": "100ms"}], ids=str)
def test_a_job_is_never_tried_again_at_once(context, task, retry):
    """A delay of less than a second is a second: all attempts would be used up before a store is back."""
    settings = Settings(home=context.settings.home, retry={"jitter": False, **retry})
    short = dataclasses.replace(context, settings=settings)

    def fail(*_: object) -> VerifyResult:
        raise Unavailable("away")

    with pytest.raises(Retry) as retried:
        Delivery(task, VERIFY, short, writes=False).handle(fail, (), FIELDS)
    assert retried.value.when >= 1


@pytest.mark.parametrize(
    ("error", "ends"),
    [(Unavailable("away"), Ignore), (Snooze("closed", 5), Ignore), (CatalogueUnavailable("x"), Reject)],
)
def test_a_job_whose_next_message_the_broker_does_not_take_is_not_told_as_failed(
    context, task, monkeypatch, caplog, error, ends
):
    """Celery would store a failure, and clients would believe it: the recovery sends a job that the ledger has.

    A message whose job is not in the ledger is not acknowledged, which Celery logs without a traceback.
    """

    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("the broker is away")

    def meet(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(Signature, "apply_async", refuse)
    if ends is Reject:
        monkeypatch.setattr(Ledger, "acquire", meet)
    with pytest.raises(ends) as told:
        Delivery(task, VERIFY, context, writes=False).handle(meet, (), FIELDS)
    assert ends is Ignore or told.value.requeue
    record = context.catalogue.ledger.get("job-1")
    assert (record is None) if ends is Reject else record.due_at
    if ends is Reject:
        try:
            raise told.value
        except Reject:
            TraceInfo(REJECTED).handle_reject(task, task.request)
        assert "reject requeue=True: the broker is away" in caplog.text
        assert "Traceback" not in caplog.text


def test_a_job_that_waited_for_the_catalogue_is_not_its_own_parent(context, task):
    """Celery says so of a message that it sends again; a sweep would then find itself among its pages."""
    task.request.parent_id = "job-1"
    Delivery(task, VERIFY, context, writes=False).handle(work, (), FIELDS)
    assert context.catalogue.ledger.get("job-1").parent is None


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), JobState.RETRYING),
        (RuntimeError("can't start new thread"), JobState.RETRYING),
        (MemoryError(), JobState.RETRYING),
        (redis.ConnectionError("refused"), JobState.RETRYING),
        (OperationalError("refused"), JobState.RETRYING),
        (redis.ReadOnlyError("a replica"), JobState.RETRYING),
        (redis.ResponseError("WRONGTYPE"), JobState.FAILED),
        (OSError(errno.EISDIR, os.strerror(errno.EISDIR)), JobState.FAILED),
        (RuntimeError("a bug"), JobState.FAILED),
    ],
    ids=repr,
)
def test_a_job_that_meets_a_transient_fault_is_tried_again(context, task, error, state):
    """Too many open files, or a broker that restarts, are no bug wherever they are met; another error is one."""

    def meet(*_: object) -> VerifyResult:
        raise error

    with pytest.raises((Retry, JobFailed)):
        Delivery(task, VERIFY, context, writes=False, at_end=None).handle(meet, (), FIELDS)
    assert context.catalogue.ledger.get("job-1").state == state


@pytest.mark.parametrize("damage", ["UPDATE alembic_version SET version_num = '9999'", "DELETE FROM alembic_version"])
def test_a_process_that_cannot_use_the_catalogue_fails_no_job(context, monkeypatch, damage):
    """A worker that is older than the catalogue, or finds it damaged, leaves its jobs to others.

    It may start a process while another worker has migrated the catalogue already.
    """
    settings = context.settings
    with closing(sqlite3.connect(settings.home / "catalogue.sqlite3")) as database, database:
        database.execute(damage)
    monkeypatch.setattr("worker.jobs.task.current", lambda: Context.open(settings))
    monkeypatch.setattr("tasks.sweeps.recover.current", lambda: Context.open(settings))
    monkeypatch.setattr("tasks.record_rejected.current", lambda: Context.open(settings))
    with Celery(broker="memory://", set_as_current=False) as app:
        app.finalize()
        verify = app.tasks[VERIFY.name]
        verify.push_request(id="job-1", delivery_info={"routing_key": "transfer"}, called_directly=False, retries=0)
        with pytest.raises(Retry):
            verify.run(**FIELDS)
        verify.pop_request()
        record = app.tasks[RECORD_TASK]
        rejected = {"job": "job-2", "task": VERIFY.name, "type_": "InvalidMessage", "message": "no fields"}
        record.push_request(id="record-1", delivery_info={}, called_directly=False, retries=0, kwargs=rejected)
        with pytest.raises(Retry):
            record.run(**rejected)
        record.pop_request()
        assert app.tasks[SWEEP_RECOVER.name].run() == {}


@pytest.mark.parametrize("meets", [(Delivery, "_was_cancelled"), (Ledger, "acquire"), (RunningJob, "__init__")])
def test_a_delivery_that_meets_a_fault_of_the_machine_is_sent_again(context, task, monkeypatch, meets):
    """There may be no room for one more open file before the attempt begins, too; the job has not failed."""

    def meet(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    delivery = Delivery(task, VERIFY, context, writes=False)
    with monkeypatch.context() as full:
        full.setattr(*meets, meet)
        with pytest.raises(Retry):
            delivery.handle(work, (), FIELDS)
    record = context.catalogue.ledger.get("job-1")
    assert record is None or not JobState(record.state).terminal


@pytest.mark.parametrize(
    "error",
    [Unavailable("away"), Snooze("closed", 5), Requeue("shutdown"), Cancelled("cancelled"), PermanentError("no"), None],
    ids=repr,
)
def test_a_job_that_lost_its_lease_tells_no_end(context, task, error):
    """Another job fenced it out while its worker was frozen, whose connections to stores are broken then as well."""

    def thaw(request: VerifyRequest, job: RunningJob) -> VerifyResult:
        with context.catalogue.ledger._database.write() as connection:
            connection.exec_driver_sql("UPDATE jobs SET fence = fence + 1")
        if error is not None:
            raise error
        return work(request, job)

    with pytest.raises(Ignore):
        Delivery(task, VERIFY, context, writes=False).handle(thaw, (), FIELDS)
    assert context.catalogue.ledger.get("job-1").state == JobState.RUNNING


@pytest.mark.parametrize(("slept", "ends"), [(timedelta(0), Retry), (timedelta(days=2), Ignore)])
def test_a_job_whose_row_is_gone_is_done_again_unless_it_may_have_ended(context, task, monkeypatch, slept, ends):
    """The catalogue has lost its row; but after `jobs.keep` the row of a job that another worker ended is removed."""
    settings = context.settings.model_copy(update={"jobs": JobSettings(keep=timedelta(days=1))})

    def lose(request: VerifyRequest, job: RunningJob) -> VerifyResult:
        with context.catalogue.ledger._database.write() as connection:
            connection.exec_driver_sql("DELETE FROM jobs")
        woken = clock.now() + slept
        monkeypatch.setattr(clock, "now", lambda: woken)
        return work(request, job)

    with pytest.raises(ends):
        Delivery(task, VERIFY, dataclasses.replace(context, settings=settings), writes=False).handle(lose, (), FIELDS)


def test_a_job_succeeds_although_its_cleanup_fails(context, task):
    """A bug or a damaged disk there is none of the job; the cleanup sweep removes what stays."""
    for _ in range(2):
        delivery = Delivery(task, VERIFY, context, writes=False, at_end=lambda *_: 1 / 0)
        assert delivery.handle(work, (), FIELDS)["version"] == 1


@pytest.mark.parametrize("beats", [heartbeats.LEASES, heartbeats.SIGNS])
def test_a_job_for_whose_heartbeats_there_is_no_thread_is_tried_again(context, task, monkeypatch, beats):
    """The machine allows no more threads for now; nothing renews the lease of the attempt that has ended."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(beats, "_process", None)
    with monkeypatch.context() as full:
        full.setattr(threading, "_start_new_thread", refuse)
        with pytest.raises(Retry):
            Delivery(task, VERIFY, context, writes=False, at_end=None).handle(work, (), FIELDS)
    assert context.catalogue.ledger.get("job-1").state == JobState.RETRYING
    assert not heartbeats.LEASES._beats


def test_a_client_of_another_request_is_told_later_where_redis_fails(context, valkey):
    """The id belongs to the first request again once Redis takes that: its sender is not told a mismatch for weeks."""
    first, other = FIELDS, FIELDS | {"key": "other"}
    with (
        Celery(broker=valkey.url, backend=valkey.url, set_as_current=False) as app,
        redis.Redis.from_url(valkey.url) as server,
    ):
        use_atomic_result_backend(app)
        task: Any = app.task(name=VERIFY.name, bind=True, max_retries=None, shared=False)(_body)
        task.push_request(id="mine", delivery_info={"routing_key": "interactive"}, called_directly=False, retries=0)
        Delivery(task, VERIFY, context, writes=False).handle(work, (), first)
        replace_digest(server, "mine", digest_of(VERIFY.kind, other))
        most = server.config_get("maxmemory")["maxmemory"]
        server.config_set("maxmemory", 1)
        try:
            with pytest.raises(Reject) as refused:
                Delivery(task, VERIFY, context, writes=False).handle(work, (), other)
        finally:
            server.config_set("maxmemory", most)
        assert refused.value.requeue
        with pytest.raises(Ignore):
            Delivery(task, VERIFY, context, writes=False).handle(work, (), other)
        assert compare(server, {"mine": digest_of(VERIFY.kind, first)}, record=False) == []
