"""Every store that the conformance suite tests, and how each is opened."""

import ssl
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import boto3
import httpx
import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient
from botocore.config import Config

from tests.servers import Azurite, Ministack, RcloneS3
from tests.servers.s3 import S3Server
from worker.storage import AzureConfig, FilesystemConfig, GcsConfig, S3Config, Store, StoreConfig
from worker.storage.configured_stores import open_driver

PART = 5 * 1024 * 1024
"""Bytes; the smallest part that S3 allows."""

SMALL_PART = 5 * 256 * 1024
"""Bytes of a part where a store allows smaller ones: enough for several reads, and more than one small request takes.

Cloud Storage takes multiples of 256 KiB. Amazon takes no smaller parts than `PART`, but ministack does.
"""

DATA_PATH = "auto"
"""How stores are configured unless a test says otherwise; `both_paths` and the kinds of stores change it."""
NATIVE: dict[str, Any] = {"layout": "native", "buckets": ["b-*"], "reserved_bucket": "reserved"}
"""The layout in which logical buckets are real ones; those of the cases begin with `b-`."""
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of httpx that encrypt nothing: each would read the certificates of the system, which takes 20 ms."""
AZURITE_API = "2025-11-05"
"""The newest version of the interface that azurite knows."""


def native() -> dict[str, Any]:
    """Return the same layout, with a reserved bucket of its own."""
    return NATIVE | {"reserved_bucket": f"reserved-{uuid.uuid4().hex[:8]}"}


@dataclass(frozen=True)
class Target:
    """One store under test.

    Attributes:
        store: it.
        path_of: where an object's bytes lie as a file, where they do.
        stale_files: finds what should not be there, without asking the driver.
        open_upload: begins a multipart upload beside the driver's back, where the store has those.
        drop: deletes a bucket without asking the driver, where one that was emptied is not as a new one.
        part: bytes of a part, as the store is configured.
    """

    name: str
    store: Store
    path_of: Callable[[str, str], Path] | None = None
    stale_files: Callable[[str], Iterable[str]] = lambda _bucket: ()
    open_upload: Callable[[str, str], None] | None = None
    drop: Callable[[str], None] | None = None
    part: int = PART


def memory() -> Target:
    from tests.memory_driver import MemoryDriver

    return Target("memory", Store(MemoryDriver("memory")), part=SMALL_PART)


def filesystem(root: Path) -> Target:
    driver = open_driver("filesystem", FilesystemConfig(root=root))

    def stale_files(bucket: str) -> Iterable[str]:
        yield from (str(path) for path in (root / bucket).rglob("*"))
        yield from (str(path) for path in root.rglob(".zot-tmp-*"))
        yield from (str(path) for path in (root / ".zot" / "intents").rglob("*"))

    store = Store(driver, spool_dir=root.parent)
    return Target("filesystem", store, lambda b, k: root / b / k, stale_files, part=SMALL_PART)


def s3_ministack(server: Ministack, spool: Path, *, part: int = PART) -> Target:
    return _s3("s3-ministack", server, spool, part=part)


def s3_aws(server: Ministack, spool: Path) -> Target:
    """Return the dialect that Amazon is spoken to in: a SHA-256 as a checksum of every object and part."""
    return _s3("s3-aws", server, spool, part=SMALL_PART, provider="aws")


def s3_native(server: Ministack, spool: Path) -> Target:
    return _s3("s3-native", server, spool, part=SMALL_PART, **native())


def s3_rclone(server: RcloneS3, spool: Path, **changes: object) -> Target:
    real = f"real-{uuid.uuid4().hex[:8]}"

    def stale_files(bucket: str) -> Iterable[str]:
        return (str(path) for path in (server.files / real / bucket).rglob("*") if path.is_file())

    return _s3(
        "s3-rclone",
        server,
        spool,
        bucket=real,
        conditional_writes=False,  # it ignores conditions, and the configuration says so
        path_of=lambda b, k: server.files / real / b / k,
        stale_files=stale_files,
        **changes,
    )


def _s3(
    name: str,
    server: S3Server,
    spool: Path,
    *,
    path_of: Callable[[str, str], Path] | None = None,
    stale_files: Callable[[str], Iterable[str]] = lambda _bucket: (),
    part: int = PART,
    **changes: object,
) -> Target:
    config = s3_config(server, part_size=part, **changes)
    client = s3_client(server)
    client.create_bucket(Bucket=config.bucket or config.reserved_bucket)

    def open_upload(bucket: str, key: str) -> None:
        real, path = (config.bucket, f"{bucket}/{key}") if config.bucket else (bucket, key)
        client.create_multipart_upload(Bucket=real, Key=path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.storage.s3.driver.MIN_PART", part)
        driver = open_driver(name, config)
    return Target(name, Store(driver, spool_dir=spool), path_of, stale_files, open_upload, part=part)


def s3_client(server: S3Server) -> Any:
    """Return the SDK's own client, to look and act beside the driver's back; one for all tests of a process."""
    return _s3_client(server.endpoint, server.access_key_id, server.secret_access_key)


@cache
def _s3_client(endpoint: str, access_key_id: str, secret_access_key: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        config=Config(s3={"addressing_style": "path"}),
    )


def make_s3_bucket(server: S3Server, real: str) -> None:
    """Make a bucket beside the driver's back."""
    s3_client(server).create_bucket(Bucket=real)


def s3_config(server: S3Server, **changes: object) -> S3Config:
    """Return the configuration for a server with small parts, and a real bucket of its own unless told otherwise."""
    return S3Config.model_validate(
        {
            "bucket": f"real-{uuid.uuid4().hex[:8]}",
            "endpoint": server.endpoint,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
            "part_size": PART,
            "data_path": DATA_PATH,
            "read_back": False,  # asked for by the cases that are about it
            **changes,
            **({"bucket": None} if changes.get("layout") == "native" else {}),
        }
    )


class GcsEndpoint(Protocol):
    """A server that speaks Cloud Storage, or a proxy before one."""

    @property
    def endpoint(self) -> str: ...


def gcs(server: GcsEndpoint, spool: Path, **changes: object) -> Target:
    return _gcs("gcs", server, spool, **changes)


def gcs_native(server: GcsEndpoint, spool: Path, **changes: object) -> Target:
    return _gcs("gcs-native", server, spool, **native(), **changes)


def gcs_resumable(server: GcsEndpoint, spool: Path, **changes: object) -> Target:
    """Return the store for cold classes: large objects in one resumable upload, nothing composed."""
    return _gcs("gcs-resumable", server, spool, compose=False, **changes)


def _gcs(name: str, server: GcsEndpoint, spool: Path, **changes: object) -> Target:
    config = gcs_config(server, **changes)
    make_gcs_bucket(server, str(config.bucket or config.reserved_bucket))
    return Target(name, Store(open_driver(name, config), spool_dir=spool), part=config.part_size)


def make_gcs_bucket(server: GcsEndpoint, real: str) -> None:
    """Make a bucket beside the driver's back."""
    url, project = f"{server.endpoint}/storage/v1/b", {"project": "test"}
    httpx.post(url, params=project, json={"name": real}, verify=NO_AUTHORITIES).raise_for_status()


def gcs_config(server: GcsEndpoint, **changes: object) -> GcsConfig:
    """Return the configuration for a server with small parts, and a real bucket of its own unless told otherwise."""
    return GcsConfig.model_validate(
        {
            "bucket": f"real-{uuid.uuid4().hex[:8]}",
            "endpoint": server.endpoint,
            "project": "test",
            "anonymous": True,
            "part_size": PART,
            "data_path": DATA_PATH,
            "read_back": False,  # asked for by the cases that are about it
            **changes,
            **({"bucket": None} if changes.get("layout") == "native" else {}),
        }
    )


def azure(server: Azurite, spool: Path, **changes: object) -> Target:
    return _azure("azure", server, spool, **changes)


def azure_native(server: Azurite, spool: Path, **changes: object) -> Target:
    return _azure("azure-native", server, spool, **native(), **changes)


def _azure(name: str, server: Azurite, spool: Path, **changes: object) -> Target:
    config = azure_config(server, **changes)
    service = BlobServiceClient.from_connection_string(server.connection_string, api_version=AZURITE_API)
    service.create_container(str(config.container or config.reserved_bucket))

    def named(bucket: str, key: str = "") -> tuple[str, str]:
        return (config.container, f"{bucket}/{key}") if config.container else (bucket, key)

    def stale_files(bucket: str) -> Iterable[str]:
        container, prefix = named(bucket)
        found = service.get_container_client(container)
        with suppress(ResourceNotFoundError):
            for blob in found.list_blobs(name_starts_with=prefix, include=["uncommittedblobs", "snapshots"]):
                yield str(blob.name)

    def open_upload(bucket: str, key: str) -> None:
        service.get_blob_client(*named(bucket, key)).stage_block("another-program", b"x")

    def drop(bucket: str) -> None:
        if not config.container:
            service.delete_container(bucket)

    store = Store(open_driver(name, config), spool_dir=spool)
    # azurite keeps blocks of a blob that was deleted, and lists them when new ones were discarded
    part = config.part_size
    return Target(name, store, stale_files=stale_files, open_upload=open_upload, drop=drop, part=part)


def azure_config(server: Azurite, **changes: object) -> AzureConfig:
    """Return the configuration for a server with small blocks, and a container of its own unless told otherwise."""
    return AzureConfig.model_validate(
        {
            "container": f"real-{uuid.uuid4().hex[:8]}",
            "account_url": server.account_url,
            "account_key": server.account_key,
            "part_size": PART,
            "data_path": DATA_PATH,
            "read_back": False,  # asked for by the cases that are about it
            **changes,
            **({"container": None} if changes.get("layout") == "native" else {}),
        }
    )


def one_of_each(s3: S3Server, gcs: GcsEndpoint, azure: Azurite, root: Path) -> dict[str, StoreConfig]:
    """Return the configurations of four stores, one of each kind, with a real bucket or container of their own."""
    found: dict[str, Any] = {
        "s3": s3_config(s3),
        "gcs": gcs_config(gcs),
        "azure": azure_config(azure, api_version=AZURITE_API),
    }
    make_s3_bucket(s3, str(found["s3"].bucket))
    make_gcs_bucket(gcs, str(found["gcs"].bucket))
    with BlobServiceClient.from_connection_string(azure.connection_string, api_version=AZURITE_API) as service:
        service.create_container(found["azure"].container)
    return {"filesystem": FilesystemConfig(root=root), **found}
