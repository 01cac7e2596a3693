"""Cheaper checks between full reads have their own record and clock, and a mismatch is read in full."""

import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from itertools import repeat
from typing import Any

import pytest

from tasks import check_evidence as evidence_module
from tasks.check_evidence import evidence
from tasks.sweeps import check_evidence as sweep_module
from tasks.sweeps.check_evidence import sweep_evidence
from tasks.upload import upload
from tasks.verify import verify
from tests.integration.tasks.conftest import NullReporter
from worker import cli, clock
from worker.artifacts.reconcile import DisorderedListing
from worker.catalogue import Copy, EvidenceCheck, Leased
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Snooze
from worker.settings import Settings
from worker.storage.errors import NotFound, Unavailable
from worker.storage.store import Store
from zot_artifact_client.contract import (
    EvidenceRequest,
    StoreEvidence,
    SweepEvidenceRequest,
    UploadRequest,
    VerifyRequest,
)

KEYS = ("a", "b", "c")
Sweep = Callable[..., StoreEvidence]


@pytest.fixture
def sent(monkeypatch) -> list[Any]:
    jobs: list[Any] = []
    for module in (sweep_module, evidence_module):
        monkeypatch.setattr(module, "send_child", lambda _spec, request, **_: jobs.append(request))
    return jobs


@pytest.fixture(params=["listing", "stat"])
def sweep(request, run, source, sent, monkeypatch) -> Sweep:
    """Upload some artifacts, and return what compares `dr` with the catalogue an hour later."""
    for key in KEYS:
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode())))
    later = clock.now() + timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: later)

    def sweep(**more: Any) -> StoreEvidence:
        asked = SweepEvidenceRequest(store="dr", source=request.param, **more)
        (found,) = run(sweep_evidence, asked).stores
        return found

    return sweep


def copy_of(context: Context, key: str) -> Copy:
    artifact = context.catalogue.artifacts.current("releases", key)
    assert artifact is not None
    return context.catalogue.artifacts.copies(artifact)["dr"]


def check_of(context: Context, key: str) -> EvidenceCheck:
    copy = copy_of(context, key)
    return context.catalogue.evidence_checks.of([copy.id])[copy.id]


@pytest.mark.parametrize("source_of", ["listing", "stat"])
def test_copies_that_were_just_written_are_compared(
    context: Context, run, source, sent, stored, source_of: str
) -> None:
    """What agrees counts however young it is; what differs may be being written, and is told as too young."""
    for key in KEYS:
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode())))
    stored("dr", "b").write_bytes(b"other bytes")
    (found,) = run(sweep_evidence, SweepEvidenceRequest(store="dr", source=source_of)).stores
    if source_of == "listing":
        assert (found.outcomes, found.too_young) == ({"agrees": 2}, 1)
    else:
        assert (found.outcomes, found.too_young) == ({"agrees": 2, "differs": 1}, 0)


def test_one_object_that_the_store_does_not_tell_about_stops_no_other(sweep: Sweep, monkeypatch) -> None:
    """One copy is asked for in vain; the others are compared."""
    stat = Store.stat_object

    def failing(store: Store, bucket: str, key: str, **options: bool) -> Any:
        if key == "a":
            raise Unavailable("dr: EIO")
        return stat(store, bucket, key, **options)

    monkeypatch.setattr(Store, "stat_object", failing)
    monkeypatch.setattr(sweep_module, "compare_listed", lambda known, *_: EvidenceCheck(known.copy_id, "x", "differs"))
    assert sweep().outcomes == {"agrees": 2, "unknown": 1}


def test_show_says_that_evidence_is_older_than_a_bad_verdict(
    settings: Settings, run, sweep: Sweep, stored, monkeypatch, capsys
) -> None:
    """What a store told before all bytes were read does not read as if it spoke for the corrupt copy."""
    monkeypatch.setattr("worker.cli.session.load_settings", lambda: settings)
    sweep()
    cli.run(["show", "releases/a"])
    assert "before the bad verdict" not in capsys.readouterr().out
    stored("dr", "a").write_bytes(b"A")
    run(verify, VerifyRequest(bucket="releases", key="a"))
    cli.run(["show", "releases/a"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dr")]
    assert "corrupt" in row
    assert row.rstrip().endswith(", before the bad verdict")


def test_evidence_moves_no_time_of_verification(context: Context, sweep: Sweep, sent) -> None:
    """Promise 3: what agrees is recorded with its own clock, and nothing of the copy changes."""
    before = {key: asdict(copy_of(context, key)) for key in KEYS}
    assert sweep().outcomes == {"agrees": 3}
    assert {key: asdict(copy_of(context, key)) for key in KEYS} == before
    assert {check_of(context, key).checked_at for key in KEYS} == {clock.now()}
    assert context.catalogue.verifications.of("releases", "a") == []
    assert sent == []


@pytest.mark.parametrize("modified", [1, 4102444800], ids=["1970", "2100"])
def test_a_mismatch_is_read_in_full_and_only_that_read_judges(
    context: Context, run, sweep: Sweep, stored, sent, modified: int
) -> None:
    """Other bytes of the same size, and an object that is gone: a job for each, and no verdict before it ran."""
    stored("dr", "a").write_bytes(b"x")
    os.utime(stored("dr", "a"), (modified,) * 2)
    stored("dr", "b").unlink()
    found = sweep()
    assert (found.outcomes, found.sent) == ({"agrees": 1, "differs": 1, "absent": 1}, 2)
    assert check_of(context, "a").detail
    assert [copy_of(context, key).state.value for key in KEYS] == ["stored"] * 3
    assert [(each.key, each.stores) for each in sent] == [("a", ("dr",)), ("b", ("dr",))]
    for request in sent:
        run(verify, request)
    assert [copy_of(context, key).state.value for key in KEYS] == ["corrupt", "missing", "stored"]
    sent.clear()
    assert sweep().outcomes == {"agrees": 1}  # what is bad already is not asked for
    assert sent == []


def test_rot_that_the_store_does_not_notice_agrees(context: Context, sweep: Sweep, stored) -> None:
    """Which is why evidence never counts as a verification."""
    path = stored("dr", "a")
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sweep().outcomes == {"agrees": 3}
    assert copy_of(context, "a").last_verified_at is None


def test_a_run_sends_no_more_jobs_than_its_limit(context: Context, sweep: Sweep, stored, sent, monkeypatch) -> None:
    """A store that was restored from a backup, with other version tags, is not read as a whole at once."""
    for key in KEYS:
        os.utime(stored("dr", key), (1, 1))
    monkeypatch.setitem(context.settings.sweep.evidence.__dict__, "batch", 2)
    found = sweep()
    assert (found.outcomes, found.sent, len(sent)) == ({"differs": 3}, 2, 2)
    assert sweep(bucket="releases", prefix="c").outcomes == {"differs": 1}


def test_a_store_that_does_not_answer_says_nothing(context: Context, sweep: Sweep, sent, monkeypatch) -> None:
    """The job is tried again; no copy is called different."""

    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("dr: no answer")

    for name in ("list_objects", "stat_object"):
        monkeypatch.setattr(Store, name, away)
    with pytest.raises((Unavailable, Snooze)):
        sweep()
    assert sent == []
    assert context.catalogue.evidence_checks.of([copy_of(context, "a").id]) == {}


@pytest.mark.parametrize("sweep", ["listing"], indirect=True)
@pytest.mark.parametrize("order", ["repeated", "reverse", "shuffled"])
def test_a_listing_in_no_order_is_an_error_and_a_finding(
    context: Context, sweep: Sweep, sent, monkeypatch, order: str
) -> None:
    """The run ends with an error before a copy is called absent, or each is asked for by itself."""
    real = Store.list_objects

    def disordered(self: Store, *args: Any, **options: Any) -> Any:
        a, b, c = real(self, *args, **options)
        yield from {"repeated": repeat(a), "reverse": (c, b, a), "shuffled": (b, a, c)}[order]

    monkeypatch.setattr(Store, "list_objects", disordered)
    with pytest.raises(DisorderedListing, match="dr: the listing has"):
        sweep()
    assert sent == []
    assert context.catalogue.evidence_checks.of([copy_of(context, key).id for key in KEYS]) == {}
    [finding] = context.catalogue.findings.page()
    assert (finding.kind, finding.store) == ("listing_suspect", "dr")


def test_one_artifact_is_asked_for_by_itself(context: Context, run, source, stored, sent) -> None:
    """Every good copy, or those of named stores; the result names what was compared, and the job that reads."""
    run(upload, UploadRequest(bucket="releases", key="a", source=source(b"a")))
    result = run(evidence, EvidenceRequest(bucket="releases", key="a"))
    assert [(each.store, each.outcome, each.compared) for each in result.copies] == [
        ("dr", "agrees", "size, version, sha256"), ("primary", "agrees", "size, version, sha256"),
    ]  # fmt: skip
    os.utime(stored("dr", "a"), (1, 1))
    [found] = run(evidence, EvidenceRequest(bucket="releases", key="a", stores=("dr",))).copies
    assert (found.outcome, found.job is not None, len(sent)) == ("differs", True, 1)
    assert check_of(context, "a").outcome == "differs"
    with pytest.raises(NotFound, match="not in the catalogue"):
        run(evidence, EvidenceRequest(bucket="releases", key="nowhere"))


def test_a_run_that_was_stopped_asks_about_the_rest_alone(context: Context, sweep: Sweep, sent, stored, monkeypatch):
    """The next attempt of the job compares what did not agree yet; another run compares all copies again."""
    stored("dr", "b").write_bytes(b"!")
    asked: list[str] = []
    stat = Store.stat_object

    def stopping(store: Store, bucket: str, key: str, **options: bool) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(key)
        return stat(store, bucket, key, **options)

    def attempt(id_: str = "evidence-1") -> dict[str, int]:
        ledger, lease = context.catalogue.ledger, timedelta(0)
        begun = ledger.acquire(
            id_, "sweep.evidence", {}, owner="test", writes_to=None, parent=None, now=clock.now(), lease=lease
        )
        assert isinstance(begun, Leased)
        job = RunningJob(begun.record, context, NullReporter())
        request = SweepEvidenceRequest(store="dr", source="stat")
        return dict(sweep_evidence(request, job).stores[0].outcomes)

    monkeypatch.setattr(sweep_module, "_GROUP", 1)
    monkeypatch.setattr(Store, "stat_object", stopping)
    with pytest.raises(KeyboardInterrupt):
        attempt()
    assert asked == ["a", "b"]
    asked.clear()
    monkeypatch.setattr(
        Store, "stat_object", lambda store, bucket, key, **_: asked.append(key) or stat(store, bucket, key)
    )
    assert attempt() == {"agrees": 2, "differs": 1}
    assert asked == ["b", "c"]
    assert [request.key for request in sent] == ["b", "b"]  # one job: the ledger knows its id
    asked.clear()
    assert attempt("evidence-2") == {"agrees": 2, "differs": 1}
    assert asked == ["a", "b", "c"]
