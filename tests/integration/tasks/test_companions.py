"""Signatures and SBOMs that belong to an artifact are replicated, verified, held and deleted with it."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.delete import delete
from tasks.replicate import replicate
from tasks.sweeps.purge import sweep_purge
from tasks.upload import upload
from tasks.verify import verify
from tests.integration.tasks.conftest import NullReporter
from worker import clock
from worker.artifacts.queries import describe
from worker.artifacts.wait_for_delete_approval import WaitsForApproval
from worker.catalogue import Catalogue, Leased, OnHold, WrongCompanion, tables
from worker.catalogue.deletions import Deletions
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Snooze
from worker.settings import Settings
from worker.settings.section_models import DeleteSettings
from worker.storage import Store
from worker.storage.errors import NotFound, Unavailable
from zot_artifact_client.contract import (
    DeleteRequest,
    ReplicateRequest,
    SweepPurgeRequest,
    UploadRequest,
    VerifyRequest,
)

GRACE = timedelta(days=7)
KEYS = ("app.tgz", "app.tgz.sig", "app.tgz.att", "app.tgz.att.sig", "sboms/app.json")
APP = {"bucket": "releases", "key": "app.tgz"}


@pytest.fixture
def catalogue(catalogue_url: str) -> str:
    """Run everything here on both kinds of catalogue."""
    return catalogue_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"delete": DeleteSettings(grace=GRACE)})


@pytest.fixture
def known(context: Context) -> Catalogue:
    return context.catalogue


@pytest.fixture
def put(run, source) -> Callable[[str], None]:
    def put(key: str, content: bytes | None = None) -> None:
        file = source(content or key.encode(), key.replace("/", "-"))
        run(upload, UploadRequest(bucket="releases", key=key, source=file))

    return put


@pytest.fixture
def family(known: Catalogue, put) -> None:
    """Upload an artifact, what belongs to it by its key or because a user said so, and one that does not."""
    for key in (*KEYS, "app.tgz.md5"):
        put(key)
    known.companions.add("releases", "sboms/app.json", "app.tgz", by="ana", now=clock.now())


def current(known: Catalogue) -> set[str]:
    return {each.key for each in known.artifacts.page("releases")}


@pytest.mark.usefixtures("family")
def test_what_belongs_to_an_artifact_is_shown_from_both_sides(context: Context, known: Catalogue) -> None:
    """An artifact shows its companions, and each of those the artifact; a user's word counts before the key's."""
    shown = describe(context.catalogue.artifact("releases", "app.tgz"), context)
    assert (set(shown.companions), shown.companion_of) == (set(KEYS[1:]), None)
    for key in KEYS[1:]:
        assert describe(context.catalogue.artifact("releases", key), context).companion_of == "app.tgz"
    known.companions.remove("releases", "app.tgz.sig", by="ana", now=clock.now())
    assert describe(context.catalogue.artifact("releases", "app.tgz.sig"), context).companion_of is None
    assert "app.tgz.sig" not in describe(context.catalogue.artifact("releases", "app.tgz"), context).companions


@pytest.mark.usefixtures("family")
def test_a_job_that_a_task_of_a_service_sends_takes_the_companions_too(context: Context, known: Catalogue) -> None:
    """Celery makes that task its parent. A sweep has other jobs for the companions."""
    known.ledger.acquire(
        "sweep", "sweep.repair", {}, owner="me", writes_to=None, parent=None, now=clock.now(), lease=timedelta(0)
    )
    counts = {}
    for parent in ("task-of-a-service", "sweep"):
        begun = known.ledger.acquire(
            f"of-{parent}", "verify", {}, owner="me", writes_to=None, parent=parent, now=clock.now(), lease=timedelta(0)
        )
        assert isinstance(begun, Leased)
        job = RunningJob(begun.record, context, NullReporter())
        verified = verify(VerifyRequest(**APP), job)
        copied = replicate(ReplicateRequest(**APP, to=("cold",)), job)
        counts[parent] = (len(verified.companions), len(copied.companions))
    assert counts == {"task-of-a-service": (4, 4), "sweep": (0, 0)}


@pytest.mark.usefixtures("family")
def test_companions_are_replicated_and_verified_with_the_artifact(run, stored: Callable[..., Path]) -> None:
    """A rotten signature makes the verification of its artifact bad, although the artifact is right."""
    result = run(replicate, ReplicateRequest(**APP, to=("cold",)))
    assert {each.key for each in result.companions} == set(KEYS[1:])
    for key in KEYS:
        assert stored("cold", key).read_bytes() == key.encode()
    assert not stored("cold", "app.tgz.md5").exists()
    assert run(verify, VerifyRequest(**APP)).good
    stored("cold", "app.tgz.sig").write_bytes(b"app.tgz.s1g")
    seen = run(verify, VerifyRequest(**APP))
    assert {copy.verdict for copy in seen.copies} == {"verified"}
    assert not seen.good
    assert [copy.store for each in seen.companions for copy in each.copies if copy.verdict == "corrupt"] == ["cold"]


@pytest.mark.usefixtures("family")
def test_companions_are_deleted_undeleted_and_purged_with_the_artifact(
    run, known: Catalogue, stored: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delete and its undo are of all or none; after the grace period all bytes go, and no others."""
    done = run(delete, DeleteRequest(**APP))
    assert set(done.companions) == set(KEYS[1:])
    assert current(known) == {"app.tgz.md5"}
    known.deletions.undo("releases", "app.tgz", now=clock.now())
    assert current(known) == {*KEYS, "app.tgz.md5"}
    run(delete, DeleteRequest(**APP))
    assert run(sweep_purge, SweepPurgeRequest()).purged == 0
    now, uptime, by = clock.host_time, clock.uptime, GRACE + timedelta(minutes=1)
    monkeypatch.setattr(clock, "follow", lambda _, **__: None)
    monkeypatch.setattr(clock, "host_time", lambda: now() + by)
    monkeypatch.setattr(clock, "uptime", lambda: uptime() + by.total_seconds())
    monkeypatch.setattr(Deletions, "database_time", lambda _: None)
    assert run(sweep_purge, SweepPurgeRequest()).purged == len(KEYS)
    assert not any(stored("dr", key).exists() for key in KEYS)
    assert stored("dr", "app.tgz.md5").exists()


@pytest.mark.usefixtures("family")
def test_a_delete_at_once_removes_companions_also_after_one_that_can_be_undone(
    run, known, put, stored, monkeypatch
) -> None:
    """`now` leaves nothing of the artifact and its companions, and nothing else goes.

    The artifact stays until its companions are gone, so that another attempt finds them.
    """
    run(delete, DeleteRequest(**APP))
    assert set(run(delete, DeleteRequest(**APP, now=True)).companions) == set(KEYS[1:])
    assert not any(stored(store, key).exists() for key in KEYS for store in ("primary", "dr"))
    assert known.deletions.page() == []
    put("app.tgz")
    put("app.tgz.sig")
    delete_object = Store.delete_object

    def failing(store: Store, bucket: str, key: str, **more: Any) -> bool:
        if key == "app.tgz.sig":
            raise Unavailable("dr: EIO")
        return delete_object(store, bucket, key, **more)

    with monkeypatch.context() as fault:
        fault.setattr(Store, "delete_object", failing)
        with pytest.raises(Unavailable):
            run(delete, DeleteRequest(**APP, now=True))
    assert stored("dr", "app.tgz.sig").exists()
    run(delete, DeleteRequest(**APP, now=True))
    assert not stored("dr", "app.tgz.sig").exists()


@pytest.mark.usefixtures("family")
def test_a_companion_uploaded_again_survives_delete_and_undelete_of_the_old_one(run, known, put, stored) -> None:
    """A second delete of an artifact that is gone takes nothing that came after it; an undo keeps the newer bytes."""
    run(delete, DeleteRequest(**APP))
    put("app.tgz.sig", b"signed again")
    assert run(delete, DeleteRequest(**APP)).unchanged
    assert current(known) == {"app.tgz.md5", "app.tgz.sig"}
    known.deletions.undo("releases", "app.tgz", now=clock.now())
    assert stored("dr", "app.tgz.sig").read_bytes() == b"signed again"
    assert current(known) == {*KEYS, "app.tgz.md5"}


@pytest.mark.usefixtures("family")
def test_a_companion_uploaded_again_survives_a_delete_at_once_of_the_old_one(run, known, put, stored) -> None:
    """Only the companions whose delete was recorded with that of the artifact lose their bytes."""
    run(delete, DeleteRequest(**APP))
    put("app.tgz.sig", b"a new signature")
    assert set(run(delete, DeleteRequest(**APP, now=True)).companions) == set(KEYS[1:]) - {"app.tgz.sig"}
    assert not stored("dr", "app.tgz").exists()
    assert stored("dr", "app.tgz.sig").read_bytes() == b"a new signature"
    assert current(known) == {"app.tgz.md5", "app.tgz.sig"}


@pytest.mark.usefixtures("family")
def test_a_hold_holds_the_companions_too(run, known: Catalogue, put) -> None:
    """No companion of a held artifact is deleted, replaced or released from it, also one that came later."""
    known.companions.remove("releases", "app.tgz.att.sig", by="ana", now=clock.now())
    known.holds.place("releases", "app.tgz", by="ana", reason="case 4711", now=clock.now())
    put("app.tgz.sbom")
    for key in ("app.tgz.sig", "sboms/app.json", "app.tgz.sbom"):
        with pytest.raises(OnHold, match="case 4711"):
            run(delete, DeleteRequest(bucket="releases", key=key))
        with pytest.raises(OnHold):
            put(key, b"other bytes")
        with pytest.raises(OnHold):
            known.companions.remove("releases", key, by="eva", now=clock.now())
    with pytest.raises(OnHold, match="case 4711"):
        known.companions.add("releases", "app.tgz.sbom", "app.tgz.md5", by="eva", now=clock.now())
    run(delete, DeleteRequest(bucket="releases", key="app.tgz.att.sig"))
    assert known.holds.release("releases", "app.tgz")
    assert known.holds.all() == []
    run(delete, DeleteRequest(bucket="releases", key="app.tgz.sig"))


@pytest.mark.usefixtures("family")
def test_a_held_companion_keeps_its_artifact_and_a_release_ends_no_other_hold(run, known: Catalogue, stored) -> None:
    """A hold on one companion forbids the delete of all, also after it was deleted with them.

    The release of the artifact leaves that hold, and the release of a companion leaves that of the artifact.
    """
    known.holds.place("releases", "app.tgz.sig", by="eva", reason="audit", now=clock.now())
    for now in (False, True):
        with pytest.raises(OnHold, match="audit"):
            run(delete, DeleteRequest(**APP, now=now))
    assert current(known) == {*KEYS, "app.tgz.md5"}
    known.holds.place("releases", "app.tgz", by="ana", reason="case 4711", now=clock.now())
    assert known.holds.release("releases", "app.tgz")
    assert [each.key for each in known.holds.all()] == ["app.tgz.sig"]
    known.holds.release("releases", "app.tgz.sig")
    run(delete, DeleteRequest(**APP))
    known.holds.place("releases", "app.tgz.sig", by="eva", reason="audit", now=clock.now())
    with pytest.raises(OnHold, match="audit"):
        run(delete, DeleteRequest(**APP, now=True))
    known.holds.place("releases", "app.tgz", by="ana", reason="case 4711", now=clock.now())
    for key in KEYS[1:]:
        known.holds.release("releases", key)
    with known._database.write() as connection:
        connection.execute(sa.update(tables.tombstones).values(purge_after=clock.now()))
    assert run(sweep_purge, SweepPurgeRequest()).purged == 0
    assert all(stored("dr", key).exists() for key in KEYS)


@pytest.mark.usefixtures("family")
def test_a_delete_waits_for_a_job_on_a_companion(run, known: Catalogue, stored) -> None:
    """While another job writes to a companion no byte of it goes; a job that has ended is not waited for."""
    lease, now = timedelta(minutes=1), clock.now()
    begun = known.ledger.acquire(
        "other", "upload", {}, owner="w", writes_to="releases/app.tgz.sig", parent=None, now=now, lease=lease
    ).record
    with pytest.raises(Snooze, match=r"app\.tgz\.sig"):
        run(delete, DeleteRequest(**APP))
    assert current(known) == {*KEYS, "app.tgz.md5"}
    known.ledger.finish("other", begun.fence, "failed", now=clock.now())
    run(delete, DeleteRequest(**APP))
    known.ledger.acquire(
        "again", "upload", {}, owner="w", writes_to="releases/app.tgz.sig", parent=None, now=now, lease=lease
    )
    with pytest.raises(Snooze, match=r"app\.tgz\.sig"):
        run(delete, DeleteRequest(**APP, now=True))
    assert all(stored("dr", key).exists() for key in KEYS)


@pytest.mark.usefixtures("family")
def test_companions_count_towards_the_approval_of_a_delete(run, known: Catalogue, context: Context, monkeypatch):
    """Where more than two artifacts need an approval, one with four companions does."""
    monkeypatch.setitem(context.settings.delete.__dict__, "approval_above", 2)
    with pytest.raises(WaitsForApproval, match="5 objects"):
        run(delete, DeleteRequest(**APP, by="ana"))
    assert current(known) == {*KEYS, "app.tgz.md5"}


@pytest.mark.usefixtures("family")
def test_single_stores_and_single_companions_are_deleted_alone(run, known: Catalogue, stored) -> None:
    """A delete from one store, or of a companion, leaves the others."""
    run(delete, DeleteRequest(**APP, stores=("dr",)))
    assert stored("dr", "app.tgz.sig").exists()
    run(delete, DeleteRequest(bucket="releases", key="app.tgz.att"))
    assert current(known) == {"app.tgz", "app.tgz.sig", "sboms/app.json", "app.tgz.md5"}


@pytest.mark.usefixtures("family")
def test_what_would_be_a_circle_or_too_many_is_refused(known: Catalogue, put) -> None:
    """An artifact belongs to one at most, to nothing that belongs to it, and an artifact has a bounded number."""

    def add(key: str, of: str) -> None:
        known.companions.add("releases", key, of, by="ana", now=clock.now())

    add("sboms/app.json", "app.tgz")  # again
    for key, of in (
        ("app.tgz", "app.tgz"), ("sboms/app.json", "app.tgz.md5"), ("app.tgz", "app.tgz.sig"),
        ("app.tgz.md5", "sboms/app.json"), ("app.tgz", "app.tgz.md5"),
    ):  # fmt: skip
        with pytest.raises(WrongCompanion):
            add(key, of)
    for number in range(31):
        add(f"more/{number}", "app.tgz")
    with pytest.raises(WrongCompanion, match="limit"):
        add("more/31", "app.tgz")


def test_an_upload_names_the_artifact_that_it_belongs_to(run, context: Context, known: Catalogue, put, source) -> None:
    """It is a companion from its end on, also uploaded twice; one of nothing, or of two, is refused before a byte."""
    put("app.tgz")

    def belongs(key: str, of: str) -> None:
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode()), companion_of=of))

    belongs("sboms/app.json", "app.tgz")
    belongs("sboms/app.json", "app.tgz")
    put("sboms/app.json", b"a new version")
    assert describe(context.catalogue.artifact("releases", "app.tgz"), context).companions == ("sboms/app.json",)
    put("lib.tgz")
    for key, of, error in (("x.json", "gone", NotFound), ("sboms/app.json", "lib.tgz", WrongCompanion)):
        with pytest.raises(error):
            belongs(key, of)
    with pytest.raises(NotFound, match="catalogue; name .* by the key without the bucket, 'app.tgz'"):
        belongs("x.json", "releases/app.tgz")
    assert known.artifacts.current("releases", "x.json") is None
    assert set(run(delete, DeleteRequest(**APP)).companions) == {"sboms/app.json"}


def test_a_missing_artifact_takes_nothing_with_it(run, known: Catalogue, put) -> None:
    """A delete of a key that never was changes nothing about what would belong to it."""
    put("app.tgz.sig")
    with pytest.raises(NotFound):
        run(delete, DeleteRequest(**APP))
    assert current(known) == {"app.tgz.sig"}
    assert known.companions.owner("releases", "app.tgz.sig") is None
