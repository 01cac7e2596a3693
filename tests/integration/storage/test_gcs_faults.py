"""The gcs driver with a bad network, a wrong configuration and an ill-behaved server."""

import gzip
import json
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import google_crc32c
import httpx
import pytest

from tests.conformance.bodies import Breaking, digest_of, some_bytes, source
from tests.conformance.targets import NO_AUTHORITIES, PART, gcs_config, make_gcs_bucket
from tests.servers import FakeGcs, GcpEmulator, StrictGcs
from tests.servers.gcs import GcsServer
from tests.servers.proxy import Cut, Damage, Fault, FaultyProxy, Lose, Request, Reset, Rewrite, Say
from worker.storage import Condition, GcsConfig, Match, Store, Verdict
from worker.storage.configured_stores import open_driver
from worker.storage.driver import WriteInfo
from worker.storage.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    NotFound,
    PermanentError,
    Throttled,
    TransientError,
    Unavailable,
)
from worker.storage.gcs import client as gcs_client
from worker.storage.integrity.verifying_reader import drain

BUCKET = "releases"
LOST = Lose()
BROKEN = b'{"error": {"code": %d, "message": "said the store", "errors": [{"reason": "%s"}]}}'
BUSY = Say(503, BROKEN % (503, b"backendError"))


class Line:
    """One real bucket, reached directly and through a proxy with faults."""

    def __init__(self, server: StrictGcs | GcsServer, fault: Callable[[Request], Fault], spool: Path, **changes: Any):
        port = urlsplit(server.endpoint).port
        assert port
        self.config = gcs_config(server, **changes)
        assert self.config.bucket
        make_gcs_bucket(server, self.config.bucket)
        self.server = server
        self.proxy = FaultyProxy(port, fault)
        self.direct = Store(open_driver("direct", self.config), spool_dir=spool)
        faulty = self.config.model_copy(update={"endpoint": self.proxy.endpoint})
        self.faulty = Store(open_driver("faulty", faulty), spool_dir=spool)

    def write(self, data: bytes, condition: Condition = None) -> None:
        self.faulty.write_object(BUCKET, "app", source(data), condition=condition)

    def read_directly(self) -> bytes:
        with self.direct.read_object(BUCKET, "app") as reader:
            return b"".join(reader)

    def asked(self, method: str, part_of_path: str) -> list[Request]:
        return [one for one in self.proxy.requests if one.method == method and part_of_path in one.path]

    def put_by_hand(self, name: str, data: bytes, **resource: Any) -> None:
        """Write a real object as another tool does."""
        described = json.dumps({"name": name, **resource}).encode()
        body = b"--x\r\nContent-Type: application/json\r\n\r\n%s\r\n--x\r\nContent-Type: text/plain\r\n\r\n%s\r\n--x--"
        httpx.post(
            f"{self.server.endpoint}/upload/storage/v1/b/{self.config.bucket}/o?uploadType=multipart",
            content=body % (described, data),
            headers={"Content-Type": "multipart/related; boundary=x"},
            verify=NO_AUTHORITIES,
        ).raise_for_status()


@pytest.fixture
def through(strict_gcs: StrictGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Line]]:
    """Return what opens a line; requests are repeated for a short time only."""
    monkeypatch.setattr(gcs_client, "RETRY_FOR", 3.0)
    lines: list[Line] = []

    def open_line(fault: Callable[[Request], Fault] = lambda _: None, server: Any = None, **changes: Any) -> Line:
        line = Line(server or strict_gcs, fault, tmp_path, **changes)
        line.proxy.__enter__()
        lines.append(line)
        return line

    yield open_line
    for line in lines:
        line.faulty.close()
        line.proxy.__exit__()
        assert list(line.direct.iter_stale_uploads()) == []
        line.direct.close()


def once(fault: Fault, method: str, part_of_path: str = "") -> Callable[[Request], Fault]:
    """Return what lets the first request of this kind go wrong."""
    left = [fault]

    def decide(request: Request) -> Fault:
        return left.pop() if left and request.method == method and part_of_path in request.path else None

    return decide


def spread(request: Request) -> str:
    """Return which bytes of the object a request sends."""
    return {name.lower(): value for name, value in request.headers.items()}.get("content-range", "")


def always(fault: Fault, method: str, part_of_path: str = "") -> Callable[[Request], Fault]:
    return lambda request: fault if request.method == method and part_of_path in request.path else None


class TestPinning:
    def test_nothing_is_changed_without_a_condition(self, through: Callable[..., Line]) -> None:
        """Every request that makes, replaces or deletes an object names the generation that it may do so to."""
        line = through(part_size="256KiB")
        for size in (10, 300_000, 300_001, 11):  # whole, in parts, in parts over an object, whole over an object
            line.write(some_bytes(size))
        line.faulty.quarantine_object(BUCKET, "app", "job")
        line.faulty.delete_object(BUCKET, "app")
        cold = through(compose=False, part_size="256KiB")
        for size in (300_000, 300_001):
            cold.write(some_bytes(size))
        changing = [
            request
            for request in line.proxy.requests + cold.proxy.requests
            if request.method != "GET" and "upload_id" not in request.path
        ]
        assert len(changing) > 15
        assert [one.path for one in changing if "ifGenerationMatch" not in one.path] == []

    @pytest.mark.parametrize("compose", [True, False])
    def test_a_newer_object_survives_a_late_write(self, through: Callable[..., Line], compose: bool) -> None:
        """A writer that meets a conflict while it sends a large object does not overwrite the newer one unseen."""
        late = [b"newer"]

        def overtake(request: Request) -> Fault:
            last = "/compose" in request.path or spread(request).startswith("bytes 5242880-")
            if last and late:
                line.direct.write_object(BUCKET, "app", source(late.pop()))
            return None

        line = through(overtake, compose=compose)
        line.direct.write_object(BUCKET, "app", source(b"before"))
        version = line.direct.stat_object(BUCKET, "app").version
        with pytest.raises(PermanentError, match="was expected in version"):
            line.write(some_bytes(PART + 1), Match(version))
        assert line.read_directly() == b"newer"

    def test_large_unconditional_write_that_meets_a_conflict(self, through: Callable[..., Line]) -> None:
        """One resumable upload cannot be sent again: on a conflict it is a Conflict, and the job may be retried."""
        late = [b"newer"]

        def overtake(request: Request) -> Fault:
            if spread(request).startswith("bytes 5242880-") and late:
                line.direct.write_object(BUCKET, "app", source(late.pop()))
            return None

        line = through(overtake, compose=False)
        with pytest.raises(Conflict, match="another write was under way"):
            line.write(some_bytes(PART + 1))
        assert line.read_directly() == b"newer"


class TestLostAnswers:
    @pytest.mark.parametrize("size", [100, PART + 1])
    @pytest.mark.parametrize("condition", [None, "create_only", "match"])
    def test_our_own_write_is_recognised(self, through: Callable[..., Line], size: int, condition: str | None) -> None:
        """A write whose answer is lost succeeds once: the second try meets our own object and is no conflict."""
        line = through(once(Lose(), "POST", "uploadType=multipart" if size < PART else "app/compose"))
        wanted: Condition = None if condition is None else "create_only"
        if condition == "match":
            wanted = Match(line.direct.write_object(BUCKET, "app", source(b"before"))[0].version)
        line.write(some_bytes(size), wanted)
        assert line.read_directly() == some_bytes(size)

    def test_a_refusal_alone_is_not_final(self, through: Callable[..., Line]) -> None:
        """A refusal after a lost answer may mean our own object: if it cannot be asked for, the job tries again."""
        lost = once(Lose(), "POST")
        line = through(lambda request: lost(request) or (Reset() if request.method == "GET" else None))
        with pytest.raises(TransientError, match="faulty: releases/app"):
            line.write(b"x", "create_only")
        assert line.read_directly() == b"x"

    @pytest.mark.parametrize("size", [100, PART + 1])
    def test_the_same_bytes_of_another_are_a_conflict(self, through: Callable[..., Line], size: int) -> None:
        """Another writer's object is a conflict even when its bytes are the same: they do not say who wrote them."""
        line = through()
        line.direct.write_object(BUCKET, "app", source(some_bytes(size)))
        with pytest.raises(AlreadyExists):
            line.write(some_bytes(size), "create_only")

    def test_part_whose_answer_is_lost(self, through: Callable[..., Line]) -> None:
        """A part that is sent again after a lost answer meets itself, and is not sent a third time."""
        line = through(once(Lose(), "POST", "uploadType=multipart"))
        line.write(some_bytes(PART + 1))
        assert line.read_directly() == some_bytes(PART + 1)

    def test_part_with_other_bytes_of_the_same_crc32c(self, through: Callable[..., Line]) -> None:
        """A part that is sent again with other bytes replaces the first one, also where their CRC32C is the same."""
        first, second = b"the first bytes!", b"other bytes.c\xec\x00\xce"
        assert google_crc32c.value(first) == google_crc32c.value(second)
        line = through()
        driver: Any = line.direct._driver
        info = WriteInfo(len(second), digest_of(second).sha256)
        token = driver.begin_upload(BUCKET, "app", info)
        driver.upload_part(BUCKET, "app", token, 1, first)
        part = driver.upload_part(BUCKET, "app", token, 1, second)
        driver.complete_upload(BUCKET, "app", token, [part], info)
        assert line.read_directly() == second

    def test_completing_again(self, through: Callable[..., Line]) -> None:
        """Who died before he saw the answer completes again, and is told of the object that he has made."""
        driver: Any = through().direct._driver
        info = WriteInfo(5, digest_of(b"hello").sha256)
        token = driver.begin_upload(BUCKET, "app", info)
        part = driver.upload_part(BUCKET, "app", token, 1, b"hello")
        first = driver.complete_upload(BUCKET, "app", token, [part], info, condition="create_only")
        assert driver.complete_upload(BUCKET, "app", token, [part], info, condition="create_only") == first


class TestResumableUpload:
    # Of an upload of which it has nothing yet, the emulator says that it has one byte.
    @pytest.mark.parametrize(("chunk", "fault"), [(0, LOST), (1, LOST), (2, LOST), (1, BUSY), (2, BUSY)])
    def test_goes_on(self, through: Callable[..., Line], gcp_emulator: GcpEmulator, chunk: int, fault: Fault) -> None:
        """A chunk whose answer is lost, or that is refused for a moment, continues at the store's offset."""
        left = [fault]

        def decide(request: Request) -> Fault:
            return left.pop() if left and spread(request).startswith(f"bytes {chunk * PART}-") else None

        line = through(decide, server=gcp_emulator, compose=False)
        line.write(some_bytes(2 * PART + 3))
        assert not left
        assert line.read_directly() == some_bytes(2 * PART + 3)

    def test_session_is_ended(self, through: Callable[..., Line]) -> None:
        """An upload whose body breaks is cancelled at the store, and its address is in no error."""
        line = through(compose=False)
        whole = digest_of(some_bytes(2 * PART))
        with pytest.raises(OSError, match="torn"):
            line.faulty.write_object(
                BUCKET,
                "app",
                Breaking(some_bytes(PART + 5), OSError("torn")),
                size=whole.size,
                sha256=whole.sha256,
            )
        assert line.asked("DELETE", "upload_id=")

    def test_address_of_the_session_is_not_told(self, through: Callable[..., Line]) -> None:
        """Neither an error nor what caused it names the address of the session: who has it can write."""
        line = through(always(Say(403, BROKEN % (403, b"forbidden")), "PUT", "upload_id="), compose=False)
        with pytest.raises(AccessDenied) as caught:
            line.write(some_bytes(PART + 1))
        [session] = parse_qs(urlsplit(line.asked("PUT", "upload_id=")[0].path).query)["upload_id"]
        error: BaseException | None = caught.value
        while error is not None:
            assert session not in f"{error} {error!r}"
            error = error.__cause__

    def test_damage_takes_back_only_itself(self, through: Callable[..., Line]) -> None:
        """A damaged object is deleted by its generation: what another writer put in its place meanwhile survives."""
        newer = [b"newer"]

        def decide(request: Request) -> Fault:
            if request.method == "DELETE" and newer:
                line.direct.write_object(BUCKET, "app", source(newer.pop()))
            return Damage() if spread(request).startswith("bytes 5242880-") else None

        line = through(decide, compose=False)
        with pytest.raises(Unavailable, match="damaged on the way"):
            line.write(some_bytes(PART + 1))
        assert line.read_directly() == b"newer"

    @pytest.mark.parametrize("size", [100, PART + 1])
    def test_damage_gives_no_object_another_name(self, through: Callable[..., Line], size: int) -> None:
        """The name is in the address alone: no checksum is of the JSON that describes the object."""
        line = through(always(Damage(of=b"releases/app"), "POST"), compose=False)
        line.write(some_bytes(size))
        assert line.direct.list_buckets() == [BUCKET]
        assert line.read_directly() == some_bytes(size)

    @pytest.mark.parametrize(
        ("then", "asked", "why"),
        [
            ([Say(308)] * 9, 2, "tells of 0 bytes"),
            ([Say(308, headers={"Range": f"bytes=0-{PART + 1}"})], 2, f"tells of {PART + 2} bytes"),
            ([BUSY, Say(308, headers={"Range": "bytes=0-9"})], 3, "has lost bytes"),
        ],
        ids=["takes none", "takes more", "forgets"],
    )
    def test_chunk_that_does_not_advance(
        self, through: Callable[..., Line], then: list[Say], asked: int, why: str
    ) -> None:
        """A store that takes none of the bytes it is sent, or more than that, or forgets some, ends the upload."""
        answers = [Say(308, headers={"Range": f"bytes=0-{PART - 1}"}), *then]

        def decide(request: Request) -> Fault:
            if "upload_id=" not in request.path:
                return None
            return answers.pop(0) if answers else Say(400)

        line = through(decide, compose=False)
        with pytest.raises(Unavailable, match=why):
            line.write(some_bytes(PART + 1))
        assert len(line.asked("PUT", "upload_id=")) == asked
        assert not line.direct.object_exists(BUCKET, "app")

    def test_checksum_goes_with_the_last_chunk(self, through: Callable[..., Line]) -> None:
        """The store is told the checksum of the whole object before it makes it visible."""
        line = through(compose=False)
        line.write(some_bytes(PART + 1))
        sent = [{name.lower(): value for name, value in one.headers.items()} for one in line.asked("PUT", "upload_id=")]
        crc = line.direct.stat_object(BUCKET, "app").storage_tags["crc32c"]
        assert [one.get("x-goog-hash") for one in sent] == [None, f"crc32c={crc}"]


class TestParts:
    def test_more_parts_than_one_composition_takes(self, through: Callable[..., Line]) -> None:
        """More than 32 parts are composed in rounds, in their order, and nothing of the rounds is left."""
        driver: Any = through().direct._driver
        data = some_bytes(1_100)
        info = WriteInfo(len(data), digest_of(data).sha256)
        token = driver.begin_upload(BUCKET, "app", info)
        pieces = [data[start : start + 25] for start in range(0, len(data), 25)]
        parts = [driver.upload_part(BUCKET, "app", token, number, piece) for number, piece in enumerate(pieces, 1)]
        driver.complete_upload(BUCKET, "app", token, parts, info)
        with driver.open(BUCKET, "app") as reader:
            assert reader.read(2_000) == data
        assert len(parts) == 44

    def test_what_a_dead_completer_left(self, through: Callable[..., Line]) -> None:
        """Parts that were left beside a finished object are found, with their age, and discarded."""
        line = through(always(Say(403, BROKEN % (403, b"forbidden")), "DELETE"))
        line.write(some_bytes(PART + 1))
        [left] = line.direct.iter_stale_uploads()
        assert f"{BUCKET}/app" in left.description
        assert line.direct.remove_stale_upload(left)
        assert line.read_directly() == some_bytes(PART + 1)


class TestBrokenTransfers:
    @pytest.mark.parametrize("after", [0, 1, 70_000])
    def test_cut_answer(self, through: Callable[..., Line], after: int) -> None:
        """An answer that always ends too early is Unavailable and `unreadable`: it says nothing about the bytes."""
        line = through(always(Cut(after), "GET", "/download/"))
        line.direct.write_object(BUCKET, "app", source(some_bytes(400_000)))
        with line.faulty._driver.open(BUCKET, "app") as reader, pytest.raises(Unavailable, match="releases/app"):
            drain(reader)

    def test_wrong_bytes_after_a_break(self, through: Callable[..., Line]) -> None:
        """Bytes that were damaged after a download was taken up again are noticed; the library would hand them out."""
        line = through(once(Cut(50_000), "GET", "/download/"))
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        recorded = digest_of(some_bytes(100_000))
        assert line.faulty.verify_object(BUCKET, "app", recorded).verdict is Verdict.VERIFIED
        wrong = some_bytes(100_000, 2)
        line.put_by_hand(f"{BUCKET}/app", wrong, metadata={"sha256": recorded.sha256})
        assert line.faulty.verify_object(BUCKET, "app").verdict is Verdict.CORRUPT

    def test_throttled(self, through: Callable[..., Line]) -> None:
        """A store that asks for fewer requests is Throttled, with its own wish, after few tries."""
        answer = Say(429, BROKEN % (429, b"rateLimitExceeded"), {"Retry-After": "3"})
        line = through(always(answer, "POST", "/upload/"))
        with pytest.raises(Throttled) as caught:
            line.write(b"x")
        assert caught.value.retry_after == 3
        assert 1 < len(line.asked("POST", "/upload/")) < 10

    def test_reason_of_a_refused_upload(self, through: Callable[..., Line]) -> None:
        """The reason in the answer to an upload decides, and not its status; what is quoted is a sentence."""
        throttled = Say(403, BROKEN % (403, b"userRateLimitExceeded"), {"Retry-After": "3"})
        with pytest.raises(Throttled, match="fewer requests"):
            through(always(throttled, "POST", "/upload/")).write(b"x")
        with pytest.raises(PermanentError, match=r"releases/app: said the store \(invalidArgument\)"):
            through(always(Say(400, BROKEN % (400, b"invalidArgument")), "POST", "/upload/")).write(b"x")

    def test_refused_is_not_tried_again(self, through: Callable[..., Line]) -> None:
        """What the store refuses is asked once."""
        line = through(always(Say(403, BROKEN % (403, b"forbidden")), "POST", "/upload/"))
        with pytest.raises(AccessDenied):
            line.write(b"x")
        assert len(line.asked("POST", "/upload/")) == 1

    def test_range_that_is_ignored(self, through: Callable[..., Line]) -> None:
        """A store that answers a range with the whole is found out: its first bytes are not those asked for."""
        line = through(always(Say(200, b"0123456789"), "GET", "/download/"))
        line.direct.write_object(BUCKET, "app", source(b"0123456789"))
        with pytest.raises(PermanentError, match="range"), line.faulty.read_object_range(BUCKET, "app", 3, 2) as reader:
            reader.read(2)

    def test_copy_in_several_requests(self, through: Callable[..., Line]) -> None:
        """A copy that the store does in parts continues with the token that it was given."""
        unfinished = {"done": False, "rewriteToken": "so-far", "totalBytesRewritten": "1", "objectSize": "5"}
        line = through(once(Say(200, json.dumps(unfinished).encode()), "POST", "/rewriteTo/"))
        line.direct.write_object(BUCKET, "app", source(b"hello"))
        line.faulty._driver.copy(BUCKET, "app", BUCKET, "copy")
        first, second = line.asked("POST", "/rewriteTo/")
        assert ("rewriteToken=so-far" in first.path, "rewriteToken=so-far" in second.path) == (False, True)
        assert line.direct.stat_object(BUCKET, "copy").sha256 == digest_of(b"hello").sha256

    def test_copy_that_does_not_advance(self, through: Callable[..., Line]) -> None:
        """A store that says again and again that the copy is not done is not asked for ever."""
        unfinished = {"done": False, "rewriteToken": "so-far", "totalBytesRewritten": "1", "objectSize": "5"}
        left = [Say(200, json.dumps(unfinished).encode())] * 20
        line = through(lambda request: left.pop() if "/rewriteTo/" in request.path and left else None)
        line.direct.write_object(BUCKET, "app", source(b"hello"))
        with pytest.raises(Unavailable, match="faulty: releases/copy"):
            line.faulty._driver.copy(BUCKET, "app", BUCKET, "copy")
        assert len(line.asked("POST", "/rewriteTo/")) == 11


class TestOtherAnswers:
    @pytest.mark.parametrize("size", [5, PART + 1], ids=["whole", "resumable"])
    def test_the_old_object_in_an_answer_is_not_deleted(self, through: Callable[..., Line], size: int) -> None:
        """An answer to a write that describes the object which was to be replaced is no success, and ends nothing."""
        old: list[bytes] = []

        def decide(request: Request) -> Fault:
            ends = "uploadType=multipart" in request.path or spread(request).startswith(f"bytes {PART}-")
            return Say(200, old[0]) if old and ends else None

        line = through(decide, compose=False)
        line.direct.write_object(BUCKET, "app", source(b"before"))
        old.append(
            httpx.get(
                f"{line.server.endpoint}/storage/v1/b/{line.config.bucket}/o/{BUCKET}%2Fapp", verify=NO_AUTHORITIES
            ).content
        )
        with pytest.raises(Unavailable, match="faulty: releases/app"):
            line.write(some_bytes(size))
        assert line.read_directly() == b"before"

    @pytest.mark.parametrize(
        ("field", "value"),
        [("size", "7"), ("name", "releases/other"), ("metadata", None), ("metadata", {"sha256": "x"})],
    )
    def test_a_wrong_answer_to_a_write_is_asked_for_again(
        self, through: Callable[..., Line], field: str, value: object
    ) -> None:
        """Size and digest that an answer gets wrong are not taken over: the object under the key decides."""
        line = through(
            lambda request: (
                Rewrite(lambda body: json.dumps(json.loads(body) | {field: value}).encode())
                if request.method == "POST"
                else None
            )
        )
        stat, digest = line.faulty.write_object(BUCKET, "app", source(b"hello"))
        assert stat == line.direct.stat_object(BUCKET, "app")
        assert (stat.size, stat.sha256) == (digest.size, digest.sha256)

    def test_an_object_whose_checksum_is_another_one_is_taken_back(self, through: Callable[..., Line]) -> None:
        """A store that does not compare the checksum returns that of other bytes: the write has failed."""
        line = through(
            lambda request: (
                Rewrite(lambda body: json.dumps(json.loads(body) | {"crc32c": "AAAAAA=="}).encode())
                if request.method == "POST"
                else None
            )
        )
        with pytest.raises(Unavailable):
            line.faulty.write_object(BUCKET, "app", source(b"hello"))
        assert not line.direct.object_exists(BUCKET, "app")


class TestForeignObjects:
    def test_compressed_object(self, through: Callable[..., Line]) -> None:
        """An object that is stored compressed is read as it is stored, whole and in ranges."""
        packed = gzip.compress(b"hello " * 1_000)
        line = through()
        line.put_by_hand(f"{BUCKET}/app.gz", packed, contentEncoding="gzip")
        with line.direct.read_object(BUCKET, "app.gz") as reader:
            assert b"".join(reader) == packed
        with line.direct.read_object_range(BUCKET, "app.gz", 3, 9) as ranged:
            assert ranged.read(100) == packed[3:12]
        line.faulty.stat_object(BUCKET, "app.gz")
        assert line.direct.stat_object(BUCKET, "app.gz").size == len(packed)

    @pytest.mark.parametrize("name", ["sha256", "SHA256", "Sha256"])
    def test_digest_in_whatever_case(self, through: Callable[..., Line], name: str) -> None:
        """A digest that another tool stored is read whatever the case of its name and its digits."""
        line = through()
        line.put_by_hand(f"{BUCKET}/app", b"hello", metadata={name: digest_of(b"hello").sha256.upper(), "owner": "zoe"})
        stat = line.direct.stat_object(BUCKET, "app")
        assert (stat.sha256, stat.metadata) == (digest_of(b"hello").sha256, {"owner": "zoe"})
        assert line.direct.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    def test_no_digest(self, through: Callable[..., Line]) -> None:
        """An object of another program is listed and read, and is `unverifiable`: its digest is unknown."""
        line = through()
        line.put_by_hand(f"{BUCKET}/theirs", b"put here by hand")
        assert [row.key for row in line.direct.list_objects(BUCKET)] == ["theirs"]
        assert line.direct.verify_object(BUCKET, "theirs").verdict is Verdict.UNVERIFIABLE

    def test_tags(self, through: Callable[..., Line]) -> None:
        """What the store says of the bytes is kept under its own names, as weaker evidence."""
        line = through()
        stat, _ = line.direct.write_object(BUCKET, "app", source(b"hello"))
        assert stat.storage_tags["crc32c"] == "mnG7TA=="
        assert set(stat.storage_tags) == {"crc32c", "md5", "etag"}
        assert int(stat.version) > 10**15


class TestRot:
    """On fake-gcs-server with objects as files. Its other faults there are too many for the conformance suite."""

    @pytest.mark.parametrize("size", [10, PART + 1])
    def test_flipped_byte(self, fake_gcs_disk: FakeGcs, tmp_path: Path, size: int) -> None:
        """One flipped byte is `corrupt` by the digest beside the object, which the store goes on to claim."""
        store, path = self.stored(fake_gcs_disk, tmp_path, some_bytes(size))
        data = path.read_bytes()
        path.write_bytes(data[:5] + bytes([data[5] ^ 1]) + data[6:])
        assert store.verify_object(BUCKET, "app").verdict is Verdict.CORRUPT
        assert store.stat_object(BUCKET, "app").sha256 == digest_of(data).sha256
        store.close()

    def test_truncated(self, fake_gcs_disk: FakeGcs, tmp_path: Path) -> None:
        """A truncated object is never `verified`."""
        store, path = self.stored(fake_gcs_disk, tmp_path, some_bytes(1_000))
        path.write_bytes(path.read_bytes()[:-1])
        recorded = digest_of(some_bytes(1_000))
        assert store.verify_object(BUCKET, "app", recorded).verdict in {Verdict.SIZE_MISMATCH, Verdict.UNREADABLE}
        store.close()

    def stored(self, server: FakeGcs, spool: Path, data: bytes) -> tuple[Store, Path]:
        config = gcs_config(server)
        assert config.bucket
        make_gcs_bucket(server, config.bucket)
        store = Store(open_driver("primary", config), spool_dir=spool)
        store.write_object(BUCKET, "app", source(data))
        return store, server.files / config.bucket / BUCKET / "app"


class TestConfiguration:
    def open(self, **settings: Any) -> Store:
        return Store(open_driver("primary", GcsConfig.model_validate({"bucket": "artifacts", **settings})))

    def test_missing_bucket(self, fake_gcs: FakeGcs) -> None:
        """A configured bucket that is not there is a fault of the store, told with the way out, and no missing copy."""
        store = Store(open_driver("primary", gcs_config(fake_gcs, bucket="not-there")))
        digest = digest_of(b"x")
        for ask in (
            store.health_check,
            lambda: store.stat_object(BUCKET, "app"),
            lambda: store.read_object(BUCKET, "app"),
            lambda: list(store.list_objects(BUCKET)),
            lambda: store.delete_object(BUCKET, "app"),
            lambda: store.write_object(BUCKET, "app", source(b"x")),
            lambda: list(store.iter_stale_uploads()),
            lambda: store._driver.begin_upload(BUCKET, "app", WriteInfo(1, digest.sha256)),  # type: ignore[attr-defined]
        ):
            with pytest.raises(Unavailable, match=r"'not-there' does not exist at .*; create it or correct `bucket`"):
                ask()
        assert store.verify_object(BUCKET, "app").verdict is Verdict.UNREADABLE
        store.close()

    def test_missing_object_is_no_missing_bucket(self, through: Callable[..., Line]) -> None:
        """An object that is not there is NotFound where its bucket is."""
        with pytest.raises(NotFound, match="releases/nothing does not exist"):
            through().direct.stat_object(BUCKET, "nothing")

    def test_no_listener(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An endpoint without a listener is named together with the setting to check."""
        monkeypatch.setattr(gcs_client, "RETRY_FOR", 0.5)
        store = self.open(endpoint="http://127.0.0.1:9", anonymous=True)
        with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9: cannot be reached; check `endpoint`"):
            store.health_check()
        store.close()

    def test_no_credentials(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Without credentials anywhere the error says where they would come from."""
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(AccessDenied, match="no usable credentials; correct `credentials_file`"):
            self.open().health_check()

    @pytest.mark.parametrize("content", [None, "no json", "{}", '{"type": "service_account", "private_key": "hidden"}'])
    def test_wrong_credentials_file(self, tmp_path: Path, content: str | None) -> None:
        """A credentials file that is not there, or holds something else, is named by its setting, and not quoted."""
        path = tmp_path / "key.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(AccessDenied, match="credentials_file") as caught:
            self.open(credentials_file=path).health_check()
        assert "hidden" not in str(caught.value)

    def test_emulator_of_the_environment(
        self, fake_gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A variable that would lead the SDK elsewhere does not, and is warned of."""
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        config = gcs_config(fake_gcs)
        assert config.bucket
        make_gcs_bucket(fake_gcs, config.bucket)
        store = Store(open_driver("primary", config))
        with caplog.at_level(logging.WARNING):
            store.health_check()
        assert f"STORAGE_EMULATOR_HOST is ignored: the store is at {fake_gcs.endpoint}" in caplog.text
        store.close()

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"bucket": None}, "needs `bucket`"),
            ({"anonymous": True}, "needs an explicit `endpoint`"),
            ({"anonymous": True, "endpoint": "http://x", "credentials_file": "k"}, "exclude each other"),
            ({"endpoint": "localhost:4443"}, "neither https:// nor http://"),
            ({"endpoint": "http://user:hidden@127.0.0.1:9"}, "no user and no password"),
            ({"storage_class": "COLD"}, "storage_class"),
            ({"buckett": "x"}, "buckett"),
        ],
    )
    def test_wrong_settings(self, settings: dict[str, Any], complaint: str) -> None:
        """A setting that cannot be right is refused by its name before anything is sent."""
        with pytest.raises(ValueError, match=complaint):
            self.open(**settings)

    def test_cold_classes_are_not_composed(self) -> None:
        """A class that charges for early deletion sends no part objects, unless it is told to."""
        assert self.open().capabilities.parts is not None
        assert self.open(storage_class="NEARLINE").capabilities.parts is None
        assert self.open(storage_class="NEARLINE", compose=True).capabilities.parts is not None

    def test_only_what_is_large_enough_is_composed(self, through: Callable[..., Line]) -> None:
        """Up to `compose_above` an object goes in one resumable upload, however many pieces that takes."""
        line = through(compose_above=2 * PART)
        for size, composed in ((2 * PART, 0), (2 * PART + 1, 1)):
            line.write(data := some_bytes(size))
            assert line.read_directly() == data
            assert len(line.asked("POST", "uploadType=resumable")) == 1
            assert len(line.asked("POST", "app/compose")) == composed

    def test_class_and_key_travel(self, through: Callable[..., Line]) -> None:
        """Storage class and encryption key of the settings go with every write; an upload may name its own class."""
        for settings in ({}, {"compose": False}):
            line = through(kms_key="projects/p/key", storage_class="STANDARD", **settings)
            line.write(some_bytes(PART + 1))
            line.write(b"small")
            uploads = line.asked("POST", "/upload/") + line.asked("POST", "app/compose")
            assert uploads
            assert [one.path for one in uploads if "kmsKeyName=projects" not in one.path] == []
        line.faulty.write_object(BUCKET, "cold", source(b"x"), storage_class="COLDLINE")
        url = f"{line.server.endpoint}/storage/v1/b/{line.config.bucket}/o/{BUCKET}%2Fcold"
        described = httpx.get(url, verify=NO_AUTHORITIES).json()
        assert described["storageClass"] == "COLDLINE"


@pytest.mark.parametrize("compose", [True, False])
def test_memory_is_a_few_parts(fake_gcs: FakeGcs, tmp_path: Path, compose: bool) -> None:
    """A body of many parts is never in memory as more than those under way, beside small buffers."""
    config = gcs_config(fake_gcs, compose=compose)
    assert config.bucket
    make_gcs_bucket(fake_gcs, config.bucket)
    store = Store(open_driver("primary", config), spool_dir=tmp_path)
    size = 12 * PART
    body, digest = (tmp_path / "body"), digest_of(some_bytes(size))
    body.write_bytes(some_bytes(size))
    store.write_object(BUCKET, "warm-up", source(some_bytes(PART + 1)))
    tracemalloc.start()
    with body.open("rb") as opened:
        store.write_object(BUCKET, "app", opened, size=size, sha256=digest.sha256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    store.close()
    assert peak < (2.5 if not compose else 12) * PART
