"""One bucket of a real server that is configured by two addresses is one store."""

import secrets
from contextlib import suppress
from pathlib import Path

import boto3
import pytest

from tests.conformance.bodies import source
from tests.conformance.targets import make_s3_bucket
from tests.known_id_files import KnownIdFiles
from tests.servers import Ministack
from worker.catalogue import Catalogue
from worker.settings import Settings
from worker.storage import S3Config, Stores
from worker.storage.errors import SameStore


@pytest.fixture
def configs(ministack: Ministack) -> dict[str, S3Config]:
    """Return two stores of one bucket, each with another address of the server."""
    bucket = f"twice-{secrets.token_hex(4)}"
    keys = {"access_key_id": ministack.access_key_id, "secret_access_key": ministack.secret_access_key}
    client = boto3.client(
        "s3", endpoint_url=ministack.endpoint, region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test",
    )  # fmt: skip
    client.create_bucket(Bucket=bucket)
    return {
        name: S3Config.model_validate({"bucket": bucket, "endpoint": f"http://{host}:{ministack.port}", **keys})
        for name, host in (("numbers", "127.0.0.1"), ("letters", "localhost"))
    }


def test_two_addresses_of_one_server_are_one_store(configs: dict[str, S3Config], tmp_path: Path) -> None:
    """The settings cannot tell, and the marker does: both are refused for writes and deletes, each with both names."""
    settings = Settings(home=tmp_path / "home", stores=configs)  # the settings do not refuse them
    settings.prepare()
    catalogue = Catalogue(settings.catalogue_url)
    stores = Stores(settings.stores, known_ids=catalogue.store_identities(settings.stores))
    stores["numbers"].write_object("releases", "a", source(b"bytes"))
    with pytest.raises(SameStore, match="letters and numbers are one physical place"):
        stores["letters"].write_object("releases", "b", source(b"bytes"))
    with pytest.raises(SameStore, match="letters and numbers are one physical place"):
        stores["letters"].delete_object("releases", "a")
    again = Stores(settings.stores, known_ids=catalogue.store_identities(settings.stores))
    with pytest.raises(SameStore, match="numbers and letters are one physical place"):
        again["numbers"].delete_object("releases", "a")
    catalogue.close()


@pytest.mark.parametrize("layouts", [("native", "native"), ("native", "prefixed"), ("prefixed", "native")])
def test_real_buckets_of_two_addresses_are_found_through_each_other(
    ministack: Ministack, tmp_path: Path, layouts: tuple[str, str]
) -> None:
    """Where buckets are real ones, each store has its marker elsewhere, and both are found all the same."""
    run = secrets.token_hex(4)
    keys = {"access_key_id": ministack.access_key_id, "secret_access_key": ministack.secret_access_key}
    configs, buckets = {}, [f"team-{run}-a", f"team-{run}-b"]
    for name, host, layout, bucket in zip(("one", "two"), ("127.0.0.1", "localhost"), layouts, buckets, strict=True):
        make_s3_bucket(ministack, bucket)
        own = {"reserved_bucket": bucket, "buckets": [f"team-{run}-*"]} if layout == "native" else {"bucket": bucket}
        address = {"layout": layout, "endpoint": f"http://{host}:{ministack.port}"}
        configs[name] = S3Config.model_validate({**own, **address, **keys})
    stores = Stores(configs, known_ids=KnownIdFiles(tmp_path, configs))
    with suppress(SameStore):  # the first of both may be found only once the other one has its marker
        stores["one"].check_identity("write")
    stores.close()
    for name in ("two", "one"):
        stores = Stores(configs, known_ids=KnownIdFiles(tmp_path, configs))
        with pytest.raises(SameStore, match="one and two|two and one"):
            stores[name].write_object("releases", "b", source(b"bytes"))
        stores.close()
