"""Replication between any two kinds of store, in either direction, with the digest proved at the destination."""

import hashlib
import itertools

import pytest

from tasks.delete import delete
from tasks.replicate import replicate
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance import targets
from tests.conformance.bodies import some_bytes
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import ReplicationSettings, SourceSettings
from worker.storage.errors import Unavailable
from worker.storage.filesystem.reader import FilesystemReader
from worker.storage.s3.driver import S3Driver
from zot_artifact_client.contract import DeleteRequest, ReplicateRequest, UploadRequest, VerifyRequest

KINDS = ("filesystem", "s3", "gcs", "azure")
SIZES = {"small": 1000, "in parts": 2 * targets.PART + 7}


@pytest.fixture(scope="module")
def four(ministack, strict_gcs, azurite, tmp_path_factory):
    """One store of each kind, with a real bucket or container of its own."""
    return targets.one_of_each(ministack, strict_gcs, azurite, tmp_path_factory.mktemp("filesystem"))


@pytest.fixture
def settings(tmp_path, source_root, four) -> Settings:
    return Settings(
        home=tmp_path / "home",
        stores=four,
        sources=SourceSettings(roots=(source_root,)),
        replication=ReplicationSettings(proof="reread"),
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("origin", "target"), list(itertools.permutations(KINDS, 2)))
def test_a_copy_goes_from_any_store_to_any_other(run, source, context: Context, origin, target, size):
    """The copy is read back and verified, its digest is the source's, and both can be deleted."""
    content = some_bytes(SIZES[size])
    key = f"{origin}-{target}/{size}.tgz"
    place = {"bucket": "releases", "key": key}
    run(upload, UploadRequest(**place, source=source(content), stores=(origin,)))

    copied = run(replicate, ReplicateRequest(**place, to=(target,)))

    assert copied.sha256 == hashlib.sha256(content).hexdigest()
    assert [(copy.store, copy.source) for copy in copied.copies] == [(target, origin)]
    assert run(verify, VerifyRequest(**place)).good
    with context.stores[target].read_object("releases", key) as reader:
        assert (b"".join(reader), reader.verified) == (content, True)
    assert {copy.store for copy in run(delete, DeleteRequest(**place)).copies} == {origin, target}
    assert not context.stores[target].object_exists("releases", key)


def test_parts_that_were_confirmed_stay_where_the_source_fails_for_a_moment(run, source, context, monkeypatch):
    """The next attempt continues the same multipart upload: a source that was away for a moment costs no part."""
    place, content = {"bucket": "releases", "key": "away.tgz"}, some_bytes(4 * targets.PART)
    run(upload, UploadRequest(**place, source=source(content), stores=("filesystem",)))
    artifact, transfers = context.catalogue.artifact("releases", "away.tgz"), context.catalogue.transfers

    begin_read, left = FilesystemReader.read, [3 * targets.PART]

    def read(reader, size):
        if left[0] <= 0:
            raise Unavailable("filesystem: away")
        data = begin_read(reader, size)
        left[0] -= len(data)
        return data

    with monkeypatch.context() as away:
        away.setattr(FilesystemReader, "read", read)
        with pytest.raises(Unavailable, match="filesystem: away"):
            run(replicate, ReplicateRequest(**place, to=("s3",)))
    begun = transfers.find(artifact, "s3")
    assert begun
    assert begun.sent
    with monkeypatch.context() as resumed:
        resumed.delattr(S3Driver, "begin_upload")
        run(replicate, ReplicateRequest(**place, to=("s3",)))
    assert run(verify, VerifyRequest(**place)).good
