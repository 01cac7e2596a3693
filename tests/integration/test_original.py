"""Data as the original store wrote it is read as it stands, and what we write, the original can read."""

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.conformance.bodies import some_bytes, source
from tests.conformance.targets import PART, filesystem, s3_config
from tests.servers.s3 import S3Server
from worker.settings import load_settings
from worker.storage import Store, Verdict
from worker.storage.errors import DigestMismatch
from worker.storage.registry import Stores, open_driver

BODY = b"an artifact of the original"
DIGESTS = {"bare": "{0}", "newline": "{0}\n", "capitals": "{1}", "spaces": " {0} \r\n"}
"""How a digest may be written, by the way in which it came about."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def written(how: str, data: bytes) -> str:
    return DIGESTS[how].format(sha256(data), sha256(data).upper())


@dataclass(frozen=True)
class Original:
    """The original's filesystem backend in small: how it wrote an object, and how it read one."""

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


@dataclass(frozen=True)
class OriginalS3:
    """A real bucket as the original used it, and as it should have: the key at its top, or behind the logical bucket.

    Attributes:
        server: what speaks S3.
        client: goes beside our back.
        bucket: the real bucket.
    """

    server: S3Server
    client: Any
    bucket: str

    def write(self, key: str, data: bytes, metadata: dict[str, str]) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data, Metadata=metadata)

    def read(self, key: str) -> bytes:
        """Return an object, as the original did, whose SDK changed the case of names: the value is the very hex."""
        found = self.client.get_object(Bucket=self.bucket, Key=key)
        data: bytes = found["Body"].read()
        assert {name.lower(): value for name, value in found["Metadata"].items()}["sha256"] == sha256(data)
        return data


@pytest.fixture
def original(tmp_path: Path) -> Original:
    (tmp_path / "original").mkdir()
    return Original(tmp_path / "original")


@pytest.fixture
def files(original: Original) -> Store:
    return filesystem(original.root).store


@pytest.fixture(params=["ministack", "rclone"])
def original_s3(request: pytest.FixtureRequest) -> OriginalS3:
    server: S3Server = request.getfixturevalue(request.param)
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(s3={"addressing_style": "path"}),
    )
    bucket = f"original-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    return OriginalS3(server, client, bucket)


@pytest.fixture(params=["prefixed", "native"])
def s3(request: pytest.FixtureRequest, original_s3: OriginalS3, tmp_path: Path) -> "S3":
    """Return the store in one layout: `native` finds what the original left at the top of its bucket."""
    bucket = original_s3.bucket if request.param == "prefixed" else None
    config = s3_config(original_s3.server, bucket=bucket, layout=request.param, conditional_writes=False)
    store = Store(open_driver("s3", config), spool_dir=tmp_path)
    return S3(store, "releases", "releases/") if bucket else S3(store, original_s3.bucket, "")


@dataclass(frozen=True)
class S3:
    """A store in one layout: its logical bucket, and what stands before a key in the real one."""

    store: Store
    bucket: str
    before: str


def read(store: Store, bucket: str, key: str) -> bytes:
    with store.read_object(bucket, key) as reader:
        return b"".join(reader)


class TestFilesystem:
    @pytest.mark.parametrize("how", DIGESTS)
    def test_it_is_read_and_verified(self, original: Original, files: Store, how: str) -> None:
        """An object is read, held against its sidecar however that is written, and called what it is."""
        path = original.write("releases", "v1/app.tgz", BODY, written(how, BODY))
        with files.read_object("releases", "v1/app.tgz") as reader:
            assert (reader.verified, b"".join(reader)) == (True, BODY)
        assert files.get_object_hash("releases", "v1/app.tgz") == sha256(BODY)
        assert files.verify_object("releases", "v1/app.tgz").verdict is Verdict.VERIFIED
        path.write_bytes(BODY.swapcase())
        assert files.verify_object("releases", "v1/app.tgz").verdict is Verdict.CORRUPT
        with pytest.raises(DigestMismatch):
            read(files, "releases", "v1/app.tgz")

    @pytest.mark.parametrize("sidecar", [None, "", "no digest"])
    def test_without_a_digest_it_is_unverifiable_and_readable(
        self, original: Original, files: Store, sidecar: str | None
    ) -> None:
        """What no digest is kept of can be read, unverified and said to be; nothing calls it good or bad."""
        original.write("releases", "app.tgz", BODY, sidecar)
        with files.read_object("releases", "app.tgz") as reader:
            assert (reader.verified, b"".join(reader)) == (False, BODY)
        assert files.get_object_hash("releases", "app.tgz") is None
        assert files.verify_object("releases", "app.tgz").verdict is Verdict.UNVERIFIABLE

    def test_it_is_listed(self, original: Original, files: Store) -> None:
        """A listing has the keys and none of their sidecars, nor what the original's server kept in the same root."""
        keys = ["a.tgz", "a/b.tgz", "v1/app.tgz", "v1/app.tgz.sig", "ü ß.bin"]
        for key in keys:
            original.write("releases", key, BODY, sha256(BODY))
        original.write("releases", "no-digest", BODY, None)
        (original.root / "metadata.db").write_bytes(b"the server's own")
        found = {row.key: row.size for row in files.list_objects("releases")}
        assert found == dict.fromkeys([*keys, "no-digest"], len(BODY))
        assert [row.key for row in files.list_objects("releases", "v1/")] == ["v1/app.tgz", "v1/app.tgz.sig"]
        files.health_check()

    @pytest.mark.parametrize("before", [None, b"of the original"])
    def test_what_we_write_it_can_read(self, original: Original, files: Store, before: bytes | None) -> None:
        """An object of ours is data and bare hex where the original looks, also over one that it wrote itself."""
        if before:
            original.write("releases", "v1/app.tgz", before, sha256(before) + "\n")
        files.write_object("releases", "v1/app.tgz", source(BODY))
        assert original.read("releases", "v1/app.tgz") == BODY
        assert {path.name for path in (original.root / "releases" / "v1").iterdir()} == {"app.tgz", "app.tgz.sha256"}

    def test_what_we_delete_is_gone_for_it(self, original: Original, files: Store) -> None:
        """Deleting an object of the original's takes its sidecar along, so that no later object meets it."""
        path = original.write("releases", "app.tgz", BODY, sha256(BODY))
        assert files.delete_object("releases", "app.tgz")
        assert not path.exists()
        assert not path.with_name("app.tgz.sha256").exists()


class TestS3:
    @pytest.mark.parametrize("name", ["sha256", "Sha256", "SHA256"])
    @pytest.mark.parametrize("how", ["bare", "capitals"])
    def test_it_is_read_and_verified(self, original_s3: OriginalS3, s3: S3, name: str, how: str) -> None:
        """An object is held against its metadata, in whatever case name and value are, and called what it is."""
        original_s3.write(f"{s3.before}v1/app.tgz", BODY, {name: written(how, BODY)})
        with s3.store.read_object(s3.bucket, "v1/app.tgz") as reader:
            assert (reader.verified, b"".join(reader)) == (True, BODY)
        assert s3.store.get_object_hash(s3.bucket, "v1/app.tgz") == sha256(BODY)
        assert s3.store.verify_object(s3.bucket, "v1/app.tgz").verdict is Verdict.VERIFIED
        original_s3.write(f"{s3.before}v1/app.tgz", BODY.swapcase(), {name: written(how, BODY)})
        assert s3.store.verify_object(s3.bucket, "v1/app.tgz").verdict is Verdict.CORRUPT

    def test_without_a_digest_it_is_unverifiable_and_readable(self, original_s3: OriginalS3, s3: S3) -> None:
        """What no digest is kept of can be read, unverified and said to be; an ETag is no digest."""
        original_s3.write(f"{s3.before}app.tgz", BODY, {})
        with s3.store.read_object(s3.bucket, "app.tgz") as reader:
            assert (reader.verified, b"".join(reader)) == (False, BODY)
        assert s3.store.verify_object(s3.bucket, "app.tgz").verdict is Verdict.UNVERIFIABLE

    def test_it_is_listed(self, original_s3: OriginalS3, s3: S3) -> None:
        """A listing has the keys as they are, of this bucket only."""
        for key in ("a.tgz", "v1/app.tgz", "ü ß.bin"):
            original_s3.write(s3.before + key, BODY, {"sha256": sha256(BODY)})
        if s3.before:
            original_s3.write("nightly/other.tgz", BODY, {})
        assert [row.key for row in s3.store.list_objects(s3.bucket)] == ["a.tgz", "v1/app.tgz", "ü ß.bin"]

    @pytest.mark.parametrize("size", [1000, PART + 1])
    def test_what_we_write_it_can_read(self, original_s3: OriginalS3, s3: S3, size: int) -> None:
        """An object of ours, in one piece or in parts, has the metadata that the original looks for."""
        s3.store.write_object(s3.bucket, "v1/app.tgz", source(some_bytes(size)))
        assert original_s3.read(f"{s3.before}v1/app.tgz") == some_bytes(size)

    def test_it_is_replicated_there_and_back(
        self, original: Original, files: Store, original_s3: OriginalS3, s3: S3
    ) -> None:
        """A tree of the original's becomes a bucket that it can read, and a bucket a tree, proved on the way."""
        original.write("releases", "v1/app.tgz", BODY, sha256(BODY) + "\n")
        with files.read_object("releases", "v1/app.tgz") as reader:
            s3.store.write_object(s3.bucket, "v1/app.tgz", reader)
        assert original_s3.read(f"{s3.before}v1/app.tgz") == BODY
        original_s3.write(f"{s3.before}v2/app.tgz", BODY, {"SHA256": sha256(BODY).upper()})
        with s3.store.read_object(s3.bucket, "v2/app.tgz") as reader:
            files.write_object("releases", "v2/app.tgz", reader)
        assert original.read("releases", "v2/app.tgz") == BODY


class TestItsConfigurationFile:
    @pytest.fixture
    def default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
        """Open the one store of the original's file."""

        def default(text: str) -> Store:
            (tmp_path / "config.yaml").write_text(f"http: {{port: '8081'}}\n{text}\nlog: {{level: info}}")
            monkeypatch.setenv("ZOT_CONFIG", str(tmp_path / "config.yaml"))
            monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
            return Stores(load_settings().stores, spool_dir=tmp_path)["default"]

        return default

    def test_its_directory_is_opened(self, original: Original, default: Callable[[str], Store]) -> None:
        """The file that the original's server ran with opens the data that it wrote."""
        original.write("releases", "app.tgz", BODY, sha256(BODY))
        assert read(default(f"storage: {{rootDirectory: {original.root}}}"), "releases", "app.tgz") == BODY

    @pytest.mark.parametrize("layout", ["", "layout: native, "])
    def test_its_bucket_is_opened(self, original_s3: OriginalS3, default: Callable[[str], Store], layout: str) -> None:
        """The original's own names reach its bucket; `layout: native` finds what it wrote at the top of it."""
        bucket, key = (original_s3.bucket, "app.tgz") if layout else ("releases", "releases/app.tgz")
        original_s3.write(key, BODY, {"sha256": sha256(BODY)})
        server = original_s3.server
        store = default(
            f"storage: {{type: s3, s3: {{endpoint: '127.0.0.1:{server.port}', useSSL: false, {layout}"
            f"bucket: {original_s3.bucket}, region: us-east-1, accessKeyID: {server.access_key_id!r}, "
            f"secretAccessKey: {server.secret_access_key!r}}}}}"
        )
        assert read(store, bucket, "app.tgz") == BODY
        store.close()
