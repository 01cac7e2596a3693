"""The configuration of a store: one frozen model per backend, chosen by `type`."""

import base64
import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from worker.storage.durations_and_sizes import Size
from worker.storage.local_paths import LocalPath
from zot_artifact_client.http_urls import Endpoint, parse_endpoint
from zot_artifact_client.input_rules import check_distinct

_REAL_NAME = re.compile(r"[A-Za-z0-9._$-]{1,255}|arn:[A-Za-z0-9:/._$-]{1,2000}")
_REAL_PATTERN = re.compile(r"[A-Za-z0-9._$*?-]{1,255}")


class _StoreConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _readable_class(name: str) -> str:
    if name in {"GLACIER", "DEEP_ARCHIVE"}:
        msg = f"{name} keeps objects that cannot be read at once, so they cannot be verified; use GLACIER_IR"
        raise ValueError(msg)
    return name


def _mode(text: object) -> object:
    """Return the mode in a text of octal digits; a number is an error, because YAML reads 0640 and 640 differently."""
    if isinstance(text, str) and re.fullmatch(r"[0-7]{3,4}", text):
        return int(text, 8)
    msg = 'is no mode: write octal digits in quotes, such as "0640"'
    raise ValueError(msg)


def _file_mode(mode: int) -> int:
    return _with_owner(mode, 0o600, 0o777)


def _dir_mode(mode: int) -> int:
    return _with_owner(mode, 0o700, 0o3777)


def _with_owner(mode: int, least: int, most: int) -> int:
    if mode & least != least or mode & ~most:
        msg = f"{mode:04o} cannot be used: the worker itself needs {least:04o}, and at most {most:04o} is possible"
        raise ValueError(msg)
    return mode


def _plain_secret(secret: SecretStr) -> SecretStr:
    """Return a secret that can be part of a header; the end of a line in a file of secrets is not meant to be."""
    text = secret.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        msg = "it is empty, or has white space, a control character or a letter that is not ASCII"
        raise ValueError(msg)
    return secret


def _trimmed(text: str) -> str:
    if text != text.strip() or not text.isprintable():
        msg = "there is white space around it, or a control character in it"
        raise ValueError(msg)
    return text


def _base64_secret(secret: SecretStr) -> SecretStr:
    try:
        base64.b64decode(secret.get_secret_value(), validate=True)
    except ValueError:
        msg = "it is no key of an account, which is base64"
        raise ValueError(msg) from None
    return secret


def _sas_token(secret: SecretStr) -> SecretStr:
    if "://" in secret.get_secret_value():
        msg = "it is the part behind the '?' of the address alone"
        raise ValueError(msg)
    return secret


def _real_name(name: str | None) -> str | None:
    if name is not None and not _REAL_NAME.fullmatch(name):
        msg = "it is the name of one bucket or container, without a scheme and without a path: letters, digits and ._$-"
        raise ValueError(msg)
    return name


def _real_pattern(pattern: str) -> str:
    if not _REAL_PATTERN.fullmatch(pattern):
        msg = "it is the name of a bucket or container, in which * and ? are allowed: letters, digits and ._$-"
        raise ValueError(msg)
    return pattern


Secret = Annotated[SecretStr, AfterValidator(_plain_secret)]
Text = Annotated[str, AfterValidator(_trimmed)]
RealName = Annotated[str | None, AfterValidator(_real_name)]
RealPattern = Annotated[str, AfterValidator(_real_pattern)]


class FilesystemConfig(_StoreConfig):
    """A directory that holds `bucket/key`, with each object's SHA-256 in `bucket/key.sha256`."""

    type: Literal["filesystem"] = "filesystem"
    root: LocalPath
    digest: Literal["sidecar", "xattr"] = "sidecar"
    """Where the SHA-256 of a written object is kept: in `key.sha256`, or in an attribute of its file. Both are read."""
    file_mode: Annotated[int, BeforeValidator(_mode), AfterValidator(_file_mode)] | None = None
    """Mode of the files that are written, in octal digits, such as "0640"; for the worker's user alone by default."""
    dir_mode: Annotated[int, BeforeValidator(_mode), AfterValidator(_dir_mode)] | None = None
    """Mode of the directories that are made, such as "0750" or "2770"; for the worker's user alone by default."""
    verify_cached: bool = False
    """Whether small files may be verified from the page cache, which is faster and does not find what the disk lost."""


class CloudConfig(_StoreConfig):
    """The settings that all clouds share."""

    word: ClassVar[Literal["bucket", "container"]] = "bucket"
    """What the provider calls a bucket, and the setting that names the real one."""

    layout: Literal["prefixed", "native"] = "prefixed"
    """`native`: every logical bucket is a real bucket of the same name."""
    buckets: Annotated[tuple[RealPattern, ...], AfterValidator(check_distinct)] = ()
    """With `native`: the real buckets that are searched for stale uploads, and for objects that the catalogue does not
    know; `*` and `?` are allowed."""
    reserved_bucket: RealName = None
    """With `native`: the real bucket that holds quarantine and probes, under `.zot-reserved/`; it must exist."""
    read_back: bool | None = None
    """Whether each write is read back before it counts; by default where the store does not refuse a wrong checksum."""
    data_path: Literal["auto", "sdk"] = "auto"
    """`auto`: small objects are read and written without the provider's SDK, where that can do what is configured, at a
    fraction of the processor time. `sdk`: every request is made by the SDK."""
    part_size: Annotated[Size, Field(ge=1)] = Size(16 * 1024 * 1024)
    """Smallest part of a multipart upload; parts grow so that as many as the store allows hold the object."""

    @property
    def real_bucket(self) -> str | None:
        """Return the real bucket of the layout `prefixed`."""
        found: str | None = getattr(self, self.word)
        return found

    @model_validator(mode="after")
    def _fits_layout(self) -> Self:
        if self.layout == "prefixed" and (self.buckets or self.reserved_bucket):
            msg = (
                "`buckets` and `reserved_bucket` are for the layout 'native': 'prefixed' has one bucket for everything"
            )
            raise ValueError(msg)
        if self.layout == "prefixed" and not self.real_bucket:
            msg = f"the layout 'prefixed' needs `{self.word}`"
            raise ValueError(msg)
        return self


class S3Config(CloudConfig):
    """A bucket of Amazon S3, or of anything that speaks S3.

    Without configured keys the SDK's own chain finds credentials: environment, shared files, roles.
    """

    type: Literal["s3"] = "s3"
    bucket: RealName = None
    """The real bucket; logical buckets are the first path segment of the keys in it. Required for `prefixed`."""
    endpoint: str | None = None
    """URL of a compatible store; Amazon's own endpoint by default."""
    region: str | None = None
    provider: Literal["aws", "minio", "spaces", "wasabi", "b2", "ceph", "seaweedfs", "other"] | None = None
    """Which dialect the endpoint speaks: `aws` without an endpoint, `other` with one."""
    addressing: Literal["auto", "path", "virtual"] | None = None
    """How the bucket is named in requests; `path` by default where an endpoint is configured."""
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    profile: Text | None = None
    """A profile of the SDK's shared configuration files."""
    bucket_owner: Annotated[str, Field(pattern=r"^[0-9]{12}$")] | None = None
    """The account, 12 digits, that must own the buckets: requests to another account's bucket are refused."""
    checksums: Literal["when_supported", "when_required"] | None = None
    """Whether the SDK adds its own transport checksums; by provider if left out."""
    conditional_writes: bool | None = None
    """Whether If-None-Match and If-Match are sent with writes; by provider if left out."""
    storage_class: Annotated[Text, AfterValidator(_readable_class)] | None = None
    """Such as STANDARD_IA or INTELLIGENT_TIERING; the bucket's own default if left out."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption to ask for with each write; the bucket's own default if left out."""
    kms_key_id: Text | None = None
    """The key for `aws:kms`; the account's default key if left out."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None:
            return None
        credentials = "keys belong in access_key_id and secret_access_key"
        found = parse_endpoint(url, example="https://s3.example.com", credentials=credentials)
        if "_" in found.host:
            msg = "the SDK takes no host with an underscore in it"
            raise ValueError(msg)
        _check_no_bucket(found, info.data.get("bucket"), no_path=found.host.endswith(".amazonaws.com"))
        return found.text

    @field_validator("region")
    @classmethod
    def _region(cls, region: str | None) -> str | None:
        if region is not None and not re.fullmatch(r"(?![0-9]+$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)", region):
            msg = "it is no region, such as eu-west-1: letters, digits and '-'"
            raise ValueError(msg)
        return region

    @model_validator(mode="after")
    def _complete(self) -> "S3Config":
        if (self.access_key_id is None) != (self.secret_access_key is None):
            msg = "access_key_id and secret_access_key come together, or not at all"
            raise ValueError(msg)
        if self.kms_key_id and self.encryption not in {"aws:kms", "aws:kms:dsse"}:
            msg = "kms_key_id needs `encryption: aws:kms`"
            raise ValueError(msg)
        return self


class GcsConfig(CloudConfig):
    """A bucket of Google Cloud Storage.

    Without a file or `anonymous`, the application default credentials are used: environment, gcloud, the machine's
    service account, workload identity.
    """

    type: Literal["gcs"] = "gcs"
    bucket: RealName = None
    """The real bucket; logical buckets are the first path segment of the keys in it. Required for `prefixed`."""
    project: Text | None = None
    """Who owns the buckets that are made and listed; the credentials' own project by default."""
    endpoint: str | None = None
    """URL of an emulator or a private endpoint; Google's own by default."""
    credentials_file: LocalPath | None = None
    """A service account's key, or the configuration of workload identity federation, as JSON."""
    anonymous: bool = False
    """No credentials at all, as emulators want it; only with an explicit `endpoint`."""
    kms_key: Text | None = None
    """Resource name of the Cloud KMS key that objects are encrypted with; the bucket's own by default."""
    storage_class: Literal["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"] | None = None
    """The bucket's own by default."""
    compose: bool | None = None
    """Whether large objects are sent as part objects, several at once, that are composed and then deleted.

    By default unless `storage_class` is colder than STANDARD, which charges for every early deletion. Switch it off for
    buckets with a retention policy, or whose own class is a cold one: they are then sent in one resumable upload.
    """
    compose_above: Size = Size(0)
    """Up to so many bytes an object is sent in one resumable upload all the same; see `compose`.

    Each part object is charged for when it is made and when it is composed; Google's own tools begin at 150 MiB.
    """

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None:
            return None
        credentials = "credentials belong in credentials_file"
        found = parse_endpoint(url, example="https://storage.googleapis.com", credentials=credentials)
        _check_no_bucket(found, info.data.get("bucket"))
        return found.text

    @model_validator(mode="after")
    def _complete(self) -> "GcsConfig":
        if self.anonymous and not self.endpoint:
            msg = "`anonymous` is for emulators: it needs an explicit `endpoint`"
            raise ValueError(msg)
        if self.anonymous and self.credentials_file:
            msg = "`anonymous` and `credentials_file` exclude each other"
            raise ValueError(msg)
        return self


class AzureConfig(CloudConfig):
    """A container of Azure Blob Storage.

    Without a connection string, key or token, DefaultAzureCredential finds credentials: environment, workload identity,
    managed identity, the tools a developer is signed in to.
    """

    word = "container"
    type: Literal["azure"] = "azure"
    container: RealName = None
    """The real container; logical buckets are the first path segment of the names in it. Required for `prefixed`.

    With `native` every logical bucket is a container, whose name must follow Azure's stricter rule.
    """
    account_url: str | None = None
    """Such as https://ACCOUNT.blob.core.windows.net; this or a connection string."""
    connection_string: SecretStr | None = None
    account_key: Annotated[Secret, AfterValidator(_base64_secret)] | None = None
    sas_token: Annotated[Secret, AfterValidator(_sas_token)] | None = None
    """A shared access signature, without the address before it."""
    api_version: Text = "2026-02-06"
    """The version of the REST interface; from this one on, a listing can start after a key."""
    encryption_scope: Text | None = None
    access_tier: Literal["hot", "cool", "cold"] | None = None
    """The account's default tier if left out. Archived objects cannot be read, so they cannot be verified."""

    @field_validator("account_url")
    @classmethod
    def _account_url(cls, url: str | None, info: ValidationInfo) -> str | None:
        return None if url is None else _azure_endpoint(url, info.data.get("container")).text

    @field_validator("connection_string")
    @classmethod
    def _connection_string(cls, string: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if string is None:
            return None
        fields = connection_fields(string)
        if "BLOBENDPOINT" in fields:
            try:
                _azure_endpoint(fields["BLOBENDPOINT"], info.data.get("container"))
            except ValueError as error:
                msg = f"BlobEndpoint: {error}"
                raise ValueError(msg) from None
        elif "ACCOUNTNAME" not in fields:
            msg = (
                "it has neither AccountName nor BlobEndpoint; expected is NAME=VALUE;NAME=VALUE as the portal shows it"
            )
            raise ValueError(msg)
        if fields.get("DEFAULTENDPOINTSPROTOCOL", "https").lower() not in {"http", "https"}:
            msg = "DefaultEndpointsProtocol is https or http"
            raise ValueError(msg)
        if "ACCOUNTKEY" in fields:
            _base64_secret(SecretStr(fields["ACCOUNTKEY"]))
        return string

    @model_validator(mode="after")
    def _complete(self) -> "AzureConfig":
        if (self.account_url is None) == (self.connection_string is None):
            msg = "an azure store needs either `account_url` or `connection_string`"
            raise ValueError(msg)
        if sum(found is not None for found in (self.connection_string, self.account_key, self.sas_token)) > 1:
            msg = "give one of `connection_string`, `account_key` and `sas_token`, or none of them"
            raise ValueError(msg)
        return self


def connection_fields(string: SecretStr) -> dict[str, str]:
    """Return what a connection string says, under upper-case names."""
    pairs = (pair.partition("=") for pair in string.get_secret_value().split(";"))
    return {name.strip().upper(): value for name, _, value in pairs if value}


def _azure_endpoint(url: str, container: str | None) -> Endpoint:
    credentials = "a shared access signature belongs in sas_token, a key in account_key"
    found = parse_endpoint(url, example="https://ACCOUNT.blob.core.windows.net", credentials=credentials)
    # The address of an emulator ends in the name of its account.
    inside = container if found.path.count("/") > 1 else None
    _check_no_bucket(found, inside, no_path=found.host.endswith(".blob.core.windows.net"))
    return found


def _check_no_bucket(endpoint: Endpoint, bucket: str | None, *, no_path: bool = False) -> None:
    """Refuse the address of a bucket in place of that of a store: every object would be looked for in a wrong place."""
    if endpoint.path and (no_path or endpoint.path.rpartition("/")[2] == bucket):
        msg = "the URL has a path behind it: the name of the bucket or container is a setting of its own"
        raise ValueError(msg)


StoreConfig = Annotated[FilesystemConfig | S3Config | GcsConfig | AzureConfig, Field(discriminator="type")]
