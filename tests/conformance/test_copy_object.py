"""A provider copies between two of its stores: exactly the requested version, with our metadata, or nothing."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import digest_of, sizes, some_bytes, source
from tests.conformance.conftest import BucketUnderTest
from tests.conformance.targets import Target
from tests.conformance.test_properties import PROPERTIES
from tests.memory_driver import MemoryDriver
from worker.storage import AzureConfig, Digest, FilesystemConfig, GcsConfig, ObjectStat, S3Config, Store
from worker.storage.configured_stores import open_driver
from worker.storage.driver import ObjectProperties
from worker.storage.errors import AlreadyExists, InvalidKey, NotFound, PreconditionFailed, SizeMismatch, StorageError
from worker.storage.s3.driver import S3Driver

NEW = b"other bytes, of another length"
AWKWARD = ("a b+c%2F?d#e", "quote'\"&=;~", "folder/é/文.tgz", "e\u0301/\U0001f680", "UPPER.SHA256", "x" * 200)


@pytest.fixture(scope="module")
def twin(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return a second store of the same provider, with a real bucket of its own."""
    twin = twin_of(target.store, tmp_path_factory.mktemp("twin"))
    yield twin
    twin.close()


@pytest.fixture
def pair(bucket: BucketUnderTest, twin: Store) -> Iterator["Pair"]:
    """Return a bucket in both stores, for a provider that copies; afterwards nothing is left of the second."""
    yield Pair(bucket, twin)
    for row in list(twin.list_objects(bucket.name)):
        twin.delete_object(bucket.name, row.key)
    assert list(twin.iter_stale_uploads()) == []


class Pair:
    """What is copied from, and what to, under the same bucket and key."""

    def __init__(self, bucket: BucketUnderTest, twin: Store) -> None:
        self.bucket = bucket
        self.twin = twin

    def copy(
        self,
        key: str,
        expected: Digest,
        *,
        between: Callable[[], object] = lambda: None,
        properties: ObjectProperties | None = None,
        **metadata: str,
    ) -> ObjectStat:
        made = self.twin.copy_object(
            self.bucket.store,
            self.bucket.name,
            key,
            expected,
            metadata=metadata,
            properties=properties,
            between=between,
        )
        assert made is not None
        return made

    def read(self, key: str) -> bytes:
        with self.twin.read_object(self.bucket.name, key) as reader:
            return b"".join(reader)

    def stat(self, key: str) -> ObjectStat:
        return self.twin.stat_object(self.bucket.name, key)

    def assert_refused(self, key: str, expected: Digest, error: type[StorageError], **told: Any) -> None:
        """Expect an error, and nothing under the key."""
        with pytest.raises(error, match=key):
            self.copy(key, expected, **told)
        assert not self.twin.object_exists(self.bucket.name, key)


@pytest.mark.unless("copies")
def test_where_there_is_no_way_nothing_is_done(bucket: BucketUnderTest, twin: Store) -> None:
    """Stores without a realm are not asked to copy: the caller is told, and the destination stays empty."""
    bucket.write("app", b"hello")
    made = twin.copy_object(bucket.store, bucket.name, "app", digest_of(b"hello"))
    assert (made is None) == (twin.capabilities.realm is None)
    assert twin.object_exists(bucket.name, "app") == (made is not None)
    if made:
        with twin.read_object(bucket.name, "app") as reader:
            assert b"".join(reader) == b"hello"
        twin.delete_object(bucket.name, "app")


@sizes((0, 1), (1, 0), (2, 3))
def test_the_whole_object_is_copied(pair: Pair, size: int) -> None:
    """An object of any size is copied byte for byte, above the limit of one request too; the stat is the copy's."""
    data = some_bytes(size)
    pair.bucket.write("app", data)
    made = pair.copy("app", digest_of(data))
    assert pair.read("app") == data
    there = pair.stat("app")
    assert (made.size, made.version, made.sha256) == (size, there.version, digest_of(data).sha256)


@sizes((0, 10), (1, 1))
def test_nothing_is_inherited_beside_the_bytes(pair: Pair, size: int) -> None:
    """Digest, metadata and the writer's token are those of this copy, whatever the original has."""
    data = some_bytes(size)
    pair.bucket.store.write_object(pair.bucket.name, "app", source(data), metadata={"owner": "old", "stale": "yes"})
    pair.copy("app", Digest(size, "0" * 64), owner="Zoë  <z@example.com> ")
    stat = pair.stat("app")
    assert (stat.sha256, stat.metadata) == ("0" * 64, {"owner": "Zoë  <z@example.com> "})


@pytest.mark.parametrize("properties", [ObjectProperties(), PROPERTIES])
@sizes((0, 10), (1, 1))
def test_properties_are_those_that_were_asked_for(pair: Pair, size: int, properties: ObjectProperties) -> None:
    """Content-Type and the other headers are those of this copy, and none where none are given."""
    data = some_bytes(size)
    other = ObjectProperties(content_type="text/x-old", cache_control="no-store")
    pair.bucket.store.write_object(pair.bucket.name, "app", source(data), properties=other)
    made = pair.copy("app", digest_of(data), properties=properties)
    there = pair.stat("app")
    assert there.properties == properties
    assert (made.properties, made.version, made.sha256) == (properties, there.version, there.sha256)
    assert pair.read("app") == data


def test_an_empty_object_goes_another_way(pair: Pair) -> None:
    """What has no bytes has none to save: it is not copied by the provider."""
    pair.bucket.write("app", b"")
    assert pair.twin.copy_object(pair.bucket.store, pair.bucket.name, "app", digest_of(b"")) is None


@sizes((0, 10), (1, 1))
def test_what_is_there_stays(pair: Pair, size: int) -> None:
    """A copy is made only where no object is; bytes that are not verified replace no others."""
    pair.bucket.write("app", some_bytes(size))
    before, _ = pair.twin.write_object(pair.bucket.name, "app", source(NEW))
    with pytest.raises(AlreadyExists, match="app"):
        pair.copy("app", digest_of(some_bytes(size)))
    assert (pair.read("app"), pair.stat("app").version) == (NEW, before.version)


@sizes((0, 10), (1, 1))
def test_an_original_that_changes_after_the_look(pair: Pair, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An original that is overwritten between its inspection and the copy is an error and no copy."""
    data = some_bytes(size)
    pair.bucket.write("app", data)
    driver: Any = pair.twin._driver
    copy_from = driver.copy_from

    def late(*args: Any, **kwargs: Any) -> Any:
        pair.bucket.write("app", some_bytes(size, 1))
        return copy_from(*args, **kwargs)

    monkeypatch.setattr(driver, "copy_from", late)
    pair.assert_refused("app", digest_of(data), PreconditionFailed)
    assert pair.bucket.read("app") == some_bytes(size, 1)


def test_an_original_that_changes_in_the_middle(pair: Pair) -> None:
    """An original that is overwritten between two requests is an error, and no mixture of two objects."""
    data, calls = some_bytes(2 * pair.bucket.part), list[int]()
    pair.bucket.write("app", data)

    def between() -> None:
        calls.append(1)
        if len(calls) == 2:
            pair.bucket.write("app", some_bytes(len(data), 1))

    try:
        pair.copy("app", digest_of(data), between=between)
    except PreconditionFailed:
        assert not pair.twin.object_exists(pair.bucket.name, "app")
    else:  # the provider was done with its first request
        assert len(calls) < 2
        assert not isinstance(pair.twin._driver, S3Driver)
        assert pair.read("app") == data


def test_an_original_that_is_missing(pair: Pair) -> None:
    """What is not there is NotFound, and leaves nothing at the destination."""
    pair.assert_refused("nothing-here", digest_of(b"x"), NotFound)


def test_an_original_of_another_size(pair: Pair) -> None:
    """An original that has not the recorded size is refused before it is copied."""
    pair.bucket.write("app", b"hello!")
    pair.assert_refused("app", digest_of(b"hello"), SizeMismatch)


class Stop(Exception):
    """The job is cancelled."""


def test_a_copy_can_be_stopped(pair: Pair) -> None:
    """A copy that is stopped between its requests leaves nothing visible, and nothing unfinished."""
    data, calls = some_bytes(2 * pair.bucket.part + 3), list[int]()
    pair.bucket.write("app", data)

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    try:
        pair.copy("app", digest_of(data), between=stop)
    except Stop:
        assert not pair.twin.object_exists(pair.bucket.name, "app")
    else:  # the provider was done with its first request
        assert not isinstance(pair.twin._driver, S3Driver)
        assert pair.read("app") == data


def test_difficult_keys(pair: Pair) -> None:
    """A key travels in the address of the original as well, and is copied as itself whatever is in it."""
    keys = []
    for key in AWKWARD:
        try:
            pair.bucket.write(key, key.encode())
        except InvalidKey:
            continue
        keys.append(key)
        pair.copy(key, digest_of(key.encode()))
    assert len(keys) > 3
    assert {key: pair.read(key) for key in keys} == {key: key.encode() for key in keys}


def test_a_realm_shows_no_secret(pair: Pair) -> None:
    """What makes two stores able to copy from each other can be printed."""
    config = pair.bucket.store._driver._config  # type: ignore[attr-defined]
    secrets = (getattr(config, name, None) for name in ("secret_access_key", "account_key", "connection_string"))
    shown = repr(pair.bucket.capabilities)
    assert [secret for secret in secrets if secret and secret.get_secret_value() in shown] == []


def twin_of(store: Store, directory: Path) -> Store:
    """Return a store beside one, at the same place and with the same credentials."""
    driver: Any = store._driver
    real, config = f"twin-{uuid.uuid4().hex[:8]}", getattr(driver, "_config", None)
    match config:
        case None:
            one_of_its_own = open_driver("twin", FilesystemConfig(root=directory))
            return Store(MemoryDriver("twin") if isinstance(driver, MemoryDriver) else one_of_its_own)
        case S3Config():
            driver._client().create_bucket(Bucket=real)
            changed = config.model_copy(update={"layout": "prefixed", "bucket": real})
            return Store(S3Driver("twin", changed, copy_part=config.part_size), spool_dir=directory)
        case GcsConfig():
            driver._connected().client.create_bucket(real)
            changed = config.model_copy(update={"layout": "prefixed", "bucket": real})
        case AzureConfig():
            driver._service().create_container(real)
            changed = config.model_copy(update={"layout": "prefixed", "container": real})
    return Store(open_driver("twin", changed), spool_dir=directory)
