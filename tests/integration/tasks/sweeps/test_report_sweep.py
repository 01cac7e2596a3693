"""The periodic report is written into a store, by its time and as the latest one."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.sweeps.report import NoReportStore, ReportBucketTaken, sweep_report
from tasks.upload import upload
from worker import clock
from worker.catalogue import Scope
from worker.context import Context
from worker.limits.snooze import Paused
from worker.settings import Settings
from worker.settings.section_models import ReportSweepSettings, SweepSettings
from worker.storage.config import FilesystemConfig
from zot_artifact_client.contract import SweepReportRequest, SweepReportResult, UploadRequest


@pytest.fixture
def settings(settings: Settings) -> Settings:
    sweep = SweepSettings(report=ReportSweepSettings(store="dr", keep=2))
    return settings.model_copy(update={"sweep": sweep})


def folder(settings: Settings) -> Path:
    config = settings.stores["dr"]
    assert isinstance(config, FilesystemConfig)
    return config.root / "zot-report"


def test_the_report_is_a_page_and_a_document_in_the_store(run, settings: Settings) -> None:
    """Both have the same content; the level of preservation is among it."""
    result: SweepReportResult = run(sweep_report, SweepReportRequest())
    assert (result.store, result.bucket, len(result.keys)) == ("dr", "zot-report", 4)
    document = json.loads((folder(settings) / "latest.json").read_text())
    assert {row["store"] for row in document["stores"]} == set(settings.stores)
    assert document["preservation"]["level"] == 1
    page = (folder(settings) / "latest.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "Level 1 of 4" in page


def test_only_the_latest_reports_are_kept(run, settings: Settings, monkeypatch) -> None:
    """Older ones go, and nothing else that is in the bucket."""
    now = clock.now()
    folder(settings).mkdir(parents=True)
    (folder(settings) / "report-of-another-program").write_text("stays")
    for day in range(3):
        monkeypatch.setattr(clock, "now", lambda day=day: now + timedelta(days=day))
        run(sweep_report, SweepReportRequest())
    names = sorted(path.name for path in folder(settings).iterdir() if path.suffix != ".sha256")
    dated = [f"report-{now + timedelta(days=day):%Y%m%dT%H%M%SZ}.{form}" for day in (1, 2) for form in ("html", "json")]
    assert names == ["latest.html", "latest.json", *dated, "report-of-another-program"]


def test_a_paused_store_gets_no_report(run, context: Context, settings: Settings) -> None:
    """The sweep waits for the end of the pause and writes nothing into the store before."""
    context.catalogue.pauses.begin(Scope.STORE, "dr", reason="its disks are moved", now=clock.now())
    with pytest.raises(Paused, match="dr: the store is paused"):
        run(sweep_report, SweepReportRequest())
    assert not folder(settings).exists()


def test_the_quarantine_of_a_paused_store_is_not_listed(run, context: Context, settings: Settings) -> None:
    """The report of a store that takes requests says that another one is paused, and asks it for nothing."""
    context.catalogue.pauses.begin(Scope.STORE, "primary", reason="its disks are moved", now=clock.now())
    run(sweep_report, SweepReportRequest())
    stores = json.loads((folder(settings) / "latest.json").read_text())["stores"]
    kept = {row["store"]: row["quarantine"] for row in stores}
    assert "paused" in kept["primary"]["error"]
    assert kept["dr"]["error"] is None


def test_without_a_store_the_sweep_says_so(run, context: Context, monkeypatch) -> None:
    """Run by hand, it names the setting."""
    monkeypatch.setitem(context.settings.sweep.report.__dict__, "store", None)
    with pytest.raises(NoReportStore, match=r"sweep\.report\.store"):
        run(sweep_report, SweepReportRequest())


def test_the_report_overwrites_no_artifact(run, source, context: Context, settings: Settings, monkeypatch) -> None:
    """A bucket that has an artifact under a name of the report is refused by name, and nothing changes."""
    run(upload, UploadRequest(bucket="web", key="latest.json", source=source(b"mine"), stores=("dr",)))
    monkeypatch.setitem(context.settings.sweep.report.__dict__, "bucket", "web")
    with pytest.raises(ReportBucketTaken, match=r"web/latest\.json"):
        run(sweep_report, SweepReportRequest())
    assert (folder(settings).parent / "web" / "latest.json").read_bytes() == b"mine"
