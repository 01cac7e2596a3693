"""Every store that the conformance suite is asked of, and what the suite may not ask of an emulator."""

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import boto3
from botocore.config import Config

from tests.servers import Ministack, RcloneS3
from tests.servers.s3 import S3Server
from worker.storage import FilesystemConfig, S3Config, Store
from worker.storage.registry import open_driver

PART = 5 * 1024 * 1024
"""Bytes; the smallest part that S3 allows."""

RCLONE = {
    "prefix_keys": "rclone keeps objects as files: `a` beside `a/b` is a 500",
    "claims": "rclone forgets the metadata of a file whose size has changed",
    "pages": "rclone takes a minute for 1,000 objects while it may remember no folder",
    "byte_order": "rclone lists folder by folder, not by the bytes of whole keys",
    "part_again": "rclone streams parts as they come and cannot replace one",
    "part_left_out": "rclone streams parts as they come and cannot leave one out",
    "stale_part": "rclone streams parts as they come and cannot replace one",
}
"""What rclone gets wrong about S3, by the name of the case that is not asked of it."""
SAME = {"pages": "the requests are those of s3-ministack, which is asked"}


@dataclass(frozen=True)
class Target:
    """One store under test.

    Attributes:
        store: it.
        path_of: where an object's bytes lie as a file, where they do.
        debris: finds what should not be there, other than by asking the driver.
        quirks: cases that are not asked, each with the emulator's fault that is the reason.
        open_upload: begins a multipart upload beside the driver's back, where the store has those.
    """

    name: str
    store: Store
    path_of: Callable[[str, str], Path] | None = None
    debris: Callable[[str], Iterable[str]] = lambda _bucket: ()
    quirks: Mapping[str, str] = field(default_factory=dict)
    open_upload: Callable[[str, str], None] | None = None


def memory() -> Target:
    from worker.storage.memory import MemoryDriver

    return Target("memory", Store(MemoryDriver("memory")))


def filesystem(root: Path) -> Target:
    driver = open_driver("filesystem", FilesystemConfig(root=root))

    def debris(bucket: str) -> Iterable[str]:
        yield from (str(path) for path in (root / bucket).rglob("*"))
        yield from (str(path) for path in root.rglob(".zot-tmp-*"))
        yield from (str(path) for path in (root / ".zot" / "intents").rglob("*"))

    return Target("filesystem", Store(driver, spool_dir=root.parent), lambda b, k: root / b / k, debris)


def s3_ministack(server: Ministack, spool: Path) -> Target:
    return _s3("s3-ministack", server, spool)


def s3_aws(server: Ministack, spool: Path) -> Target:
    """Return the dialect that Amazon is spoken to in: the SDK's own checksums on every request and part."""
    return _s3("s3-aws", server, spool, quirks=SAME, provider="aws")


def s3_native(server: Ministack, spool: Path) -> Target:
    return _s3("s3-native", server, spool, quirks=SAME, layout="native", bucket=None)


def s3_rclone(server: RcloneS3, spool: Path) -> Target:
    real = f"real-{uuid.uuid4().hex[:8]}"

    def debris(bucket: str) -> Iterable[str]:
        return (str(path) for path in (server.files / real / bucket).rglob("*") if path.is_file())

    return _s3(
        "s3-rclone",
        server,
        spool,
        bucket=real,
        conditional_writes=False,  # it ignores conditions, and the configuration says so
        path_of=lambda b, k: server.files / real / b / k,
        debris=debris,
        quirks=RCLONE,
    )


def _s3(
    name: str,
    server: S3Server,
    spool: Path,
    *,
    path_of: Callable[[str, str], Path] | None = None,
    debris: Callable[[str], Iterable[str]] = lambda _bucket: (),
    quirks: Mapping[str, str] | None = None,
    **changes: object,
) -> Target:
    config = s3_config(server, **changes)
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(s3={"addressing_style": "path"}),
    )
    if config.bucket:
        client.create_bucket(Bucket=config.bucket)

    def open_upload(bucket: str, key: str) -> None:
        real, path = (config.bucket, f"{bucket}/{key}") if config.bucket else (bucket, key)
        client.create_multipart_upload(Bucket=real, Key=path)

    store = Store(open_driver(name, config), spool_dir=spool)
    return Target(name, store, path_of, debris, quirks or {}, open_upload)


def s3_config(server: S3Server, **changes: object) -> S3Config:
    """Return the configuration for a server with small parts, and a real bucket of its own unless told otherwise."""
    return S3Config.model_validate(
        {
            "bucket": f"real-{uuid.uuid4().hex[:8]}",
            "endpoint": server.endpoint,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
            "part_size": PART,
            **changes,
        }
    )
