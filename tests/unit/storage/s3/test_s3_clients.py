"""The SDK's clients of S3 stores."""

import botocore.loaders

from worker.storage import S3Config
from worker.storage.s3.providers import PROFILES, make_client


def test_clients_share_the_description_of_s3() -> None:
    """A worker with many stores reads the SDK's description of S3 once, and its stores have clients of their own."""
    configs = [S3Config(bucket="b", endpoint=f"http://127.0.0.1:{port}", region="here") for port in (1, 2)]
    one, other = (make_client(f"store-{n}", config) for n, config in enumerate(configs))
    assert one.meta.service_model.metadata is other.meta.service_model.metadata
    assert [client.meta.endpoint_url[-1] for client in (one, other)] == ["1", "2"]
    for client in (one, other):
        client.close()


def test_the_storage_classes_of_amazon_are_those_that_the_sdk_knows():
    """An upload that names another one is refused before its first effect."""
    known = botocore.loaders.Loader().load_service_model("s3", "service-2")["shapes"]["StorageClass"]["enum"]
    assert set(PROFILES["aws"].storage_classes.pattern.split("|")) == set(known)
