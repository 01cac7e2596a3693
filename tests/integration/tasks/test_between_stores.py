"""Replication between any two kinds of store, in either direction, with the digest proved at the destination."""

import hashlib
import itertools

import boto3
import pytest
from azure.storage.blob import BlobServiceClient

from tasks.delete import delete
from tasks.replicate import replicate
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance import targets
from tests.conformance.bodies import some_bytes
from worker.context import Context
from worker.settings import ReplicationSettings, Settings, SourceSettings
from worker.storage import FilesystemConfig
from zot_artifact_client.contract import DeleteRequest, ReplicateRequest, UploadRequest, VerifyRequest

KINDS = ("filesystem", "s3", "gcs", "azure")
SIZES = {"small": 1000, "in parts": 2 * targets.PART + 7}


@pytest.fixture(scope="module")
def four(ministack, strict_gcs, azurite, tmp_path_factory):
    """One store of each kind, with a real bucket or container of its own."""
    root = tmp_path_factory.mktemp("filesystem")
    s3, gcs = targets.s3_config(ministack), targets.gcs_config(strict_gcs)
    azure = targets.azure_config(azurite, api_version="2025-11-05")
    client = boto3.client(
        "s3",
        endpoint_url=ministack.endpoint,
        region_name="us-east-1",
        aws_access_key_id=ministack.access_key_id,
        aws_secret_access_key=ministack.secret_access_key,
    )
    client.create_bucket(Bucket=s3.bucket)
    client.close()
    targets.make_gcs_bucket(strict_gcs, gcs.bucket)
    with BlobServiceClient.from_connection_string(azurite.connection_string, api_version="2025-11-05") as service:
        service.create_container(azure.container)
    return {"filesystem": FilesystemConfig(root=root), "s3": s3, "gcs": gcs, "azure": azure}


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
