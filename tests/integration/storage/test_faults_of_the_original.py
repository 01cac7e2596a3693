"""The ten faults of the original store, each with the test that would fail on it."""

import hashlib
import io
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.targets import PART, filesystem, s3_config, s3_ministack
from tests.servers import Ministack, RcloneS3
from tests.servers.process import REPOSITORY
from tests.servers.proxy import Cut, Fault, FaultyProxy, Request, Say
from tests.waiting import WITHIN
from worker import clock
from worker.cli.errors import Failure
from worker.cli.fetch_artifact import fetch
from worker.cli.session import Session
from worker.context import Context
from worker.settings import Settings
from worker.storage import FilesystemConfig, S3Config, Store, Verdict
from worker.storage.configured_stores import open_driver
from worker.storage.errors import DigestMismatch, NotFound, PermanentError, TransientError
from worker.storage.integrity.manifest import CHUNK_SIZE, compute_digests

MIB = 1024 * 1024


@pytest.fixture
def s3(ministack: Ministack, tmp_path: Path) -> Iterator[Store]:
    """Return a store in a real bucket of its own."""
    store = s3_ministack(ministack, tmp_path).store
    yield store
    store.close()


@pytest.fixture
def files(tmp_path: Path) -> Store:
    """Return a store below `tmp_path/root`."""
    (tmp_path / "root").mkdir()
    return filesystem(tmp_path / "root").store


@pytest.fixture
def through(ministack: Ministack, s3: Store, tmp_path: Path) -> Iterator[Callable[..., tuple[Store, FaultyProxy]]]:
    """Return what opens the store's real bucket once more, through a proxy with faults."""
    with ExitStack() as stack:

        def open_line(fault: Callable[[Request], Fault]) -> tuple[Store, FaultyProxy]:
            proxy = stack.enter_context(FaultyProxy(ministack.port, fault))
            config = config_of(s3).model_copy(update={"endpoint": proxy.endpoint})
            store = Store(open_driver("faulty", config), spool_dir=tmp_path)
            stack.callback(store.close)
            return store, proxy

        yield open_line


def config_of(store: Store) -> S3Config:
    config: S3Config = store._driver._config  # type: ignore[attr-defined]
    return config


def client_of(store: Store) -> Any:
    """Return a client that goes beside our back."""
    config = config_of(store)
    assert config.access_key_id
    assert config.secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=config.endpoint,
        region_name="us-east-1",
        aws_access_key_id=config.access_key_id.get_secret_value(),
        aws_secret_access_key=config.secret_access_key.get_secret_value(),
    )


def rot(store: Store, bucket: str, key: str, at: int = 0) -> None:
    """Flip a bit of an object in S3 as a disk would: its size, its metadata and the digest in them stay."""
    client, place = client_of(store), {"Bucket": config_of(store).bucket, "Key": f"{bucket}/{key}"}
    found = client.get_object(**place)
    body = bytearray(found["Body"].read())
    body[at] ^= 1
    client.put_object(**place, Body=bytes(body), Metadata=found["Metadata"])


def write(store: Store, data: bytes, bucket: str = "releases", key: str = "app") -> None:
    store.write_object(bucket, key, source(data))


def read(store: Store, bucket: str = "releases", key: str = "app") -> bytes:
    with store.read_object(bucket, key) as reader:
        return b"".join(reader)


def test_1_logical_buckets_do_not_overwrite_each_other(s3: Store) -> None:
    """Fault: all logical buckets shared the keys of the one real bucket, so that the last writer of a key won."""
    write(s3, b"of releases", "releases")
    write(s3, b"of nightly", "nightly")
    assert (read(s3, "releases"), read(s3, "nightly")) == (b"of releases", b"of nightly")
    listing = client_of(s3).list_objects_v2(Bucket=config_of(s3).bucket)["Contents"]
    assert {row["Key"] for row in listing} >= {"releases/app", "nightly/app"}
    s3.delete_object("nightly", "app")
    assert read(s3, "releases") == b"of releases"


class TestBadReads:
    """Fault: a bad read was noticed only after its bytes had been handed out."""

    def test_2_no_file_comes_of_one(self, files: Store, tmp_path: Path) -> None:
        """Bringing back a rotten copy leaves no file: the old one is as it was, and nothing is beside it."""
        config = FilesystemConfig(root=tmp_path / "root")
        context = Context.open(Settings(home=tmp_path / "home", stores={"only": config}))
        stat, digest = files.write_object("releases", "app", source(b"right"))
        artifact = context.catalogue.artifacts.record("releases", "app", digest, {}, clock.now()).artifact
        context.catalogue.artifacts.ensure_copy(artifact, "only")
        now = clock.now()
        context.catalogue.artifacts.finish_copy(artifact, "only", tag=stat.version, evidence={}, now=now)
        (tmp_path / "root" / "releases" / "app").write_bytes(b"wrong")
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "app").write_bytes(b"from before")
        with pytest.raises(Failure, match="no copy could be read and verified"):
            fetch(
                Session(context.settings, context.catalogue, context.stores),
                artifact,
                tmp_path / "to" / "app",
                lambda _: None,
            )
        context.close()
        assert [(path.name, path.read_bytes()) for path in (tmp_path / "to").iterdir()] == [("app", b"from before")]

    @pytest.mark.parametrize("size", [1000, PART + 1])
    def test_2_no_copy_comes_of_one(self, s3: Store, files: Store, size: int) -> None:
        """What is copied from a rotten object raises before its end is told, and the target shows nothing of it."""
        write(s3, some_bytes(size))
        rot(s3, "releases", "app", size // 2)
        with s3.read_object("releases", "app") as reader, pytest.raises(DigestMismatch):
            files.write_object("releases", "app", reader)
        with pytest.raises(NotFound):
            files.stat_object("releases", "app")
        with s3.read_object("releases", "app") as reader, pytest.raises(DigestMismatch):
            list(iter(lambda: reader.read(MIB), b""))


def test_3_ranges_are_checked(s3: Store) -> None:
    """Fault: ranges were never checked. With the chunk digests each byte is proved; without, a range says it is not."""
    data = some_bytes(CHUNK_SIZE + 1000)
    write(s3, data)
    _, manifest = compute_digests(source(data), size=len(data), what="data")
    rot(s3, "releases", "app", CHUNK_SIZE + 500)
    with s3.read_object_range("releases", "app", 10, 20, manifest=manifest) as reader:
        assert (reader.verified, reader.read()) == (True, data[10:30])
    with (
        s3.read_object_range("releases", "app", CHUNK_SIZE + 10, 20, manifest=manifest) as reader,
        pytest.raises(DigestMismatch, match="releases/app"),
    ):
        reader.read()
    with s3.read_object_range("releases", "app", CHUNK_SIZE + 10, 20) as reader:
        assert not reader.verified


def test_4_the_stored_digest_is_no_verification(s3: Store, files: Store, tmp_path: Path) -> None:
    """Fault: the digest that was stored was passed off as verification. Ours reads all bytes, and calls rot corrupt."""
    for store in (s3, files):
        write(store, b"right bytes")
    rot(s3, "releases", "app")
    (tmp_path / "root" / "releases" / "app").write_bytes(b"wrong bytes")
    for store in (s3, files):
        seen: list[int] = []
        assert store.stat_object("releases", "app").sha256 == digest_of(b"right bytes").sha256
        found = store.verify_object("releases", "app", on_bytes=seen.append)
        assert found.verdict is Verdict.CORRUPT
        assert found.sha256 != digest_of(b"right bytes").sha256
        assert sum(seen) == len(b"right bytes")


@pytest.mark.parametrize(("status", "code"), [(400, b"InvalidRequest"), (401, b"Unauthorized"), (403, b"AccessDenied")])
def test_5_what_is_refused_is_asked_once(
    through: Callable[..., tuple[Store, FaultyProxy]], status: int, code: bytes
) -> None:
    """Fault: 401, 403 and 400 were tried again. Here neither the request is, nor the job: the error is permanent."""
    body = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>no</Message></Error>" % code
    store, proxy = through(lambda request: Say(status, body) if request.path.endswith("/app") else None)
    asks: list[tuple[str, Callable[[], object]]] = [
        ("PUT", lambda: write(store, b"x")),
        ("GET", lambda: store._driver.open("releases", "app")),
    ]
    if status != 400:  # where Amazon answers HEAD with that, the SDK looks for the bucket's region and asks once there
        asks.append(("HEAD", lambda: store.stat_object("releases", "app")))
    for method, ask in asks:
        proxy.requests.clear()
        with pytest.raises(PermanentError) as refused:
            ask()
        assert not isinstance(refused.value, TransientError)
        assert [r.method for r in proxy.requests if r.path.endswith("/app")] == [method]


@pytest.mark.parametrize("kind", ["s3", "files"])
def test_6_no_object_is_in_memory(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    """Fault: an object was in memory twice, once for its digest and once for retries. Here not even once."""
    size = 24 * PART
    body = tmp_path / "body"
    body.write_bytes(some_bytes(size))
    store: Store = request.getfixturevalue(kind)
    write(store, some_bytes(PART + 1))  # what the SDK loads once is no part of the object
    with body.open("rb") as opened:
        assert peak(lambda: store.write_object("releases", "app", opened)) < size // 2
    assert peak(lambda: store.verify_object("releases", "app")) < size // 2


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [100_000, 9 * MIB])
def test_7_a_body_that_breaks_in_the_middle_goes_on_there(
    s3: Store, through: Callable[..., tuple[Store, FaultyProxy]], size: int
) -> None:
    """Fault: only the opening of a body was tried again. Here what breaks in its middle continues where it broke."""
    write(s3, some_bytes(size))
    cuts = [Cut(70_000)]
    store, proxy = through(lambda request: cuts.pop() if cuts and request.method == "GET" else None)
    assert read(store) == some_bytes(size)
    assert cuts == []
    assert len([r for r in proxy.requests if r.method == "GET"]) > 1


def test_8_static_keys_are_not_needed(rclone: RcloneS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the configuration had to hold keys. Without them the SDK's own chain finds what the machine has."""
    config = s3_config(rclone, access_key_id=None, secret_access_key=None, conditional_writes=False)
    assert config.bucket
    (rclone.files / config.bucket).mkdir(parents=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rclone.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rclone.secret_access_key)
    store = Store(open_driver("keyless", config), spool_dir=tmp_path)
    write(store, b"signed with keys of the environment")
    assert read(store) == b"signed with keys of the environment"
    store.close()


@pytest.mark.parametrize("kind", ["s3", "files"])
def test_9_buckets_are_made(request: pytest.FixtureRequest, kind: str) -> None:
    """Fault: creating a bucket did nothing, and said that it had. Here it does, and says whether it was there."""
    store: Store = request.getfixturevalue(kind)
    assert not store.bucket_exists("nightly")
    assert store.create_bucket("nightly")
    assert not store.create_bucket("nightly")
    assert store.bucket_exists("nightly")
    write(store, b"in it", "nightly")
    assert read(store, "nightly") == b"in it"


class TestFilesystemWrites:
    """Fault: writers of a key shared the name of their temporary file, and the sidecar came after the rename."""

    def test_10_writers_do_not_share_a_temporary_file(self, files: Store) -> None:
        """Two that write one key at the same time, one inside the other, leave one of the two, whole."""
        first, second = some_bytes(200_000, 1), some_bytes(300_000, 2)
        half_way, go_on = threading.Event(), threading.Event()

        class Paused(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if self.tell():
                    half_way.set()
                    assert go_on.wait(WITHIN)
                return super().read(min(size or -1, 100_000))

        outer = threading.Thread(target=lambda: files.write_object("releases", "app", Paused(first)))
        outer.start()
        assert half_way.wait(WITHIN)
        write(files, second)
        assert read(files) == second
        go_on.set()
        outer.join()
        assert files.verify_object("releases", "app").verdict is Verdict.VERIFIED
        assert read(files) == first

    @pytest.mark.parametrize("before", [None, b"old bytes"])
    def test_10_data_never_appears_without_its_digest(self, files: Store, tmp_path: Path, before: bytes | None) -> None:
        """A writer that dies at the very moment its data is in place leaves new bytes with their own digest."""
        if before:
            write(files, before)
        program = f"""
import io, os
from tests.conformance.targets import filesystem
from pathlib import Path
rename = os.rename
def rename_and_die(source, target, **directories):
    rename(source, target, **directories)
    if target == "app":
        os._exit(9)
os.rename = rename_and_die
filesystem(Path({str(tmp_path / "root")!r})).store.write_object("releases", "app", io.BytesIO(b"new bytes"))
"""
        died = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, timeout=WITHIN, check=False)
        assert died.returncode == 9
        found = files.verify_object("releases", "app")
        assert (found.verdict, found.sha256) == (Verdict.VERIFIED, hashlib.sha256(b"new bytes").hexdigest())
