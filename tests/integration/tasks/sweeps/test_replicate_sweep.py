"""Under-replicated artifacts are replicated where they belong, and a source stays while it may be needed."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from tasks.delete import delete
from tasks.replicate import replicate
from tasks.sweeps import repair as repair_sweep
from tasks.sweeps.replicate import sweep_replicate
from tasks.upload import upload
from tasks.verify import verify
from tests.integration.tasks.conftest import NullReporter, pause
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper
from worker import clock
from worker.artifacts.canary_objects import ensure
from worker.artifacts.overdue_and_unconfigured_findings import see_stores
from worker.catalogue import Leased, tables
from worker.catalogue.record_versions import NewVersion
from worker.context import Context
from worker.jobs.running_job import Cancelled, RunningJob
from worker.jobs.send_sweep_pages import resume
from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze
from worker.settings.section_models import PlacementRule
from worker.storage import Digest
from worker.storage.errors import StorageError
from worker.storage.keys import CANARY_BUCKET
from zot_artifact_client.contract import (
    SWEEP_REPAIR,
    SWEEP_REPLICATE,
    DeleteRequest,
    JobState,
    ReplicateRequest,
    SweepRepairRequest,
    SweepReplicateRequest,
    UploadRequest,
    VerifyRequest,
)

RULES = (
    PlacementRule(bucket="models-*", prefix="big/", stores=("cold",)),
    PlacementRule(bucket="models-*", stores=("primary", "dr")),
)


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"placement_rules": RULES})


@pytest.fixture
def sent(monkeypatch, context) -> Sweeper:
    """Return the broker of the sweep, and what takes up its pages; one with real workers is that of other tests."""
    sweeper = Sweeper(context)
    monkeypatch.setattr("tasks.sweeps.replicate.Outbox", lambda _: sweeper.messages)
    return sweeper


@pytest.fixture
def put(run, source):
    def put(bucket: str, key: str, *stores: str, content: bytes | None = None):
        laid = source(content or key.encode())
        return run(upload, UploadRequest(bucket=bucket, key=key, source=laid, stores=stores or None))

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
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}
    results = [sent.page(id_) for id_ in sent.messages.sent]
    assert [result.outcomes for result in results] == [{"stored": 1}] * 3
    small = context.catalogue.artifacts.current("models-en", "small")
    assert {store for store, copy in context.catalogue.artifacts.copies(small).items() if copy.state.good} == {
        "primary", "dr", "cold",
    }  # fmt: skip


def test_no_sweep_lets_more_pages_wait_than_may_be_in_flight(context, run, put, sent, stored, monkeypatch):
    """A store may refuse all for longer than claims last; each sweep has the limit for itself, so that none starves."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 1)
    monkeypatch.setitem(context.settings.page.__dict__, "in_flight", 2)
    monkeypatch.setattr(repair_sweep, "Outbox", lambda _: sent.messages)
    for n in range(3):
        put("models-en", f"absent {n}", "primary")
        put("models-en", f"bad {n}")
        stored("dr", f"bad {n}", "models-en").write_bytes(b"rot")
        run(verify, VerifyRequest(bucket="models-en", key=f"bad {n}"))

    def plan(kind: str) -> dict[str, int]:
        job = sent.take(str(uuid4()), kind, {})
        if kind == SWEEP_REPAIR.kind:
            return repair_sweep.sweep_repair(SweepRepairRequest(), job).claimed
        return sweep_replicate(SweepReplicateRequest(), job).claimed

    for kind in (SWEEP_REPLICATE.kind, SWEEP_REPAIR.kind):
        before = len(sent.messages.sent)
        assert plan(kind) == {"dr": 2}
        later = clock.now() + context.settings.sweep.replicate.claim
        monkeypatch.setattr(clock, "now", lambda later=later: later)
        assert plan(kind) == {}
        assert sent.page([*sent.messages.sent][before]).outcomes.keys() & {"stored", "repaired"}
        assert plan(kind) == {"dr": 1}


def test_a_store_that_is_new_in_the_placement_gets_what_named_no_store(context: Context, put, sent, run):
    """Artifacts of single uploads and of pages are brought there, but not those whose upload named its stores.

    A canary has its copy in one store. Without `placement` nothing is brought anywhere.
    """
    put("releases", "old")
    put("releases", "named", "primary")
    put("releases", "named at first", "primary")
    put("releases", "named at first")
    digest = Digest(1, "a" * 64)
    paged = [NewVersion("releases", key, digest, ["primary"]) for key in ("paged", "paged and named")]
    for version, named in zip(paged, (False, True), strict=True):
        recorded = context.catalogue.artifacts.record_many([version], {}, clock.now(), job="page", stores_named=named)
        context.catalogue.artifacts.finish_copy(recorded[0].artifact, "primary", tag="1", evidence={}, now=clock.now())
    ensure(context.catalogue, [context.stores["primary"]], "canary")

    def brought(placement: tuple[str, ...] | None) -> list[str]:
        settings = context.settings.model_copy(update={"placement_rules": (), "placement": placement})
        run(sweep_replicate, SweepReplicateRequest(), context=replace(context, settings=settings))
        with context.catalogue._database.read() as connection:
            keys = sa.select(tables.artifacts.c.key).join(tables.copies).where(tables.copies.c.store == "cold")
            return sorted(connection.execute(keys).scalars())

    assert brought(None) == []
    assert brought(("primary", "cold")) == ["named at first", "old", "paged"]


def test_a_copy_that_an_upload_has_begun_is_left_to_it_for_a_while(context: Context, run, put, sent, monkeypatch):
    """A second job would wait for the lock of an upload that is writing; what was given up is brought."""
    artifact = context.catalogue.artifacts.record(
        "models-en", "begun", Digest(1, "a" * 64), {}, clock.now(), stores=["primary", "dr"]
    ).artifact
    context.catalogue.artifacts.finish_copy(artifact, "primary", tag="1", evidence={}, now=clock.now())
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}
    later = clock.now() + context.settings.sweep.replicate.late
    monkeypatch.setattr(clock, "now", lambda: later)
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"dr": 1}


@pytest.fixture
def without_placement(monkeypatch, context):
    """The settings name neither a placement nor rules, as those of `zot-artifacts up` do."""
    monkeypatch.setitem(context.settings.__dict__, "placement_rules", ())
    monkeypatch.setitem(context.settings.__dict__, "placement", None)


@pytest.fixture
def after_late(monkeypatch, context):
    """Return what has all sweeps run after `sweep.replicate.late`."""

    def wait() -> None:
        later = clock.now() + context.settings.sweep.replicate.late
        monkeypatch.setattr(clock, "now", lambda: later)

    return wait


def in_stores(context: Context, key: str, bucket: str = "releases") -> dict[str, str]:
    copies = context.catalogue.artifacts.copies(context.catalogue.artifact(bucket, key))
    return {store: copy.state.value for store, copy in copies.items()}


def open_findings(context: Context) -> set[tuple[str, str | None, str | None]]:
    see_stores(context.settings, context.catalogue, clock.now())
    return {(each.kind, each.store, each.key) for each in context.catalogue.findings.page()}


@pytest.mark.parametrize("named", [(), ("primary", "dr")], ids=["all stores", "named stores"])
def test_an_upload_that_one_store_failed_for_good_is_completed(
    context: Context, put, without_placement, after_late, run, sent, stored, named
):
    """Without a placement, too: its copy is a finding until the sweep has added it, and no other store gets one."""
    put("releases", "whole", "primary", "dr")
    bucket = stored("dr", "", bucket="held")
    bucket.write_bytes(b"a file where the directory of the bucket belongs")
    with pytest.raises(StorageError):
        put("held", "left", *named)
    assert in_stores(context, "left", "held") == {"primary": "stored", "dr": "writing"} | (
        {} if named else {"cold": "stored"}
    )
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}
    after_late()
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"dr": 1}
    assert open_findings(context) == {("under_replicated", "dr", "left")}
    bucket.unlink()
    (id_,) = sent.messages.sent
    assert sent.page(id_).outcomes == {"stored": 1}
    assert open_findings(context) == set()
    assert stored("dr", "left", bucket="held").read_bytes() == b"left"
    assert stored("cold", "left", bucket="held").exists() != bool(named)
    assert in_stores(context, "whole") == {"primary": "stored", "dr": "stored"}
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}


def test_a_left_copy_is_claimed_again_and_ends_with_its_delete(
    context: Context, put, without_placement, after_late, run, sent, stored, monkeypatch
):
    """A replication whose store still fails leaves the finding; a delete of the copy is the way out."""
    put("releases", "left", "primary")
    artifact = context.catalogue.artifact("releases", "left")
    context.catalogue.artifacts.ensure_copy(artifact, "dr")
    after_late()
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"dr": 1}
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}
    later = clock.now() + context.settings.sweep.replicate.claim + timedelta(seconds=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"dr": 1}
    assert open_findings(context) == {("under_replicated", "dr", "left")}
    run(delete, DeleteRequest(bucket="releases", key="left", stores=("dr",)))
    assert open_findings(context) == set()
    later += context.settings.sweep.replicate.claim + timedelta(seconds=1)
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}


def test_what_was_left_and_cannot_or_may_not_be_written_is_not_claimed(
    context: Context, put, without_placement, after_late, run, sent
):
    """The sweep skips a deleted artifact, a replaced version, one without a good copy, a paused store and a canary."""
    artifacts = context.catalogue.artifacts
    for key in ("deleted", "replaced", "bad", "left"):
        put("releases", key, "primary")
        artifacts.ensure_copy(context.catalogue.artifact("releases", key), "dr")
    run(delete, DeleteRequest(bucket="releases", key="deleted"))
    put("releases", "replaced", "primary", content=b"another version")
    with context.catalogue._database.write() as connection:
        bad = artifacts.copies(context.catalogue.artifact("releases", "bad"))["primary"].id
        connection.execute(sa.update(tables.copies).where(tables.copies.c.id == bad).values(state="missing"))
    ensure(context.catalogue, [context.stores["primary"]], "canary")
    canary = context.catalogue.artifacts.page(CANARY_BUCKET)[0]
    artifacts.ensure_copy(canary, "dr")
    after_late()
    pause(context, "dr")
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {}
    pause(context)
    assert run(sweep_replicate, SweepReplicateRequest(prefix="x", bucket="releases")).claimed == {}
    measured = context.catalogue.sweep_claims.measure_absent("dr", None, "", wanted=context.settings.wanted_in("dr"))
    assert measured == {"primary": (1, 4)}
    within = [
        context.catalogue.sweep_claims.measure_absent("dr", *of, wanted=context.settings.wanted_in("dr"))
        for of in (("releases", "lef"), ("releases", "x"), ("other", ""))
    ]
    assert within == [measured, {}, {}]
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"dr": 1}
    assert open_findings(context) >= {("under_replicated", "dr", "left")}


def test_a_cancelled_upload_with_a_copy_is_completed(
    context: Context, source, without_placement, after_late, run, sent, monkeypatch
):
    """Cancelling ends the job; the artifact is there with one copy, and the others were promised with it."""
    outside, write = NullReporter(), LimitedStore.write_object

    def write_object(store: LimitedStore, *args: Any, **options: Any) -> Any:
        if store.name == "dr":
            raise Cancelled("job upload was cancelled")
        return write(store, *args, **options)

    asked = UploadRequest(bucket="releases", key="left", source=source(b"left"), stores=("primary", "dr"))
    with monkeypatch.context() as patch:
        patch.setattr(LimitedStore, "write_object", write_object)
        with pytest.raises(Cancelled):
            run(upload, asked, outside=outside)
    assert in_stores(context, "left") == {"primary": "stored", "dr": "writing"}
    after_late()
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"dr": 1}
    (id_,) = sent.messages.sent
    assert sent.page(id_).outcomes == {"stored": 1}


def test_an_upload_that_still_runs_keeps_its_copy(context: Context, run, put, without_placement, after_late, sent):
    """A page of the sweep does not write to an artifact that a job has locked: the object leaves the page."""
    put("releases", "left", "primary")
    context.catalogue.artifacts.ensure_copy(context.catalogue.artifact("releases", "left"), "dr")
    after_late()
    running = context.catalogue.ledger.acquire(
        "running", "upload", {}, owner="me", writes_to="releases/left", parent=None, now=clock.now(),
        lease=context.settings.jobs.lease,
    )  # fmt: skip
    assert isinstance(running, Leased)
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"dr": 1}
    (id_,) = sent.messages.sent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.pages.leaving_objects.send_child", lambda *_, **__: None)
        assert sent.page(id_).left == ("releases/left",)
    assert in_stores(context, "left")["dr"] == "writing"


def test_a_named_companion_is_placed_as_its_artifact(context: Context, run, put, sent):
    """A new rule for the artifact, and a new upload or an undelete of its companion, bring that to the same stores."""

    def stores(key: str) -> set[str]:
        found = context.catalogue.artifacts.copies(context.catalogue.artifact("models-en", key))
        return {store for store, copy in found.items() if copy.state.good}

    put("models-en", "big/a")
    for key in ("sboms/a.json", "sboms/a.json.sig", "sboms/b.json"):
        put("models-en", key)
    context.catalogue.companions.add("models-en", "sboms/a.json", "big/a", by="ana", now=clock.now())
    of = context.catalogue.artifact("models-en", "big/a")
    companions = context.catalogue.companions.of("models-en", "big/a")
    deletions, until = context.catalogue.deletions, clock.now() + timedelta(days=1)
    deletions.begin(of, now=clock.now(), until=until, by=None, reason=None, job="job", companions=companions)
    deletions.undo("models-en", "big/a", now=clock.now())
    absent = context.catalogue.sweep_claims.measure_absent("cold", None, "", wanted=lambda _, key, **__: key == "big/a")
    assert sum(count for count, _ in absent.values()) == 2
    assert run(sweep_replicate, SweepReplicateRequest()).claimed == {"cold": 2}
    for id_ in sent.messages.sent:
        sent.page(id_)
    assert [stores(f"sboms/{name}") for name in ("a.json", "a.json.sig", "b.json")] == [
        {"primary", "dr", "cold"}, {"primary", "dr", "cold"}, {"primary", "dr"},
    ]  # fmt: skip
    assert [copy.store for copy in put("models-en", "sboms/a.json").copies] == ["cold"]


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


@pytest.mark.parametrize("large", [1 << 20, 1], ids=["page", "alone"])
def test_what_was_replaced_or_deleted_since_its_claim_is_not_brought(
    context: Context, run, put, sent, stored, monkeypatch, large
):
    """The upload of the later version may have named other stores, also before a job of its own brings a large one."""
    for key in ("same", "replaced", "deleted", "copy deleted"):
        put("releases", key)
    of_cold = context.settings.model_copy(update={"placement_rules": (), "placement": ("primary", "cold")})
    run(sweep_replicate, SweepReplicateRequest(), context=replace(context, settings=of_cold))
    (id_,) = sent.messages.sent
    put("releases", "replaced", "dr", content=b"only for dr")
    run(delete, DeleteRequest(bucket="releases", key="deleted"))
    run(delete, DeleteRequest(bucket="releases", key="copy deleted", stores=("cold",)))
    alone = dict[str, ReplicateRequest]()
    monkeypatch.setattr(
        "tasks.pages.leaving_objects.send_child", lambda _, wanted, **__: alone.update({wanted.key: wanted})
    )
    monkeypatch.setitem(context.settings.page.__dict__, "large", large)
    sent.page(id_)
    assert set(alone) == ({"same", "replaced", "deleted", "copy deleted"} if large == 1 else set())
    for key in alone.keys() - {"deleted"}:
        begun = context.catalogue.ledger.acquire(
            key, "replicate", {}, owner="me", writes_to=None, parent=id_, now=clock.now(), lease=timedelta(0)
        )
        assert isinstance(begun, Leased)
        job = RunningJob(begun.record, context, NullReporter())
        replicate(alone[key], job)
    there = [key for key in ("same", "replaced", "copy deleted") if stored("cold", key).exists()]
    assert there == ["same"]


def test_a_source_stays_while_a_replication_may_still_need_it(context, run, put, stored):
    """Between two attempts of a replication no copy of its artifact is deleted, unless that was meant."""
    put("releases", "app.tgz")
    jobs, request = context.catalogue.ledger, ReplicateRequest(bucket="releases", key="app.tgz", to=("cold",))
    begun = jobs.acquire(
        "copying", "replicate", request.payload(), owner="me", writes_to="releases/app.tgz", parent=None,
        now=clock.now(), lease=timedelta(seconds=30),
    )  # fmt: skip
    assert isinstance(begun, Leased)
    jobs.retry("copying", 1, {"type": "Unavailable", "message": "away"}, due=clock.now())
    with pytest.raises(Snooze, match="waits for job copying"):
        run(delete, DeleteRequest(bucket="releases", key="app.tgz", stores=("dr",)))
    assert stored("dr").exists()
    begun = jobs.acquire(
        "copying", "replicate", request.payload(), owner="me", writes_to="releases/app.tgz", parent=None,
        now=clock.now(), lease=timedelta(seconds=30),
    )  # fmt: skip
    jobs.finish("copying", 2, JobState.SUCCEEDED, now=clock.now(), result={})
    run(delete, DeleteRequest(bucket="releases", key="app.tgz", stores=("dr",)))
    assert not stored("dr").exists()


def test_what_fails_in_a_page_of_a_sweep_becomes_a_job_of_its_own(context, run, put, sent, stored, monkeypatch):
    """The artifact without a good source is sent as a replicate job under an id of its own, each time the same one."""
    put("models-en", "good", "cold")
    put("models-en", "rotten", "cold")
    stored("cold", "rotten", bucket="models-en").unlink()
    singles = []
    monkeypatch.setattr(
        "tasks.pages.leaving_objects.send_child", lambda spec, wanted, *, id_, **_: singles.append((wanted.key, id_))
    )
    run(sweep_replicate, SweepReplicateRequest(store="dr"))
    (id_,) = sent.messages.sent
    assert sent.page(id_, ends=False).outcomes == {"stored": 1}
    sent.page(id_)
    assert [key for key, _ in singles] == ["rotten", "rotten"]
    assert len(set(singles)) == 1


def test_a_page_of_a_sweep_that_has_ended_does_nothing(context, run, put, sent):
    """A page whose progress is gone, because it had ended, replicates nothing."""
    put("models-en", "small", "cold")
    run(sweep_replicate, SweepReplicateRequest(store="dr"))
    (id_,) = sent.messages.sent
    with context.catalogue._database.write() as connection:
        connection.execute(sa.delete(tables.pages))
    assert sent.page(id_).objects == 0


def test_what_lacks_a_copy_for_long_is_a_finding_until_it_has_one(context: Context, run, put, sent, monkeypatch):
    """An artifact that was uploaded just now is no finding; an older one is, with the page that replicates it.

    That is recorded with the page: the sweep may die before it has sent the first one.
    """
    put("models-en", "old", "cold")
    later = clock.now() + context.settings.sweep.replicate.late
    monkeypatch.setattr(clock, "now", lambda: later)
    put("models-en", "new", "cold")

    def die(_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as dying:
        dying.setattr(sent.messages, "send", die)
        with pytest.raises(SystemExit):
            run(sweep_replicate, SweepReplicateRequest(), id_="sweep-1")
    resume("sweep-1", context.catalogue.pages.planned_by("sweep-1"), sent.messages)
    found = {(each.kind, each.store, each.key): each for each in context.catalogue.findings.page()}
    assert set(found) == {("under_replicated", "primary", "old"), ("under_replicated", "dr", "old")}
    assert {each.job for each in found.values()} == set(sent.messages.sent)
    assert {each.action for each in found.values()} == {"replicate"}
    for id_ in sent.messages.sent:
        sent.page(id_)
    assert context.catalogue.findings.page() == []


def test_what_a_sweep_has_claimed_before_its_death_is_in_its_pages(context: Context, run, put, sent, monkeypatch):
    """A claim without a page would keep other sweeps away until it ends, 6 hours later by default."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 1)
    for key in ("first", "second"):
        put("models-en", key, "primary")
    checks = iter([None, None, SystemExit()])  # those of copies that were begun, and of two pages

    def check(job: RunningJob) -> None:
        if error := next(checks, None):
            raise error

    def deliver() -> None:
        job = sent.take("sweep-1", SWEEP_REPLICATE.kind, {})
        sweep_replicate(SweepReplicateRequest(store="dr"), job)

    with monkeypatch.context() as dying:
        dying.setattr(RunningJob, "check", check)
        with pytest.raises(SystemExit):
            deliver()
    deliver()
    assert run(sweep_replicate, SweepReplicateRequest(store="dr")).claimed == {"dr": 1}
    assert [sent.page(id_).outcomes for id_ in sent.messages.sent] == [{"stored": 1}] * 2


def test_an_absent_copy_that_no_rule_wants_any_more_is_no_finding(context: Context, run, put, sent, monkeypatch):
    """A rule that was removed leaves no open finding behind."""
    put("models-en", "old", "cold")
    later = clock.now() + context.settings.sweep.replicate.late
    monkeypatch.setattr(clock, "now", lambda: later)
    run(sweep_replicate, SweepReplicateRequest(store="dr"))
    see_stores(context.settings, context.catalogue, later)
    assert [each.kind for each in context.catalogue.findings.page()] == ["under_replicated"]
    without = context.settings.model_copy(update={"placement_rules": ()})
    see_stores(without, context.catalogue, later)
    assert context.catalogue.findings.page() == []
    later += context.settings.sweep.replicate.claim + timedelta(seconds=1)
    swept = run(sweep_replicate, SweepReplicateRequest(), context=replace(context, settings=without))
    assert swept.claimed == {}, "no upload has named the store"
