"""An object of another program is recorded after one full read, with the digest of that read."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.adopt import adopt
from tasks.delete import delete
from tasks.replicate import replicate
from tasks.upload import upload
from tasks.verify import verify
from worker.artifacts.adoption import OtherContent, Unverifiable
from worker.context import Context
from worker.jobs.running_job import Cancelled
from worker.limits.limited_store import LimitedStore
from worker.storage.configured_stores import UnknownStore
from worker.storage.driver import ObjectStat
from worker.storage.errors import Conflict, DigestMismatch, InvalidKey, NotFound, SameStore
from worker.storage.integrity.manifest import CHUNK_SIZE
from zot_artifact_client.contract import (
    AdoptRequest,
    DeleteRequest,
    ReplicateRequest,
    UploadRequest,
    VerifyRequest,
)

BODY = b"written by another program"
SHA256 = hashlib.sha256(BODY).hexdigest()
PLAIN = AdoptRequest(bucket="releases", key="app.tgz", store="dr")
FIRST_READ = PLAIN.model_copy(update={"first_read": True})


@pytest.fixture
def lay(stored: Callable[..., Path]) -> Callable[..., Path]:
    """Lay a file into a store as the original does, with what its sidecar says."""

    def lay(body: bytes = BODY, sidecar: str | None = SHA256, store: str = "dr") -> Path:
        path = stored(store)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        if sidecar is not None:
            path.with_name(path.name + ".sha256").write_text(sidecar)
        return path

    return lay


def copy_of(context: Context, store: str = "dr"):
    return context.catalogue.artifacts.copies(context.catalogue.artifacts.current("releases", "app.tgz"))[store]


def nothing_known(context: Context) -> bool:
    return context.catalogue.artifacts.version("releases", "app.tgz", 1) is None


def test_bytes_that_match_the_kept_digest_are_adopted(run, context, lay):
    """The read that matched is the record, with its chunks, counts as a verification, and the evidence says why."""
    body = b"x" * (CHUNK_SIZE + 1)
    lay(body, hashlib.sha256(body).hexdigest())

    result = run(adopt, PLAIN)

    assert (result.version, result.size, result.evidence) == (1, len(body), "sha256 kept by the store")
    assert result.sha256 == hashlib.sha256(body).hexdigest()
    copy = copy_of(context)
    assert (copy.state, copy.evidence) == ("verified", {"adopted": "sha256 kept by the store"})
    assert copy.last_verified_at is not None
    assert copy.read_at >= copy.last_verified_at
    manifest = context.catalogue.artifacts.manifest(context.catalogue.artifacts.current("releases", "app.tgz"))
    assert [chunk.size for chunk in manifest] == [CHUNK_SIZE, 1]
    assert manifest.chunk(1).sha256 == hashlib.sha256(b"x").hexdigest()
    assert [row["verdict"] for row in context.catalogue.verifications.of("releases", "app.tgz")] == ["verified"]


def test_bytes_that_do_not_match_the_kept_digest_are_refused(run, context, lay):
    """Rot is not adopted: the error names what was read, what is kept and the way out, on a first read, too."""
    lay(b"rotten bytes, same key...")
    for request in (PLAIN, FIRST_READ):
        with pytest.raises(DigestMismatch, match=SHA256) as refused:
            run(adopt, request)
    assert hashlib.sha256(b"rotten bytes, same key...").hexdigest() in refused.value.message
    assert "if they are right, `upload` a copy of them under this key, or remove the digest" in refused.value.message
    assert nothing_known(context)


def test_an_object_that_is_replaced_before_its_read_is_not_adopted(run, context, lay, monkeypatch):
    """The version tag on record is that of the bytes that were read: another program may write between the two."""
    lay()
    stat_object = LimitedStore.stat_object

    def stat_and_replace(store: LimitedStore, bucket: str, key: str, **options: bool) -> ObjectStat:
        found = stat_object(store, bucket, key, **options)
        lay(BODY.swapcase(), hashlib.sha256(BODY.swapcase()).hexdigest())
        return found

    with monkeypatch.context() as race:
        race.setattr(LimitedStore, "stat_object", stat_and_replace)
        with pytest.raises(Conflict, match="dr: releases/app.tgz was written by another program just now"):
            run(adopt, PLAIN)
    assert nothing_known(context)
    assert run(adopt, PLAIN).sha256 == hashlib.sha256(BODY.swapcase()).hexdigest()


def test_without_a_digest_nothing_is_adopted_unasked(run, context, lay):
    """An object that nothing vouches for is unverifiable, and the error says what asking for it would mean."""
    lay(sidecar=None)
    with pytest.raises(Unverifiable, match="unverifiable.*first_read"):
        run(adopt, PLAIN)
    assert nothing_known(context)


def test_a_first_read_becomes_the_record_and_no_verification(run, context, lay):
    """On request the first read is the record from then on, which leaves it `stored`, and the evidence says so."""
    path = lay(sidecar=None)

    assert run(adopt, FIRST_READ).evidence == "first read"

    copy = copy_of(context)
    assert (copy.state, copy.last_verified_at, copy.evidence) == ("stored", None, {"adopted": "first read"})
    assert context.catalogue.verifications.of("releases", "app.tgz") == []
    assert run(verify, VerifyRequest(bucket="releases", key="app.tgz")).good
    path.write_bytes(BODY.swapcase())
    assert run(verify, VerifyRequest(bucket="releases", key="app.tgz")).copies[0].verdict == "corrupt"


def test_a_first_read_is_not_needed_where_a_digest_is_kept(run, lay):
    """Asking for the first read does not weaken what the store's digest proves."""
    lay()
    assert run(adopt, FIRST_READ).evidence == "sha256 kept by the store"


@pytest.mark.parametrize(
    ("sidecar", "evidence"), [(SHA256, "sha256 kept by the store"), (None, "sha256 in the catalogue")]
)
def test_a_known_artifact_gets_a_further_copy(run, context, lay, source, sidecar, evidence):
    """The same bytes in another store are a copy of the same version, by the catalogue's digest if by no other."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(BODY), stores=("primary",)))
    lay(sidecar=sidecar)

    result = run(adopt, PLAIN)

    assert (result.version, result.evidence) == (1, evidence)
    assert copy_of(context).state == "verified"
    assert copy_of(context, "primary").state == "stored"


@pytest.mark.parametrize("request_", [PLAIN, FIRST_READ])
@pytest.mark.parametrize("kept", [True, False])
def test_other_bytes_than_the_known_ones_are_a_conflict(run, context, lay, source, request_, kept):
    """What has another digest than the artifact never becomes a version in silence: the error names both."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"ours"), stores=("primary",)))
    lay(sidecar=SHA256 if kept else None)

    with pytest.raises(OtherContent, match=f"{SHA256}.*{hashlib.sha256(b'ours').hexdigest()}"):
        run(adopt, request_)

    assert context.catalogue.artifacts.current("releases", "app.tgz").version == 1
    assert context.catalogue.artifacts.version("releases", "app.tgz", 2) is None
    assert "dr" not in context.catalogue.artifacts.copies(context.catalogue.artifacts.current("releases", "app.tgz"))


def test_adopting_again_changes_nothing(run, context, lay):
    """A copy that is known and untouched is not read again, and the answer says what its evidence was."""
    lay(sidecar=None)
    run(adopt, FIRST_READ)
    before = copy_of(context)

    again = run(adopt, PLAIN)

    assert (again.unchanged, again.evidence, again.version) == (True, "first read", 1)
    assert copy_of(context) == before


def test_a_copy_that_was_touched_is_read_again(run, lay):
    """A known copy that was overwritten is compared with the record like any other object."""
    path = lay()
    run(adopt, PLAIN)
    path.write_bytes(b"another writer's bytes..")
    path.with_name("app.tgz.sha256").write_text(hashlib.sha256(b"another writer's bytes..").hexdigest())
    with pytest.raises(OtherContent):
        run(adopt, PLAIN)


def test_an_adopted_copy_is_a_copy_like_any_other(run, context, lay, stored):
    """It is a source of replication, and deleting it takes the object away."""
    lay()
    run(adopt, PLAIN)
    run(replicate, ReplicateRequest(bucket="releases", key="app.tgz", to=("cold",)))
    assert stored("cold").read_bytes() == BODY
    run(delete, DeleteRequest(bucket="releases", key="app.tgz", stores=("dr",)))
    assert not stored("dr").exists()


def test_what_was_deleted_can_be_adopted_again(run, context, lay):
    """After a delete the object is a new version, and the result says so: the old one stays deleted."""
    lay()
    assert run(adopt, PLAIN).after_delete is False
    run(delete, DeleteRequest(bucket="releases", key="app.tgz"))
    lay()
    again = run(adopt, PLAIN)
    assert (again.version, again.after_delete) == (2, True)
    assert run(adopt, PLAIN).after_delete is False, "it is known already"


def test_what_is_not_there_cannot_be_adopted(run, context, lay):
    """A missing object, an unknown store and an unsafe key are told apart, and nothing is recorded."""
    with pytest.raises(NotFound, match="releases/app.tgz"):
        run(adopt, PLAIN)
    with pytest.raises(UnknownStore, match="did you mean 'dr'"):
        run(adopt, PLAIN.model_copy(update={"store": "drr"}))
    with pytest.raises(InvalidKey):
        run(adopt, PLAIN.model_copy(update={"key": "../app.tgz"}))
    assert nothing_known(context)


def test_a_job_that_is_cancelled_adopts_nothing(run, context, lay, monkeypatch):
    """A cancellation while the object is read leaves nothing recorded."""
    from tests.integration.tasks.conftest import NullReporter

    monkeypatch.setattr("worker.jobs.running_job.REPORT_SECONDS", 0.0)
    lay()
    outside = NullReporter()
    outside.stop = True
    with pytest.raises(Cancelled):
        run(adopt, PLAIN, outside=outside)
    assert nothing_known(context)


def test_bytes_are_compared_with_the_digest_of_the_request(run, context, lay):
    """Such as one of a `SHA256SUMS` file: a match counts as verified, another digest records nothing, ever."""
    lay(sidecar=None)
    with pytest.raises(DigestMismatch, match="the request has"):
        run(adopt, PLAIN.model_copy(update={"sha256": "0" * 64, "first_read": True}))
    assert nothing_known(context)
    assert run(adopt, PLAIN.model_copy(update={"sha256": SHA256})).evidence == "sha256 of the request"
    assert copy_of(context).last_verified_at is not None
    with pytest.raises(DigestMismatch):
        run(adopt, PLAIN.model_copy(update={"sha256": "0" * 64}))


def test_what_is_there_in_two_stores_that_are_one_place_is_one_copy(run, context, source):
    """A store that shows the objects of another one has no copy of them, whichever job finds them there."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(BODY), stores=("primary",)))
    home = context.settings.home / "stores"
    (home / "dr").rmdir()
    (home / "dr").symlink_to(home / "primary")
    again = UploadRequest(bucket="releases", key="app.tgz", source=source(BODY), stores=("primary", "dr"))
    replication = ReplicateRequest(bucket="releases", key="app.tgz", to=("dr",))
    for work, request in ((adopt, PLAIN), (replicate, replication), (upload, again)):
        with pytest.raises(SameStore, match="stores dr and primary are one physical place"):
            run(work, request)
    assert not copy_of(context).state.present
    assert copy_of(context, "primary").state.good
