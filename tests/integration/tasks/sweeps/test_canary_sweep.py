"""A canary is damaged on purpose, found by the verify sweep and repaired by the repair sweep, and never a loss."""

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.sweeps.check_evidence import sweep_evidence
from tasks.sweeps.damage_canaries import sweep_canary
from tasks.sweeps.repair import sweep_repair
from tests.integration.tasks.rotting_stores import KINDS, rotting
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper
from worker import clock
from worker.artifacts import canary_objects
from worker.catalogue import FindingKind
from worker.cli.session import Session
from worker.context import Context
from worker.report.status import document_of
from worker.settings import Settings
from worker.settings.section_models import CanarySweepSettings, RepairSweepSettings
from worker.storage.config import FilesystemConfig
from zot_artifact_client.contract import SweepCanaryRequest, SweepEvidenceRequest, SweepRepairRequest

KEY = canary_objects.key_of("dr", 0)
CONTENT = canary_objects.content_of(KEY)
DAY = timedelta(days=1)


@pytest.fixture(params=["filesystem", "s3"])
def settings(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Damage canaries in `dr` alone: a directory, or a bucket."""
    with rotting(request.param, request, tmp_path / "home" / "stores" / "dr") as store:
        stores = {"primary": settings.stores["primary"], "dr": store.config}
        sweep = settings.sweep.model_copy(update={"canary": CanarySweepSettings()})
        yield settings.model_copy(update={"stores": stores, "sweep": sweep})


@pytest.fixture
def turn(run) -> Callable[[], str]:
    """Return what runs the canary sweep in `dr`, and returns what its canary does."""
    return lambda: run(sweep_canary, SweepCanaryRequest(store="dr")).canaries["dr"]


@pytest.fixture
def verify(context: Context) -> Callable[[], None]:
    """Return what runs the verify sweep and its pages, as beat and workers do."""
    sweeper = Sweeper(context)

    def verify() -> None:
        id_ = str(uuid.uuid4())
        sweeper.plan(id_)
        for page in [each for each in sweeper.messages.sent if each.startswith(id_)]:
            sweeper.page(page)

    return verify


@pytest.fixture
def repair(context: Context, run, monkeypatch) -> Callable[[], None]:
    def repair() -> None:
        sweeper = Sweeper(context)
        monkeypatch.setattr("tasks.sweeps.repair.Outbox", lambda _: sweeper.messages)
        run(sweep_repair, SweepRepairRequest())
        sweeper.pages()

    return repair


def read(context: Context) -> bytes:
    with context.stores["dr"].read_object("zot-canary", KEY, expected=None) as reader:
        return b"".join(reader)


def shown(context: Context) -> tuple[list[str], list[str]]:
    """Return what `status` shows: the findings, and the stores with canaries."""
    document = document_of(Session(context.settings, context.catalogue, context.stores))
    return [each["kind"] for each in document["findings"]], [each["store"] for each in document["canaries"]]


def kinds(context: Context) -> list[str]:
    return [each.kind for each in context.catalogue.findings.page()]


@pytest.mark.parametrize("settings", KINDS, indirect=True)
def test_a_canary_is_found_and_repaired_by_the_sweeps_of_all_copies(
    context: Context, settings: Settings, turn, verify, repair
) -> None:
    """Its finding is of its own kind, no state or verdict of the store shows it, and its times are recorded."""
    assert turn() == "damaged"
    stat = context.stores["dr"].stat_object("zot-canary", KEY)
    assert stat.size == len(CONTENT)
    assert turn() == "damaged"
    assert kinds(context) == []
    verify()
    assert kinds(context) == [FindingKind.CANARY]
    assert context.catalogue.artifacts.count_by_state()["dr"] == {"stored": 1}
    assert context.catalogue.coverage.bad_verdicts("dr", since=clock.now() - DAY) == {}
    assert context.catalogue.repairs.count_bad("dr", since=clock.now() - DAY, limit=10) == 0
    [times] = context.catalogue.canaries.times(since=clock.now() - DAY)
    assert times.detect_seconds is not None
    assert turn() == "found"
    assert shown(context) == ([], ["dr"])
    repair()
    assert kinds(context) == []
    assert read(context) == CONTENT
    assert list(context.stores["dr"].list_objects("zot-quarantine"))
    assert turn() == "damaged"  # the next of them
    assert not list(context.stores["dr"].list_objects("zot-quarantine"))
    [times] = context.catalogue.canaries.times(since=clock.now() - DAY)
    assert (times.store, times.rounds, times.open) == ("dr", 2, True)
    assert times.detect_seconds is not None
    assert times.repair_seconds is not None
    assert 0 < times.detect_seconds < 600
    assert 0 < times.repair_seconds < 600
    assert context.catalogue.artifacts.page() == []


def test_a_canary_that_is_not_found_or_not_repaired_in_time_is_a_finding(
    context: Context, turn, verify, repair, monkeypatch
) -> None:
    """It names what is missing, and is resolved when the canary is repaired."""
    now = clock.now()
    turn()
    monkeypatch.setattr(clock, "now", lambda: now + 2 * DAY)
    assert turn() == "missed"
    [missed] = context.catalogue.findings.page()
    assert (missed.kind, missed.store) == ("canary_missed", "dr")
    assert missed.evidence["detail"] == f"canary {KEY}: its damage was not found within 24 h"
    verify()
    assert turn() == "found"
    assert kinds(context) == [FindingKind.CANARY]
    monkeypatch.setattr(clock, "now", lambda: now + 4 * DAY)
    assert turn() == "missed"
    missed = next(each for each in context.catalogue.findings.page() if each.kind == "canary_missed")
    assert "found and not repaired" in missed.evidence["detail"]
    repair()
    assert turn() == "damaged"
    assert kinds(context) == []


def test_a_store_whose_repairs_are_off_has_its_canary_restored(
    context: Context, turn, verify, repair, monkeypatch
) -> None:
    """The canary measures how soon rot is found; no repair is expected."""
    monkeypatch.setitem(context.settings.sweep.__dict__, "repair", RepairSweepSettings(off=("dr",)))
    turn()
    verify()
    repair()
    artifact = context.catalogue.artifact("zot-canary", KEY)
    assert context.catalogue.artifacts.copies(artifact)["dr"].state == "corrupt"
    assert turn() == "found"
    assert read(context) == CONTENT
    assert turn() == "damaged"


def test_a_bad_canary_that_was_not_damaged_on_purpose_is_rot(
    context: Context, turn, verify, repair, settings: Settings
) -> None:
    """Between two rounds a finding about a canary is one about any other copy, and it is repaired as one."""
    turn()
    verify()
    repair()
    last = context.catalogue.canaries.last("dr")
    assert last is not None
    context.catalogue.canaries.close(last, now=clock.now())
    canary_objects.damage(context.stores["dr"], settings.stores["dr"], KEY)
    artifact = context.catalogue.artifact("zot-canary", KEY)
    context.catalogue.canaries.damaged(last, artifact, now=clock.now())  # makes it due
    verify()
    assert kinds(context) == [FindingKind.CORRUPT]
    repair()
    assert kinds(context) == []


def test_a_directory_shows_no_trace_of_the_damage(context: Context, turn, settings: Settings) -> None:
    """Size, time and digest beside it stay: only a read of the bytes finds it."""
    config = settings.stores["dr"]
    if not isinstance(config, FilesystemConfig):
        return  # providers have no way to do it
    artifact = canary_objects.ensure(context.catalogue, [context.stores["dr"]], KEY)
    path = Path(config.root, "zot-canary", KEY)
    before = path.stat()
    assert turn() == "damaged"
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert path.read_bytes() == canary_objects.damaged(CONTENT)
    assert context.stores["dr"].stat_object("zot-canary", KEY).sha256 == artifact.digest.sha256
    canary_objects.damage(context.stores["dr"], config, KEY)
    assert path.read_bytes() == canary_objects.damaged(CONTENT)


def test_evidence_sends_no_read_of_a_canary(run, turn, monkeypatch) -> None:
    """A canary measures the verify sweep: no comparison of listings makes its read earlier."""
    assert turn() == "damaged"
    now, jobs = clock.now(), list[Any]()
    monkeypatch.setattr(clock, "now", lambda: now + DAY)
    monkeypatch.setattr("tasks.sweeps.check_evidence.send_child", lambda _, request, **__: jobs.append(request))
    run(sweep_evidence, SweepEvidenceRequest(store="dr"))
    assert jobs == []
