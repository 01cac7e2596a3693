"""The stores that transfers are measured on, with their servers and the options of the tools for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from azure.storage.blob import BlobServiceClient, ContainerClient

from benchmarks.harness.transfer_in_process import BUCKET
from benchmarks.harness.transfer_tools import Rclone, S5cmd, SyncedRclone, TransferTool
from tests.conformance.targets import AZURITE_API, make_gcs_bucket, make_s3_bucket
from tests.servers import Azurite, FakeGcs, Ministack, RcloneS3, Server
from tests.servers.process import find_server
from tests.servers.s3 import S3Server

REAL = "artifacts"
"""The real bucket or container: the logical bucket is the first segment of the keys in it."""
_BATCH = 256
"""Most blobs that Azure deletes with one request."""


@dataclass(frozen=True, slots=True)
class RunningStore:
    """A store with its running server.

    Attributes:
        config: the configuration for ours. tools: the tools that can use the store. server: its process; None for a
            directory. empty: deletes the artifacts where each one that is there makes the next write slower.
    """

    config: Mapping[str, object]
    tools: Sequence[TransferTool]
    server: Server | None = None
    empty: Callable[[], object] = lambda: None


class HashingOnceS3(RcloneS3):
    """A fast server: it keeps folders and ETags in memory, where it would read a whole file for each range of it.

    Its ETags are CRC-32, which no tool takes for the MD5 of an object.
    """

    def command(self) -> Sequence[str]:
        self.files.mkdir(parents=True, exist_ok=True)
        hashed = f':hasher,remote="{self.files}",hashes=crc32,max_age=off:'
        cache = str(self.files.parent / "hashes")
        options = ("--addr", f"127.0.0.1:{self.port}", "--cache-dir", cache, "--etag-hash", "crc32")
        return (find_server("rclone"), "serve", "s3", *options, hashed)


@contextmanager
def filesystem(directory: Path) -> Iterator[RunningStore]:
    """Keep objects as files of a directory."""
    root = directory / "filesystem"
    root.mkdir(parents=True)
    rclone = Rclone(str(root / BUCKET), of_many=("--exclude", "*.sha256"))  # not our sidecars
    yield RunningStore({"type": "filesystem", "root": str(root)}, (SyncedRclone(rclone), rclone))


@contextmanager
def s3_ministack(directory: Path) -> Iterator[RunningStore]:
    """Keep objects in the memory of a server that follows S3 exactly."""
    with Ministack(directory / "ministack") as server:
        yield _s3(server)


@contextmanager
def s3_rclone(directory: Path) -> Iterator[RunningStore]:
    """Keep objects as the files of a server that is fast; it knows no conditions, which the configuration says."""
    with HashingOnceS3(directory / "rclone") as server:
        yield _s3(server, conditional_writes=False)


def _s3(server: S3Server, **changes: object) -> RunningStore:
    make_s3_bucket(server, REAL)
    keys = (server.access_key_id, server.secret_access_key)
    config = {
        "type": "s3", "bucket": REAL, "endpoint": server.endpoint,
        "access_key_id": keys[0], "secret_access_key": keys[1], **changes,
    }  # fmt: skip
    where = (
        "--s3-provider",
        "Other",
        "--s3-endpoint",
        server.endpoint,
        "--s3-force-path-style",
        "--s3-no-check-bucket",
    )
    rclone = Rclone(
        f":s3:{REAL}/{BUCKET}",
        where,
        dict(zip(("RCLONE_S3_ACCESS_KEY_ID", "RCLONE_S3_SECRET_ACCESS_KEY"), keys, strict=True)),
    )
    s5cmd = S5cmd(
        f"s3://{REAL}/{BUCKET}",
        server.endpoint,
        dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), keys, strict=True)),
    )
    return RunningStore(config, (rclone, s5cmd), server)


@contextmanager
def gcs(directory: Path, *, on_disk: bool = False) -> Iterator[RunningStore]:
    """Keep objects in the memory of a server that speaks Cloud Storage, or as its files."""
    with FakeGcs(directory / "fake-gcs", on_disk=on_disk) as server:
        make_gcs_bucket(server, REAL)
        config = {"type": "gcs", "bucket": REAL, "endpoint": server.endpoint, "project": "test", "anonymous": True}
        where = ("--gcs-anonymous", "--gcs-endpoint", f"{server.endpoint}/storage/v1/", "--gcs-no-check-bucket")
        yield RunningStore(config, (Rclone(f":gcs:{REAL}/{BUCKET}", where),), server)


@contextmanager
def azure(directory: Path) -> Iterator[RunningStore]:
    """Keep objects as the files of a server that speaks Blob Storage.

    For each request it searches the records of all blobs of the account.
    """
    with (
        Azurite(directory / "azurite") as server,
        BlobServiceClient.from_connection_string(server.connection_string, api_version=AZURITE_API) as service,
    ):
        container = service.create_container(REAL)
        config = {
            "type": "azure", "container": REAL, "account_url": server.account_url,
            "account_key": server.account_key, "api_version": AZURITE_API,
        }  # fmt: skip
        where = ("--azureblob-account", server.account, "--azureblob-endpoint", server.account_url)
        options = (*where, "--azureblob-no-check-container")
        rclone = Rclone(f":azureblob:{REAL}/{BUCKET}", options, {"RCLONE_AZUREBLOB_KEY": server.account_key})
        yield RunningStore(config, (rclone,), server, partial(_delete_artifacts, container))


def _delete_artifacts(container: ContainerClient) -> None:
    names = list(container.list_blob_names(name_starts_with=f"{BUCKET}/"))
    for first in range(0, len(names), _BATCH):
        container.delete_blobs(*names[first : first + _BATCH])


STORES: Mapping[str, Callable[[Path], AbstractContextManager[RunningStore]]] = {
    "filesystem": filesystem,
    "s3 (ministack)": s3_ministack,
    "s3 (rclone serve s3)": s3_rclone,
    "gcs (fake-gcs-server)": gcs,
    "azure (azurite)": azure,
}
"""The stores by name; each function starts the server of a store in an empty directory."""
