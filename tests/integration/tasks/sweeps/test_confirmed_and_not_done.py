"""A cloud that confirms what it has not done is found out by a sweep, as a finding of its own, and repaired."""

import hashlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.delete import delete
from tasks.sweeps.check_evidence import sweep_evidence
from tasks.sweeps.purge import sweep_purge
from tasks.sweeps.repair import sweep_repair
from tasks.upload import upload
from tasks.verify import verify
from tests.integration.tasks.rotting_stores import BUCKET, CLOUDS, RottingCloud, rotting
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper
from tests.servers.proxy import Say
from worker import clock
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import DeleteSettings
from worker.storage.errors import NotDeleted
from zot_artifact_client.contract import (
    DeleteRequest,
    SweepEvidenceRequest,
    SweepPurgeRequest,
    SweepRepairRequest,
    UploadRequest,
    VerifyRequest,
)

KEY = "app"
CONTENT = hashlib.sha256(b"app").digest() * 512

pytestmark = [
    pytest.mark.usefixtures("sdks_retry_at_once"),
    pytest.mark.parametrize("store", CLOUDS, indirect=True),
]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RottingCloud]:
    with rotting(request.param, request, tmp_path / "unused") as opened:
        assert isinstance(opened, RottingCloud)
        yield opened


@pytest.fixture
def settings(settings: Settings, store: RottingCloud) -> Settings:
    stores = {"primary": settings.stores["primary"], "dr": store.config}
    return settings.model_copy(update={"stores": stores, "delete": DeleteSettings()})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    jobs: list[Any] = []
    monkeypatch.setattr("tasks.sweeps.check_evidence.send_child", lambda _, request, **__: jobs.append(request))
    return jobs


def findings(context: Context) -> list[tuple[str, str | None]]:
    return [(each.kind.value, each.store) for each in context.catalogue.findings.page()]


@pytest.mark.parametrize("kept", ["nothing", "half"])
def test_a_write_that_was_confirmed_and_not_kept_is_found_and_repaired(
    context: Context, run: Callable[..., Any], source: Callable[..., str], store: RottingCloud, sent: list[Any],
    monkeypatch: pytest.MonkeyPatch, kept: str,
) -> None:  # fmt: skip
    """The next `sweep evidence`, at one request for 1,000 objects, has the copy read, and the good one wins."""
    half = CONTENT[: len(CONTENT) // 2]
    store.lie((lambda: store.lose(KEY)) if kept == "nothing" else (lambda: store.rot(KEY, half)))
    placed = run(upload, UploadRequest(bucket=BUCKET, key=KEY, source=source(CONTENT)))
    store.lie(None)
    assert {copy.outcome for copy in placed.copies} == {"stored"}
    later = clock.now() + timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: later)

    (told,) = run(sweep_evidence, SweepEvidenceRequest(store="dr")).stores
    assert told.outcomes == {"absent" if kept == "nothing" else "differs": 1}
    run(verify, sent.pop())
    assert findings(context) == [("missing" if kept == "nothing" else "size_mismatch", "dr")]
    sweeper = Sweeper(context)
    monkeypatch.setattr("tasks.sweeps.repair.Outbox", lambda _: sweeper.messages)
    run(sweep_repair, SweepRepairRequest())
    sweeper.pages()
    assert store.bytes_of(KEY) == CONTENT
    run(verify, VerifyRequest(bucket=BUCKET, key=KEY))
    assert findings(context) == []


def test_wrong_bytes_in_the_answer_are_never_verified(
    context: Context, run: Callable[..., Any], source: Callable[..., str], store: RottingCloud
) -> None:
    """The store has the right object and answers with other bytes: a finding, until it answers with the right ones."""
    run(upload, UploadRequest(bucket=BUCKET, key=KEY, source=source(CONTENT)))
    store.flip(KEY)
    result = run(verify, VerifyRequest(bucket=BUCKET, key=KEY))
    verdict = {copy.store: copy.verdict for copy in result.copies}["dr"]
    assert verdict in {"corrupt", "unreadable"}
    assert findings(context) == [(verdict, "dr")]
    store.heal(KEY)
    run(verify, VerifyRequest(bucket=BUCKET, key=KEY))
    assert findings(context) == []


def test_an_artifact_is_not_deleted_while_a_store_has_its_bytes(
    context: Context, run: Callable[..., Any], source: Callable[..., str], store: RottingCloud,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither `delete` nor `purge` forgets a copy that its store only says it has deleted; the next attempt ends it."""
    accepted = Say(202 if "Azure" in type(store).__name__ else 204)
    run(upload, UploadRequest(bucket=BUCKET, key=KEY, source=source(CONTENT)))
    store.disturb(KEY, "DELETE", accepted)
    with pytest.raises(NotDeleted, match="dr: releases/app: the store accepted the delete"):
        run(delete, DeleteRequest(bucket=BUCKET, key=KEY, stores=("dr",)))
    assert set(context.catalogue.artifacts.copies_by_store(BUCKET, KEY)) == {"primary", "dr"}

    run(delete, DeleteRequest(bucket=BUCKET, key=KEY))
    later = clock.now() + context.settings.delete.grace + timedelta(days=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    monkeypatch.setattr(clock, "not_ahead", lambda *_, **__: later)
    monkeypatch.setattr(context.catalogue.deletions, "database_time", lambda: None)
    with pytest.raises(NotDeleted):
        run(sweep_purge, SweepPurgeRequest())
    assert set(context.catalogue.artifacts.copies_by_store(BUCKET, KEY)) == {"dr"}
    store.heal(KEY)
    assert run(sweep_purge, SweepPurgeRequest()).purged == 1
    assert context.catalogue.artifacts.copies_by_store(BUCKET, KEY) == {}
