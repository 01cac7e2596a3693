"""An inventory report takes the place of the listing: it finds the same, up to its time, and alone proves nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tasks.sweeps import check_evidence as evidence_module
from tasks.sweeps import reconcile as reconcile_module
from tasks.sweeps.check_evidence import sweep_evidence
from tasks.sweeps.reconcile import sweep_reconcile
from tasks.upload import upload
from tests.conformance.targets import one_of_each
from tests.unit.artifacts.inventories.reports import (
    AT,
    OLD,
    Object,
    azure_report,
    gcs_report,
    s3_batch_report,
    s3_report,
)
from worker import clock
from worker.artifacts.inventories import BadInventory
from worker.artifacts.reconcile import DisorderedListing
from worker.catalogue import FindingKind, NewFinding
from worker.catalogue.reconciliations import ReconcileRun, Reconciliations
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import SourceSettings
from zot_artifact_client.contract import (
    ReconciledStore,
    StoreEvidence,
    SweepEvidenceRequest,
    SweepReconcileRequest,
    UploadRequest,
)

KEYS = ("a", "b/1", "b/2 +", "c")
DAY = timedelta(days=1)
Make = Callable[..., Path]


@pytest.fixture
def settings(tmp_path: Path, source_root: Path, ministack, strict_gcs, azurite) -> Settings:
    (tmp_path / "disk").mkdir()
    stores = one_of_each(ministack, strict_gcs, azurite, tmp_path / "disk")
    return Settings(home=tmp_path / "home", stores=stores, sources=SourceSettings(roots=(source_root,)))


@pytest.fixture(params=["s3", "gcs", "azure"])
def store(request, run, source, monkeypatch) -> str:
    """Upload some artifacts to a cloud, long before the report, and return the name of the store."""
    monkeypatch.setattr(clock, "now", lambda: OLD)
    for key in KEYS:
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode()), stores=(request.param,)))
    monkeypatch.setattr(clock, "now", lambda: AT + timedelta(hours=1))
    name: str = request.param
    return name


@pytest.fixture
def objects(context: Context, store: str) -> list[Object]:
    """Return the objects as the provider would list them."""
    listed = context.stores[store].list_objects("releases")
    return [Object(f"releases/{each.key}", each.key.encode(), each.version) for each in listed]


@pytest.fixture
def sent(monkeypatch) -> list[Any]:
    jobs: list[Any] = []
    for module in (reconcile_module, evidence_module):
        monkeypatch.setattr(module, "send_child", lambda _spec, request, **_: jobs.append(request))
    return jobs


@pytest.fixture
def report(source_root: Path, settings: Settings, store: str, monkeypatch) -> Make:
    """Return what writes a report of some objects, taken some time after AT."""
    numbers = iter(range(100))

    def report(objects: list[Object], *, after: timedelta = timedelta()) -> Path:
        monkeypatch.setattr("tests.unit.artifacts.inventories.reports.AT", AT + after)
        now = max(clock.now(), AT + after + timedelta(hours=1))
        monkeypatch.setattr(clock, "now", lambda: now)
        directory, config = source_root / f"report-{next(numbers)}", settings.stores[store]
        if store == "azure":
            account = config.account_url or "http://account.blob.core.windows.net/"
            return azure_report(directory, objects, container=config.container, endpoint=account)
        return (s3_report if store == "s3" else gcs_report)(directory, objects, bucket=config.bucket)

    return report


@pytest.fixture
def reconcile(run, store: str, sent) -> Callable[[Path], ReconciledStore]:
    def reconcile(manifest: Path) -> ReconciledStore:
        request = SweepReconcileRequest(store=store, bucket="releases", inventory=str(manifest))
        (found,) = run(sweep_reconcile, request).stores
        return found

    return reconcile


def test_a_difference_counts_when_two_reports_and_the_store_show_it(
    context: Context, store: str, objects: list[Object], report: Make, reconcile, sent
) -> None:
    """The same report twice is one sighting; what the store itself has is no finding, whatever reports say."""
    assert reconcile(report(objects)).seen == {}
    context.stores[store].delete_object("releases", "a")
    lacking = report([*objects[2:], Object("releases/zz")], after=DAY)
    for _ in range(2):
        found = reconcile(lacking)
        assert (found.seen, found.findings) == ({"missing": 2, "orphan": 1}, {})
    found = reconcile(report(objects[2:], after=2 * DAY))
    assert (found.seen, found.findings) == ({"missing": 2}, {"missing": 1})
    assert [(each.kind, each.key) for each in context.catalogue.findings.page()] == [("missing", "a")]
    assert [each.key for each in sent] == ["a"]


def test_a_report_says_nothing_about_what_came_after_it(
    context: Context, run, source, store: str, objects: list[Object], report: Make, reconcile, monkeypatch
) -> None:
    """An upload after the report is not missing, and a finding that was opened after it is not resolved by it."""
    context.stores[store].delete_object("releases", "a")
    monkeypatch.setattr(clock, "now", lambda: AT + 2 * DAY)
    run(upload, UploadRequest(bucket="releases", key="later", source=source(b"x"), stores=(store,)))
    lacking = [each for each in objects if each.key != "releases/a"]
    reconcile(report(lacking, after=-DAY))
    assert reconcile(report(lacking)).findings == {"missing": 1}
    assert reconcile(report(objects, after=-DAY)).seen == {}
    assert [each.key for each in context.catalogue.findings.page()] == ["a"]


def test_an_orphan_that_a_report_leaves_out_stays_a_finding(
    context: Context, store: str, objects: list[Object], report: Make, reconcile
) -> None:
    """A report may have a filter that it does not tell: the finding is resolved when the store has no such object."""
    place = ("releases", "zz")
    context.stores[store].write_object(*place, BytesIO(b"x"))
    context.catalogue.findings.see([NewFinding(FindingKind.ORPHAN, store, *place)], now=AT - DAY)
    reconcile(report(objects))
    assert [(each.kind, each.key) for each in context.catalogue.findings.page()] == [("orphan", "zz")]
    context.stores[store].delete_object(*place)
    reconcile(report(objects, after=DAY))
    assert context.catalogue.findings.page() == []


def test_a_report_of_the_future_is_refused(objects: list[Object], report: Make, reconcile, monkeypatch) -> None:
    """A wrong time would resolve findings of today, and keep later runs from confirming a difference."""
    manifest = report(objects, after=DAY)
    monkeypatch.setattr(clock, "now", lambda: AT)
    with pytest.raises(BadInventory, match="in the future"):
        reconcile(manifest)


def test_a_report_that_lacks_too_much_or_is_not_whole_changes_nothing(
    context: Context, objects: list[Object], report: Make, reconcile, sent, monkeypatch
) -> None:
    """It stops the run before any finding."""
    monkeypatch.setattr(reconcile_module, "_FEW", 2)
    for after in range(2):
        found = reconcile(report(objects[:1], after=after * DAY))
        assert (found.stopped is not None, found.findings) == (True, {})
    broken = report(objects)
    broken.write_text(broken.read_text()[:-1])
    with pytest.raises(BadInventory):
        reconcile(broken)
    assert {each.kind for each in context.catalogue.findings.page()} == {"listing_suspect"}
    assert sent == []


def test_the_checksums_of_a_report_are_evidence(
    context: Context, run, store: str, objects: list[Object], report: Make, sent
) -> None:
    """Version tags and checksums that agree are recorded as that and verify nothing; one that differs is asked for."""

    def compare(manifest: Path) -> StoreEvidence:
        request = SweepEvidenceRequest(store=store, bucket="releases", inventory=str(manifest))
        (found,) = run(sweep_evidence, request).stores
        return found

    assert compare(report(objects)).outcomes == {"agrees": 4}
    artifact = context.catalogue.artifacts.current("releases", "a")
    assert artifact is not None
    copy = context.catalogue.artifacts.copies(artifact)[store]
    check = context.catalogue.evidence_checks.of([copy.id])[copy.id]
    compared = {"s3": "size, version", "gcs": "size, version, md5", "azure": "size, version, content_md5"}
    assert (check.source, check.compared) == ("inventory", compared[store])
    assert copy.last_verified_at is None
    other = [replace(each, version="8") if each.key == "releases/a" else each for each in objects]
    assert compare(report(other)).outcomes == {"agrees": 4}  # the store itself says that nothing has changed
    context.stores[store].delete_object("releases", "a")
    assert (compare(report(other)).outcomes, [each.key for each in sent]) == ({"absent": 1, "agrees": 3}, ["a"])


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_checksums_that_s3_computed_at_rest_are_evidence(
    context: Context, run, store: str, objects: list[Object], source_root: Path, settings: Settings, sent
) -> None:
    """One that differs is read in full although the store says that nothing changed; what has no row is not judged."""
    config = settings.stores[store]
    numbers = iter(range(10))

    def compare(some: list[Object]) -> StoreEvidence:
        manifest = s3_batch_report(source_root / f"batch-{next(numbers)}", some, bucket=str(config.bucket))
        request = SweepEvidenceRequest(store=store, inventory=str(manifest))
        (found,) = run(sweep_evidence, request).stores
        return found

    right = [replace(each, body=each.key.removeprefix("releases/").encode()) for each in objects]
    assert compare(right[:3]).outcomes == {"agrees": 3}
    artifact = context.catalogue.artifacts.current("releases", "a")
    assert artifact is not None
    copy = context.catalogue.artifacts.copies(artifact)[store]
    check = context.catalogue.evidence_checks.of([copy.id])[copy.id]
    assert (check.source, check.compared, copy.last_verified_at) == ("checksum_report", "version, sha256", None)
    assert sent == []

    rotten = [replace(right[0], body=b"rot"), *right[1:], right[1]]
    found = compare(rotten)
    assert (found.outcomes, found.sent) == ({"differs": 1, "agrees": 3}, 1)
    assert [(each.key, each.stores) for each in sent] == [("a", (store,))]

    composite = replace(right[0], body=b"rot", more={"checksumType": "COMPOSITE"})
    older = replace(right[1], body=b"older", version="another")
    assert compare([composite, older]).outcomes == {"agrees": 2}  # the store was asked about the other version


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_checksum_report_is_no_listing(
    context: Context, objects: list[Object], source_root: Path, settings: Settings, reconcile, store: str
) -> None:
    """Reconcile refuses it, and one that is damaged changes nothing."""
    manifest = s3_batch_report(source_root / "batch", objects, bucket=str(settings.stores[store].bucket))
    with pytest.raises(BadInventory, match="lists no bucket"):
        reconcile(manifest)
    assert context.catalogue.findings.page() == []


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_run_over_a_report_that_was_stopped_ends_as_one_that_was_not(
    context: Context, store: str, objects: list[Object], report: Make, reconcile, sent, monkeypatch
) -> None:
    """The same report is read anew, and what both attempts saw is one sighting."""
    context.stores[store].delete_object("releases", "a")
    lacking = report(objects[1:])
    record, stopped = Reconciliations.record, [False]

    def stopping(records: Reconciliations, run: ReconcileRun, seen: Any) -> None:
        record(records, run, seen)
        if run.after == "b/1" and not stopped[0]:
            stopped[0] = True
            raise KeyboardInterrupt

    monkeypatch.setattr(reconcile_module, "_PART", 1)
    monkeypatch.setattr(Reconciliations, "record", stopping)
    with pytest.raises(KeyboardInterrupt):
        reconcile(lacking)
    found = reconcile(lacking)
    assert (found.listed, found.recorded, found.seen, found.findings) == (3, 4, {"missing": 1}, {})
    assert sent == []
    assert reconcile(report(objects[1:], after=DAY)).findings == {"missing": 1}
    assert [each.key for each in sent] == ["a"]


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_row_that_a_report_has_twice_counts_once(
    objects: list[Object], report: Make, reconcile, context: Context
) -> None:
    """Two rows of one object that differ make the report no listing: that is the only finding."""
    found = reconcile(report([*objects, objects[0]]))
    assert (found.listed, found.seen) == (4, {})
    with pytest.raises(DisorderedListing):
        reconcile(report([*objects, replace(objects[0], version="8")], after=DAY))
    assert [found.kind for found in context.catalogue.findings.page()] == [FindingKind.LISTING_SUSPECT]
