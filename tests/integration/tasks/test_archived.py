"""A copy in an archive class is neither verified nor missing: it is not readable now, and no sweep restores it."""

import io
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from azure.storage.blob import BlobServiceClient

from tasks.upload import upload
from tasks.verify import verify
from tests.conformance.targets import AZURITE_API
from tests.conformance.targets import azure as conformance_azure
from tests.servers import Azurite
from worker import clock
from worker.catalogue import FindingKind, NewFinding
from worker.catalogue.tables import copies
from worker.storage import Verdict
from worker.storage.errors import Archived
from zot_artifact_client.contract import UploadRequest, VerifyRequest

BUCKET, KEY = "releases", "app.tgz"
APP = VerifyRequest(bucket=BUCKET, key=KEY)


@pytest.fixture
def archived(run, source, context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store an artifact, the copy of which in `dr` is then archived."""
    run(upload, UploadRequest(bucket=BUCKET, key=KEY, source=source(b"content")))

    def refused(bucket: str, key: str, **_: object) -> None:
        raise Archived(f"dr: {bucket}/{key}: the object is archived and has to be restored first")

    monkeypatch.setattr(context.stores["dr"]._driver, "open", refused)


@pytest.mark.usefixtures("archived")
def test_an_archived_copy_has_its_own_verdict_and_clock(run, context, settings):
    """It counts as archived alone: no finding, not overdue after its period, and due again within one."""
    seen = {copy.store: copy.verdict for copy in run(verify, APP).copies}
    assert seen == {"primary": "verified", "dr": "archived"}
    copy = context.catalogue.artifacts.copies(context.catalogue.artifact(BUCKET, KEY))["dr"]
    assert (copy.state, copy.last_verified_at, copy.last_verdict) == ("stored", None, "archived")
    period, now = settings.sweep.verify.period_of("dr"), clock.now()
    assert now + period / 2 < copy.next_due_at < now + period
    assert context.catalogue.findings.page() == []
    of = {"period": period, "recent": timedelta(hours=6), "now": now}
    found = context.catalogue.coverage.of("dr", **of)
    assert (found.archived, found.read, found.never, found.unreadable) == (1, 0, 0, 0)
    later = now + 2 * period
    assert context.catalogue.sweep_claims.overdue("dr", period=period, now=later) == 0
    assert context.catalogue.sweep_claims.first_reads_late("dr", first_read=period, now=later) == 0
    assert context.catalogue.coverage.overdue("dr", period=period, now=later, limit=9) == []
    assert context.catalogue.sweep_claims.count_due("dr", period=period, now=later, limit=9) == 1
    assert context.catalogue.sweep_claims.count_due("dr", period=period, now=now, limit=9) == 0


@pytest.mark.usefixtures("archived")
def test_an_archived_copy_of_another_size_is_a_mismatch(run, stored):
    """The size is compared although no byte can be read, and a copy that has gone is missing."""
    stored("dr").write_bytes(b"cut")
    assert {copy.store: copy.verdict for copy in run(verify, APP).copies}["dr"] == "size_mismatch"
    stored("dr").unlink()
    assert {copy.store: copy.verdict for copy in run(verify, APP).copies}["dr"] == "missing"


@pytest.mark.usefixtures("archived")
def test_an_archived_copy_settles_only_that_it_was_unreadable(run, context):
    """A finding about its bytes stays open."""
    artifact = context.catalogue.artifact(BUCKET, KEY)
    kinds = (FindingKind.UNREADABLE, FindingKind.CORRUPT)
    context.catalogue.findings.see(
        [NewFinding(kind, "dr", BUCKET, KEY, artifact.version) for kind in kinds], now=clock.now()
    )
    run(verify, APP)
    assert [each.kind for each in context.catalogue.findings.page()] == [FindingKind.CORRUPT]


@pytest.mark.usefixtures("archived")
def test_what_is_archived_and_not_recorded_is_not_replaced(run, source, stored):
    """It cannot be read and may be the only copy of its bytes, so that an upload to its key fails."""
    stored("dr").write_bytes(b"another one")
    with pytest.raises(Archived, match=r"dr: what is at releases/app\.tgz is archived and is kept"):
        run(upload, UploadRequest(bucket=BUCKET, key=KEY, source=source(b"release two")))
    assert stored("dr").read_bytes() == b"another one"


@pytest.mark.usefixtures("archived")
def test_an_archived_copy_whose_last_read_is_long_ago_is_not_written_again(run, source, stored, context):
    """It is as it was written; to replace it would cost what the archive class costs for an early delete."""
    before = stored("dr").stat().st_ino
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(copies).values(read_at=clock.now() - timedelta(days=1000)))
    assert run(upload, UploadRequest(bucket=BUCKET, key=KEY, source=source(b"content"))).unchanged
    assert stored("dr").stat().st_ino == before


def test_azure_archives_a_blob_and_is_not_asked_to_restore_it(azurite: Azurite, tmp_path: Path) -> None:
    """A blob in the tier Archive has the verdict, whatever way it is read, and stays in its tier."""
    container, blob = f"archived-{uuid4().hex[:8]}", "b/app"
    target = conformance_azure(azurite, tmp_path, container=container)
    _, digest = target.store.write_object("b", "app", io.BytesIO(b"content"))
    service = BlobServiceClient.from_connection_string(azurite.connection_string, api_version=AZURITE_API)
    service.get_blob_client(container, blob).set_standard_blob_tier("Archive")
    assert target.store.verify_object("b", "app", digest).verdict is Verdict.ARCHIVED
    assert [each.verdict for each in target.store.verify_objects([("b", "app", digest)])] == [Verdict.ARCHIVED]
    facts = service.get_blob_client(container, blob).get_blob_properties()
    assert (facts.blob_tier, facts.archive_status) == ("Archive", None)
