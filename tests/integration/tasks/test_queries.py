"""Queries as plain functions, on a real catalogue."""

from datetime import timedelta

import pytest

from tasks.queries import list_artifacts, show, status
from tasks.upload import upload
from worker import clock
from worker.catalogue.artifacts import FinishedCopy
from worker.storage import Digest
from worker.storage.errors import NotFound
from worker.storage.integrity.manifest import CHUNK_SIZE, Manifest
from zot_artifact_client.contract import MAX_CHUNKS, JobState, ListRequest, ShowRequest, StatusRequest, UploadRequest
from zot_artifact_client.idempotency_conflicts import digest_of


@pytest.fixture
def uploaded(run, source):
    return run(
        upload, UploadRequest(source=source(b"release"), bucket="releases", key="app.tgz", metadata={"by": "ci"})
    )


def recorded(context, key: str, size: int, manifest: Manifest | None = None) -> None:
    """Record an artifact with a copy, without its bytes."""
    artifacts, now = context.catalogue.artifacts, clock.now()
    made = artifacts.record("releases", key, Digest(size, "0" * 64), {}, now, manifest=manifest, stores=["dr"]).artifact
    artifacts.finish_copies([FinishedCopy(made, "dr", "tag")], now=now)


def test_an_artifact_is_shown_with_its_copies(context, uploaded):
    """The answer has the version, the metadata, the copies with their states, and the hold."""
    context.catalogue.holds.place("releases", "app.tgz", by="ops", reason="audit", now=clock.now())
    shown = show(ShowRequest(bucket="releases", key="app.tgz", chunks_from=0), context)
    assert (shown.version, shown.size, shown.sha256) == (1, 7, uploaded.sha256)
    assert shown.metadata == {"by": "ci"}
    assert [(copy.store, copy.state, copy.configured) for copy in shown.copies] == [
        ("dr", "stored", True),
        ("primary", "stored", True),
    ]
    assert shown.hold is not None
    assert (shown.hold.by, shown.hold.reason) == ("ops", "audit")
    assert shown.manifest is not None
    assert shown.manifest.sha256 == (uploaded.sha256,)


def test_what_is_not_there_is_not_found(context, uploaded):
    """An absent artifact is NotFound, which names the nearest key."""
    with pytest.raises(NotFound, match="did you mean 'releases/app.tgz'"):
        show(ShowRequest(bucket="releases", key="app.tg"), context)


def test_a_long_manifest_comes_in_parts(context):
    """The parts of a manifest together are all its digests, in order, and no part is larger than the bound."""
    total = MAX_CHUNKS + 2
    digests = b"".join(number.to_bytes(32, "big") for number in range(total))
    size = (total - 1) * CHUNK_SIZE + 1
    recorded(context, "huge", size, Manifest(size, CHUNK_SIZE, digests))
    found = []
    while len(found) < total:
        part = show(ShowRequest(bucket="releases", key="huge", chunks_from=len(found)), context).manifest
        assert part is not None
        assert (part.total, part.first) == (total, len(found))
        assert 0 < len(part.sha256) <= MAX_CHUNKS
        found += part.sha256
    assert "".join(found) == digests.hex()


def test_a_bucket_is_listed_in_pages(context, run, source):
    """Pages follow each other by key without a gap, the last one says that it is the last, and prefixes are text."""
    keys = sorted(["a/1", "a/2", "a/é", "b/1"])
    for key in keys:
        run(upload, UploadRequest(source=source(key.encode()), bucket="releases", key=key))
    first = list_artifacts(ListRequest(bucket="releases", limit=3), context)
    rest = list_artifacts(ListRequest(bucket="releases", limit=3, after=first.next or ""), context)
    assert [found.key for found in (*first.artifacts, *rest.artifacts)] == keys
    assert (first.next, rest.next) == (keys[2], None)
    assert [found.key for found in list_artifacts(ListRequest(bucket="releases", prefix="a/1"), context).artifacts] == [
        "a/1"
    ]
    assert list_artifacts(ListRequest(bucket="nothing"), context).artifacts == ()


def test_an_answer_is_bounded_whatever_the_keys(context, run, source):
    """A page of the longest keys is cut at a bound in bytes, and its end is the beginning of the next page."""
    paths = [f"{number:03d}" + "\U0001f600" * 255 for number in range(90)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.artifacts.queries._LARGEST_PAGE", 64 * 1024)
        for key in paths:
            recorded(context, key, 1)
        found, after = [], ""
        while True:
            page = list_artifacts(ListRequest(bucket="releases", after=after), context)
            assert len(page.model_dump_json(ensure_ascii=True)) < 80 * 1024
            found += [each.key for each in page.artifacts]
            if page.next is None:
                break
            after = page.next
    assert found == paths


def test_the_status_of_a_job_is_that_of_the_ledger(context, run, source):
    """A job of the ledger is returned with its end, another id is unknown, and no traceback leaves the catalogue."""
    ledger = context.catalogue.ledger
    leased = ledger.acquire(
        "job-1", "upload", {}, owner="test", writes_to=None, parent=None, now=clock.now(), lease=timedelta(minutes=1)
    )
    assert status(StatusRequest(job="job-1"), context).state == "running"
    error = {"type": "Unavailable", "message": "store dr did not answer", "traceback": "secret"}
    ledger.finish("job-1", leased.record.fence, JobState.DEAD, now=clock.now(), error=error)
    ended = status(StatusRequest(job="job-1"), context)
    assert (ended.state, ended.kind, ended.attempts) == ("dead", "upload", 1)
    assert ended.error is not None
    assert ended.error.message == "store dr did not answer"
    assert "secret" not in ended.model_dump_json()
    assert ended.request_sha256 == digest_of("upload", {})
    assert status(StatusRequest(job="job-2"), context).state == "unknown"
    ledger.reject("job-3", "upload", {"key": "…"}, {"type": "InvalidMessage", "message": "no"}, clock.now())
    assert status(StatusRequest(job="job-3"), context).request_sha256 is None
