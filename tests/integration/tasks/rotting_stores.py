"""One store of each kind, whose objects a test damages behind the store's back, and whose connection it disturbs."""

import hashlib
import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest
from azure.storage.blob import BlobServiceClient

from tests.conformance import targets
from tests.servers import Azurite, FakeGcs, RcloneS3, StrictGcs
from tests.servers.proxy import Delay, Fault, FaultyProxy, Header, Request, Rewrite, Say, Then
from worker.storage.config import FilesystemConfig, StoreConfig
from worker.storage.filesystem.digest_attribute import write_digest

BUCKET = "releases"
KINDS = ("filesystem", "s3", "gcs", "azure")
CLOUDS = KINDS[1:]


class RottingStore(ABC):
    """A store of one kind, as a failing medium or another program leaves it. All keys are in the bucket `releases`."""

    config: StoreConfig

    @abstractmethod
    def bytes_of(self, key: str) -> bytes:
        """Return the bytes that are under a key."""

    @abstractmethod
    def rot(self, key: str, bad: bytes) -> None:
        """Leave other bytes under a key beside the metadata of the right ones."""

    @abstractmethod
    def replace(self, key: str, bad: bytes, sha256: str | None = None) -> None:
        """Write other bytes and the digest that is kept beside them, by default theirs."""

    @abstractmethod
    def lose(self, key: str) -> None:
        """Lose an object."""

    @abstractmethod
    def lose_metadata(self, key: str) -> None:
        """Lose what is kept beside the bytes."""

    @abstractmethod
    def deny(self, key: str) -> None:
        """Let reads of an object fail for want of a permission, until `heal`."""

    @abstractmethod
    def heal(self, key: str) -> None:
        """Let the store answer for an object again as it did before `deny` and the like."""


def _rot_file(path: Path, bad: bytes) -> None:
    """Replace the bytes of a file as rot does: its times stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(bad)
        file.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class RottingDirectory(RottingStore):
    """A store in a directory."""

    def __init__(self, root: Path) -> None:
        self.config = FilesystemConfig(root=root)
        self._root = root

    def _path(self, key: str) -> Path:
        return self._root / BUCKET / key

    def bytes_of(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    def rot(self, key: str, bad: bytes) -> None:
        _rot_file(self._path(key), bad)

    def replace(self, key: str, bad: bytes, sha256: str | None = None) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bad)
        with path.open("rb") as file:
            write_digest(file.fileno(), sha256 or hashlib.sha256(bad).hexdigest())

    def lose(self, key: str) -> None:
        self._path(key).unlink()

    def lose_metadata(self, key: str) -> None:
        path = self._path(key)
        for name in os.listxattr(path):
            os.removexattr(path, name)
        for sidecar in path.parent.glob(f"{path.name}.*"):
            sidecar.unlink()

    def deny(self, key: str) -> None:
        """Put a link there, which the store does not follow: tests may run as root, whom no mode stops."""
        path, kept = self._path(key), self._path(f"{key}.kept")
        path.rename(kept)
        path.symlink_to(kept.name)

    def heal(self, key: str) -> None:
        if self._path(key).is_symlink():
            self._path(f"{key}.kept").replace(self._path(key))


class RottingCloud(RottingStore):
    """A store on a real server, through a proxy that disturbs what is asked about some keys."""

    denial: Say
    timeout: Say
    archival: Mapping[str, Fault] = MappingProxyType({})
    """How an archived object is answered for, by method, where the server has no such class."""

    def __init__(self) -> None:
        self._disturbed: dict[str, Mapping[str, Fault]] = {}
        self._lie: Then | None = None

    def fault(self, request: Request) -> Fault:
        """Return how a request goes wrong."""
        path = unquote(request.path).partition("?")[0]
        if self._lie and request.method in {"PUT", "POST"} and ("/upload/" in path or f"/{BUCKET}/" in path):
            return self._lie
        faults = next((faults for key, faults in self._disturbed.items() if path.endswith(f"/{key}")), {})
        return faults.get(request.method)

    def lie(self, do: Callable[[], None] | None) -> None:
        """Do something after each write of an object and before the store confirms it, until it is called with None."""
        self._lie = Then(do) if do else None

    def disturb(self, key: str, method: str, fault: Fault) -> None:
        """Let the requests of one method for an object go wrong, until `heal`."""
        self._disturbed[key] = {method: fault}

    def flip(self, key: str) -> None:
        """Pass on the bytes of an object with one bit flipped, until `heal`."""
        self._disturbed[key] = {"GET": Rewrite(lambda body: bytes([body[0] ^ 1]) + body[1:])}

    def _disturb(self, key: str, fault: Fault) -> None:
        self._disturbed[key] = {"GET": fault, "HEAD": fault}

    def deny(self, key: str) -> None:
        self._disturb(key, self.denial)

    def time_out(self, key: str) -> None:
        """Let the store say that it cannot read an object in time, until `heal`."""
        self._disturb(key, self.timeout)

    def slow_down(self, key: str) -> None:
        """Let reads of an object take their time, until `heal`."""
        self._disturb(key, Delay(0.3))

    def archive(self, key: str) -> None:
        """Move an object into an archive class, until `heal`."""
        self._disturbed[key] = self.archival

    def heal(self, key: str) -> None:
        self._disturbed.pop(key, None)


def _through(endpoint: str, port: int) -> str:
    return httpx.URL(endpoint).copy_with(port=port).__str__()


class RottingS3(RottingCloud):
    """A bucket whose objects are files."""

    denial = Say(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
    timeout = Say(504, b"<Error><Code>GatewayTimeout</Code><Message>no answer in time</Message></Error>")
    archival = MappingProxyType(
        {
            "GET": Say(403, b"<Error><Code>InvalidObjectState</Code><Message>restore it first</Message></Error>"),
            "HEAD": Header("x-amz-storage-class", "GLACIER"),
        }
    )

    def __init__(self, server: RcloneS3) -> None:
        super().__init__()
        self._real = f"real-{uuid.uuid4().hex[:8]}"
        self._client = targets.s3_client(server)
        self._client.create_bucket(Bucket=self._real)
        self._files = server.files / self._real / BUCKET
        self.port = server.port
        self.config = targets.s3_config(server, bucket=self._real, conditional_writes=False)

    def open_through(self, port: int) -> None:
        """Reach the store at another port."""
        self.config = self.config.model_copy(update={"endpoint": _through(str(self.config.endpoint), port)})  # type: ignore[attr-defined]

    def bytes_of(self, key: str) -> bytes:
        return (self._files / key).read_bytes()

    def rot(self, key: str, bad: bytes) -> None:
        _rot_file(self._files / key, bad)

    def replace(self, key: str, bad: bytes, sha256: str | None = None) -> None:
        digest = sha256 or hashlib.sha256(bad).hexdigest()
        self._client.put_object(Bucket=self._real, Key=f"{BUCKET}/{key}", Body=bad, Metadata={"sha256": digest})

    def lose(self, key: str) -> None:
        (self._files / key).unlink()

    def lose_metadata(self, key: str) -> None:
        self._client.put_object(Bucket=self._real, Key=f"{BUCKET}/{key}", Body=self.bytes_of(key))


class RottingGcs(RottingCloud):
    """A bucket whose objects are files."""

    denial = Say(
        403,
        b'{"error": {"code": 403, "message": "no", "errors": [{"reason": "forbidden"}]}}',
        {"Content-Type": "application/json"},
    )
    timeout = Say(
        504, b'{"error": {"code": 504, "message": "no answer in time"}}', {"Content-Type": "application/json"}
    )

    def __init__(self, server: FakeGcs, strict: StrictGcs) -> None:
        super().__init__()
        self.config = targets.gcs_config(strict)
        self._real = str(self.config.bucket)
        targets.make_gcs_bucket(server, self._real)
        self._endpoint = server.endpoint
        self._files = server.files / self._real / BUCKET
        self.port = strict.port

    def open_through(self, port: int) -> None:
        """Reach the store at another port."""
        self.config = self.config.model_copy(update={"endpoint": _through(str(self.config.endpoint), port)})  # type: ignore[attr-defined]

    def bytes_of(self, key: str) -> bytes:
        return (self._files / key).read_bytes()

    def rot(self, key: str, bad: bytes) -> None:
        with (self._files / key).open("r+b") as file:
            file.write(bad)
            file.truncate()

    def replace(self, key: str, bad: bytes, sha256: str | None = None) -> None:
        self._upload(key, bad, {"sha256": sha256 or hashlib.sha256(bad).hexdigest()})

    def lose(self, key: str) -> None:
        url = f"{self._endpoint}/storage/v1/b/{self._real}/o/{quote(f'{BUCKET}/{key}', safe='')}"
        httpx.delete(url, verify=targets.NO_AUTHORITIES).raise_for_status()

    def lose_metadata(self, key: str) -> None:
        self._upload(key, self.bytes_of(key), {})

    def _upload(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        name = {"name": f"{BUCKET}/{key}", "metadata": dict(metadata)}
        parts = [
            b"Content-Type: application/json\r\n\r\n" + json.dumps(name).encode(),
            b"Content-Type: application/octet-stream\r\n\r\n" + body,
        ]
        content = b"".join(b"--zot\r\n" + part + b"\r\n" for part in parts) + b"--zot--\r\n"
        httpx.post(
            f"{self._endpoint}/upload/storage/v1/b/{self._real}/o",
            params={"uploadType": "multipart"},
            content=content,
            headers={"Content-Type": "multipart/related; boundary=zot"},
            verify=targets.NO_AUTHORITIES,
        ).raise_for_status()


class RottingAzure(RottingCloud):
    """A container whose blobs are regions of files, in which a bit can flip; other changes are writes."""

    denial = Say(
        403,
        b"<?xml version='1.0'?><Error><Code>AuthorizationPermissionMismatch</Code><Message>no</Message></Error>",
        {"Content-Type": "application/xml", "x-ms-error-code": "AuthorizationPermissionMismatch"},
    )
    timeout = Say(
        500,
        b"<?xml version='1.0'?><Error><Code>OperationTimedOut</Code><Message>no answer in time</Message></Error>",
        {"Content-Type": "application/xml", "x-ms-error-code": "OperationTimedOut"},
    )

    def __init__(self, server: Azurite) -> None:
        super().__init__()
        self.config = targets.azure_config(server, api_version=targets.AZURITE_API)
        self._service = BlobServiceClient.from_connection_string(
            server.connection_string, api_version=targets.AZURITE_API
        )
        self._container = self._service.create_container(str(self.config.container))
        self._extents = server.directory / "data" / "__blobstorage__"
        self.port = server.port

    def open_through(self, port: int) -> None:
        """Reach the store at another port."""
        self.config = self.config.model_copy(update={"account_url": _through(str(self.config.account_url), port)})  # type: ignore[attr-defined]

    def _blob(self, key: str) -> Any:
        return self._container.get_blob_client(f"{BUCKET}/{key}")

    def bytes_of(self, key: str) -> bytes:
        found: bytes = self._blob(key).download_blob().readall()
        return found

    def rot(self, key: str, bad: bytes) -> None:
        right = self.bytes_of(key)
        if len(bad) != len(right):
            self._blob(key).upload_blob(bad, overwrite=True, metadata=self._blob(key).get_blob_properties().metadata)
            return
        for path in self._extents.iterdir():
            at = path.read_bytes().rfind(right)  # the newest: earlier cases of this process wrote the same bytes
            if at >= 0:
                with path.open("r+b") as file:
                    file.seek(at)
                    file.write(bad)
                return
        raise AssertionError(f"azurite keeps {key} in no file")

    def replace(self, key: str, bad: bytes, sha256: str | None = None) -> None:
        metadata = {"sha256": sha256 or hashlib.sha256(bad).hexdigest()}
        self._blob(key).upload_blob(bad, overwrite=True, metadata=metadata)

    def lose(self, key: str) -> None:
        self._blob(key).delete_blob()

    def lose_metadata(self, key: str) -> None:
        self._blob(key).set_blob_metadata({})

    def archive(self, key: str) -> None:
        self._blob(key).set_standard_blob_tier("Archive")

    def heal(self, key: str) -> None:
        super().heal(key)
        if self._blob(key).get_blob_properties().blob_tier == "Archive":
            self._blob(key).set_standard_blob_tier("Hot")


@contextmanager
def rotting(kind: str, request: pytest.FixtureRequest, root: Path) -> Iterator[RottingStore]:
    """Open a store of this kind."""
    if kind == "filesystem":
        yield RottingDirectory(root)
        return
    with ExitStack() as stack:
        cloud: RottingS3 | RottingGcs | RottingAzure
        if kind == "s3":
            cloud = RottingS3(request.getfixturevalue("rclone"))
        elif kind == "gcs":
            server = request.getfixturevalue("fake_gcs_disk")
            cloud = RottingGcs(server, stack.enter_context(StrictGcs(server.port)))
        else:
            cloud = RottingAzure(request.getfixturevalue("azurite"))
        proxy = stack.enter_context(FaultyProxy(cloud.port, cloud.fault))
        cloud.open_through(proxy.port)
        yield cloud
