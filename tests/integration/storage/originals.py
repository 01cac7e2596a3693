"""Small copies of the original store's backends: how each wrote and read an object with the plain SDKs."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from azure.storage.blob import BlobServiceClient
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from tests.conformance.targets import (
    AZURITE_API,
    GcsEndpoint,
    azure_config,
    gcs_config,
    make_gcs_bucket,
    s3_client,
    s3_config,
)
from tests.servers import Azurite
from tests.servers.proxy import Say
from tests.servers.s3 import S3Server
from worker.storage import StoreConfig

TOKEN = Say(200, b'{"access_token": "any", "expires_in": 3600, "token_type": "Bearer"}')
"""What Google's own server of tokens answers to a service account."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class OriginalFiles:
    """Its directory backend.

    Attributes:
        root: what it called `rootDirectory`.
    """

    root: Path

    def write(self, bucket: str, key: str, data: bytes, sidecar: str | None) -> Path:
        path = self.root / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_bytes(data)
        temporary.rename(path)
        if sidecar is not None:
            path.with_name(f"{path.name}.sha256").write_text(sidecar)
        return path

    def read(self, bucket: str, key: str) -> bytes:
        """Return an object, as the original did: its sidecar must be the very 64 characters."""
        path = self.root / bucket / key
        data = path.read_bytes()
        assert path.with_name(f"{path.name}.sha256").read_bytes() == sha256(data).encode()
        return data


class OriginalCloud(Protocol):
    """A real bucket in both layouts: keys at its top, as the original wrote them, or after the logical bucket.

    Every request uses the plain SDK.
    """

    @property
    def bucket(self) -> str:
        """Return the real bucket or container."""

    def write(self, key: str, data: bytes, metadata: dict[str, str]) -> None: ...

    def metadata(self, key: str) -> Mapping[str, str]:
        """Return what the SDK says of an object, in whatever case it does."""

    def bytes_of(self, key: str) -> bytes: ...

    def config(self, **changes: object) -> StoreConfig:
        """Return how ours is configured to reach it."""

    def file(self, more: str = "") -> str:
        """Return the `storage:` of the original's configuration file, under its own names, after `more`."""


def read(cloud: OriginalCloud, key: str) -> bytes:
    """Return an object, as the original did, whose SDKs changed the case of names: the value is the very hex."""
    data = cloud.bytes_of(key)
    assert {name.lower(): value for name, value in cloud.metadata(key).items()}["sha256"] == sha256(data)
    return data


@dataclass(frozen=True)
class OriginalS3:
    """Its S3 backend."""

    server: S3Server
    client: Any
    bucket: str

    def write(self, key: str, data: bytes, metadata: dict[str, str]) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data, Metadata=metadata)

    def metadata(self, key: str) -> Mapping[str, str]:
        found: dict[str, str] = self.client.head_object(Bucket=self.bucket, Key=key)["Metadata"]
        return found

    def bytes_of(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def config(self, **changes: object) -> StoreConfig:
        return s3_config(self.server, conditional_writes=False, **{"bucket": self.bucket, **changes})

    def file(self, more: str = "") -> str:
        server = self.server
        return (
            f"storage: {{type: s3, s3: {{endpoint: '127.0.0.1:{server.port}', useSSL: false, "
            f"{more}bucket: {self.bucket}, region: us-east-1, accessKeyID: {server.access_key_id!r}, "
            f"secretAccessKey: {server.secret_access_key!r}}}}}"
        )


@dataclass(frozen=True)
class OriginalGcs:
    """Its Google backend, which knew no credentials but those of a file.

    Attributes:
        directory: where that file is laid.
        tokens: URL of the server that gives a token to a client that signs for the account in it.
    """

    server: GcsEndpoint
    client: Any
    bucket: str
    directory: Path
    tokens: str

    def write(self, key: str, data: bytes, metadata: dict[str, str]) -> None:
        blob = self.client.bucket(self.bucket).blob(key)
        blob.metadata = metadata
        blob.upload_from_string(data, content_type="application/gzip")

    def metadata(self, key: str) -> Mapping[str, str]:
        found: Mapping[str, str] = self.client.bucket(self.bucket).get_blob(key).metadata or {}
        return found

    def bytes_of(self, key: str) -> bytes:
        data: bytes = self.client.bucket(self.bucket).blob(key).download_as_bytes()
        return data

    def config(self, **changes: object) -> StoreConfig:
        return gcs_config(self.server, **{"bucket": self.bucket, **changes})

    def file(self, more: str = "") -> str:
        account = self.directory / "account.json"
        account.write_text(json.dumps(_service_account(self.tokens)))
        return (
            f"storage: {{type: gcs, gcs: {{{more}bucket: {self.bucket}, credentialsFile: {account}, projectID: test, "
            f"endpoint: '{self.server.endpoint}'}}}}"
        )


@dataclass(frozen=True)
class OriginalAzure:
    """Its Azure backend."""

    server: Azurite
    client: BlobServiceClient
    bucket: str

    def write(self, key: str, data: bytes, metadata: dict[str, str]) -> None:
        self.client.get_blob_client(self.bucket, key).upload_blob(data, metadata=metadata, overwrite=True)

    def metadata(self, key: str) -> Mapping[str, str]:
        found: Mapping[str, str] = self.client.get_blob_client(self.bucket, key).get_blob_properties().metadata
        return found

    def bytes_of(self, key: str) -> bytes:
        return self.client.get_blob_client(self.bucket, key).download_blob().readall()

    def config(self, **changes: object) -> StoreConfig:
        changes = {"container": self.bucket, **changes}
        return azure_config(self.server, **changes)

    def file(self, more: str = "") -> str:
        server = self.server
        return (
            f"storage: {{type: azure, azure: {{{more}accountName: {server.account}, "
            f"accountKey: {server.account_key!r}, containerName: {self.bucket}, endpoint: '{server.account_url}'}}}}"
        )


def original_s3(server: S3Server) -> OriginalS3:
    """Return a new bucket of the original's."""
    client, bucket = s3_client(server), _name()
    client.create_bucket(Bucket=bucket)
    return OriginalS3(server, client, bucket)


def original_gcs(server: GcsEndpoint, directory: Path, tokens: str) -> OriginalGcs:
    """Return a new bucket of the original's; what else it takes is said of `OriginalGcs`."""
    bucket = _name()
    make_gcs_bucket(server, bucket)
    client = storage.Client(
        project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": server.endpoint}
    )
    return OriginalGcs(server, client, bucket, directory, tokens)


def original_azure(server: Azurite) -> OriginalAzure:
    """Return a new container of the original's."""
    client, bucket = (
        BlobServiceClient.from_connection_string(server.connection_string, api_version=AZURITE_API),
        _name(),
    )
    client.create_container(bucket)
    return OriginalAzure(server, client, bucket)


def _name() -> str:
    return f"original-{uuid.uuid4().hex[:8]}"


def _service_account(tokens: str) -> dict[str, str]:
    """Return the key of an account that no other client has."""
    key = generate_private_key(public_exponent=65537, key_size=2048)
    return {
        "type": "service_account",
        "project_id": "test",
        "private_key_id": "1",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "client_email": "original@test.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": tokens,
    }
