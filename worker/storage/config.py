"""How a store is configured: one frozen model per backend, told apart by `type`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from worker.storage.units import Size


class _StoreConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class FilesystemConfig(_StoreConfig):
    """A directory that holds `bucket/key`, with each object's SHA-256 in `bucket/key.sha256`."""

    type: Literal["filesystem"] = "filesystem"
    root: Path


class S3Config(_StoreConfig):
    """A bucket of Amazon S3, or of anything that speaks S3.

    Without configured keys the SDK's own chain finds credentials: environment, shared files, roles.
    """

    type: Literal["s3"] = "s3"
    bucket: str | None = None
    """The real bucket; logical buckets are the first path segment of the keys in it. Required for `prefixed`."""
    layout: Literal["prefixed", "native"] = "prefixed"
    """`native`: every logical bucket is a real bucket of the same name."""
    endpoint: str | None = None
    """URL of a compatible store; Amazon's own endpoint by default."""
    region: str | None = None
    provider: Literal["aws", "minio", "spaces", "wasabi", "b2", "ceph", "seaweedfs", "other"] | None = None
    """Which dialect the endpoint speaks: `aws` without an endpoint, `other` with one."""
    addressing: Literal["auto", "path", "virtual"] | None = None
    """How the bucket is named in requests; `path` by default where an endpoint is configured."""
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    profile: str | None = None
    """A profile of the SDK's shared configuration files."""
    checksums: Literal["when_supported", "when_required"] | None = None
    """Whether the SDK adds its own transport checksums; by provider if left out."""
    conditional_writes: bool | None = None
    """Whether If-None-Match and If-Match are sent with writes; by provider if left out."""
    part_size: Size = Size(16 * 1024 * 1024)
    """Smallest part of a multipart upload; parts grow so that 10,000 of them hold the object."""

    @model_validator(mode="after")
    def _complete(self) -> "S3Config":
        if self.layout == "prefixed" and not self.bucket:
            msg = "an s3 store with the layout 'prefixed' needs `bucket`"
            raise ValueError(msg)
        if (self.access_key_id is None) != (self.secret_access_key is None):
            msg = "access_key_id and secret_access_key come together, or not at all"
            raise ValueError(msg)
        return self


StoreConfig = Annotated[FilesystemConfig | S3Config, Field(discriminator="type")]
