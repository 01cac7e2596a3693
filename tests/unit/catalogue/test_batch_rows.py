"""What the catalogue keeps of a batch, alike in each kind of database."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from worker import clock
from worker.catalogue import BatchChanges, BatchItemKind, BatchOutcome, Catalogue, Leased, LostLease, NewBatchItem
from worker.storage import Digest
from zot_artifact_client.contract import JobState

LEASE = timedelta(seconds=30)
VERIFY = BatchItemKind("verify", "sweep", None)


def stored(catalogue, key, *, bucket="releases", size=11):
    artifact = catalogue.artifacts.record(bucket, key, Digest(size, "a" * 64), {}, clock.now(), stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(artifact, "dr", tag="1", evidence={}, now=clock.now())


def take(catalogue, id_, kind="batch", request=None):
    more = {"owner": "me", "writes_to": None, "parent": None, "now": clock.now(), "lease": LEASE}
    begun = catalogue.ledger.acquire(id_, kind, request or {}, **more)
    assert isinstance(begun, Leased)
    return begun.record


def plan(catalogue, batch, numbers, *, came_out=(), exhausted=False):
    children = [NewBatchItem(n, f"b.{n:08d}", {"bucket": "releases", "key": f"{n}"}, 10, None) for n in numbers]
    step = BatchChanges(came_out, children, {"after": f"{numbers[-1] if numbers else ''}"}, exhausted, clock.now())
    return catalogue.batches.advance(batch, VERIFY, step, clock.now())


@pytest.fixture
def batch(catalogue):
    take(catalogue, "b")
    return catalogue.batches.begin("b", {"after": ""}, total=4, total_bytes=40, now=clock.now())


def test_pages_follow_each_other_below_a_prefix(catalogue):
    """Page after page of a prefix gives each key once, in order, and as many and as large as was measured."""
    for key in ("a", "b/1", "b/2", "b/3", "b/4", "c"):
        stored(catalogue, key)
    stored(catalogue, "b/5", bucket="other")
    for prefix, expected in {"b/": ["b/1", "b/2", "b/3", "b/4"], "": ["a", "b/1", "b/2", "b/3", "b/4", "c"]}.items():
        found, after = [], ""
        while page := catalogue.artifacts.page("releases", prefix, ("releases", after), 2):
            found += [artifact.key for artifact in page]
            after = found[-1]
        assert found == expected
        assert catalogue.artifacts.measure("releases", prefix) == (len(expected), 11 * len(expected))
    found = catalogue.artifacts.currents([("releases", "a"), ("releases", "z")])
    assert {path: artifact.digest.size for path, artifact in found.items()} == {("releases", "a"): 11}


def test_outcomes_are_counted_once_and_only_bad_ones_stay(catalogue, batch):
    """A step counts what ended with its bytes, takes it out of flight, and keeps the failed ones by name."""
    batch = plan(catalogue, batch, [1, 2, 3])
    for child, state in (("b.00000001", JobState.SUCCEEDED), ("b.00000002", JobState.DEAD)):
        record = take(catalogue, child, "verify", {"bucket": "releases", "key": str(int(child[2:]))})
        catalogue.ledger.finish(child, record.fence, state, now=clock.now(), error={"message": "away"})
    good, bad, open_ = catalogue.batches.in_flight("b")
    assert (good.state, bad.state, open_.state, good.started, open_.started) == (
        "succeeded",
        "dead",
        "queued",
        True,
        False,
    )
    ended = [BatchOutcome(good, "verified", good=True), BatchOutcome(bad, "dead", good=False)]

    after = plan(catalogue, batch, [4], came_out=ended, exhausted=True)

    assert (after.planned, after.ended, after.ended_bytes, after.failed) == (4, 2, 20, 1)
    assert (after.outcomes, after.exhausted, after.cursor) == ({"verified": 1, "dead": 1}, True, {"after": "4"})
    assert after == catalogue.batches.get("b")
    assert [child.number for child in catalogue.batches.in_flight("b")] == [3, 4]
    assert [failed.job for failed in catalogue.batches.failed("b", limit=9)] == ["b.00000002"]
    assert [child.id for child in catalogue.batches.child_jobs("b", failed=True)] == ["b.00000002"]
    assert [child.id for child in catalogue.batches.child_jobs("b", after="b.00000002")] == ["b.00000003", "b.00000004"]


def test_failed_objects_cost_no_later_step(tmp_path):
    """However many children failed, SQLite takes as many steps to find those in flight."""
    catalogue, taken = Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"), []
    count = sa.event.listens_for(catalogue._database.engine, "begin")
    count(lambda begun: begun.connection.dbapi_connection.set_progress_handler(lambda: taken.append(1), 1))
    take(catalogue, "b")
    batch = catalogue.batches.begin("b", {"after": ""}, total=None, total_bytes=None, now=clock.now())
    costs = []
    for first in range(1, 1000, 100):
        ended = [BatchOutcome(child, "dead", good=False) for child in catalogue.batches.in_flight("b")]
        batch = plan(catalogue, batch, range(first, first + 100), came_out=ended)
        taken.clear()
        assert len(catalogue.batches.in_flight("b")) == 100
        costs.append(len(taken))
    catalogue.close()
    assert max(costs) < 1.1 * min(costs)


def test_a_worker_that_lost_a_batch_plans_nothing(catalogue, batch):
    """A step of a worker that lost its lease is void: no child, no cursor, no count."""
    fence = catalogue.ledger.get("b").fence
    with pytest.raises(LostLease):
        plan(catalogue.fenced("b", fence - 1), batch, [1])
    assert catalogue.batches.get("b") == batch
    assert catalogue.batches.in_flight("b") == []
    assert plan(catalogue.fenced("b", fence), batch, [1]).planned == 1


def test_a_batch_is_over_until_its_children_were_told(catalogue, batch):
    """A batch that has ended is told of until it is closed; one that has not ended never is."""
    plan(catalogue, batch, [1])
    assert catalogue.batches.ended_open() == []
    catalogue.ledger.finish("b", catalogue.ledger.get("b").fence, JobState.CANCELLED, now=clock.now())
    assert catalogue.batches.ended_open() == ["b"]
    catalogue.batches.close("b")
    assert catalogue.batches.ended_open() == []


def test_a_job_that_succeeded_is_not_shown_at_its_last_report(catalogue, batch):
    """The last report of a job may be older than its end: one that succeeded has no progress, one that failed has."""
    for end, progress in ((JobState.SUCCEEDED, None), (JobState.FAILED, {"objects_done": 0})):
        held = catalogue.ledger.acquire(
            end, "verify", {}, owner="a", writes_to=None, parent=None, now=clock.now(), lease=LEASE
        )
        fence = held.record.fence
        catalogue.ledger.renew(end, fence, until=clock.now() + LEASE, progress={"objects_done": 0})
        catalogue.ledger.finish(end, fence, end, now=clock.now())
        assert catalogue.ledger.get(end).progress == progress


def test_a_step_that_went_well_clears_the_slate(catalogue, batch):
    """Between two steps a batch is queued, with its progress, without an attempt or a fault that counts against it."""
    record = catalogue.ledger.get("b")
    catalogue.ledger.continue_later("b", record.fence, progress={"objects_done": 3}, due=clock.now())
    rested = catalogue.ledger.get("b")
    assert (rested.state, rested.attempts, rested.error, rested.progress) == ("queued", 0, None, {"objects_done": 3})


def test_a_planned_job_is_not_taken_over_yet(catalogue, batch):
    """The outbox keeps the message of a child until a worker has begun it, and no time is set by which it is due."""
    plan(catalogue, batch, [1, 2])
    take(catalogue, "b.00000001", "verify", {"bucket": "releases", "key": "1"})
    assert catalogue.ledger.known(["b", "b.00000001", "b.00000002"]) == {"b", "b.00000001"}
    later = clock.now() + timedelta(days=1)
    overdue = catalogue.ledger.overdue(now=later, again=LEASE, lease=LEASE, limit=9)
    assert "b.00000002" not in {job.id for job in overdue}
