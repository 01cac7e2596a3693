"""The azure driver with a bad network, a wrong configuration, other programs' blobs and a slow copy."""

import logging
import re
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import AccountSasPermissions, BlobServiceClient, ResourceTypes, generate_account_sas
from pydantic import SecretStr, ValidationError

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.targets import SMALL_PART, azure, azure_config
from tests.faults.proxied_stores import opened_through
from tests.servers import Azurite
from tests.servers.proxy import Cut, Fault, FaultyProxy, Header, Lose, Request, Reset, Rewrite, Say
from worker.storage import AzureConfig, Condition, Match, Store, Verdict
from worker.storage.azure import copy as azure_copy
from worker.storage.configured_stores import open_driver
from worker.storage.driver import ObjectProperties, ObjectStat, WriteInfo
from worker.storage.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    InvalidKey,
    NotFound,
    PermanentError,
    PreconditionFailed,
    Throttled,
    Timeout,
    TransientError,
    Unavailable,
)
from worker.storage.integrity.verifying_reader import drain

pytestmark = pytest.mark.usefixtures("small_parts")
BUCKET = "releases"
MIB = 1024 * 1024


class Line:
    """One container, opened directly and through a proxy with faults."""

    def __init__(self, proxy: FaultyProxy, direct: Store, faulty: Store) -> None:
        self.proxy = proxy
        self.direct = direct
        self.faulty = faulty

    def write(self, data: bytes, condition: Condition = None) -> None:
        self.faulty.write_object(BUCKET, "app", source(data), condition=condition)

    def read_directly(self) -> bytes:
        with self.direct.read_object(BUCKET, "app") as reader:
            return b"".join(reader)


@pytest.fixture
def through(azurite: Azurite, tmp_path: Path) -> Iterator[Callable[[Callable[[Request], Fault]], Line]]:
    """Return what opens one container twice: directly, and through a proxy with faults."""
    lines: list[Line] = []

    def open_line(fault: Callable[[Request], Fault]) -> Line:
        direct = azure(azurite, tmp_path).store
        config: AzureConfig = direct._driver._config  # type: ignore[attr-defined]
        proxy = FaultyProxy(azurite.port, fault).__enter__()
        faulty = config.model_copy(update={"account_url": f"{proxy.endpoint}/{azurite.account}"})
        lines.append(Line(proxy, direct, Store(open_driver("faulty", faulty), spool_dir=tmp_path)))
        return lines[-1]

    yield open_line
    for line in lines:
        line.faulty.close()
        line.proxy.__exit__()
        assert list(line.direct.iter_stale_uploads()) == []
        line.direct.close()


@pytest.fixture
def service(azurite: Azurite) -> BlobServiceClient:
    """Return a client of another program."""
    return BlobServiceClient.from_connection_string(azurite.connection_string, api_version="2025-11-05")


def once(fault: Fault, method: str, part_of_path: str = "") -> Callable[[Request], Fault]:
    """Return what lets the first request of this kind go wrong."""
    left = [fault]

    def decide(request: Request) -> Fault:
        return left.pop() if left and request.method == method and part_of_path in request.path else None

    return decide


def always(fault: Fault, method: str, part_of_path: str = "") -> Callable[[Request], Fault]:
    return lambda request: fault if request.method == method and part_of_path in request.path else None


def saying(status: int, code: str, **headers: str) -> Say:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said the store</Message></Error>".encode()
    return Say(status, body, {"x-ms-error-code": code, "Content-Type": "application/xml", **headers})


@pytest.mark.parametrize("listed", [True, False])
def test_an_object_without_an_etag_is_deleted(through: Callable[..., Line], *, listed: bool) -> None:
    """Where a proxy strips the version it comes from a listing; a store that gives none there is asked without one."""

    def strip(request: Request) -> Fault:
        if request.method == "HEAD":
            return Header("ETag")
        return None if listed else Rewrite(lambda body: re.sub(rb"<Etag>.*?</Etag>", b"", body))

    line = through(strip)
    written, _ = line.direct.write_object(BUCKET, "app", source(b"x"))
    version = line.faulty.get_object_version(BUCKET, "app")
    assert version == (written.version if listed else "")
    with pytest.raises(PreconditionFailed):
        line.faulty.delete_object(BUCKET, "app", condition=Match("0x1"))
    assert line.faulty.delete_object(BUCKET, "app", condition=Match(version))
    assert not line.direct.object_exists(BUCKET, "app")
    with pytest.raises(NotFound):
        line.faulty.get_object_version(BUCKET, "app")


class TestLostAnswers:
    @pytest.mark.parametrize("size, request_of_commit", [(100, "/app"), (SMALL_PART + 1, "comp=blocklist")])
    @pytest.mark.parametrize("condition", [None, "create_only", "match"])
    def test_our_own_write_is_recognised(
        self, through: Callable[..., Line], size: int, request_of_commit: str, condition: str | None
    ) -> None:
        """A write whose answer is lost succeeds once: the SDK's second try meets our own object and is no conflict."""
        line = through(once(Lose(), "PUT", request_of_commit))
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

    def test_block_is_sent_again(self, through: Callable[..., Line]) -> None:
        """A block whose answer is lost is sent again under the same name, and is there once."""
        line = through(once(Lose(), "PUT", "comp=block&"))
        line.write(some_bytes(2 * SMALL_PART))
        assert line.read_directly() == some_bytes(2 * SMALL_PART)

    def test_the_same_bytes_of_another_are_a_conflict(self, through: Callable[..., Line]) -> None:
        """Another writer's object is a conflict even when its bytes are the same: they do not say who wrote them."""
        line = through(lambda _: None)
        line.direct.write_object(BUCKET, "app", source(b"the same"))
        with pytest.raises(AlreadyExists):
            line.write(b"the same", "create_only")


class TestBrokenTransfers:
    def test_cut_answer(self, through: Callable[..., Line]) -> None:
        """An answer that ends too early is `unreadable`: it says nothing about the object's bytes."""
        line = through(always(Cut(1), "GET", "/app"))
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        assert line.faulty.verify_object(BUCKET, "app").verdict is Verdict.UNREADABLE

    def test_answer_that_is_cut_once(self, through: Callable[..., Line]) -> None:
        """A download that breaks off is taken up again, and the whole is held against the digest."""
        line = through(once(Cut(70_000), "GET", "/app"))
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        assert line.faulty.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    def test_lost_request_of_a_download(self, through: Callable[..., Line]) -> None:
        """A download whose request is lost is asked for again by the SDK, and its bytes still pass through in parts."""
        line = through(once(Reset(), "GET", "/app"))
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        with line.faulty.read_object(BUCKET, "app") as reader:
            assert b"".join(reader) == some_bytes(100_000)

    def test_throttling_reaches_the_caller(self, through: Callable[..., Line]) -> None:
        """A store that asks for fewer requests is Throttled after a few tries, with the wish that it had."""
        line = through(always(saying(503, "ServerBusy", **{"Retry-After": "1"}), "HEAD", "/app"))
        with pytest.raises(Throttled) as raised:
            line.faulty.stat_object(BUCKET, "app")
        assert raised.value.retry_after == 1
        assert 2 <= len(line.proxy.requests) <= 5

    def test_overwritten_while_it_is_read(self, through: Callable[..., Line]) -> None:
        """Who reads a version that is not there any more gets an error, and no byte of another."""
        line = through(once(Cut(70_000), "GET", "/app"))
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000, 1)))
        with line.faulty.read_object(BUCKET, "app") as reader:
            line.direct.write_object(BUCKET, "app", source(some_bytes(100_000, 2)))
            with pytest.raises(Conflict, match="overwritten while it was read"):
                drain(reader)

    def test_reading_holds_little(self, through: Callable[..., Line]) -> None:
        """Reading holds as much of a large object as of a small one."""
        line = through(lambda _: None)
        small, large = (peak_of_reading(line.direct, size) for size in (32 * MIB, 96 * MIB))
        assert large - small < 8 * MIB


class TestWrongConfiguration:
    def test_wrong_key(self, azurite: Azurite) -> None:
        """A wrong key is AccessDenied, once, and the message says what to correct and not what it was."""
        wrong = "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc="
        with pytest.raises(AccessDenied, match="correct `account_key`") as raised:
            store(azurite, account_key=wrong).health_check()
        assert wrong not in str(raised.value)

    def test_key_that_is_none(self, azurite: Azurite) -> None:
        """What is no base64 is named before anything is asked."""
        with pytest.raises(ValidationError, match="no key of an account") as raised:
            store(azurite, account_key="no-key")
        assert "no-key" not in str(raised.value)

    def test_wrong_container(self, azurite: Azurite) -> None:
        """A container that is not there is a fault of the store, never of the objects in it."""
        lost = store(azurite, container="nowhere")
        for ask in (lost.health_check, lambda: lost.stat_object(BUCKET, "app"), lambda: list(lost.list_objects("b"))):
            with pytest.raises(Unavailable, match="'nowhere' does not exist at .*; create it or correct `container`"):
                ask()
        assert lost.verify_object(BUCKET, "app", digest_of(b"x")).verdict is Verdict.UNREADABLE

    def test_wrong_account(self, azurite: Azurite) -> None:
        """An account that is not there leaves every object unreadable, not missing."""
        lost = store(azurite, account_url=azurite.account_url + "2", account_key="a2V5")
        assert lost.verify_object(BUCKET, "app", digest_of(b"x")).verdict is Verdict.UNREADABLE
        with pytest.raises((Unavailable, AccessDenied)):
            lost.health_check()

    def test_wrong_address(self, azurite: Azurite) -> None:
        """An address without a listener is Unavailable, and named."""
        with pytest.raises(Unavailable, match="127.0.0.1:1/acme: cannot be reached; check `account_url`"):
            store(azurite, account_url="http://127.0.0.1:1/acme").health_check()

    def test_identity_needs_https(self) -> None:
        """A token is never sent over an unencrypted connection."""
        open_text = AzureConfig(container="c", account_url="http://127.0.0.1:1/acme")
        with pytest.raises(PermanentError, match="only supported with HTTPS"):
            open_driver("azure", open_text).check()

    def test_connection_string(self, azurite: Azurite) -> None:
        """A connection string is all that is needed; one that is malformed is named without being shown."""
        string = azurite.connection_string
        store(azurite, account_url=None, account_key=None, connection_string=string, layout="native").health_check()
        with pytest.raises(ValidationError, match="neither AccountName nor BlobEndpoint") as raised:
            store(azurite, account_url=None, account_key=None, connection_string="very secret")
        assert "secret" not in str(raised.value)

    def test_bucket_that_is_no_container(self, azurite: Azurite) -> None:
        """A bucket whose name Azure does not allow is refused with Azure's rule."""
        native = store(azurite, layout="native", container=None)
        with pytest.raises(InvalidKey, match="3 to 63 lower-case letters"):
            native.create_bucket("Release.Candidates")

    def test_tier_that_cannot_be_read(self, azurite: Azurite) -> None:
        """A write into a tier whose objects cannot be read is refused before anything is sent."""
        with pytest.raises(PermanentError, match="'archive' is not allowed: Azure has hot, cool and cold"):
            store(azurite).write_object(BUCKET, "app", source(b"x"), storage_class="archive")

    def test_tier_is_asked_for(self, azurite: Azurite, service: BlobServiceClient) -> None:
        """What is written goes into the configured tier, or into the one that this write names."""
        cool = store(azurite, service, access_tier="cool")
        for key, size, asked in (("one", 1, None), ("parts", SMALL_PART + 1, None), ("hot", 1, "hot")):
            cool.write_object(BUCKET, key, source(some_bytes(size)), storage_class=asked)
        container = cool._driver._config.container  # type: ignore[attr-defined]
        tiers = {row.name: row.blob_tier for row in service.get_container_client(container).list_blobs()}
        assert tiers == {"releases/one": "Cool", "releases/parts": "Cool", "releases/hot": "Hot"}


class TestSignature:
    @pytest.fixture
    def signed(self, azurite: Azurite, service: BlobServiceClient) -> Iterator[tuple[Store, str]]:
        """Return a store that is opened with a shared access signature, and the signature."""
        token = generate_account_sas(
            azurite.account,
            azurite.account_key,
            ResourceTypes(container=True, object=True),
            AccountSasPermissions(read=True, write=True, list=True, delete=True, create=True, add=True),
            datetime.now(UTC) + timedelta(hours=1),
        )
        opened = store(azurite, service, account_key=None, sas_token=token)
        yield opened, re.sub("%.?$", "", token.partition("sig=")[2][:20])  # a server rejects a half of an escape
        opened.close()

    def test_works(self, signed: tuple[Store, str]) -> None:
        """A signature that allows it is enough for everything; copies go through us, since they would publish it."""
        opened, _ = signed
        for size in (0, 10, SMALL_PART + 1):
            opened.write_object(BUCKET, "app", source(some_bytes(size)))
            bucket, _, key = opened.quarantine_object(BUCKET, "app", f"job-{size}").partition("/")
            assert opened.verify_object(bucket, key, digest_of(some_bytes(size))).verdict is Verdict.VERIFIED

    def test_a_secret_is_never_told(self, signed: tuple[Store, str], caplog: pytest.LogCaptureFixture) -> None:
        """Neither a log, however talkative, nor an error shows a signature."""
        opened, secret = signed
        with caplog.at_level(logging.DEBUG):
            opened.write_object(BUCKET, "app", source(b"x"))
            with pytest.raises(NotFound) as raised:
                opened.stat_object(BUCKET, "nothing")
            list(opened.list_objects(BUCKET))
        assert caplog.records
        assert secret not in caplog.text + str(raised.value)

    def test_small_objects_need_no_sdk(
        self, signed: tuple[Store, str], azurite: Azurite, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A small object is written and verified with one plain request each, with the signature in its URL alone."""
        opened, secret = signed
        with FaultyProxy(azurite.port, lambda _: None) as proxy, caplog.at_level(logging.DEBUG):
            through = opened_through("azure", opened, proxy.port, tmp_path)
            through.write_object(BUCKET, "app v1.0", source(b"x"))
            assert through.verify_object(BUCKET, "app v1.0", digest_of(b"x")).verdict is Verdict.VERIFIED
            requests = list(proxy.requests)
            through.close()
            wrong = opened_through("azure", opened, proxy.port, tmp_path, sas_token=SecretStr(f"sv=1&sig={secret}"))
            seen = [
                wrong.verify_object(BUCKET, "app v1.0", digest_of(b"x")),
                *wrong.verify_objects([(BUCKET, "app v1.0", digest_of(b"x"))]),
            ]
            with pytest.raises(AccessDenied) as raised:
                wrong.write_object(BUCKET, "app v1.0", source(b"y"))
            wrong.close()
        assert [request.method for request in requests] == ["PUT", "GET"]
        assert all(secret in request.path and "User-Agent" not in request.headers for request in requests)
        assert [each.verdict for each in seen] == [Verdict.UNREADABLE, Verdict.UNREADABLE]
        assert secret not in caplog.text + str(raised.value) + str(seen)


class TestOthersBlobs:
    def test_metadata_in_any_case(self, azurite: Azurite, service: BlobServiceClient) -> None:
        """A digest that another program has written is found in whatever case its name is."""
        opened = store(azurite, service)
        blob = service.get_blob_client(container_of(opened), f"{BUCKET}/theirs")
        blob.upload_blob(b"theirs", metadata={"SHA256": digest_of(b"theirs").sha256.upper()})
        assert opened.verify_object(BUCKET, "theirs").verdict is Verdict.VERIFIED

    @pytest.mark.parametrize("metadata", [{"hdi_isfolder": "true"}, {"zot_writer": "ended"}])
    def test_blobs_that_are_no_objects(
        self, azurite: Azurite, service: BlobServiceClient, metadata: dict[str, str]
    ) -> None:
        """A folder of a hierarchical account, or what is there for a moment to drop blocks, is no object."""
        opened = store(azurite, service)
        blob = service.get_blob_client(container_of(opened), f"{BUCKET}/thing")
        blob.upload_blob(b"", metadata=metadata)
        assert list(opened.list_objects(BUCKET)) == []
        for ask in (opened.stat_object, opened.read_object):
            with pytest.raises(NotFound):
                ask(BUCKET, "thing")
        left = list(opened.iter_stale_uploads())
        assert [opened.remove_stale_upload(each) for each in left] == ([True] if "zot_writer" in metadata else [])
        assert blob.exists() is ("hdi_isfolder" in metadata)

    def test_blocks_of_another_program(self, azurite: Azurite, service: BlobServiceClient) -> None:
        """Blocks that another program has staged with other ids are named as what is in the way, and never dropped."""
        opened = store(azurite, service)
        service.get_blob_client(container_of(opened), f"{BUCKET}/log").create_append_blob()  # has no blocks
        service.get_blob_client(container_of(opened), f"{BUCKET}/app").stage_block("theirs", b"x")
        with pytest.raises(Conflict, match="blocks of another program"):
            opened.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1)))
        [left] = opened.iter_stale_uploads()
        assert not left.ours
        assert not opened.remove_stale_upload(left)
        assert not opened.object_exists(BUCKET, "app")
        [staged] = service.get_blob_client(container_of(opened), f"{BUCKET}/app").get_block_list("uncommitted")[1]
        assert staged.id == "theirs"

    def test_blocks_of_a_live_write_are_spared(self, azurite: Azurite, service: BlobServiceClient) -> None:
        """Ending one of two writes of a key spares the other's blocks."""
        driver: Any = store(azurite, service)._driver
        digest = digest_of(b"live")
        info = WriteInfo(digest.size, digest.sha256)
        dead, live = (driver.begin_upload(BUCKET, "app", info) for _ in range(2))
        part = driver.upload_part(BUCKET, "app", live, 1, b"live")
        [left] = [each for each in driver.iter_stale_uploads() if each.token[-1] == dead]
        assert driver.remove_stale_upload(left)
        assert [each.token[-1] for each in driver.iter_stale_uploads()] == [live]
        assert driver.complete_upload(BUCKET, "app", live, [part], info).sha256 == digest.sha256


class TestListing:
    def test_goes_on_where_it_stopped(self, through: Callable[..., Line]) -> None:
        """A listing behind a key asks the store to begin there, in either order of names."""
        line = through(lambda _: None)
        list(line.faulty.list_objects(BUCKET, "a/", after="a/b"))
        list(line.faulty.list_objects(BUCKET, after="a/\uff5ex"))
        asked = [request.path.partition("startFrom=")[2].partition("&")[0] for request in line.proxy.requests]
        assert asked == ["releases%2Fa%2Fb", "releases%2Fa%2F"]


class TestCopies:
    @pytest.mark.parametrize("overtaken", [False, True])
    def test_pending_copy_is_no_copy(
        self, through: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, overtaken: bool
    ) -> None:
        """A copy that the store does not end in time is called off and removed, and was never an object.

        What another writer has written since is not removed.
        """
        monkeypatch.setattr(azure_copy, "COPY_WITHIN", 0.0)
        monkeypatch.setattr(azure_copy, "COPY_POLL", 0.0)
        line = through(Pending(overtaken=overtaken))
        line.direct.write_object(BUCKET, "app", source(b"x"))
        with pytest.raises(Timeout, match="did not end the copy"):
            line.faulty.quarantine_object(BUCKET, "app", "job-1")
        ended = [request for request in line.proxy.requests if request.method in {"PUT", "DELETE"}]
        if overtaken:
            assert "comp=copy" in ended[-1].path
            return
        assert ["comp=copy" in ended[-2].path, ended[-1].method] == [True, "DELETE"]
        assert ended[-1].headers["If-Match"] == '"0x1"'
        with pytest.raises(NotFound):
            line.faulty.stat_object("zot-quarantine", f"{BUCKET}/job-1/app")

    @pytest.mark.parametrize("overtaken", [False, True])
    def test_headers_of_a_copy_whose_answer_is_lost(self, through: Callable[..., Line], overtaken: bool) -> None:
        """A copy has its own headers though the SDK set them twice; an object of another writer is a conflict."""
        asked: list[Request] = []

        def disturb(request: Request) -> Fault:
            if "comp=properties" not in request.path:
                return None
            asked.append(request)
            if overtaken:
                line.direct.write_object(BUCKET, "copy", source(b"newer"))
            return Lose() if len(asked) == 1 else None

        line = through(disturb)
        line.write(b"x")
        driver: Any = line.faulty._driver
        found = replace(line.direct.stat_object(BUCKET, "app"), key="copy")
        info = WriteInfo(1, found.sha256, properties=ObjectProperties(content_type="text/x-app"))

        def copy() -> ObjectStat:
            made: ObjectStat = driver.copy_from(
                driver.location(BUCKET, "app"), found, info, between=lambda: None, begun=lambda _: None
            )
            return made

        if overtaken:
            with pytest.raises(Conflict, match="releases/copy: another write was under way"):
                copy()
        else:
            assert copy() == line.direct.stat_object(BUCKET, "copy")
            assert line.direct.stat_object(BUCKET, "copy").properties == info.properties

    def test_an_object_of_other_blocks_is_not_copied_for_a_patch(self, through: Callable[..., Line]) -> None:
        """One that came in one request has no blocks that could be replaced: the store is not asked to copy it."""
        line = through(lambda _: None)
        line.write(some_bytes(100))
        found, info = line.direct.stat_object(BUCKET, "app"), WriteInfo(100, digest_of(some_bytes(100)).sha256)
        driver: Any = line.faulty._driver
        with pytest.raises(PermanentError, match="blocks are other ranges"):
            driver.patch(found, BUCKET, "new", info, [range(50)], read=bytes, unit=50, between=lambda: None)
        assert not any("x-ms-copy-source" in request.headers for request in line.proxy.requests)


class Pending:
    """Answers, after a copy was begun, as Azure does while it is under way.

    `overtaken`: once it was called off, the blob is one of another writer.
    """

    def __init__(self, *, overtaken: bool) -> None:
        self.metadata: dict[str, str] = {}
        self.overtaken = overtaken

    def __call__(self, request: Request) -> Fault:
        if "x-ms-copy-source" in request.headers:
            given = request.headers.items()
            self.metadata = {name: value for name, value in given if name.startswith("x-ms-meta-")}
        if "zot-quarantine" not in request.path or request.method == "DELETE":
            return None
        if "comp=copy" in request.path:
            if self.overtaken:
                self.metadata = {"x-ms-meta-zot_writer": "another"}
            return Say(204)
        facts = {
            "ETag": '"0x1"',
            "Last-Modified": "Sun, 22 Nov 2026 14:00:00 GMT",
            "x-ms-blob-type": "BlockBlob",
            "x-ms-copy-id": "copy",
            "x-ms-copy-status": "pending",
        }
        return Say(200, b"", facts | self.metadata) if request.method == "HEAD" else None


def peak_of_reading(opened: Store, size: int) -> int:
    """Return the most bytes that were allocated at a time while an object was read through one reader."""
    opened.write_object(BUCKET, "app", source(some_bytes(size)))
    driver: Any = opened._driver
    tracemalloc.start()
    try:
        with driver.open(BUCKET, "app") as reader:
            assert sum(iter(lambda: len(reader.read(1 << 20)), 0)) == size
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def store(azurite: Azurite, service: BlobServiceClient | None = None, **changes: object) -> Store:
    """Return a store on the emulator, with its container made if `service` is given."""
    config = azure_config(azurite, **changes)
    if service and config.container:
        service.create_container(config.container)
    return Store(open_driver("azure", config))


def container_of(opened: Store) -> str:
    return str(opened._driver._config.container)  # type: ignore[attr-defined]
