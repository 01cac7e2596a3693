"""The s3 driver with a bad network, a wrong configuration and an ill-behaved server."""

import base64
import re
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.targets import PART, make_s3_bucket, s3_client, s3_config, s3_ministack
from tests.servers import Ministack, RcloneS3
from tests.servers.proxy import Cut, Damage, Fault, FaultyProxy, Header, Lose, Request, Reset, Rewrite, Say
from worker.storage import Condition, Match, S3Config, Store, Verdict
from worker.storage.configured_stores import open_driver
from worker.storage.driver import ObjectProperties, WriteInfo
from worker.storage.errors import (
    AccessDenied,
    AlreadyExists,
    DigestMismatch,
    NotFound,
    PermanentError,
    PreconditionFailed,
    Throttled,
    TransientError,
    Unavailable,
    UploadEnded,
)
from worker.storage.integrity.manifest import Manifest
from worker.storage.s3 import driver as s3_driver
from worker.storage.store import WriteOptions
from worker.storage.transfer.multipart import Checkpoint, OpenUpload
from worker.storage.transfer.resumable_read import AHEAD, WINDOW

BUCKET = "releases"
XML = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>said the store</Message></Error>"


@pytest.fixture
def through(ministack: Ministack, tmp_path: Path) -> Iterator[Callable[[Callable[[Request], Fault]], "Line"]]:
    """Return what opens one real bucket twice: directly, and through a proxy with faults."""
    lines: list[Line] = []

    def open_line(fault: Callable[[Request], Fault], **changes: object) -> Line:
        direct = s3_ministack(ministack, tmp_path).store
        config: S3Config = direct._driver._config  # type: ignore[attr-defined]
        proxy = FaultyProxy(ministack.port, fault).__enter__()
        faulty = config.model_copy(update={"endpoint": proxy.endpoint, **changes})
        lines.append(Line(proxy, direct, Store(open_driver("faulty", faulty), spool_dir=tmp_path)))
        return lines[-1]

    yield open_line
    for line in lines:
        line.faulty.close()
        line.proxy.__exit__()
        assert list(line.direct.iter_stale_uploads()) == []
        line.direct.close()


class Line:
    def __init__(self, proxy: FaultyProxy, direct: Store, faulty: Store) -> None:
        self.proxy = proxy
        self.direct = direct
        self.faulty = faulty

    def write(self, data: bytes, condition: Condition = None) -> None:
        self.faulty.write_object(BUCKET, "app", source(data), condition=condition)

    def puts_of_the_sdk(self) -> int:
        """Return how many writes the SDK has sent, after at most one plain request."""
        puts = [request for request in self.proxy.requests if request.method == "PUT"]
        by_sdk = [request for request in puts if "Boto3" in request.headers.get("User-Agent", "")]
        assert len(puts) - len(by_sdk) <= 1
        return len(by_sdk)

    def read_directly(self) -> bytes:
        with self.direct.read_object(BUCKET, "app") as reader:
            return b"".join(reader)


@pytest.mark.parametrize("provider", ["aws", "minio"])
def test_a_delete_spares_what_came_after_the_look(through: Callable[..., Line], provider: str) -> None:
    """The version goes with the delete itself, also to a provider that may ignore it."""
    replaced: list[str] = []

    def replace_before(request: Request) -> Fault:
        if request.method == "DELETE":
            replaced.append(request.headers["If-Match"])
            line.direct.write_object(BUCKET, "app", source(b"newer"))
        return None

    line = through(replace_before, provider=provider)
    seen, _ = line.direct.write_object(BUCKET, "app", source(b"older"))
    with pytest.raises(PreconditionFailed):
        line.faulty.delete_object(BUCKET, "app", condition=Match(seen.version))
    assert replaced == [f'"{seen.version}"']
    assert line.direct.stat_object(BUCKET, "app").size == 5


@pytest.mark.parametrize("listed", [True, False])
def test_an_object_without_an_etag_is_deleted(through: Callable[..., Line], *, listed: bool) -> None:
    """Where a proxy strips the version it comes from a listing; a store that gives none there is asked without one."""

    def strip(request: Request) -> Fault:
        if request.method == "HEAD":
            return Header("ETag")
        return None if listed else Rewrite(lambda body: re.sub(rb"<ETag>.*?</ETag>", b"", body))

    line = through(strip, provider="minio")
    written, _ = line.direct.write_object(BUCKET, "app", source(b"x"))
    version = line.faulty.get_object_version(BUCKET, "app")
    assert version == (written.version if listed else "")
    with pytest.raises(PreconditionFailed):
        line.faulty.delete_object(BUCKET, "app", condition=Match("another"))
    assert line.faulty.delete_object(BUCKET, "app", condition=Match(version))
    asked = [each.headers.get("If-Match") for each in line.proxy.requests if each.method == "DELETE"]
    assert asked == [f'"{version}"' if listed else None]
    assert not line.direct.object_exists(BUCKET, "app")
    with pytest.raises(NotFound):
        line.faulty.get_object_version(BUCKET, "app")


def once(fault: Fault, method: str, part_of_path: str = "") -> Callable[[Request], Fault]:
    """Return what lets the first request of this kind go wrong."""
    left = [fault]

    def decide(request: Request) -> Fault:
        return left.pop() if left and request.method == method and part_of_path in request.path else None

    return decide


def always(fault: Fault, method: str, part_of_path: str = "") -> Callable[[Request], Fault]:
    return lambda request: fault if request.method == method and part_of_path in request.path else None


def sent_sums(line: Line) -> list[str]:
    """Return the checksums of the parts that were sent, and not copied."""
    parts = [request.headers for request in line.proxy.requests if "partNumber=" in request.path]
    return [headers.get("x-amz-checksum-sha256", "none") for headers in parts if "x-amz-copy-source" not in headers]


class TestLostAnswers:
    @pytest.mark.parametrize("size", [100, PART + 1])
    @pytest.mark.parametrize("condition", [None, "create_only", "match"])
    def test_our_own_write_is_recognised(self, through: Callable[..., Line], size: int, condition: str | None) -> None:
        """A write whose answer is lost succeeds once: the SDK's second try meets our own object and is no conflict."""
        line = through(once(Lose(), "PUT", "/app") if size < PART else once(Lose(), "POST", "uploadId"))
        wanted: Condition = None if condition is None else "create_only"
        if condition == "match":
            wanted = Match(line.direct.write_object(BUCKET, "app", source(b"before"))[0].version)
        line.write(some_bytes(size), wanted)
        assert line.read_directly() == some_bytes(size)

    def test_a_refusal_alone_is_not_final(self, through: Callable[..., Line]) -> None:
        """A refusal after a lost answer may mean our own object: if it cannot be asked for, the job tries again."""
        lost = once(Lose(), "PUT", "/app")
        line = through(lambda request: lost(request) or (Reset() if request.method == "HEAD" else None))
        with pytest.raises(TransientError, match="faulty: releases/app"):
            line.write(b"x", "create_only")
        assert line.read_directly() == b"x"

    @pytest.mark.parametrize("size", [100, PART + 1])
    def test_the_same_bytes_of_another_are_a_conflict(self, through: Callable[..., Line], size: int) -> None:
        """Another writer's object is a conflict even when its bytes are the same: they do not say who wrote them."""
        line = through(lambda _: None)
        line.direct.write_object(BUCKET, "app", source(some_bytes(size)))
        with pytest.raises(AlreadyExists):
            line.write(some_bytes(size), "create_only")


class TestBrokenTransfers:
    @pytest.mark.usefixtures("both_paths")
    @pytest.mark.parametrize("after", [0, 1])
    def test_cut_answer(self, through: Callable[..., Line], after: int) -> None:
        """An answer that ends too early is Unavailable and `unreadable`: it says nothing about the object's bytes."""
        line = through(always(Cut(after), "GET", "/app"))
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        with pytest.raises(Unavailable, match="releases/app"), line.faulty.read_object(BUCKET, "app") as reader:
            b"".join(reader)
        assert line.faulty.verify_object(BUCKET, "app").verdict is Verdict.UNREADABLE

    @pytest.mark.usefixtures("both_paths")
    def test_answer_that_breaks_in_the_middle(self, through: Callable[..., Line]) -> None:
        """A read that breaks continues where it broke, and the whole is held against the digest as if it had not."""
        line = through(always(Cut(70_000), "GET", "/app"))
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        with line.faulty.read_object(BUCKET, "app") as reader:
            assert b"".join(reader) == some_bytes(100_000)
        assert line.faulty.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    def test_part_that_never_arrives(self, through: Callable[..., Line]) -> None:
        """When a part fails for good the upload is ended, and the old content stays."""
        line = through(always(Say(500, XML % b"InternalError"), "PUT", "partNumber=2"))
        line.direct.write_object(BUCKET, "app", source(b"before"))
        with pytest.raises(Unavailable, match=r"releases/app: said the store \(InternalError\)"):
            line.write(some_bytes(2 * PART + 1))
        assert line.read_directly() == b"before"

    @pytest.mark.usefixtures("both_paths")
    def test_throttled(self, through: Callable[..., Line]) -> None:
        """A store that asks for fewer requests is Throttled, with its own wish, after four tries of the SDK."""
        line = through(always(Say(503, XML % b"SlowDown", {"Retry-After": "3"}), "PUT", "/app"))
        with pytest.raises(Throttled) as caught:
            line.write(b"x")
        assert caught.value.retry_after == 3
        assert line.puts_of_the_sdk() == 4

    @pytest.mark.usefixtures("both_paths")
    def test_refused_is_not_tried_again(self, through: Callable[..., Line]) -> None:
        """What the store refuses is asked once; a refused read may be of an object that is not there."""
        line = through(always(Say(403, XML % b"AccessDenied"), "PUT", "/app"))
        with pytest.raises(AccessDenied) as refused:
            line.write(b"x")
        assert len([request for request in line.proxy.requests if request.method == "PUT"]) == 1
        assert "s3:ListBucket" not in refused.value.message
        line = through(lambda request: Say(403, XML % b"AccessDenied" * (request.method == "GET")))
        for read in (line.faulty.stat_object, line.faulty.read_object):
            with pytest.raises(AccessDenied, match="s3:ListBucket"):
                read(BUCKET, "app")

    def test_range_that_is_ignored(self, through: Callable[..., Line]) -> None:
        """A store that answers a range with the whole is found out: its first bytes are not those asked for."""
        headers = {"ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}
        line = through(always(Say(200, b"0123456789", headers), "GET", "/app"))
        with pytest.raises(PermanentError, match="range"):
            line.faulty.read_object_range(BUCKET, "app", 3, 2)


class TestCopies:
    def test_tags_are_copied_in_parts_too(self, through: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
        """A copy above 5 GiB is made in parts, with the tags of its original, which one request copies by itself."""
        line = through(lambda _: None)
        tagged = ObjectProperties(tags="team=core&use=b")
        line.direct.write_object(BUCKET, "tagged", source(some_bytes(100)), properties=tagged)
        line.direct.write_object(BUCKET, "plain", source(some_bytes(100)))
        monkeypatch.setattr(s3_driver, "MAX_COPY", 50)
        for key, tags in (("tagged", tagged.tags), ("plain", None)):
            line.proxy.requests.clear()
            line.faulty._driver.copy(BUCKET, key, BUCKET, f"copy-of-{key}")  # type: ignore[attr-defined]
            [begun] = [request for request in line.proxy.requests if request.path.endswith("?uploads")]
            assert begun.headers.get("x-amz-tagging") == tags  # ministack forgets the tags of what comes in parts
            assert line.direct.verify_object(BUCKET, f"copy-of-{key}").verdict is Verdict.VERIFIED

    @pytest.mark.parametrize("refuses", [False, True], ids=["copies", "refuses"])
    def test_what_no_single_request_copies_is_quarantined_by_the_store(
        self, through: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, refuses: bool
    ) -> None:
        """Its bytes pass through the worker only where the store copies no parts."""
        answer = Say(501, XML % b"NotImplemented") if refuses else None
        line = through(lambda request: answer if "x-amz-copy-source" in request.headers else None)
        line.direct.write_object(BUCKET, "app", source(some_bytes(100)))
        monkeypatch.setattr(s3_driver, "MAX_COPY", 50)
        bucket, _, key = line.faulty.quarantine_object(BUCKET, "app", "job").partition("/")
        gets = [request.path for request in line.proxy.requests if request.method == "GET"]
        assert any(path.endswith(f"{BUCKET}/app") for path in gets) is refuses
        assert line.direct.verify_object(bucket, key).verdict is Verdict.VERIFIED


class TestDialects:
    def put_headers(self, line: Line) -> dict[str, str]:
        line.write(b"hello")
        [put] = [request for request in line.proxy.requests if request.method == "PUT"]
        return {name.lower(): value for name, value in put.headers.items()}

    def test_compatible_stores(self, through: Callable[..., Line]) -> None:
        """Stores that do not know the SDK's checksums get none, and the body's own SHA-256 is signed."""
        headers = self.put_headers(through(lambda _: None))
        assert not [name for name in headers if "checksum" in name or name in {"x-amz-trailer", "content-encoding"}]
        assert headers["x-amz-content-sha256"] == digest_of(b"hello").sha256

    def test_amazon(self, through: Callable[..., Line]) -> None:
        """Amazon gets a checksum with every write, so that it refuses what was damaged on the way."""
        assert "x-amz-checksum-sha256" in self.put_headers(through(lambda _: None, provider="aws"))

    @pytest.mark.parametrize("size", [100, PART + 1])
    def test_damage_on_the_way(self, through: Callable[..., Line], size: int) -> None:
        """A body that was damaged on the way is refused by the store, and the job may try again."""
        line = through(lambda request: Damage() if request.method == "PUT" else None, provider="aws")
        with pytest.raises(TransientError, match=r"releases/app: .*damaged on the way"):
            line.write(some_bytes(size))
        assert not line.direct.object_exists(BUCKET, "app")

    @pytest.mark.parametrize("provider, data_path", [("aws", "auto"), ("aws", "sdk"), ("minio", "auto")])
    def test_parts_are_compared_with_the_recorded_digests(
        self, through: Callable[..., Line], provider: str, data_path: str
    ) -> None:
        """Amazon gets the SHA-256 of each part, and refuses what a source has become since; elsewhere we compare."""
        line = through(lambda _: None, provider=provider, data_path=data_path)
        recorded = some_bytes(PART + 1)
        changed = recorded[:-1] + bytes([recorded[-1] ^ 1])
        digests = b"".join(bytes.fromhex(digest_of(chunk).sha256) for chunk in (recorded[:PART], recorded[PART:]))
        manifest = Manifest(PART + 1, PART, digests)
        known = WriteOptions(size=PART + 1, sha256=digest_of(recorded).sha256, manifest=manifest)
        with pytest.raises(DigestMismatch, match="in part 2, not the announced"):
            line.faulty.write_object(BUCKET, "app", source(changed), **known)
        assert not line.direct.object_exists(BUCKET, "app")
        completed: list[str] = []

        def see(params: dict[str, Any], **_: object) -> None:
            completed.extend(part.get("ChecksumSHA256") for part in params["MultipartUpload"]["Parts"])

        client = line.faulty._driver._client(committing=True)  # type: ignore[attr-defined]
        client.meta.events.register("provide-client-params.s3.CompleteMultipartUpload", see)
        line.proxy.requests.clear()
        line.faulty.write_object(BUCKET, "app", source(recorded), **known)
        assert line.read_directly() == recorded
        if provider != "aws":
            return
        sums = [base64.b64encode(bytes.fromhex(chunk.sha256)).decode() for chunk in manifest]
        assert sorted(sent_sums(line)) == sorted(sums)
        assert completed == sums
        if data_path == "auto":  # not by the SDK, which would compute it again
            signed = {each.headers["x-amz-content-sha256"] for each in line.proxy.requests if "partNumb" in each.path}
            assert signed == {chunk.sha256 for chunk in manifest}
        begun = [request.headers for request in line.proxy.requests if request.path.endswith("?uploads")]
        assert [headers["x-amz-checksum-algorithm"] for headers in begun] == ["SHA256"]
        bad, _ = line.direct.write_object(BUCKET, "app", source(changed))
        line.proxy.requests.clear()
        repaired = line.faulty.patch_object(
            bad, manifest, digest_of(recorded), [manifest.chunk(1)], lambda _: recorded[PART:]
        )
        assert repaired is not None
        assert sent_sums(line) == sums[1:]
        assert line.read_directly() == recorded

    def test_an_upload_with_other_checksums_begins_anew(self, through: Callable[..., Line]) -> None:
        """Amazon refuses a part with a SHA-256 in an upload that an earlier version has begun with CRC32."""
        algorithm = b"<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><Bucket>"

        def fault(request: Request) -> Fault:
            lists_parts = request.method == "GET" and "uploadId=" in request.path
            return Rewrite(lambda body: body.replace(b"<Bucket>", algorithm)) if lists_parts else None

        line = through(fault, provider="aws")
        token = line.faulty._driver.begin_upload(BUCKET, "app", WriteInfo(size=PART + 1))  # type: ignore[attr-defined]

        class Begun(Checkpoint):
            def resume(self) -> OpenUpload:
                return OpenUpload(token, PART, {})

        line.faulty.write_object(BUCKET, "app", source(some_bytes(PART + 1)), checkpoint=Begun())
        assert line.read_directly() == some_bytes(PART + 1)
        parts = [request.path for request in line.proxy.requests if "partNumber=" in request.path]
        assert not [path for path in parts if token.partition(":")[2] in path]


class TestTagsOfParts:
    """A store without Amazon's checksums returns the MD5 of a part as its tag, or gets that MD5 with the part."""

    SIZE = 3 * PART

    def parts(self, line: Line, which: str = "partNumber=") -> list[bool]:
        """Return of each part that was sent, of those that `which` is in the path of, whether it had its MD5."""
        sent = [request for request in line.proxy.requests if which in request.path]
        return ["Content-MD5" in request.headers for request in sent]

    def test_the_tag_is_compared(self, through: Callable[..., Line]) -> None:
        """Where the tag is the MD5 of the bytes, the store does not have to compute it twice."""
        line = through(lambda _: None)
        line.write(some_bytes(self.SIZE))
        assert self.parts(line) == [False, False, False]
        assert line.read_directly() == some_bytes(self.SIZE)

    def test_a_damaged_part_is_sent_again(self, through: Callable[..., Line]) -> None:
        """A part whose tag tells of other bytes is sent again at once, with its MD5; no part of the next write is."""
        damaged: list[int] = []

        def fault(request: Request) -> Fault:
            if "partNumber=2" not in request.path or damaged:
                return None
            damaged.append(2)
            return Damage(at=-60)

        line = through(fault)
        line.write(some_bytes(self.SIZE))
        assert self.parts(line, "partNumber=2") == [False, True]  # a part that is sent between the two may have it
        assert line.read_directly() == some_bytes(self.SIZE)
        line.proxy.requests.clear()
        line.write(some_bytes(self.SIZE, 2))
        assert self.parts(line) == [False] * 3

    @pytest.mark.parametrize(
        ("again", "told"),
        [
            (Damage(at=-60), "damaged on the way"),
            (Say(501, XML % b"NotImplemented"), "begin anew.* other bytes for part 2"),
        ],
        ids=["damaged", "refused"],
    )
    def test_a_part_that_is_damaged_again_makes_no_object(
        self, through: Callable[..., Line], again: Fault, told: str
    ) -> None:
        """If the store does not get the right bytes, also because it keeps the first ones, the job may try again."""

        def fault(request: Request) -> Fault:
            if "partNumber=2" not in request.path:
                return None
            return again if "Content-MD5" in request.headers else Damage(at=-60)

        line = through(fault)
        with pytest.raises(TransientError, match=told):
            line.write(some_bytes(self.SIZE))
        assert not line.direct.object_exists(BUCKET, "app")

    def test_an_upload_outlives_a_store_that_fails_meanwhile(self, through: Callable[..., Line]) -> None:
        """What the store has confirmed is not sent again, only because the next part could not be compared."""

        def fault(request: Request) -> Fault:
            if "partNumber=2" not in request.path:
                return None
            return Say(503, XML % b"SlowDown") if "Content-MD5" in request.headers else Header("ETag", '"odd"')

        line = through(fault)
        driver: Any = line.faulty._driver
        token = driver.begin_upload(BUCKET, "app", WriteInfo(size=2 * PART))
        first = driver.upload_part(BUCKET, "app", token, 1, some_bytes(PART))
        with pytest.raises(TransientError):
            driver.upload_part(BUCKET, "app", token, 2, some_bytes(PART))
        assert first in driver.list_parts(BUCKET, "app", token)
        driver.abort_upload(BUCKET, "app", token)

    def test_a_store_that_takes_no_other_bytes_for_a_part(self, rclone: RcloneS3) -> None:
        """If the second request repairs no damage, a new upload begins: the job does not fail for good."""
        config, healthy = s3_config(rclone, conditional_writes=False), list[bool]()
        make_s3_bucket(rclone, str(config.bucket))

        def fault(request: Request) -> Fault:
            if "partNumber=1" not in request.path or healthy:
                return None
            return Say(503, XML % b"SlowDown") if "Content-MD5" in request.headers else Damage(at=-60)

        with FaultyProxy(rclone.port, fault) as proxy:
            driver: Any = open_driver("faulty", config.model_copy(update={"endpoint": proxy.endpoint}))
            token = driver.begin_upload(BUCKET, "app", WriteInfo(size=PART))
            with pytest.raises(TransientError):
                driver.upload_part(BUCKET, "app", token, 1, some_bytes(PART))
            healthy.append(True)
            with pytest.raises(UploadEnded, match="other bytes for part 1"):
                driver.upload_part(BUCKET, "app", token, 1, some_bytes(PART))
            driver.abort_upload(BUCKET, "app", token)
            driver.close()

    def test_tags_that_are_no_md5(self, through: Callable[..., Line]) -> None:
        """A store whose tags are something else, as with some encryption, gets the MD5, and refuses what is damaged."""
        damaging: list[bool] = []

        def fault(request: Request) -> Fault:
            if "partNumber=" not in request.path:
                return None
            return Damage(at=-60) if damaging else Header("ETag", '"b026324c6904b2a9cb4b88d6d61c81d1"')

        line = through(fault)
        driver: Any = line.faulty._driver
        token = driver.begin_upload(BUCKET, "app", WriteInfo(size=PART, sha256=digest_of(some_bytes(PART)).sha256))
        for number in (1, 2):
            driver.upload_part(BUCKET, "app", token, number, some_bytes(PART))
        assert self.parts(line) == [False, True, True]
        damaging.append(True)
        with pytest.raises(Unavailable, match="damaged on the way"):
            driver.upload_part(BUCKET, "app", token, 3, some_bytes(PART))
        driver.abort_upload(BUCKET, "app", token)


class TestConfiguration:
    def open(self, server: RcloneS3, **changes: object) -> Store:
        return Store(open_driver("primary", s3_config(server, **changes)))

    @pytest.mark.usefixtures("both_paths")
    def test_wrong_secret(self, rclone: RcloneS3) -> None:
        """Wrong credentials are AccessDenied for every verb, and are not told."""
        store = self.open(rclone, secret_access_key="not-the-secret")
        for ask in (store.health_check, lambda: store.stat_object(BUCKET, "app"), lambda: store.bucket_exists(BUCKET)):
            with pytest.raises(AccessDenied, match="primary") as caught:
                ask()
            assert "not-the-secret" not in str(caught.value)
            assert rclone.access_key_id not in str(caught.value)
        assert store.verify_object(BUCKET, "app").verdict is Verdict.UNREADABLE
        store.close()

    def test_rotated_key(self, rclone: RcloneS3) -> None:
        """The next key continues an upload that the last one has begun, and reads and replaces what it wrote."""
        name = f"real-{uuid.uuid4().hex[:8]}"
        (rclone.files / name).mkdir()
        config = s3_config(rclone, bucket=name, conditional_writes=False)
        id_, secret = rclone.next_key
        rotated = s3_config(rclone, bucket=name, conditional_writes=False, access_key_id=id_, secret_access_key=secret)
        last, after = s3_driver.S3Driver("primary", config), s3_driver.S3Driver("primary", rotated)
        data = some_bytes(PART + 1)
        info = WriteInfo(len(data), digest_of(data).sha256)
        token = last.begin_upload(BUCKET, "app", info)
        last.upload_part(BUCKET, "app", token, 1, data[:PART])
        [begun] = after.list_parts(BUCKET, "app", token)
        rest = after.upload_part(BUCKET, "app", token, 2, data[PART:])
        after.complete_upload(BUCKET, "app", token, [begun, rest], info)
        store = Store(after)
        assert store.verify_object(BUCKET, "app", digest_of(data)).verdict is Verdict.VERIFIED
        store.write_object(BUCKET, "app", source(b"next"))
        assert (rclone.files / name / BUCKET / "app").read_bytes() == b"next"
        last.close()
        store.close()

    def test_no_credentials(self, rclone: RcloneS3) -> None:
        """Without credentials anywhere the error says where they would come from."""
        store = self.open(rclone, access_key_id=None, secret_access_key=None)
        with pytest.raises(AccessDenied, match="no usable credentials"):
            store.health_check()
        store.close()

    @pytest.mark.usefixtures("both_paths")
    def test_credentials_of_the_sdk(self, rclone: RcloneS3, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without configured keys those of the SDK's own chain are used."""
        name = f"real-{uuid.uuid4().hex[:8]}"
        (rclone.files / name).mkdir()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", rclone.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rclone.secret_access_key)
        store = self.open(rclone, access_key_id=None, secret_access_key=None, bucket=name)
        store.write_object(BUCKET, "app", source(b"hello"))
        assert (rclone.files / name / BUCKET / "app").read_bytes() == b"hello"
        assert store.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED
        store.close()

    @pytest.mark.usefixtures("both_paths")
    def test_missing_bucket(self, rclone: RcloneS3) -> None:
        """A configured bucket that is not there is a fault of the store, told with the way out, and no missing copy."""
        store = self.open(rclone, bucket="not-there")
        for ask in (
            store.health_check,
            lambda: store.stat_object(BUCKET, "app"),
            lambda: store.read_object(BUCKET, "app"),
            lambda: list(store.list_objects(BUCKET)),
            lambda: store.delete_object(BUCKET, "app"),
            lambda: store.write_object(BUCKET, "app", source(b"x")),
        ):
            with pytest.raises(Unavailable, match=r"'not-there' does not exist at .*; create it or correct `bucket`"):
                ask()
        assert store.verify_object(BUCKET, "app").verdict is Verdict.UNREADABLE
        store.close()

    def test_no_listener(self, rclone: RcloneS3) -> None:
        """An endpoint without a listener is named together with the setting to check."""
        store = self.open(rclone, endpoint="http://127.0.0.1:9")
        with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9: cannot be reached; check `endpoint`"):
            store.health_check()
        store.close()

    @pytest.mark.parametrize(("status", "hint"), [(200, "endpoint"), (404, "bucket"), (500, "endpoint")])
    def test_endpoint_that_is_no_store(self, through: Callable[..., Line], status: int, hint: str) -> None:
        """A web server that is no S3 is a fault of the store whatever it answers, never an empty or missing bucket."""
        line = through(always(Say(status, b"<html><p>welcome"), "GET"))
        for ask in (line.faulty.health_check, lambda: list(line.faulty.list_objects(BUCKET))):
            with pytest.raises(Unavailable, match=f"`{hint}`"):
                ask()

    def test_unknown_profile(self, rclone: RcloneS3) -> None:
        """A profile that the SDK does not know is named by its setting."""
        with pytest.raises(AccessDenied, match="correct `profile`"):
            self.open(rclone, profile="absent").health_check()


def test_memory_is_bounded(ministack: Ministack, tmp_path: Path) -> None:
    """Of a body of many parts only those under way are in memory, and of one that is read the ranges ahead."""
    store = s3_ministack(ministack, tmp_path).store
    size = 20 * PART
    body, digest = (tmp_path / "body"), digest_of(some_bytes(size))
    body.write_bytes(some_bytes(size))
    store.write_object(BUCKET, "warm-up", source(some_bytes(PART + 1)))
    with body.open("rb") as opened:
        assert _peak(lambda: store.write_object(BUCKET, "app", opened, size=size, sha256=digest.sha256)) < 7 * PART
    assert _peak(lambda: store.verify_object(BUCKET, "app")) < (AHEAD + 3) * WINDOW
    assert store.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED
    store.close()


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_advice_is_given_until_it_is_taken(ministack: Ministack, tmp_path: Path) -> None:
    """A bucket that keeps open uploads for ever is told of, by name; one with a rule that ends them is not."""
    config = s3_config(ministack)
    make_s3_bucket(ministack, str(config.bucket))
    store = Store(open_driver("cloud", config), spool_dir=tmp_path)
    assert [str(config.bucket) in advice for advice in store.advice()] == [True]
    client = s3_client(ministack)
    rule = {
        "ID": "end",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    }
    client.put_bucket_lifecycle_configuration(Bucket=config.bucket, LifecycleConfiguration={"Rules": [rule]})
    assert store.advice() == []
    store.close()


def test_a_bucket_that_is_gone_is_no_object_that_is_gone(through) -> None:
    """A server that answers the delete itself so has lost all objects: the copy does not count as deleted."""
    answer = Say(404, XML % b"NoSuchBucket")
    line = through(lambda request: answer if request.method == "DELETE" else None)
    line.write(b"bytes")
    with pytest.raises(Unavailable, match="bucket .* does not exist"):
        line.faulty.delete_object(BUCKET, "app")
    assert line.read_directly() == b"bytes"


@pytest.mark.parametrize("data_path", ["sdk", "auto"])
def test_a_delete_takes_three_requests(through, data_path: str) -> None:
    """One finds the object, one deletes it, one confirms that; the bucket of an absent one is asked for."""
    line = through(lambda _: None, data_path=data_path)
    line.write(b"bytes")
    line.proxy.requests.clear()
    assert line.faulty.delete_object(BUCKET, "app")
    assert not line.faulty.delete_object(BUCKET, "app")
    assert [request.method for request in line.proxy.requests] == ["HEAD", "DELETE", "HEAD", "HEAD", "HEAD"]
