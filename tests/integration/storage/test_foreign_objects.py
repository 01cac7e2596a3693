"""Objects that other programs wrote into a cloud, with its own SDK, under names that we would not choose."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient, ContentSettings

from tests.conformance.bodies import digest_of, source
from tests.conformance.targets import (
    AZURITE_API,
    azure_config,
    gcs_config,
    make_gcs_bucket,
    make_s3_bucket,
    native,
    s3_client,
    s3_config,
)
from tests.conformance.test_existing_keys import EXISTING
from worker.storage import Match, Store, Verdict
from worker.storage.configured_stores import open_driver
from worker.storage.errors import InvalidKey, NotFound

KEYS = [*EXISTING, "line\nfeed", "a%2Fb", "%00", "a b+c?d#e", "é/e\u0301", "\U0001f680/", "//", "~"]
METADATA = {"owner": "another"}
TYPE = "text/x-theirs"
Put = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Theirs:
    """An empty bucket of a store, and what writes to it beside the driver's back."""

    store: Store
    bucket: str
    put: Put


@pytest.fixture(params=["prefixed", "native"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["s3", "gcs", "azure"])
def theirs(request: pytest.FixtureRequest, layout: str, tmp_path: Path) -> Iterator[Theirs]:
    """Return a bucket in each cloud and layout."""
    bucket = f"b-{uuid.uuid4().hex[:8]}"
    changes = {} if layout == "prefixed" else native()
    make = {"s3": _s3, "gcs": _gcs, "azure": _azure}[request.param]
    with ExitStack() as stack:
        config, put = make(request, bucket, changes, stack)
        store = Store(open_driver(request.param, config), spool_dir=tmp_path)
        stack.callback(store.close)
        yield Theirs(store, bucket, put)


def _named(config: Any, bucket: str, key: str) -> tuple[str, str]:
    """Return the names of the real bucket and object."""
    real = getattr(config, "container", None) or getattr(config, "bucket", None)
    return (real, f"{bucket}/{key}") if real else (bucket, key)


def _s3(request: pytest.FixtureRequest, bucket: str, changes: dict[str, Any], _stack: ExitStack) -> tuple[Any, Put]:
    server = request.getfixturevalue("ministack")
    config = s3_config(server, **changes)
    client = s3_client(server)
    for real in {str(config.bucket or config.reserved_bucket), *([bucket] if changes else [])}:
        make_s3_bucket(server, real)

    def put(key: str, data: bytes) -> None:
        real, name = _named(config, bucket, key)
        client.put_object(Bucket=real, Key=name, Body=data, Metadata=METADATA, ContentType=TYPE)

    return config, put


def _gcs(request: pytest.FixtureRequest, bucket: str, changes: dict[str, Any], stack: ExitStack) -> tuple[Any, Put]:
    server = request.getfixturevalue("strict_gcs")
    config = gcs_config(server, **changes)
    driver: Any = open_driver("theirs", config)
    stack.callback(driver.close)
    make_gcs_bucket(server, str(config.bucket or config.reserved_bucket))
    if changes:
        driver.create_bucket(bucket)

    def put(key: str, data: bytes) -> None:
        real, name = _named(config, bucket, key)
        blob = driver._connected().client.bucket(real).blob(name)
        blob.metadata = METADATA
        blob.upload_from_string(data, content_type=TYPE)

    return config, put


def _azure(request: pytest.FixtureRequest, bucket: str, changes: dict[str, Any], stack: ExitStack) -> tuple[Any, Put]:
    server = request.getfixturevalue("azurite")
    config = azure_config(server, api_version=AZURITE_API, **changes)
    service = stack.enter_context(
        BlobServiceClient.from_connection_string(server.connection_string, api_version=AZURITE_API)
    )
    service.create_container(str(config.container or config.reserved_bucket))
    if changes:
        service.create_container(bucket)

    def put(key: str, data: bytes) -> None:
        settings = ContentSettings(content_type=TYPE)
        service.get_blob_client(*_named(config, bucket, key)).upload_blob(
            data, metadata=METADATA, content_settings=settings
        )

    return config, put


@pytest.mark.parametrize("layout", ["native"], indirect=True)
def test_the_longest_key_of_a_real_bucket_is_usable(theirs: Theirs) -> None:
    """A key of 1,024 bytes is no longer than the clouds allow: the bucket does not count where it is a real one."""
    key = "/".join(["k" * 127] * 8) + "k"
    theirs.put(key, b"bytes")
    assert [row.key for row in theirs.store.list_objects(theirs.bucket)] == [key]
    assert theirs.store.verify_object(theirs.bucket, key, digest_of(b"bytes")).verdict is Verdict.VERIFIED
    aside = theirs.store.quarantine_object(theirs.bucket, key, "job").partition("/")
    assert theirs.store.verify_object(aside[0], aside[2], digest_of(b"bytes")).verdict is Verdict.VERIFIED
    assert theirs.store.delete_object(theirs.bucket, key)


def test_what_another_program_wrote_is_usable_under_its_name(theirs: Theirs) -> None:
    """It is listed, read, verified, kept in quarantine, replaced and deleted, with what is beside its bytes."""
    impossible = theirs.store.capabilities.impossible_keys
    for key in KEYS:
        if not impossible or not impossible.search(key):
            _assert_usable(theirs, key)


def test_what_a_store_cannot_name_is_refused(theirs: Theirs) -> None:
    """A key that the cloud takes from its SDK under another name is refused for writing, and is not found."""
    store, bucket = theirs.store, theirs.bucket
    impossible = store.capabilities.impossible_keys
    for key in KEYS if impossible else ():
        if impossible.search(key):
            theirs.put(key, b"bytes")
            with pytest.raises(InvalidKey, match=f"{store.name}: "):
                store.write_object(bucket, key, source(b"new"), existing_key=True)
            with pytest.raises(NotFound, match=f"{store.name}: "):
                store.stat_object(bucket, key)


def _assert_usable(theirs: Theirs, key: str) -> None:
    store, bucket = theirs.store, theirs.bucket
    theirs.put(key, b"bytes")
    [row] = store.list_objects(bucket)
    assert (row.key, row.size) == (key, 5)
    stat = store.stat_object(bucket, key)
    assert (stat.version, stat.metadata, stat.properties.content_type) == (row.version, METADATA, TYPE)
    with store.read_object(bucket, key) as reader:
        assert b"".join(reader) == b"bytes"
    assert store.verify_object(bucket, key).verdict is Verdict.UNVERIFIABLE
    assert store.verify_object(bucket, key, digest_of(b"bytes")).verdict is Verdict.VERIFIED
    aside = store.quarantine_object(bucket, key, "job").partition("/")
    assert store.verify_object(aside[0], aside[2], digest_of(b"bytes")).verdict is Verdict.VERIFIED
    store.write_object(bucket, key, source(b"new"), condition=Match(stat.version), existing_key=True)
    assert store.verify_object(bucket, key).sha256 == digest_of(b"new").sha256
    assert store.delete_object(bucket, key)
    assert list(store.list_objects(bucket)) == []
