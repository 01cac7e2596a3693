"""Only a full read that matches gives `verified`, and each verdict says no more than the read has shown."""

import dataclasses
import io

import pytest
import sqlalchemy as sa

from tasks.replicate import replicate
from tasks.upload import upload
from tasks.verify import verify
from worker import clock
from worker.artifacts.verification_log.kept_head import WrittenLog
from worker.catalogue.tables import jobs
from worker.context import Context
from worker.storage import Stores
from worker.storage.errors import NotFound
from zot_artifact_client.contract import ReplicateRequest, UploadRequest, VerifyRequest

ALL = VerifyRequest(bucket="releases", key="app.tgz")
DR = VerifyRequest(bucket="releases", key="app.tgz", stores=("dr",))


@pytest.fixture
def catalogue(catalogue_url):
    """Run everything here on both kinds of catalogue."""
    return catalogue_url


@pytest.fixture(autouse=True)
def uploaded(run, source):
    return run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"release one")))


def copy_of(context: Context, store: str = "dr"):
    return context.catalogue.artifacts.copies(context.catalogue.artifacts.current("releases", "app.tgz"))[store]


def rot(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 0x01
    path.write_bytes(content)


def verdict(run, request=DR):
    return run(verify, request).copies[0].verdict


def test_a_full_read_that_matches_moves_the_last_verification(run, context):
    """A copy that was read and matched is `verified`, and only then has a last verification."""
    assert copy_of(context).last_verified_at is None
    before = clock.now()

    assert run(verify, ALL).good
    assert copy_of(context).last_verified_at >= before
    assert copy_of(context).state == "verified"


def test_a_job_notes_the_end_of_the_log_outside_the_catalogue(run, context):
    """Rows that are cut off right after a verification show without a sweep."""
    directory = context.settings.run_dir
    directory.mkdir(exist_ok=True)
    run(verify, ALL)
    assert WrittenLog(directory, context.catalogue).get() == context.catalogue.verifications.head() is not None


def test_a_flipped_bit_is_corrupt_and_moves_only_the_attempt(run, stored, context):
    """Rot that keeps the size is found; it moves `last_attempt_at` and not `last_verified_at`."""
    run(verify, DR)
    verified = copy_of(context)
    rot(stored("dr"))

    result = run(verify, DR).copies[0]

    assert (result.verdict, copy_of(context).state) == ("corrupt", "corrupt")
    assert result.sha256 != verified.evidence
    assert copy_of(context).last_verified_at == verified.last_verified_at
    assert copy_of(context).last_attempt_at > verified.last_attempt_at


def test_zeros_of_the_right_size_are_corrupt(run, stored):
    """A hole of the right length, as a crash leaves it, is not taken for the object."""
    stored("dr").write_bytes(bytes(len(b"release one")))
    assert verdict(run) == "corrupt"


def test_a_copy_that_has_gone_is_missing(run, stored, context):
    """A copy that its store no longer has is `missing`, not deleted."""
    stored("dr").unlink()
    assert verdict(run) == "missing"
    assert copy_of(context).state == "missing"


def test_a_copy_that_was_cut_off_is_a_size_mismatch(run, stored):
    """A copy of another size is told from one of other bytes."""
    stored("dr").write_bytes(b"release")
    assert verdict(run) == "size_mismatch"


def test_a_copy_that_cannot_be_read_says_nothing_about_its_bytes(run, settings, context):
    """With its store away the copy is `unreadable`; what was known of it stays, and the other copy is read."""
    root = settings.stores["dr"].root
    root.rename(root.with_name("unplugged"))

    result = run(verify, ALL)

    assert {copy.store: copy.verdict for copy in result.copies} == {"dr": "unreadable", "primary": "verified"}
    assert copy_of(context).state == "stored"
    assert copy_of(context).last_attempt_at is not None
    assert copy_of(context).last_verified_at is None
    assert not result.good


def test_a_single_bad_read_is_only_a_suspicion(run, context, monkeypatch):
    """When the second, independent read matches, the copy is verified: the first read met a transient error."""
    store = context.stores["dr"]
    reads = []
    really = store._driver.open

    def first_read_is_damaged(*args, **kwargs):
        reader = really(*args, **kwargs)
        reads.append(reader)
        if len(reads) == 1:
            read = reader.read
            monkeypatch.setattr(reader, "read", lambda size: read(size)[::-1])
        return reader

    monkeypatch.setattr(store._driver, "open", first_read_is_damaged)
    assert verdict(run) == "verified"
    assert len(reads) == 2


def test_every_verdict_is_in_the_log_and_the_log_holds_together(run, stored, context):
    """Each look leaves a row; the rows are chained, so that a changed or missing one shows."""
    run(verify, ALL)
    rot(stored("dr"))
    run(verify, ALL)

    rows = context.catalogue.verifications.of("releases", "app.tgz")
    assert [row["verdict"] for row in rows] == ["verified", "corrupt", "verified", "verified"]
    assert context.catalogue.verifications.first_broken() is None


def test_a_store_without_a_copy_is_not_called_missing(run):
    """Asking for a copy that there was never meant to be fails, naming where there are copies."""
    with pytest.raises(NotFound, match="it has one in: dr, primary"):
        run(verify, VerifyRequest(bucket="releases", key="app.tgz", stores=("cold",)))


def test_a_copy_that_was_replaced_is_not_called_corrupt(run, source):
    """A job that was sent for the old version finds the new one in its place and says nothing of it."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"release two")))
    old = VerifyRequest(bucket="releases", key="app.tgz", stores=("dr",), version=1)
    assert run(verify, old).copies == ()


@pytest.mark.parametrize(
    ("state", "told"), [("running", []), ("retrying", []), ("dead", ["corrupt"]), ("cancelled", ["corrupt"])]
)
def test_what_an_upload_has_written_over_is_corrupt_once_the_upload_has_ended(run, context, stored, state, told):
    """While an upload may still record its bytes, they are no damage; afterwards the current version is gone."""
    artifacts, now = context.catalogue.artifacts, clock.now()
    context.catalogue.ledger.acquire(
        "writer", "upload", {}, owner="w", writes_to=None, parent=None, now=now, lease=context.settings.jobs.lease
    )
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == "writer").values(state=state))
    _, digest = context.stores["dr"].write_object("releases", "app.tgz", io.BytesIO(b"release two"))
    artifacts.record("releases", "app.tgz", digest, {}, now, stores=["primary", "dr"], job="writer")
    assert [copy.verdict for copy in run(verify, DR).copies] == told
    assert [each.kind for each in context.catalogue.findings.page()] == told, "no suspicion stays after a second read"
    if told:
        repair = ReplicateRequest(bucket="releases", key="app.tgz", to=("dr",))
        assert run(replicate, repair).copies[0].quarantined is not None, "the bytes of the upload are kept"
        assert stored("dr").read_bytes() == b"release one"


@pytest.mark.parametrize("stores", [None, ("primary", "dr")])
def test_a_copy_in_a_store_that_left_the_configuration_is_unreadable(run, context, stores):
    """The verdict on that copy says what to do, is recorded, and keeps no other copy from its verdict."""
    configs = {name: config for name, config in context.settings.stores.items() if name != "dr"}
    left = dataclasses.replace(context, stores=Stores(configs))
    wish = VerifyRequest(bucket="releases", key="app.tgz", stores=stores)
    result = run(verify, wish, context=left)
    verdicts = {copy.store: copy for copy in result.copies}
    assert {store: copy.verdict for store, copy in verdicts.items()} == {"primary": "verified", "dr": "unreadable"}
    assert "'dr' is not configured: `zot-artifacts status` says whether it was renamed" in verdicts["dr"].detail
    assert copy_of(context).last_verdict == "unreadable"
    assert copy_of(context, "primary").state == "verified"
