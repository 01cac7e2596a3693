"""The rules say where artifacts belong; what lacks a copy there gets it, and a source stays while it may be needed."""

from datetime import timedelta

import pytest

from tasks.delete import delete
from tasks.replicate import replicate
from tasks.sweeps.replicate import sweep_replicate
from tasks.upload import upload
from worker import clock
from worker.catalogue import Leased
from worker.context import Context
from worker.limits.snooze import Snooze
from worker.settings.sections import PlacementRule
from zot_artifact_client.contract import (
    DeleteRequest,
    JobState,
    ReplicateRequest,
    SweepReplicateRequest,
    UploadRequest,
)

RULES = (
    PlacementRule(bucket="models-*", prefix="big/", stores=("cold",)),
    PlacementRule(bucket="models-*", stores=("primary", "dr")),
)


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"placement_rules": RULES})


@pytest.fixture
def sent(monkeypatch) -> list[tuple[str, tuple[str, ...]]]:
    """Return what the sweep sends; the queue between is that of tests with real workers."""
    jobs: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(
        "tasks.sweeps.replicate.send_child", lambda spec, request, **_: jobs.append((request.key, request.to))
    )
    return jobs


@pytest.fixture
def put(run, source):
    def put(bucket: str, key: str, *stores: str):
        return run(upload, UploadRequest(bucket=bucket, key=key, source=source(key.encode()), stores=stores or None))

    return put


def test_an_upload_goes_where_its_rule_says(put):
    """The first rule that fits decides; without one it is the placement of all."""
    for bucket, key, stores in [
        ("models-en", "big/a", ["cold"]),
        ("models-en", "small", ["primary", "dr"]),
        ("releases", "big/a", ["primary", "dr"]),
    ]:
        assert [copy.store for copy in put(bucket, key).copies] == stores


def test_what_lacks_a_copy_gets_it_once(context, run, put, sent):
    """An artifact that was uploaded elsewhere is brought where it belongs, by one job for each store."""
    put("models-en", "small", "cold")
    put("models-en", "big/a", "primary")
    put("models-en", "right")
    put("releases", "other", "cold")
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"primary": 1, "dr": 1, "cold": 1}
    assert sorted(sent) == [("big/a", ("cold",)), ("small", ("dr",)), ("small", ("primary",))]
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}
    for key, to in sent:
        run(replicate, ReplicateRequest(bucket="models-en", key=key, to=to))
    small = context.catalogue.artifacts.current("models-en", "small")
    assert {store for store, copy in context.catalogue.artifacts.copies(small).items() if copy.state.good} == {
        "primary", "dr", "cold",
    }  # fmt: skip


def test_what_is_not_brought_in_time_is_claimed_again(context: Context, run, put, sent, monkeypatch):
    """A job that was lost or failed is not the last one: the claim ends."""
    put("models-en", "small", "cold")
    run(sweep_replicate, SweepReplicateRequest(store="dr"))
    later = clock.now() + context.settings.sweep.replicate.claim + timedelta(seconds=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert run(sweep_replicate, SweepReplicateRequest(store="dr")).claimed == {"dr": 1}


def test_a_deleted_copy_is_not_brought_back(run, put, sent):
    """A rule brings what is new; it does not undo an explicit delete of one copy or of an artifact."""
    put("models-en", "small")
    put("models-en", "gone")
    run(delete, DeleteRequest(bucket="models-en", key="small", stores=("dr",)))
    run(delete, DeleteRequest(bucket="models-en", key="gone"))
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}


def test_a_source_stays_while_a_replication_may_still_need_it(context, run, put, stored):
    """Between two attempts of a replication no copy of its artifact is deleted, unless that was meant."""
    put("releases", "app.tgz")
    jobs, request = context.catalogue.ledger, ReplicateRequest(bucket="releases", key="app.tgz", to=("cold",))
    begun = jobs.acquire(
        "copying", "replicate", request.payload(), owner="me", holds="releases/app.tgz", parent=None, now=clock.now(),
        lease=timedelta(seconds=30),
    )  # fmt: skip
    assert isinstance(begun, Leased)
    jobs.retry("copying", 1, {"type": "Unavailable", "message": "away"}, due=clock.now())
    with pytest.raises(Snooze, match="waits for job copying"):
        run(delete, DeleteRequest(bucket="releases", key="app.tgz", stores=("dr",)))
    assert stored("dr").exists()
    begun = jobs.acquire(
        "copying", "replicate", request.payload(), owner="me", holds="releases/app.tgz", parent=None, now=clock.now(),
        lease=timedelta(seconds=30),
    )  # fmt: skip
    jobs.finish("copying", 2, JobState.SUCCEEDED, now=clock.now(), result={})
    run(delete, DeleteRequest(bucket="releases", key="app.tgz", stores=("dr",)))
    assert not stored("dr").exists()
