"""Quarantine and probes live where the settings say, and in no bucket that only our reserved name points to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import source
from tests.conformance.targets import NATIVE, make_s3_bucket, s3_client, s3_config
from tests.known_id_files import KnownIdFiles
from tests.servers import Ministack
from tests.servers.proxy import FaultyProxy
from worker.artifacts.catalogue_backup import back_up, backups
from worker.catalogue import Catalogue
from worker.settings.section_models import BackupSweepSettings
from worker.storage import S3Config, Store, StoreConfig, Stores
from worker.storage.configured_stores import open_driver
from worker.storage.errors import AccessDenied, PermanentError, StorageError, Unavailable
from worker.storage.keys import QUARANTINE_BUCKET
from worker.storage.probe import probe

BUCKET = "b-releases"


@pytest.fixture
def server(ministack: Ministack) -> Iterator[Ministack]:
    """Return a server that has the two buckets which the settings name, and is left without their objects."""
    for real in (BUCKET, "reserved"):
        make_s3_bucket(ministack, real)
    yield ministack
    client = s3_client(ministack)
    for real in (BUCKET, "reserved"):
        for row in client.list_objects_v2(Bucket=real).get("Contents", []):
            client.delete_object(Bucket=real, Key=row["Key"])
    client.delete_bucket(Bucket=BUCKET)


def opened(config: S3Config, tmp_path: Path) -> Store:
    return Store(open_driver("cloud", config), spool_dir=tmp_path)


def names(server: Ministack) -> set[str]:
    return {str(bucket["Name"]) for bucket in s3_client(server).list_buckets()["Buckets"]}


def test_quarantine_and_probe_use_the_named_bucket(server: Ministack, tmp_path: Path) -> None:
    """With `native` quarantine and probes are kept under a reserved prefix of `reserved_bucket`; no bucket is made."""
    before = names(server)
    store = opened(s3_config(server, **NATIVE), tmp_path)
    store.write_object(BUCKET, "app", source(b"bad bytes"))
    assert probe(store) is None
    aside = store.quarantine_object(BUCKET, "app", "job")
    assert aside == f"{QUARANTINE_BUCKET}/{BUCKET}/job/app"
    kept = s3_client(server).get_object(Bucket="reserved", Key=f".zot-reserved/{aside}")["Body"].read()
    assert kept == b"bad bytes"
    assert [row.key for row in store.list_objects("reserved")] == []
    assert names(server) == before
    store.close()


def test_backups_of_the_catalogue_use_the_named_bucket(server: Ministack, tmp_path: Path) -> None:
    """A backup is written below the reserved prefix of `reserved_bucket`, and is restored from there."""
    before = names(server)
    store = opened(s3_config(server, **NATIVE), tmp_path)
    catalogue = Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}")
    done = back_up(catalogue, [store], BackupSweepSettings(stores=("cloud",)), tmp_path, job="job-1")
    assert (done.faults, list(done.rehearsed)) == ({}, ["cloud"])
    (newest,) = backups(store)
    listed = s3_client(server).list_objects_v2(Bucket="reserved", Prefix=".zot-reserved/zot-catalogue/")
    assert [row["Key"] for row in listed["Contents"]] == [f".zot-reserved/zot-catalogue/{newest.key}"]
    assert names(server) == before
    catalogue.close()
    store.close()


def test_without_a_reserved_bucket_there_is_no_backup(server: Ministack, tmp_path: Path) -> None:
    """A store without a bucket for the worker's own objects has a finding that names the setting."""
    store = opened(s3_config(server, **{**NATIVE, "reserved_bucket": None}), tmp_path)
    catalogue = Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}")
    done = back_up(catalogue, [store], BackupSweepSettings(stores=("cloud",)), tmp_path, job="job-1")
    assert "stores.cloud.reserved_bucket" in done.faults["cloud"]
    assert [each.kind for each in catalogue.findings.page()] == ["backup"]
    catalogue.close()
    store.close()


def test_without_the_setting_nothing_is_written(server: Ministack, tmp_path: Path) -> None:
    """Without `reserved_bucket` quarantine is refused with the setting's name, and the probe writes nothing."""
    before = names(server)
    store = opened(s3_config(server, **{**NATIVE, "reserved_bucket": None}), tmp_path)
    store.write_object(BUCKET, "app", source(b"bad bytes"))
    with pytest.raises(PermanentError, match=r"stores\.cloud\.reserved_bucket"):
        store.quarantine_object(BUCKET, "app", "job")
    assert probe(store) is None
    assert any("reserved_bucket" in line for line in store.advice())
    assert names(server) == before
    store.close()


def test_without_the_named_bucket_no_object_counts_as_missing(server: Ministack, tmp_path: Path) -> None:
    """Where `reserved_bucket` does not exist, nothing is written or deleted, and the error names the setting.

    A NotFound would say that the object is not there. It can be adopted: no marker is needed for that.
    """
    configs: dict[str, StoreConfig] = {"cloud": s3_config(server, **{**NATIVE, "reserved_bucket": "misspelt"})}
    store = Stores(configs, known_ids=KnownIdFiles(tmp_path, configs))["cloud"]
    s3_client(server).put_object(Bucket=BUCKET, Key="app", Body=b"bytes")
    attempts: list[Callable[[], object]] = [
        lambda: store.delete_object(BUCKET, "app"),
        lambda: store.write_object(BUCKET, "other", source(b"bytes")),
    ]
    for attempt in attempts:
        with pytest.raises(Unavailable, match=r"stores\.cloud\.reserved_bucket does not exist; create it"):
            attempt()
    assert store.stat_object(BUCKET, "app", as_copy=True).size == len(b"bytes")
    store.close()


def test_only_named_buckets_are_cleaned(server: Ministack, tmp_path: Path) -> None:
    """With `native`, stale uploads are looked for in no bucket that the settings do not name."""
    make_s3_bucket(server, "another-program")
    client = s3_client(server)
    upload = client.create_multipart_upload(Bucket="another-program", Key="theirs")["UploadId"]
    store = opened(s3_config(server, **NATIVE), tmp_path)
    assert list(store.iter_stale_uploads()) == []
    client.abort_multipart_upload(Bucket="another-program", Key="theirs", UploadId=upload)
    client.delete_bucket(Bucket="another-program")
    store.close()


def test_settings_of_native_only(ministack: Ministack) -> None:
    """`reserved_bucket` and `buckets` mean nothing with `prefixed`, and are refused there."""
    with pytest.raises(ValueError, match="are for the layout 'native'"):
        s3_config(ministack, reserved_bucket="reserved")


def test_owner_is_named_in_each_request(server: Ministack, tmp_path: Path) -> None:
    """`bucket_owner` goes with each request, so that the store refuses a bucket of another account."""
    with FaultyProxy(server.port, lambda _: None) as proxy:
        config = s3_config(server, **NATIVE, bucket_owner="123456789012").model_copy(
            update={"endpoint": proxy.endpoint}
        )
        store = opened(config, tmp_path)
        asks: list[Any] = [
            lambda: store.write_object(BUCKET, "app", source(b"x")),
            lambda: store.stat_object(BUCKET, "app"),
            lambda: list(store.list_objects(BUCKET)),
            lambda: list(store.iter_stale_uploads()),
            lambda: store.delete_object(BUCKET, "app"),
        ]
        for ask in asks:
            try:
                ask()
            except StorageError as error:
                assert isinstance(error, AccessDenied)  # noqa: PT017  a server that checks it refuses
        store.close()
        owners = {
            request.headers.get("x-amz-expected-bucket-owner")
            for request in proxy.requests
            if request.path.partition("?")[0] != "/"
        }
    assert owners == {"123456789012"}
