"""Waiting jobs are cancelled without a worker, by the recovery, with a real Redis."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import redis
from celery import Celery

import tasks.upload  # noqa: F401 - as in a worker: it says what is done at a job's end
from tasks.sweeps.recover import recover
from tests.waiting import WITHIN
from worker import clock
from worker.catalogue import Busy, CatalogueUnavailable, FindingKind, Leased
from worker.context import Context
from worker.jobs.cancel_jobs import request_cancel
from worker.jobs.outbox import Outbox
from worker.jobs.republish_results import CURSOR, republish_results, uncompared
from worker.jobs.result_backend import fenced_request, use_atomic_result_backend
from worker.jobs.task import clean_up
from worker.settings import Settings
from worker.settings.section_models import SourceSettings
from worker.storage.config import FilesystemConfig
from zot_artifact_client import ArtifactClient, JobCancelled, JobFailed, UnknownJob
from zot_artifact_client.cancellation import CANCEL_REQUESTS, add_requests
from zot_artifact_client.contract import SWEEP_RECOVER, VERIFY, VerifyRequest
from zot_artifact_client.outgoing_messages import MESSAGES

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # by Celery, when it keeps a result
Begin = Callable[..., Leased]


@pytest.fixture
def url(valkey) -> str:
    valkey.empty()
    return valkey.url


@pytest.fixture
def broker(url) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def app(url) -> Iterator[Celery]:
    with Celery(broker=url, backend=url, set_as_current=False) as app:
        yield app


@pytest.fixture
def client(url) -> Iterator[ArtifactClient]:
    with ArtifactClient(url) as opened:
        yield opened


@pytest.fixture
def context(tmp_path) -> Iterator[Context]:
    stores = {"primary": FilesystemConfig(root=tmp_path / "home" / "primary")}
    settings = Settings(home=tmp_path / "home", stores=stores, sources=SourceSettings(roots=(tmp_path / "in",)))
    settings.home.mkdir()
    opened = Context.open(settings)
    yield opened
    opened.close()


@pytest.fixture
def begin(context) -> Begin:
    def begin(id_: str, **request: object) -> Leased | Busy:
        return context.catalogue.ledger.acquire(
            id_, "upload", {"bucket": "releases", "key": "app.tgz", "source": "/in", **request}, owner="here",
            writes_to=None, parent=None, now=clock.now(), lease=timedelta(seconds=30),
        )  # fmt: skip

    return begin


def cancel(client: ArtifactClient, id_: str) -> None:
    """Cancel a job of which the result backend has no state: the request is kept nevertheless."""
    with pytest.raises(UnknownJob):
        client.job(id_).cancel()


@pytest.fixture
def staged(context) -> Path:
    path = context.settings.staging_dir / "waits" / "app.tgz"
    path.parent.mkdir()
    path.write_bytes(b"release one")
    return path


def test_a_job_between_two_attempts_ends_at_once(context, app, client, broker, begin, staged):
    """It is cancelled in the ledger and for a waiting client, and the source that was staged for it is gone."""
    fence = begin("waits", source=str(staged), staged=True).record.fence
    away = {"type": "Unavailable", "message": "away"}
    context.catalogue.ledger.retry("waits", fence, away, due=clock.now() + timedelta(hours=1))
    cancel(client, "waits")
    assert recover(context, app).cancelled == 1
    record = context.catalogue.ledger.get("waits")
    assert (record.state, record.error["type"]) == ("cancelled", "Cancelled")
    with pytest.raises(JobCancelled):
        client.job("waits").wait(WITHIN)
    assert not staged.parent.exists()
    assert not broker.exists(CANCEL_REQUESTS)
    assert recover(context, app).cancelled == 0


def test_a_job_whose_lease_ends_during_the_recovery_is_cancelled_and_not_sent_again(
    context, app, client, begin, staged, monkeypatch
):
    """The worker died; the lease ends after `sweep.recover` has cancelled jobs, and before it sends jobs again."""
    begin("waits", source=str(staged), staged=True)
    cancel(client, "waits")
    later = clock.now() + timedelta(minutes=1)

    def pass_time(*_: object) -> None:
        monkeypatch.setattr(clock, "now", lambda: later)

    monkeypatch.setattr("tasks.sweeps.recover.end_batch_items", pass_time)
    first = recover(context, app)
    assert (first.cancelled, first.jobs) == (0, 0)
    assert recover(context, app).cancelled == 1
    assert context.catalogue.ledger.get("waits").attempts == 1


def test_a_job_that_no_worker_has_taken_over_ends_at_once(context, app, client, broker):
    """Its request is in the ledger, its message is not sent again, and a delivery of it finds that it has ended."""
    job = client.upload("/in/app.tgz", "releases", "app.tgz")
    job.cancel()
    assert recover(context, app).cancelled == 1
    record = context.catalogue.ledger.get(job.id)
    assert (record.state, record.request["source"]) == ("cancelled", "/in/app.tgz")
    assert not broker.exists(MESSAGES, CANCEL_REQUESTS)
    broker.delete("transfer")
    assert recover(context, app).messages == 0


def test_a_job_at_work_is_left_to_its_worker_and_looked_after_if_that_dies(context, app, client, begin, monkeypatch):
    """It is ended here only when its worker has gone silent, and then without another attempt."""
    begin("runs")
    cancel(client, "runs")
    assert recover(context, app).cancelled == 0
    assert context.catalogue.ledger.get("runs").state == "running"
    later = clock.now() + timedelta(minutes=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert recover(context, app).cancelled == 1
    assert context.catalogue.ledger.get("runs").state == "cancelled"


def test_the_corrected_request_of_a_refused_job_is_cancelled(context, app, client, broker):
    """The refused message leaves its id to it; without one, there is nothing to cancel."""
    for id_ in ("corrected", "refused"):
        context.catalogue.ledger.reject(id_, "unheard", {}, {"type": "UnknownTask", "message": "?"}, clock.now())
    client.submit(VERIFY, VerifyRequest(bucket="releases", key="app.tgz"), job_id="corrected")
    add_requests(broker, ["corrected", "refused"])
    assert recover(context, app).cancelled == 1
    assert context.catalogue.ledger.get("corrected").state == "cancelled"
    assert context.catalogue.ledger.get("refused").state == "refused"
    assert not broker.zcard(CANCEL_REQUESTS)
    with pytest.raises(JobCancelled):
        client.job("corrected").wait(WITHIN)


def test_the_cancellation_of_an_unknown_id_waits_for_its_message(context, app, client, broker):
    """Cancelling a job of a plain Celery client takes effect when its message arrives; it expires after a day."""
    cancel(client, "unknown")
    assert recover(context, app).cancelled == 0
    assert broker.zscore(CANCEL_REQUESTS, "unknown")
    assert 0 < broker.ttl("zot-artifacts:cancel:unknown") <= 24 * 3600
    broker.zadd(CANCEL_REQUESTS, {"unknown": clock.now().timestamp() - 49 * 3600})
    recover(context, app)
    assert broker.zscore(CANCEL_REQUESTS, "unknown") is None


def test_requests_of_clients_with_wrong_clocks_are_heeded(context, app, client, broker):
    """A request that was written a day behind the clock is not dropped, and one ahead of it is not kept for longer."""
    jobs = [client.upload("/in/app.tgz", "releases", name) for name in "ab"]
    for job, hours in zip(jobs, (-25, 25), strict=True):
        job.cancel()
        broker.zadd(CANCEL_REQUESTS, {job.id: clock.now().timestamp() + hours * 3600})
    broker.zadd(CANCEL_REQUESTS, {"unknown": clock.now().timestamp() + 24 * 3600 * 365})
    assert recover(context, app).cancelled == 2
    assert broker.zscore(CANCEL_REQUESTS, "unknown") <= clock.now().timestamp()


def test_many_that_are_cancelled_call_for_one_look(context, app, broker):
    """Another run is requested only after it has started: no later request is missed."""
    for id_ in ("a", "b", "c"):
        assert request_cancel(app, [id_])
    assert broker.llen(SWEEP_RECOVER.queue.value) == 1
    recover(context, app)
    request_cancel(app, ["d"])
    assert broker.llen(SWEEP_RECOVER.queue.value) == 2


def test_thousands_of_requests_for_unknown_ids_keep_no_job_waiting(context, app, client, broker):
    """10,000 requests for unknown ids, and garbage among them, cost a few round trips; a known job is cancelled."""
    job = client.upload("/in/app.tgz", "releases", "app.tgz")
    job.cancel()
    add_requests(broker, [f"unknown-{n}" for n in range(9_990)])
    broker.zadd(CANCEL_REQUESTS, {b"\xff\xfe": clock.now().timestamp(), "a\0b": clock.now().timestamp()})
    begin = time.monotonic()
    assert recover(context, app).cancelled == 1
    assert time.monotonic() - begin < 60
    assert broker.zcard(CANCEL_REQUESTS) == 9_990
    add_requests(broker, [f"more-{n}" for n in range(2_000)])
    assert broker.zcard(CANCEL_REQUESTS) == 10_000


def test_an_end_that_the_result_backend_lacks_is_published_again(context, app, client, broker, begin):
    """A client of a job whose worker died between ledger and result backend is told the ledger's end."""
    recover(context, app)  # a new result backend is like one that has lost its data
    now = clock.now()
    ledger = context.catalogue.ledger
    error = {"type": "NotFound", "message": "not there"}
    for id_, state in (("done", "succeeded"), ("failed", "failed"), ("silent", "failed"), ("forged", "failed")):
        fence = begin(id_, key=id_).record.fence
        ledger.finish(id_, fence, state, now=now, result={"ok": 1} if id_ == "done" else None, error=error)
    app.backend.store_result("done", None, "STARTED")
    app.backend.store_result("failed", ValueError("again"), "RETRY")
    broker.set("celery-task-meta-forged", "[" * 100_000)
    recover(context, app)
    assert client.job("done").result == {"ok": 1}
    with pytest.raises(JobFailed, match="not there"):
        client.job("failed").wait(WITHIN)
    assert app.backend.get_state("silent") == "PENDING"


def test_the_end_of_a_corrected_request_replaces_the_refusal_that_is_stored(context, app, client):
    """Its worker died before it had stored a state: what is stored under the id is the end of the refused message."""
    recover(context, app)
    ledger, wanted = context.catalogue.ledger, VerifyRequest(bucket="releases", key="app.tgz")
    ledger.reject("mine", "unheard", {}, {"type": "UnknownTask", "message": "?"}, clock.now())
    app.backend.mark_as_failure(
        "mine", JobFailed("?", "UnknownTask", "refused", 0), request=fenced_request(ledger.get("mine"))
    )
    job = client.submit(VERIFY, wanted, job_id="mine")
    assert republish_results(context, app, clean_up) == 0
    taken = ledger.acquire(
        "mine", VERIFY.kind, wanted.payload(), owner="here", writes_to=None, parent=None, now=clock.now(),
        lease=timedelta(seconds=30),
    )  # fmt: skip
    ledger.finish("mine", taken.record.fence, "failed", now=clock.now(), error={"type": "NotFound", "message": "gone"})
    assert republish_results(context, app, clean_up) == 1
    with pytest.raises(JobFailed, match="gone"):
        job.wait(WITHIN)


def test_all_ends_are_published_on_a_result_backend_that_was_lost(context, app, client, broker, begin, monkeypatch):
    """It was started empty: clients that wait are told the ledger's end, however many runs of the recovery it takes."""
    monkeypatch.setattr("worker.jobs.republish_results._PAGE", 2)
    monkeypatch.setattr("worker.jobs.republish_results._PAGES", 1)
    recover(context, app)
    for number in range(5):
        fence, ended = begin(f"job-{number}").record.fence, clock.now() - timedelta(minutes=10 - number)
        context.catalogue.ledger.finish(f"job-{number}", fence, "succeeded", now=ended, result={"ok": number})
    broker.flushall()
    cleaned: list[str] = []
    for _ in range(5):
        republish_results(context, app, lambda _, job: cleaned.append(job.id))
    assert [client.job(f"job-{number}").result for number in range(5)] == [{"ok": number} for number in range(5)]
    assert cleaned == []  # each was when it ended


def test_a_result_backend_of_the_version_before_is_not_taken_for_a_lost_one(context, app, broker, begin):
    """It has the ends that were compared, and none of jobs that store no result."""
    fence = begin("silent").record.fence
    context.catalogue.ledger.finish("silent", fence, "succeeded", now=clock.now(), result={"ok": 1})
    broker.set(CURSOR, clock.now().timestamp())
    assert republish_results(context, app, clean_up) == 0
    assert app.backend.get_state("silent") == "PENDING"


def test_an_end_that_no_state_was_stored_of_is_published_and_cleaned_up(context, app, client, broker, begin, staged):
    """The worker of a short job died before it stored anything: the outbox still has the job, and its source is left.

    Celery does not deliver a job again whose success is stored.
    """
    fence = begin("waits", source=str(staged), staged=True).record.fence
    context.catalogue.ledger.finish("waits", fence, "succeeded", now=clock.now(), result={"ok": 1})
    broker.hset(MESSAGES, "waits", "{}")
    recover(context, app)
    assert client.job("waits").result == {"ok": 1}
    assert not staged.parent.exists()


def test_an_end_behind_one_without_a_cause_is_published(context, app, client, broker, begin):
    """A row that another program has written, or a restored one, may have an error of another form."""
    for id_, error in (("odd", {"reason": 1}), ("next", {"type": "NotFound", "message": "not there"})):
        context.catalogue.ledger.finish(id_, begin(id_, key=id_).record.fence, "failed", now=clock.now(), error=error)
        broker.hset(MESSAGES, id_, "{}")
    recover(context, app)
    with pytest.raises(JobFailed, match="no cause was recorded"):
        client.job("odd").wait(WITHIN)
    with pytest.raises(JobFailed, match="not there"):
        client.job("next").wait(WITHIN)


def test_an_end_behind_many_others_is_published_by_the_same_run(context, app, client, broker, begin):
    """Jobs may end faster than one page of them is compared at each recovery."""
    for number in range(501):
        fence = begin(f"job-{number}").record.fence
        context.catalogue.ledger.finish(f"job-{number}", fence, "succeeded", now=clock.now(), result={"ok": number})
    broker.hset(MESSAGES, "job-500", "{}")
    recover(context, app)
    assert client.job("job-500").result == {"ok": 500}


def test_an_end_behind_many_that_ended_at_one_moment_is_published(context, app, client, broker, begin):
    """A restored catalogue has ended its open jobs at one moment, which may be more than a run compares."""
    records = [begin(f"job-{number:03}").record for number in range(501)]
    now = clock.now()
    for record in records:
        context.catalogue.ledger.finish(record.id, record.fence, "dead", now=now, error={"type": "a", "message": "b"})
    fence = begin("last").record.fence
    context.catalogue.ledger.finish("last", fence, "succeeded", now=now, result={"ok": 1})
    broker.hset(MESSAGES, "last", "{}")
    recover(context, app)
    assert client.job("last").result == {"ok": 1}


def test_the_end_of_a_job_of_a_batch_is_not_published(context, app, broker, begin):
    """The batch reads the ledger, and no client waits: a state would stay in Redis for a day."""
    batch = "1d0941e5-206c-497d-a218-0cfd4a59ca7a"
    leased = context.catalogue.ledger.acquire(
        f"{batch}.00000004", "verify", {}, owner="here", writes_to=None, parent=batch, now=clock.now(),
        lease=timedelta(seconds=30),
    )  # fmt: skip
    context.catalogue.ledger.finish(leased.record.id, leased.record.fence, "succeeded", now=clock.now(), result={})
    broker.hset(MESSAGES, leased.record.id, "{}")  # a message that was sent again while a worker began the job
    recover(context, app)
    assert not broker.keys("celery-task-meta-*")


def test_the_outbox_keeps_a_running_job_until_a_state_of_it_is_stored(context, app, client, broker, begin, monkeypatch):
    """The job waited long for its worker, and the recovery ran in its first second; then the worker died."""
    use_atomic_result_backend(app)
    id_ = client.upload("/in", "releases", "app.tgz").id
    broker.delete("transfer")
    fence = begin(id_).record.fence
    monkeypatch.setattr("worker.jobs.outbox.time.time", lambda: clock.now().timestamp() + 3600)
    assert recover(context, app).messages == 0
    context.catalogue.ledger.finish(id_, fence, "succeeded", now=clock.now(), result={"ok": 1})
    kept = partial(uncompared, context, app)
    assert Outbox(app).resend(context.catalogue.ledger.known, timedelta(), kept=kept) == 0  # it ended meanwhile
    assert recover(context, app).messages == 0
    assert app.backend.get_result(id_) == {"ok": 1}
    assert not broker.exists(MESSAGES)


def test_the_end_after_a_retry_that_no_state_was_stored_of_is_published(
    context, app, client, broker, begin, monkeypatch
):
    """The workers of two attempts died, each between its record in the ledger and the state that it would store."""
    use_atomic_result_backend(app)
    id_ = client.upload("/in", "releases", "app.tgz").id
    broker.delete("transfer")
    away = {"type": "Unavailable", "message": "away"}
    context.catalogue.ledger.retry(id_, begin(id_).record.fence, away, due=clock.now() + timedelta(hours=1))
    monkeypatch.setattr("worker.jobs.outbox.time.time", lambda: clock.now().timestamp() + 3600)
    assert recover(context, app).messages == 0
    context.catalogue.ledger.finish(id_, begin(id_).record.fence, "succeeded", now=clock.now(), result={"ok": 1})
    recover(context, app)
    assert app.backend.get_result(id_) == {"ok": 1}
    assert not broker.exists(MESSAGES)


def test_an_end_is_published_although_its_cleanup_fails(context, app, client, broker, begin):
    """A client waits for the end; what was staged is removed by the cleanup sweep."""
    fence = begin("done", source=7).record.fence
    context.catalogue.ledger.finish("done", fence, "succeeded", now=clock.now(), result={"ok": 1})
    broker.hset(MESSAGES, "done", "{}")
    recover(context, app)
    assert client.job("done").result == {"ok": 1}


def test_a_cancellation_that_could_not_be_published_is_published_later(context, app, client, monkeypatch):
    """The job stays in the outbox until its end is stored, by which the recovery sees that it is not."""
    job = client.upload("/in", "releases", "app.tgz")
    job.cancel()
    publish, refusals = app.backend.mark_as_revoked, iter([redis.ConnectionError()])

    def refuse_once(*args: object, **options: object) -> object:
        for error in refusals:
            raise error
        return publish(*args, **options)

    monkeypatch.setattr(app.backend, "mark_as_revoked", refuse_once)
    assert recover(context, app).cancelled == 1
    with pytest.raises(JobCancelled):
        job.wait(WITHIN)


def test_a_job_is_told_as_cancelled_although_its_cleanup_fails(context, app, client, begin):
    """The ledger has its end before the cleanup begins."""
    fence = begin("waits", source=7).record.fence
    away = {"type": "Unavailable", "message": "away"}
    context.catalogue.ledger.retry("waits", fence, away, due=clock.now() + timedelta(hours=1))
    cancel(client, "waits")
    assert recover(context, app).cancelled == 1
    with pytest.raises(JobCancelled):
        client.job("waits").wait(WITHIN)


def test_a_step_that_fails_stops_no_other_step(context, app, client, broker, monkeypatch):
    """A fault in one step of the recovery is logged; the message that was lost is sent again nevertheless."""
    client.upload("/in/app.tgz", "releases", "app.tgz")
    broker.delete("transfer")
    monkeypatch.setattr("tasks.sweeps.recover.end_batch_items", lambda *_: 1 / 0)
    monkeypatch.setattr("worker.jobs.outbox.time.time", lambda: clock.now().timestamp() + 3600)
    assert recover(context, app).messages == 1


def test_nothing_is_sent_again_while_the_catalogue_cannot_be_written(context, app, client, broker, monkeypatch):
    """Each turn would send one more message for a job that no worker can record."""
    client.upload("/in/app.tgz", "releases", "app.tgz")
    broker.delete("transfer")
    monkeypatch.setattr("worker.jobs.outbox.time.time", lambda: clock.now().timestamp() + 3600)
    with monkeypatch.context() as full:
        full.setattr(context.catalogue.ledger, "check_writable", lambda: (_ for _ in ()).throw(CatalogueUnavailable()))
        with pytest.raises(CatalogueUnavailable):
            recover(context, app)
    assert broker.llen("transfer") == 0
    assert recover(context, app).messages == 1


def test_webhooks_of_old_jobs_are_forgotten_where_no_webhook_is_configured(context, app, begin, monkeypatch):
    """The recovery forgets ends of jobs that were refused because of such a receiver, and shows those of others."""
    ledger = context.catalogue.ledger
    fence = begin("refused", notify=["cj"]).record.fence
    ledger.finish("refused", fence, "failed", now=clock.now(), error={"type": "UnknownReceiver"})
    fence = begin("done", notify=["ci"]).record.fence
    ledger.finish("done", fence, "succeeded", now=clock.now(), result={})
    recover(context, app)
    assert list(context.catalogue.job_webhooks.receivers()) == ["ci"]
    assert [each.key for each in context.catalogue.findings.page()] == ["ci"]
    now = clock.now() + timedelta(days=31)
    monkeypatch.setattr(clock, "now", lambda: now)
    recover(context, app)
    assert context.catalogue.job_webhooks.receivers() == {}


def test_runs_of_the_sweep_of_webhooks_do_not_fill_the_ledger(context, app, monkeypatch):
    """There is one each few seconds: those of the last day, by each clock, and other jobs stay without `jobs.keep`."""
    ledger = context.catalogue.ledger
    for id_, kind in (("run", "sweep.webhooks"), ("other", "sweep.verify")):
        begun = ledger.acquire(
            id_, kind, {}, owner="here", writes_to=None, parent=None, now=clock.now(), lease=timedelta(seconds=30)
        )
        ledger.finish(id_, begun.record.fence, "succeeded", now=clock.now(), result={})
    with monkeypatch.context() as ahead:
        ahead.setattr(clock, "_shared_start", None)
        ahead.setattr(clock, "_checked_at", 0.0)
        clock.follow(clock.now() + timedelta(days=2), asked_at=clock.uptime())  # as the catalogue's server may say
        recover(context, app)
    assert ledger.get("run") is not None
    now = clock.now() + timedelta(days=2)
    monkeypatch.setattr(clock, "now", lambda: now)
    recover(context, app)
    assert (ledger.get("run"), ledger.get("other").state) == (None, "succeeded")


def test_a_clock_that_is_ahead_removes_no_history(context, app, begin, monkeypatch):
    """Jobs and resolved findings are removed when they are older than the settings say by a time that is certain."""
    jobs = context.settings.jobs.model_copy(update={"keep": timedelta(days=30)})
    context = replace(context, settings=context.settings.model_copy(update={"jobs": jobs}))
    context.catalogue.ledger.finish("old", begin("old").record.fence, "failed", now=clock.now(), error={"type": "X"})
    context.catalogue.findings.see_store(FindingKind.BACKUP, "dr", {"detail": "it failed"}, now=clock.now())
    context.catalogue.findings.see_store(FindingKind.BACKUP, "dr", None, now=clock.now())

    def history() -> tuple[bool, int]:
        return context.catalogue.ledger.get("old") is not None, len(context.catalogue.findings.page(resolved=True))

    recover(context, app)
    later = clock.now() + timedelta(days=400)
    monkeypatch.setattr(clock, "now", lambda: later)
    recover(context, app)
    assert history() == (True, 1)
    monkeypatch.setattr(clock, "not_ahead", lambda *_, **__: later)
    recover(context, app)
    assert history() == (False, 0)


def test_a_clock_that_was_behind_holds_jobs_for_as_long_as_they_are_kept(context, app, begin, monkeypatch):
    """A clock that was set right is believed for jobs after `jobs.keep`, and not after the year that findings stay."""
    jobs = context.settings.jobs.model_copy(update={"keep": timedelta(days=30)})
    context = replace(context, settings=context.settings.model_copy(update={"jobs": jobs}))
    ledger, ended, running = context.catalogue.ledger, clock.now(), clock.uptime()
    ledger.finish("old", begin("old").record.fence, "failed", now=ended, error={"type": "X"})
    for now, ran in ((-400, 0), (1, 0), (32, 31)):
        assert ledger.get("old") is not None
        monkeypatch.setattr(clock, "now", partial(ended.__add__, timedelta(days=now)))
        monkeypatch.setattr(clock, "uptime", partial(float, running + timedelta(days=ran).total_seconds()))
        recover(context, app)
    assert ledger.get("old") is None
