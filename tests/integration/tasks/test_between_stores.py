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
