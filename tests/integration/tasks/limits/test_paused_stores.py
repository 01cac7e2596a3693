"""Stores that are paused: their jobs wait, and no others do."""

import time
from dataclasses import replace
from datetime import timedelta

import pytest

from tasks.adopt import adopt
from tasks.delete import delete
from tasks.page import page
from tasks.replicate import replicate
from tasks.sweeps.cleanup import sweep_cleanup
from tasks.sweeps.probe import sweep_probe
from tasks.sweeps.verify import sweep_verify
from tasks.upload import upload
from tasks.verify import verify
from worker import clock
from worker.catalogue import Scope
from worker.limits.snooze import Paused
from worker.storage.configured_stores import Stores
from zot_artifact_client.contract import (
    AdoptRequest,
    DeleteRequest,
    PageRequest,
    RangeSelection,
    ReplicateRequest,
    SweepLeftoversRequest,
    SweepProbeRequest,
    SweepVerifyRequest,
    UploadRequest,
    VerifyRequest,
)

AT = {"bucket": "releases", "key": "app.tgz"}


@pytest.fixture
def pause(context):
    def begin(name: str, scope: Scope = Scope.STORE) -> None:
        context.catalogue.pauses.begin(scope, name, reason="its disks are moved", now=clock.now())

    return begin


def test_the_other_stores_are_served_and_the_paused_one_gets_its_copy_later(run, context, source, stored, pause):
    """An upload writes to the stores that go on, then waits with the reason, and ends once the pause is over."""
    request = UploadRequest(**AT, source=source(b"release one"))
    pause("dr")
    with pytest.raises(Paused, match="dr: the store is paused: its disks are moved"):
        run(upload, request)
    assert stored("primary").exists()
    assert not stored("dr").exists()
    context.catalogue.pauses.end(Scope.STORE, "dr")
    assert [copy.outcome for copy in run(upload, request).copies] == ["already_there", "stored"]


def test_no_source_is_read_while_every_store_is_paused(run, source_root, pause):
    """What could go nowhere is not even opened: a source that is not there is not missed yet."""
    for name in ("primary", "dr"):
        pause(name)
    with pytest.raises(Paused):
        run(upload, UploadRequest(**AT, source=str(source_root / "absent.tgz")))


@pytest.mark.parametrize(
    ("work", "request_"),
    [
        (replicate, ReplicateRequest(**AT, to=("cold",))),
        (verify, VerifyRequest(**AT, stores=("primary",))),
        (delete, DeleteRequest(**AT, stores=("primary",), allow_last=True)),
        (adopt, AdoptRequest(**AT, store="primary")),
    ],
)
def test_reading_from_a_paused_store_waits_too(run, source, stored, pause, work, request_):
    """Every verb waits for a store that it needs, whichever way it needs it, and touches nothing there."""
    run(upload, UploadRequest(**AT, source=source(b"release one"), stores=("primary",)))
    pause("primary")
    with pytest.raises(Paused):
        run(work, request_)
    assert stored("primary").exists()


def test_a_good_copy_elsewhere_is_taken_instead(run, context, source, stored, pause):
    """A replication whose first source is paused, or not configured, copies from the next one, also in a page."""
    run(upload, UploadRequest(**AT, source=source(b"release one")))
    pause("primary")
    assert run(replicate, ReplicateRequest(**AT, to=("cold",))).copies[0].source == "dr"
    assert stored("cold").exists()
    run(upload, UploadRequest(bucket="releases", key="b", source=source(b"release two"), stores=("dr",)))
    context.catalogue.pauses.end(Scope.STORE, "primary")
    run(replicate, ReplicateRequest(bucket="releases", key="b", to=("primary",)))
    run(upload, UploadRequest(bucket="releases", key="c", source=source(b"release three")))
    pause("dr")
    without_dr = Stores({name: config for name, config in context.settings.stores.items() if name != "dr"})
    for after, key, of in (("app.tgz", "b", context), ("b", "c", replace(context, stores=without_dr))):
        of_page = RangeSelection(bucket="releases", after=after, until=key)
        wanted = PageRequest(verb="replicate", range=of_page, to=("cold",))
        assert run(page, wanted, context=of).outcomes == {"stored": 1}
    without_dr.close()


def test_sweeps_leave_paused_stores_out(run, context, source, pause):
    """Neither are copies claimed there, nor is it probed or cleaned; no sweep waits for it."""
    run(upload, UploadRequest(**AT, source=source(b"release one")))
    pause("dr")
    assert set(run(sweep_verify, SweepVerifyRequest()).claimed) == {"primary", "cold"}
    assert set(run(sweep_probe, SweepProbeRequest()).probed) == {"primary", "cold"}
    assert set(run(sweep_cleanup, SweepLeftoversRequest()).removed) == {"primary", "cold"}


def test_a_job_waits_with_its_batch(context, pause):
    """A pause of a job holds it, and those that it has sent; no other."""
    pause("batch", Scope.JOB)
    for held in (("batch", None), ("child", "batch")):
        with pytest.raises(Paused, match="batch"):
            context.pauses.check_job(*held)
    context.pauses.check_job("child", "another")


def test_the_pauses_that_came_with_a_lease_count_at_its_start_only(context, pause, monkeypatch):
    """A pause that was read with the lease holds the job without another read; a later one is read a moment after."""
    now = [time.monotonic()]
    monkeypatch.setattr("worker.limits.check_pauses.time.monotonic", lambda: now[0])
    pause("dr")
    context.pauses.leased(context.catalogue.pauses.all())
    context.catalogue.pauses.end(Scope.STORE, "dr")
    assert context.pauses.of_store("dr") is not None
    pause("primary")
    now[0] += 0.3
    assert context.pauses.of_store("dr") is None
    assert context.pauses.of_store("primary") is not None


def test_a_paused_job_tries_again_soon_at_first_and_seldom_later(context, pause):
    """A pause of an hour costs each job a look a minute or so, a short one ends within seconds."""
    pause("dr")
    assert context.pauses.of_store("dr").seconds <= 3
    context.catalogue.pauses.end(Scope.STORE, "dr")
    context.catalogue.pauses.begin(Scope.STORE, "dr", reason=None, now=clock.now() - timedelta(hours=1))
    assert 60 <= context.pauses.of_store("dr").seconds <= 90
