"""Which stores may copy from each other; a copy of the wrong size is removed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.conformance.bodies import digest_of, source
from tests.memory_driver import MemoryDriver
from worker.storage import AzureConfig, Capabilities, FilesystemConfig, GcsConfig, ObjectStat, S3Config, Store
from worker.storage.config import StoreConfig
from worker.storage.configured_stores import open_driver
from worker.storage.driver import WriteInfo
from worker.storage.errors import NotFound, PreconditionFailed, SizeMismatch, StorageError, Unavailable
from worker.storage.integrity.verifying_reader import VerifyingReader

S3 = {"bucket": "one", "endpoint": "https://s3.example.com", "access_key_id": "id", "secret_access_key": "key"}
GCS = {"bucket": "one", "credentials_file": "/keys/one.json"}
AZURE = {"container": "one", "account_url": "https://one.blob.core.windows.net", "account_key": "a2V5"}
TOKEN = {"account_key": None, "sas_token": "sv=1&sig=x"}
Change = Callable[[Store], None]


def realm(config: type[StoreConfig], settings: dict[str, Any]) -> Any:
    return open_driver("store", config.model_validate(settings)).capabilities.realm


@pytest.mark.parametrize("config, settings, change", [
    (S3Config, S3, {"bucket": "two"}),
    (S3Config, S3, {"layout": "native", "bucket": None}),
    (S3Config, S3, {"storage_class": "STANDARD_IA", "encryption": "aws:kms", "kms_key_id": "theirs"}),
    (S3Config, {"bucket": "one"}, {"bucket": "two"}),
    (GcsConfig, GCS, {"bucket": "two", "kms_key": "theirs", "storage_class": "NEARLINE"}),
    (AzureConfig, AZURE, {"container": "two", "access_tier": "cool"}),
])  # fmt: skip
def test_one_provider(config, settings, change) -> None:
    """Stores that differ in where and how objects are kept, not in who is asked by whom, can copy from each other."""
    assert realm(config, settings) == realm(config, settings | change) is not None


@pytest.mark.parametrize("config, settings, change", [
    (S3Config, S3, {"endpoint": "https://other.example.com"}),
    (S3Config, S3, {"access_key_id": "other"}),
    (S3Config, S3, {"secret_access_key": "other"}),
    (S3Config, S3, {"session_token": "other"}),
    (S3Config, S3, {"region": "eu-west-1"}),
    (S3Config, S3, {"access_key_id": None, "secret_access_key": None}),
    (S3Config, {"bucket": "one"}, {"profile": "other"}),
    (S3Config, S3, {"conditional_writes": False}),
    (GcsConfig, GCS, {"endpoint": "https://other.example.com"}),
    (GcsConfig, GCS, {"credentials_file": "/keys/other.json"}),
    (GcsConfig, GCS, {"credentials_file": None}),
    (AzureConfig, AZURE, {"account_url": "https://two.blob.core.windows.net"}),
    (AzureConfig, AZURE, {"account_key": "b3RoZXI="}),
    (AzureConfig, AZURE, {"account_key": None}),
    (AzureConfig, AZURE, {"encryption_scope": "theirs"}),
    (AzureConfig, AZURE, TOKEN),
])  # fmt: skip
def test_two_providers(config, settings, change) -> None:
    """Another endpoint, account, region or credential is another provider: in doubt the bytes go through us."""
    assert realm(config, settings) != realm(config, settings | change)


@pytest.mark.parametrize("config, settings", [
    (FilesystemConfig, {"root": "/somewhere"}),
    (S3Config, S3 | {"provider": "b2"}),
    (AzureConfig, AZURE | TOKEN),
    (AzureConfig, AZURE | {"encryption_scope": "ours"}),
])  # fmt: skip
def test_no_way_at_all(config, settings) -> None:
    """Where a copy would not be safe, or no copy of its own, there is none, not even from a store just like it."""
    assert realm(config, settings) is None


class Copying(MemoryDriver):
    """A store whose provider copies, and does `meanwhile` something to what it copies."""

    def __init__(self, name: str, meanwhile: Callable[[bytes], bytes] = lambda data: data) -> None:
        super().__init__(name)
        self._meanwhile = meanwhile

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, realm="memory")

    def location(self, bucket: str, key: str) -> tuple["Copying", str, str]:
        return self, bucket, key

    def copy_from(
        self,
        original: tuple["Copying", str, str],
        found: ObjectStat,
        info: WriteInfo,
        *,
        between: Callable[[], object],
        begun: Callable[[str], object],
    ) -> ObjectStat:
        del begun  # no multipart upload is made
        between()
        driver, bucket, key = original
        with driver.open(bucket, key) as reader:
            copied = self._meanwhile(reader.read(1000))
        return self.put(found.bucket, found.key, VerifyingReader(source(copied)), info, condition="create_only")


@pytest.fixture
def near() -> Store:
    near = Store(Copying("near"))
    near.write_object("b", "app", source(b"hello"))
    return near


def test_a_copy_of_another_size_is_removed(near: Store) -> None:
    """A provider that copies too little is found out by the size it gives, and nothing is left."""
    far = Store(Copying("far", lambda data: data[:-1]))
    with pytest.raises(SizeMismatch, match=r"far: b/app: the store made a copy of 4 bytes of 5"):
        far.copy_object(near, "b", "app", digest_of(b"hello"))
    assert not far.object_exists("b", "app")


def test_what_replaces_a_copy_of_another_size_stays(near: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the copy that the provider has made is removed, and no object of another writer."""
    driver = Copying("far", lambda data: data[:-1])
    far, copy = Store(driver), driver.copy_from

    def copy_and_lose(*of: Any, **how: Any) -> ObjectStat:
        made = copy(*of, **how)
        far.write_object("b", "app", source(b"of another writer"))
        return made

    monkeypatch.setattr(driver, "copy_from", copy_and_lose)
    with pytest.raises(PreconditionFailed):
        far.copy_object(near, "b", "app", digest_of(b"hello"))
    assert far.stat_object("b", "app").size == len(b"of another writer")


def nothing(_near: Store) -> None:
    pass


def replaced(near: Store) -> None:
    near.write_object("b", "app", source(b"longer"))


def deleted(near: Store) -> None:
    near.delete_object("b", "app")


def silent(near: Store) -> None:
    def stat(*_of: Any) -> ObjectStat:
        raise Unavailable("near: it does not answer")

    near._driver.stat = stat  # type: ignore[method-assign]


@pytest.mark.parametrize("before, meanwhile, error, store, said", [
    (nothing, nothing, Unavailable, None, "far: the store fails"),
    (nothing, silent, Unavailable, None, "far: the store fails"),
    (nothing, replaced, PreconditionFailed, "near", r"near: b/app .* version \d+ is"),
    (nothing, deleted, PreconditionFailed, "near", "near: b/app .* nothing is there"),
    (replaced, nothing, SizeMismatch, "near", "near: b/app has 6 bytes, not the recorded 5"),
    (deleted, nothing, NotFound, "near", "near: b/app"),
])  # fmt: skip
def test_a_failure_is_that_of_a_changed_original_only_if_it_has_changed(
    near: Store, before: Change, meanwhile: Change, error: type[StorageError], store: str | None, said: str
) -> None:
    """Why a provider refuses is found out by inspecting the original: changed, gone, neither, or unknown.

    An error about the original names its store, so that another original is tried.
    """

    def fail(_data: bytes) -> bytes:
        meanwhile(near)
        raise Unavailable("far: the store fails")

    before(near)
    with pytest.raises(error, match=said) as raised:
        Store(Copying("far", fail)).copy_object(near, "b", "app", digest_of(b"hello"))
    assert raised.value.store == store
