"""Operators' actions on jobs, and pauses, in each kind of catalogue."""

from datetime import UTC, datetime, timedelta

from worker.catalogue import Catalogue, Finished, Leased, Scope
from zot_artifact_client.contract import JobState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
UNAVAILABLE = {"type": "Unavailable", "message": "dr: away", "traceback": "Traceback: away"}
WHY = {"type": "Cancelled", "message": "a client cancelled it"}


def begin(catalogue: Catalogue, id_: str, now: datetime = NOW, max_crashes: int = 5) -> Leased | Finished:
    begun = catalogue.ledger.acquire(
        id_, "upload", {"bucket": "releases", "key": id_}, owner="here", writes_to=None, parent=None, now=now,
        lease=LEASE, max_crashes=max_crashes,
    )  # fmt: skip
    assert isinstance(begun, Leased | Finished)
    return begun


def taken(catalogue: Catalogue, id_: str) -> Leased:
    begun = begin(catalogue, id_)
    assert isinstance(begun, Leased)
    return begun


def bury(catalogue: Catalogue, id_: str) -> None:
    fence = taken(catalogue, id_).record.fence
    catalogue.ledger.finish(id_, fence, JobState.DEAD, now=NOW, error=UNAVAILABLE)


def test_a_job_that_waits_is_ended_and_stays_so(catalogue):
    """A waiting job is cancelled at once, and a later delivery of it finds that it has ended."""
    fence = taken(catalogue, "waits").record.fence
    catalogue.ledger.retry("waits", fence, UNAVAILABLE, due=NOW)
    assert catalogue.job_admin.cancel("waits", WHY, NOW).state == "cancelled"
    assert isinstance(begin(catalogue, "waits"), Finished)


def test_a_job_at_work_is_left_to_its_worker(catalogue):
    """A job whose lease lasts is not cancelled behind its worker's back; one whose worker has gone silent is."""
    taken(catalogue, "runs")
    assert catalogue.job_admin.cancel("runs", WHY, NOW) is None
    assert catalogue.job_admin.cancel("runs", WHY, NOW + LEASE).finished_at == NOW + LEASE


def test_a_job_that_has_ended_is_not_cancelled(catalogue):
    """How a job ended is not rewritten."""
    bury(catalogue, "dead")
    assert catalogue.job_admin.cancel("dead", WHY, NOW) is None
    assert catalogue.ledger.get("dead").error == UNAVAILABLE


def test_a_job_that_no_worker_has_taken_is_recorded_as_cancelled(catalogue):
    """Its message, when it arrives, finds that it has ended; one that a worker has taken meanwhile is not ended."""
    request = {"bucket": "releases", "key": "new"}
    assert catalogue.job_admin.cancel_new("new", "upload", request, WHY, NOW).state == "cancelled"
    assert isinstance(begin(catalogue, "new"), Finished)
    taken(catalogue, "late")
    assert catalogue.job_admin.cancel_new("late", "upload", request, WHY, NOW) is None


def test_a_dead_job_is_redriven_as_if_it_were_new(catalogue):
    """Attempts, crashes and waiting count from the start, the holder of before is fenced, and it is sent if lost."""
    bury(catalogue, "dead")
    before = catalogue.ledger.get("dead")
    cause = {"type": "Retried", "message": "by hand", "previous": UNAVAILABLE}
    revived = catalogue.job_admin.redrive("dead", cause, due=NOW)
    assert (revived.state, revived.attempts, revived.crashes) == ("queued", 0, 0)
    assert (revived.fence, revived.finished_at, revived.snoozed_since) == (before.fence + 1, None, None)
    assert revived.error["previous"]["traceback"] == UNAVAILABLE["traceback"]
    overdue = catalogue.ledger.overdue(now=NOW + LEASE, again=LEASE, lease=LEASE, limit=10)
    assert [job.id for job in overdue] == ["dead"]
    assert taken(catalogue, "dead").record.attempts == 1


def test_only_what_ended_without_success_is_redriven(catalogue):
    """A job that runs or has succeeded stays as it is."""
    fence = taken(catalogue, "good").record.fence
    assert catalogue.job_admin.redrive("good", WHY, due=NOW) is None
    catalogue.ledger.finish("good", fence, JobState.SUCCEEDED, now=NOW, result={})
    assert catalogue.job_admin.redrive("good", WHY, due=NOW) is None
    assert catalogue.ledger.get("good").state == "succeeded"


def test_the_last_real_cause_survives_what_came_after_it(catalogue):
    """A job that snoozed, or that killed its worker in the end, still shows the failure before that."""
    fence = taken(catalogue, "job").record.fence
    catalogue.ledger.retry("job", fence, UNAVAILABLE, due=NOW)
    for _ in range(2):
        fence = taken(catalogue, "job").record.fence
        catalogue.ledger.snooze("job", fence, {"type": "Snooze", "message": "busy"}, since=NOW, due=NOW)
    assert catalogue.ledger.get("job").error["previous"] == UNAVAILABLE
    taken(catalogue, "job")
    ended = begin(catalogue, "job", NOW + 2 * LEASE, max_crashes=1)
    assert isinstance(ended, Finished)
    assert (ended.record.state, ended.record.error["type"]) == ("dead", "Poison")
    assert ended.record.error["previous"] == UNAVAILABLE


def test_jobs_are_found_by_state_and_by_what_fits(catalogue):
    """The latest come first, and no more than were asked for."""
    for id_ in ("a", "b", "c"):
        bury(catalogue, id_)
    taken(catalogue, "runs")
    find = catalogue.job_admin.find
    assert [job.id for job in find([JobState.DEAD], limit=2)] == ["a", "b"]
    assert [job.id for job in find([JobState.DEAD], fits=lambda job: job.id > "b")] == ["c"]
    assert len(find([])) == 4
    assert find([], kind="verify") == []


def test_a_pause_keeps_its_beginning_until_it_is_ended(catalogue):
    """Pausing again changes the reason at most; ending it twice is no error."""
    pauses = catalogue.pauses
    pauses.begin(Scope.STORE, "dr", reason="moving", now=NOW)
    pauses.begin(Scope.STORE, "dr", reason=None, now=NOW + LEASE)
    pauses.begin(Scope.QUEUE, "dr", reason=None, now=NOW + LEASE)
    assert [(p.scope, p.name, p.since, p.reason) for p in pauses.all()] == [
        ("store", "dr", NOW, "moving"),
        ("queue", "dr", NOW + LEASE, None),
    ]
    assert pauses.end(Scope.STORE, "dr")
    assert not pauses.end(Scope.STORE, "dr")
    assert [p.scope for p in pauses.all()] == ["queue"]


def test_a_lease_comes_with_the_pauses_that_concern_it(catalogue):
    """Those of all stores, of the job and of its batch; of no other job and of no queue."""
    for scope, name in ((Scope.STORE, "dr"), (Scope.JOB, "batch"), (Scope.JOB, "other"), (Scope.QUEUE, "transfer")):
        catalogue.pauses.begin(scope, name, reason=None, now=NOW)
    given = {"owner": "me", "writes_to": None, "now": NOW, "lease": LEASE}
    child = catalogue.ledger.acquire("batch.00000001", "upload", {}, parent="batch", **given)
    alone = catalogue.ledger.acquire("alone", "upload", {}, parent=None, **given)
    assert {(each.scope, each.name) for each in child.pauses} == {("store", "dr"), ("job", "batch")}
    assert {(each.scope, each.name) for each in alone.pauses} == {("store", "dr")}
