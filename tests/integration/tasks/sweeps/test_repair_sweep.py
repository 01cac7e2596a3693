"""Bad copies are repaired without an operator; other bad copies are shown and not touched."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.page import split_dead_pages
from tasks.replicate import replicate
from tasks.sweeps.repair import sweep_repair
from tasks.upload import upload
from tasks.verify import verify
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper
from worker import cli, clock
from worker.catalogue import tables
from worker.context import Context
from worker.limits.limited_store import LimitedStore
from worker.settings import Settings
from worker.settings.section_models import RepairSweepSettings
from zot_artifact_client.contract import (
    JobState,
    ReplicateRequest,
    SweepRepairRequest,
    SweepRepairResult,
    UploadRequest,
    VerifyRequest,
)

Sweep = Callable[[], SweepRepairResult]


def with_repair(settings: Settings, **values: Any) -> Settings:
    sweep = settings.sweep.model_copy(update={"repair": RepairSweepSettings(**values)})
    return settings.model_copy(update={"sweep": sweep})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, context: Context) -> Sweeper:
    """Return the broker of the sweep, and what takes up its pages; one with real workers is that of other tests."""
    sweeper = Sweeper(context)
    monkeypatch.setattr("tasks.sweeps.repair.Outbox", lambda _: sweeper.messages)
    return sweeper


@pytest.fixture
def sweep(run, sent: Sweeper) -> Sweep:
    """Return what runs the sweep and the pages that it sends."""

    def swept() -> SweepRepairResult:
        result: SweepRepairResult = run(sweep_repair, SweepRepairRequest())
        sent.pages()
        return result

    return swept


@pytest.fixture
def put(run, source):
    def put(key: str) -> None:
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode())))

    return put


@pytest.fixture
def status(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return what runs `status` on this catalogue, with checks of a broker that are good: there is none here."""
    monkeypatch.setattr("worker.cli.session.load_settings", lambda: settings)
    monkeypatch.setattr("worker.report.status.broker_checks", lambda _: iter(()))
    monkeypatch.setattr("worker.report.status.open_breakers", lambda _: {})
    return lambda: cli.run(["status"])


def rot(path: Path) -> bytes:
    """Flip a bit and return the rotten bytes."""
    bad = bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    path.write_bytes(bad)
    return bad


def states(context: Context, key: str) -> dict[str, str]:
    artifact = context.catalogue.artifacts.current("releases", key)
    assert artifact is not None
    return {store: copy.state.value for store, copy in context.catalogue.artifacts.copies(artifact).items()}


def test_a_flipped_byte_is_shown_until_it_is_repaired(run, put, sweep: Sweep, stored, settings, status) -> None:
    """After verify `status` ends with 1, after the repair with 0; the right bytes are back, the bad ones are kept."""
    put("app.tgz")
    assert status() == 0
    bad = rot(stored("dr"))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    assert status() == 1
    assert sweep().claimed == {"dr": 1}
    assert status() == 0
    assert stored("dr").read_bytes() == b"app.tgz"
    kept = [path.read_bytes() for path in settings.stores["dr"].root.rglob("*") if path.is_file()]
    assert bad in kept
    assert sweep().claimed == {}


def test_a_lost_object_is_written_again(run, put, sweep: Sweep, stored, status) -> None:
    """A copy whose object is gone is repaired from the other store."""
    put("app.tgz")
    stored("dr").unlink()
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    assert status() == 1
    assert sweep().claimed == {"dr": 1}
    assert (stored("dr").read_bytes(), status()) == (b"app.tgz", 0)


def test_a_lost_artifact_is_shown_and_not_touched(
    context: Context, run, put, sweep: Sweep, stored, status, capsys
) -> None:
    """With all copies bad nothing is sent or written, the artifact is `lost`, and `status` ends with 1."""
    put("app.tgz")
    before = {store: rot(stored(store)) for store in ("primary", "dr")}
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    result = sweep()
    assert (result.claimed, result.lost) == ({}, 1)
    assert {store: stored(store).read_bytes() for store in before} == before
    assert states(context, "app.tgz") == {"primary": "corrupt", "dr": "corrupt"}
    assert status() == 1
    assert "1 lost" in capsys.readouterr().out


def test_a_claim_keeps_the_next_sweep_from_sending_the_same_repair(run, put, stored, sent) -> None:
    """Until the repair has run or its claim has ended, no second one is sent for the same copy."""
    put("app.tgz")
    rot(stored("dr"))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    assert run(sweep_repair, SweepRepairRequest()).claimed == {"dr": 1}
    assert run(sweep_repair, SweepRepairRequest()).claimed == {}
    [page] = sent.messages.sent.values()
    assert page.payload["to"] == ["dr"]


def test_many_bad_copies_are_repaired_in_pages(
    context: Context, run, put, sent: Sweeper, stored, monkeypatch, status
) -> None:
    """A page has several copies of one store; its message is lost once, and no copy is repaired twice."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 2)
    keys = ("a", "b", "c")
    for key in keys:
        put(key)
        stored("dr", key).unlink()
        run(verify, VerifyRequest(bucket="releases", key=key))

    def attempt(id_: str) -> dict[str, int]:
        job = sent.take(id_, "sweep.repair", {})
        return sweep_repair(SweepRepairRequest(), job).claimed

    with monkeypatch.context() as lost:
        lost.setattr(sent.messages, "send", lambda _: None)
        assert attempt("sweep-1") == {"dr": 3}
    assert attempt("sweep-2") == {}
    assert {each.job for each in context.catalogue.findings.page()} == {"sweep-1.00000001", "sweep-1.00000002"}
    assert attempt("sweep-1") == {}
    assert context.catalogue.coverage.jobs() == (3, 0), "`status` tells the repairs in pages"
    assert [each.outcomes for each in sent.pages()] == [{"repaired": 2}, {"repaired": 1}]
    assert context.catalogue.coverage.jobs() == (0, 0)
    assert {key: states(context, key)["dr"] for key in keys} == dict.fromkeys(keys, "verified")
    assert status() == 0


def test_a_lost_disk_is_the_work_of_one_run(context: Context, run, sent: Sweeper) -> None:
    """One run sends the pages of all bad copies, up to 10,000, and leaves none of them to later runs."""
    now, rows = clock.now(), range(1, 601)
    made = {
        "bucket": "releases", "version": 1, "size": 1, "sha256": "a" * 64, "metadata": {}, "created_at": now,
        "committed_at": now,
    }  # fmt: skip
    states = {"primary": "verified", "dr": "missing"}
    with context.catalogue._database.write() as connection:
        connection.execute(sa.insert(tables.artifacts), [{**made, "id": id_, "key": str(id_)} for id_ in rows])
        copies = [{"store": store, "state": state, "evidence": {}} for store, state in states.items()]
        connection.execute(sa.insert(tables.copies), [{**copy, "artifact_id": id_} for id_ in rows for copy in copies])
    assert run(sweep_repair, SweepRepairRequest()).claimed == {"dr": 600}
    assert [each.payload["to"] for each in sent.messages.sent.values()] == [["dr"]] * 2


def test_a_page_that_ends_its_workers_is_split(context: Context, run, put, sent: Sweeper, stored, monkeypatch) -> None:
    """Each copy of a dead page becomes a job of its own, which its finding names: one bad object stops no other."""
    for key in ("a", "b"):
        put(key)
        stored("dr", key).unlink()
        run(verify, VerifyRequest(bucket="releases", key=key))
    run(sweep_repair, SweepRepairRequest())
    [(id_, sent_page)] = sent.messages.sent.items()
    job = sent.take(id_, "page", sent_page.payload)
    error, later = {"type": "Poison", "message": "its worker died"}, clock.now() + timedelta(minutes=1)
    context.catalogue.ledger.finish(job.id, job.fence, JobState.DEAD, now=clock.now(), error=error)
    split: dict[str, ReplicateRequest] = {}
    with monkeypatch.context() as patch:  # an operator redrives it at the same moment: it goes on as a page
        patch.setattr(
            "tasks.pages.leaving_objects.send_child",
            lambda *_, **__: context.catalogue.job_admin.redrive(id_, {}, due=later),
        )
        split_dead_pages(context)
    assert (page := context.catalogue.pages.get(id_)) is not None
    assert len(page.open) == 2
    job = sent.take(id_, "page", sent_page.payload)
    context.catalogue.ledger.finish(job.id, job.fence, JobState.DEAD, now=clock.now(), error=error)
    monkeypatch.setattr(
        "tasks.pages.leaving_objects.send_child", lambda _, request, *, id_, **__: split.update({id_: request})
    )
    assert (split_dead_pages(context), split_dead_pages(context)) == (2, 0)
    assert context.catalogue.ledger.states([id_]) == {id_: JobState.FAILED}  # no dead letter: nothing is left of it
    assert {(each.key, each.job, each.action) for each in context.catalogue.findings.page()} == {
        (request.key, id_, "repair") for id_, request in split.items()
    }
    for request in split.values():
        run(replicate, request)
    assert {key: states(context, key)["dr"] for key in ("a", "b")} == {"a": "verified", "b": "verified"}
    assert context.catalogue.findings.page() == []


def test_a_store_that_does_not_give_a_repair_back_is_written_to_once(
    context: Context, run, put, sent: Sweeper, stored, monkeypatch
) -> None:
    """The page names the copy, which stays bad; no other job writes it again at once."""
    put("app.tgz")
    stored("dr").unlink()
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    write, written = LimitedStore.write_object, []

    def rotting(store: LimitedStore, *args: Any, **options: Any) -> Any:
        done = write(store, *args, **options)
        written.append(store.name)
        rot(stored("dr"))
        return done

    monkeypatch.setattr(LimitedStore, "write_object", rotting)
    run(sweep_repair, SweepRepairRequest())
    [done] = sent.pages()
    assert (done.outcomes, done.left, written) == ({"ReadBackMismatch": 1}, (), ["dr"])
    assert "reads back corrupt" in done.failures[0].message
    assert states(context, "app.tgz")["dr"] == "corrupt"


class TestSuspect:
    """A store with too many bad copies is the suspect."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_repair(settings, suspect_copies=2)

    def test_repairs_of_a_store_stop_until_it_is_trusted(
        self, context: Context, run, put, sweep: Sweep, stored, settings, status, capsys, monkeypatch
    ) -> None:
        """More bad copies than `suspect_copies` stop its repairs; `status` shows it, `stores trust` continues them."""
        for key in ("a", "b", "c"):
            put(key)
            rot(stored("dr", key))
            run(verify, VerifyRequest(bucket="releases", key=key))
        for _ in range(2):
            assert (sweep().claimed, sweep().untrusted) == ({}, ("dr",))
        assert states(context, "a")["dr"] == "corrupt"
        assert status() == 1
        assert "store_untrusted" in capsys.readouterr().out
        assert cli.run(["stores", "trust", "dr"]) == 0
        assert (sweep().claimed, sweep().untrusted) == ({"dr": 3}, ())
        assert status() == 0

    def test_repaired_copies_count_too(self, run, put, sweep: Sweep, stored) -> None:
        """A store whose copies go bad as fast as they are repaired is the suspect as well."""
        put("app.tgz")
        claimed = []
        for key in ("a", "b", "c"):
            put(key)
            rot(stored("dr", key))
            run(verify, VerifyRequest(bucket="releases", key=key))
            claimed.append(sweep().claimed)
        assert claimed == [{"dr": 1}, {"dr": 1}, {}]


class TestOff:
    """Repairs can be switched off for one store."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_repair(settings, off=("dr",))

    def test_a_store_without_repairs_keeps_its_findings(self, run, put, sweep: Sweep, stored, status) -> None:
        """The copies of a store in `sweep.repair.off` stay as they are, and stay open."""
        put("app.tgz")
        for store in ("primary", "dr"):
            put(store)
            rot(stored(store, store))
            run(verify, VerifyRequest(bucket="releases", key=store))
        assert sweep().claimed == {"primary": 1}
        assert status() == 1
