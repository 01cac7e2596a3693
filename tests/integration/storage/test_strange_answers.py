"""Answers of a gateway or an emulator that no SDK expects: every caller gets a StorageError about that object."""

import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.targets import (
    AZURITE_API,
    SMALL_PART,
    azure_config,
    gcs_config,
    make_gcs_bucket,
    make_s3_bucket,
    s3_client,
    s3_config,
)
from tests.servers import Azurite, Ministack
from tests.servers.proxy import Damage, Fault, FaultyProxy, Header, Lose, Request, Rewrite, Say, Then
from worker.storage import Match, Store, StoreConfig, Verdict
from worker.storage.cloud import listing
from worker.storage.cloud.metadata import UNKNOWN_TIME
from worker.storage.configured_stores import open_driver
from worker.storage.driver import ObjectProperties, StaleUpload, WriteInfo
from worker.storage.errors import (
    Archived,
    Conflict,
    IntegrityError,
    InvalidKey,
    InvalidMetadata,
    NotDeleted,
    NotFound,
    PermanentError,
    PreconditionFailed,
    StorageError,
    TransientError,
    Unavailable,
    UploadEnded,
)
from worker.storage.integrity.verifying_reader import VerifiedReader, VerifyingReader
from worker.storage.probe import probe

pytestmark = pytest.mark.usefixtures("small_parts")
BUCKET = "releases"
HTML = Say(200, b"<html><body>Sign in to the hotel's network</body></html>", {"Content-Type": "text/html"})
CLOUDS = ("s3", "gcs", "azure")


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def through(cloud: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., tuple[Store, Store]]]:
    """Return what opens a store twice: directly, and through a proxy whose `fault` decides what goes wrong."""
    with ExitStack() as stack:

        def open_both(fault: Callable[[Request], Fault], **changes: Any) -> tuple[Store, Store]:
            direct, port, elsewhere = _configured(cloud, request, changes)
            proxy = stack.enter_context(FaultyProxy(port, fault))
            faulty = direct.model_copy(update=elsewhere(proxy.endpoint))
            stores = [
                Store(open_driver(name, c), spool_dir=tmp_path) for name, c in (("near", direct), ("far", faulty))
            ]
            for store in stores:
                stack.callback(store.close)
            return stores[0], stores[1]

        yield open_both


def _configured(
    cloud: str, request: pytest.FixtureRequest, changes: dict[str, Any]
) -> tuple[StoreConfig, int, Callable[[str], dict[str, str]]]:
    if cloud == "s3":
        s3: Ministack = request.getfixturevalue("ministack")
        config = s3_config(s3, **changes)
        make_s3_bucket(s3, str(config.bucket))
        return config, s3.port, lambda endpoint: {"endpoint": endpoint}
    if cloud == "gcs":
        gcs = request.getfixturevalue("strict_gcs")
        found = gcs_config(gcs, **changes)
        make_gcs_bucket(gcs, str(found.bucket))
        return found, gcs.port, lambda endpoint: {"endpoint": endpoint}
    azurite: Azurite = request.getfixturevalue("azurite")
    azure = azure_config(azurite, api_version=AZURITE_API, **changes)
    service = open_driver("making", azure)._service()  # type: ignore[attr-defined]
    service.create_container(azure.container)
    service.close()
    return azure, azurite.port, lambda endpoint: {"account_url": f"{endpoint}/{azurite.account}"}


def _of(key: str, *methods: str) -> Callable[[Request], bool]:
    return lambda request: request.method in methods and key in request.path


class TestAnswersAboutOneObject:
    @pytest.mark.usefixtures("both_paths")
    @pytest.mark.parametrize("name", ["Last-Modified", "ETag"])
    def test_header_that_a_gateway_leaves_out(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without Last-Modified an object is verified; without a version tag it is an error, and its body is closed."""
        asked = _of("app", "GET", "HEAD")
        direct, faulty = through(lambda request: Header(name) if asked(request) else None)
        direct.write_object(BUCKET, "app", source(b"hello"))
        if name == "ETag" and cloud != "gcs":  # Cloud Storage says it in its JSON
            with pytest.raises(StorageError, match="far: releases/app"):
                faulty.stat_object(BUCKET, "app")
            gc.collect()  # what earlier tests left
            unclosed: list[object] = []
            monkeypatch.setattr(sys, "unraisablehook", lambda found: unclosed.append(repr(found.object)))
            assert faulty.verify_object(BUCKET, "app").verdict is Verdict.UNREADABLE
            gc.collect()
            assert unclosed == []
            return
        if name == "Last-Modified" and cloud != "gcs":
            assert faulty.stat_object(BUCKET, "app").modified == UNKNOWN_TIME
        assert faulty.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    @pytest.mark.usefixtures("both_paths")
    @pytest.mark.parametrize("value", ["Wed, 21 Oct 30345 07:28:00 GMT", "yesterday"])
    def test_time_that_is_none(self, through: Callable[..., tuple[Store, Store]], cloud: str, value: str) -> None:
        """A time outside the calendar says nothing of the bytes; at worst that one object cannot be read."""
        asked = _of("app", "GET", "HEAD")
        direct, faulty = through(lambda request: Header("Last-Modified", value) if asked(request) else None)
        direct.write_object(BUCKET, "app", source(b"hello"))
        verdict = faulty.verify_object(BUCKET, "app").verdict
        assert verdict is (Verdict.UNREADABLE if cloud == "azure" else Verdict.VERIFIED)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda store: b"".join(store.read_object(BUCKET, "app")),
            lambda store: list(store.list_objects(BUCKET)),
            lambda store: store.write_object(BUCKET, "app", source(b"x")),
            lambda store: store.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1))),
            lambda store: store.delete_object(BUCKET, "app"),
            lambda store: store.health_check(),
            lambda store: list(store.iter_stale_uploads()),
        ],
        ids=["read", "list", "write", "write_parts", "delete", "check", "stale"],
    )
    def test_nonsense(self, through: Callable[..., tuple[Store, Store]], ask: Callable[[Store], object]) -> None:
        """HTML, empty JSON, nothing at all or no UTF-8 with status 200 never raises anything but a StorageError."""
        self._assert_only_storage_errors(through, ask)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda store: list(store.list_objects(BUCKET)),
            lambda store: list(store.iter_stale_uploads()),
            lambda store: store.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1))),
        ],
        ids=["list", "stale", "write_parts"],
    )
    def test_a_damaged_answer_is_not_final(
        self, through: Callable[..., tuple[Store, Store]], ask: Callable[[Store], object]
    ) -> None:
        """An answer that cannot be read says nothing of what was asked for: the job tries again."""
        damaged = Rewrite(lambda body: body[: len(body) // 2] + b"\0<<")
        _, faulty = through(lambda request: damaged if request.method in {"GET", "POST"} else None)
        with pytest.raises(TransientError):
            ask(faulty)

    @pytest.mark.usefixtures("both_paths")
    @pytest.mark.parametrize("verb", ["stat_object", "verify_object"])
    def test_nonsense_in_place_of_an_object(self, through: Callable[..., tuple[Store, Store]], verb: str) -> None:
        """The same holds for a stat and a verification, which small objects get by another way."""
        self._assert_only_storage_errors(through, lambda store: getattr(store, verb)(BUCKET, "app"))

    def _assert_only_storage_errors(
        self, through: Callable[..., tuple[Store, Store]], ask: Callable[[Store], object]
    ) -> None:
        for answer in (HTML, Say(200, b"{}"), Say(200, b""), Say(200, b"\xff\xfe<"), Say(204)):
            _, faulty = through(lambda _, answer=answer: answer)
            try:
                ask(faulty)
            except StorageError as error:
                assert "far" in str(error), answer  # noqa: PT017  some of these mean success to the store

    @pytest.mark.parametrize(
        "headers",
        [{"Content-Length": "9" * 30}, {"Content-Range": ""}],
        ids=["no_size", "part_of_nothing"],
    )
    def test_an_answer_that_cannot_be_is_no_verdict(
        self, through: Callable[..., tuple[Store, Store]], headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A size that no object has, and a part that was not asked for, say nothing about the bytes."""
        monkeypatch.setattr("worker.storage.gcs.upload.TIMEOUT", (5.0, 1.0))  # the rest of the announced bytes
        known = {"ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT", "x-ms-blob-type": "BlockBlob"}
        status = 206 if "Content-Range" in headers else 200
        direct, faulty = through(
            lambda request: Say(status, b"he", known | headers) if request.method in {"GET", "HEAD"} else None
        )
        direct.write_object(BUCKET, "app", source(b"hello"))
        assert faulty.verify_object(BUCKET, "app", digest_of(b"hello")).verdict is Verdict.UNREADABLE

    @pytest.mark.parametrize("cloud", ["s3", "azure"], indirect=True)  # Cloud Storage reads its archive class at once
    def test_archived(self, through: Callable[..., tuple[Store, Store]], cloud: str) -> None:
        """An archived object is an answer about that object: permanent, so that it never counts against its store."""
        xml = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>no</Message></Error>"
        code, status = (b"InvalidObjectState", 403) if cloud == "s3" else (b"BlobArchived", 409)
        asked = _of("app", "GET")
        direct, faulty = through(
            lambda request: Say(status, xml % code, {"x-ms-error-code": code.decode()}) if asked(request) else None
        )
        direct.write_object(BUCKET, "app", source(b"hello"))
        with pytest.raises(Archived, match="archived"):
            faulty.read_object(BUCKET, "app")
        assert faulty.verify_object(BUCKET, "app", digest_of(b"hello")).verdict is Verdict.ARCHIVED
        assert faulty.verify_object(BUCKET, "app", digest_of(b"hell")).verdict is Verdict.SIZE_MISMATCH
        assert not issubclass(Archived, TransientError)

    @pytest.mark.usefixtures("both_paths")
    def test_no_bytes_where_there_are_some(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """A store that says of an object's bytes that they are past its end says nothing against the copy."""
        xml = b"<?xml version='1.0'?><Error><Code>InvalidRange</Code><Message>no</Message></Error>"
        past_end = Say(416, xml, {"x-ms-error-code": "InvalidRange"})
        asked = _of("app", "GET")
        direct, faulty = through(
            lambda request: past_end if asked(request) and "/storage/v1" not in request.path[:12] else None
        )
        direct.write_object(BUCKET, "app", source(b"hello"))
        assert faulty.verify_object(BUCKET, "app", digest_of(b"hello")).verdict is Verdict.UNREADABLE
        with pytest.raises(StorageError, match="far: releases/app") as caught, _range(faulty, 3, 2) as reader:
            b"".join(reader)
        assert not isinstance(caught.value, IntegrityError)

    @pytest.mark.parametrize(
        "body",
        [
            b'{"error": "busy"}',
            b'{"error": {"code": "busy", "errors": null}}',
            b"<Error><Code>What</Code></Error>",
            b"<?xml version='1.0'?><html><body>busy</body></html>",
            b"<Error><Code>What</Code><Message>\xff</Message></Error>",
            b"[" * 100_000,
        ],
        ids=["text", "no_list", "no_message", "page", "no_utf8", "deep"],
    )
    def test_the_status_counts_where_no_sdk_reads_the_error(
        self, through: Callable[..., tuple[Store, Store]], body: bytes
    ) -> None:
        """A gateway that answers 503 in words of its own is busy, for every verb: another try may help."""
        kind = "application/json" if body[:1] in b"{[" else "application/xml"
        _, faulty = through(lambda _: Say(503, body, {"Content-Type": kind}))
        for ask in (
            lambda: list(faulty.list_objects(BUCKET)),
            lambda: faulty.read_object(BUCKET, "app"),
            lambda: faulty.write_object(BUCKET, "app", source(b"x")),
            lambda: faulty.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1))),
            lambda: faulty.delete_object(BUCKET, "app"),
        ):
            with pytest.raises(TransientError, match="far: "):
                ask()

    @pytest.mark.parametrize("cloud", ["gcs"], indirect=True)  # the answers of the others do not name the object
    def test_answer_about_another_object(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """What an answer says of another object is taken for none of what was asked."""
        direct, faulty = through(
            lambda request: (
                Rewrite(lambda body: body.replace(b"releases/app", b"releases/two"))
                if _of("app", "GET")(request)
                else None
            )
        )
        direct.write_object(BUCKET, "app", source(b"hello"))
        with pytest.raises(StorageError, match="far: releases/app"):
            faulty.stat_object(BUCKET, "app")

    def test_copy_that_is_another_object(self, through: Callable[..., tuple[Store, Store]], cloud: str) -> None:
        """A copy in the quarantine counts only if the store says that it has the bytes, or the size, that it should."""
        aside = _of("quarantine", "GET", "HEAD", "POST")
        other = digest_of(b"other").sha256

        def fault(request: Request) -> Fault:
            if not aside(request):
                return None
            if request.method == "HEAD":
                return Header("Content-Length", "4") if cloud == "s3" else Header("x-ms-meta-sha256", other)
            return Rewrite(lambda body: body.replace(digest_of(b"hello").sha256.encode(), other.encode()))

        direct, faulty = through(fault)
        direct.write_object(BUCKET, "app", source(b"hello"))
        with pytest.raises(Unavailable, match="far: zot-quarantine/releases/job/app"):
            faulty.quarantine_object(BUCKET, "app", "job")


def _range(store: Store, offset: int, length: int) -> VerifiedReader:
    return store.read_object_range(BUCKET, "app", offset, length)


class TestRanges:
    @pytest.mark.parametrize("answered", [range(3, 9), range(2, 5), range(3, 4)])
    def test_other_range_than_was_asked_for(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, answered: range
    ) -> None:
        """A store that answers with a longer or a shorter range, or with another one as long, is found out."""
        data = b"0123456789"

        def other(request: Request) -> Fault:
            asked = {name.lower(): value for name, value in request.headers.items()}
            if request.method != "GET" or not (asked.get("range") or asked.get("x-ms-range")):
                return None
            headers = {
                "Content-Range": f"bytes {answered.start}-{answered.stop - 1}/{len(data)}",
                "ETag": '"x"',
                "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT",
                "x-ms-blob-type": "BlockBlob",
            }
            return Say(206, data[answered.start : answered.stop], headers)

        direct, faulty = through(other)
        direct.write_object(BUCKET, "app", source(data))
        with (
            pytest.raises(StorageError, match="far: releases/app"),
            faulty.read_object_range(BUCKET, "app", 3, 3) as reader,
        ):
            b"".join(reader)


class TestOnlyS3:
    @pytest.fixture
    def cloud(self) -> str:
        """Return the one cloud that these cases are about."""
        return "s3"

    def test_an_original_that_changes_before_its_copy(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """What replaced the original after it was found is not copied with the digest of the original."""
        opened: list[Store] = []

        def replace(request: Request) -> Fault:
            if request.method == "PUT" and "x-amz-copy-source" in request.headers:
                opened[0].write_object(BUCKET, "app", source(b"newer"))
            return None

        direct, faulty = through(replace)
        opened.append(direct)
        found, _ = direct.write_object(BUCKET, "app", source(b"hello"))
        driver: Any = faulty._driver
        with pytest.raises(Conflict, match="far: releases/copy"):
            driver.copy(BUCKET, "app", BUCKET, "copy", version=found.version)
        assert not direct.object_exists(BUCKET, "copy")

    @pytest.mark.usefixtures("both_paths")
    def test_weak_version_tag(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """A proxy that makes ETags weak keeps no condition from being decided by the store behind it."""
        direct, _ = through(lambda _: None)
        etag = direct.write_object(BUCKET, "app", source(b"one"))[0].version
        _, faulty = through(
            lambda request: Header("ETag", f'W/"{etag}"') if request.method == "HEAD" else None,
            bucket=direct._driver._config.bucket,  # type: ignore[attr-defined]
        )
        stat = faulty.stat_object(BUCKET, "app")
        assert stat.version == etag
        faulty.write_object(BUCKET, "app", source(b"two"), condition=Match(stat.version))
        assert direct.verify_object(BUCKET, "app").sha256 == digest_of(b"two").sha256

    @pytest.mark.usefixtures("both_paths")
    def test_digest_of_the_store_itself(
        self, through: Callable[..., tuple[Store, Store]], ministack: Ministack
    ) -> None:
        """S3's own SHA-256 of a whole object is the digest of an object that has no metadata of ours."""
        direct, _ = through(lambda _: None)
        real = direct._driver._config.bucket  # type: ignore[attr-defined]
        client = s3_client(ministack)
        client.put_object(Bucket=real, Key=f"{BUCKET}/tool", Body=b"payload", ChecksumAlgorithm="SHA256")
        assert direct.stat_object(BUCKET, "tool").sha256 == digest_of(b"payload").sha256
        assert direct.verify_object(BUCKET, "tool").verdict is Verdict.VERIFIED
        client.put_object(Bucket=real, Key=f"{BUCKET}/plain", Body=b"payload")
        assert direct.verify_object(BUCKET, "plain").verdict is Verdict.UNVERIFIABLE


def listing_page(cloud: str, token: int, names: str) -> Say:
    """Answer a listing with a page of these names, which says that another page follows."""
    if cloud == "s3":
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
        text = f"<ListBucketResult>{names}{more}</ListBucketResult>"
    elif cloud == "gcs":
        text = f'{{"kind": "storage#objects", {names}"nextPageToken": "{token}"}}'
    else:
        text = f"<EnumerationResults>{names}<NextMarker>{token}</NextMarker></EnumerationResults>"
    return Say(200, text.encode(), {"Content-Type": f"application/{'json' if cloud == 'gcs' else 'xml'}"})


class TestListings:
    def test_empty_pages_without_end(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A listing of empty pages that never ends is given up."""
        monkeypatch.setattr(listing, "EMPTY_PAGES", 20)
        numbers = iter(range(1_000_000))

        def page(request: Request) -> Fault:
            return listing_page(cloud, next(numbers), "" if cloud in {"s3", "gcs"} else "<Blobs/>")

        _, faulty = through(page)
        with pytest.raises(Unavailable, match="20 empty pages"):
            list(faulty.list_objects(BUCKET))

    def test_the_same_page_without_end(self, through: Callable[..., tuple[Store, Store]], cloud: str) -> None:
        """A listing of a gateway that ignores where a page begins is given up, also that of buckets and of versions."""
        numbers = iter(range(50))
        names = {
            "s3": (
                "<Contents><Key>releases/app</Key></Contents>"
                "<CommonPrefixes><Prefix>releases/</Prefix></CommonPrefixes>"
            ),
            "azure": (
                "<Blobs><Blob><Name>releases/app</Name><VersionId>5</VersionId><Properties><Etag>x</Etag>"
                "<Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
                "<BlobPrefix><Name>releases/</Name></BlobPrefix></Blobs>"
            ),
            "gcs": '"items": [{"name": "releases/app", "size": "1", "generation": "5"}], "prefixes": ["releases/"], ',
        }

        def page(_: Request) -> Fault:
            return listing_page(cloud, next(numbers), names[cloud])

        _, faulty = through(page)
        with pytest.raises(Unavailable, match="the same page again"):
            list(faulty.list_objects(BUCKET))
        with pytest.raises(Unavailable, match="the same page again"):
            faulty.list_buckets()
        if cloud == "azure":
            with pytest.raises(Unavailable, match="the same page again"):
                faulty.set_hold(BUCKET, "app", held=False)

    @pytest.mark.parametrize(
        ("what", "bad"),
        [
            ("size", b"many"),
            ("size", b""),
            ("size", b"-5"),
            ("size", b"9" * 5000),
            ("time", b"yesterday"),
            ("time", b"Wed, 31 Feb 2026 07:28:00 GMT"),
            ("time", b"30345-02-30T00:00:00.000Z"),
        ],
        ids=["word", "nothing", "negative", "huge", "no_time", "no_day", "no_year"],
    )
    def test_a_value_that_is_none_ends_no_listing(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, what: str, bad: bytes
    ) -> None:
        """One object whose size or time cannot be read is listed without it, and all others as they are."""
        names = {
            "s3": {"size": rb"(<Size>)\d+", "time": rb"(<LastModified>)[^<]+"},
            "gcs": {"size": rb'("size": *")\d+', "time": rb'("updated": *")[^"]+'},
            "azure": {"size": rb"(<Content-Length>)\d+", "time": rb"(<Last-Modified>)[^<]+"},
        }
        changed: list[int] = []

        def spoil(page: bytes) -> bytes:
            spoilt, count = re.subn(names[cloud][what], lambda found: found[1] + bad, page, count=1)
            changed.append(count)
            return spoilt

        lists = ("list-type=2", "comp=list", "/o?")
        direct, faulty = through(
            lambda request: Rewrite(spoil) if any(mark in request.path for mark in lists) else None
        )
        for key in ("a", "b", "c"):
            direct.write_object(BUCKET, key, source(b"hello"))
        right = list(direct.list_objects(BUCKET))
        found = list(faulty.list_objects(BUCKET))
        assert changed == [1]
        unknown = replace(right[0], **{"size": None} if what == "size" else {"modified": UNKNOWN_TIME})
        assert found == [unknown, *right[1:]]

    @pytest.mark.parametrize(
        "answer",
        [
            HTML,
            Say(200, b""),
            Say(204),
            Say(200, b"{}"),
            Say(200, b"<a><Contents/><Blobs/></a>"),
            Say(200, b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"),
            Say(200, b'{"kind": "storage#object", "items": null}', {"Content-Type": "application/json"}),
        ],
        ids=["html", "nothing", "no_content", "empty_json", "other_xml", "error", "other_json"],
    )
    def test_what_is_no_listing_is_no_empty_bucket(
        self, through: Callable[..., tuple[Store, Store]], answer: Say
    ) -> None:
        """An answer that is no listing never says that objects, uploads or buckets are gone."""
        _, faulty = through(lambda _: answer)
        for ask in (
            lambda: list(faulty.list_objects(BUCKET)),
            lambda: list(faulty.iter_stale_uploads()),
            lambda: faulty.bucket_exists(BUCKET),
            faulty.health_check,
        ):
            with pytest.raises(StorageError, match="far"):
                ask()

    @pytest.mark.parametrize("cloud", ["azure"], indirect=True)  # the other SDKs read what is asked of them
    @pytest.mark.parametrize(
        "field", ["BlobType", "Creation-Time", "TagCount", "x-ms-blob-sequence-number", "Sealed", "AccessTier"]
    )
    def test_a_property_that_is_not_needed_ends_no_page(
        self, through: Callable[..., tuple[Store, Store]], field: str
    ) -> None:
        """What Azure says of a blob beyond size, time and tag may be anything."""
        bad = f"<{field}>\u00e9 what</{field}></Properties>".encode()

        def spoil(page: bytes) -> bytes:
            return page.replace(b"</Properties>", bad).replace(
                b"</Name>", b"</Name><IsCurrentVersion>so</IsCurrentVersion>"
            )

        direct, faulty = through(lambda request: Rewrite(spoil) if "comp=list" in request.path else None)
        direct.write_object(BUCKET, "a", source(b"hello"))
        assert list(faulty.list_objects(BUCKET)) == list(direct.list_objects(BUCKET))


class TestNames:
    def test_prefix_that_is_no_unicode(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """A prefix with a lone surrogate is an InvalidKey that names the store."""
        direct, _ = through(lambda _: None)
        with pytest.raises(InvalidKey, match="near"):
            list(direct.list_objects(BUCKET, "a\ud800"))

    @pytest.mark.parametrize("bucket", ["ends-", "a_", "A", "x"])
    def test_real_bucket_that_cannot_be(self, through: Callable[..., tuple[Store, Store]], bucket: str) -> None:
        """A name that only a store or its SDK refuses is a typed error that names store and bucket, from every verb."""
        direct, _ = through(lambda _: None)
        field = "container" if hasattr(direct._driver._config, "container") else "bucket"  # type: ignore[attr-defined]
        native = {"layout": "native", field: None, "buckets": ["*"], "reserved_bucket": "reserved"}
        driver = open_driver("near", direct._driver._config.model_copy(update=native))  # type: ignore[attr-defined]
        store = Store(driver)
        for ask in (
            lambda: store.stat_object(bucket, "app"),
            lambda: store.delete_object(bucket, "app"),
            lambda: list(store.list_objects(bucket)),
            lambda: store.write_object(bucket, "app", source(b"x")),
            lambda: store.bucket_exists(bucket),
        ):
            try:
                ask()
            except (NotFound, InvalidKey) as error:
                assert error.message.startswith("near: ")  # noqa: PT017  others say that there is no such bucket
                assert bucket in error.message  # noqa: PT017
        store.close()

    def test_metadata_that_is_no_unicode(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """Metadata with a lone surrogate is refused before anything is sent, and never replaced."""
        direct, _ = through(lambda _: None)
        with pytest.raises(InvalidMetadata, match="near: releases/app"):
            direct.write_object(BUCKET, "app", source(b"x"), metadata={"name": "a\ud800"})
        assert not direct.object_exists(BUCKET, "app")

    def test_metadata_that_is_too_large(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """More metadata than the store keeps, encoded, is refused before anything is sent, with the limit."""
        direct, _ = through(lambda _: None)
        large, metadata = some_bytes(2 * SMALL_PART), {"name": "é" * 5000}
        body, digest = source(large), digest_of(large)
        with pytest.raises(InvalidMetadata, match="at most (2048|8192)"):
            direct.write_object(BUCKET, "app", source(b"x"), metadata=metadata)
        with pytest.raises(InvalidMetadata, match="at most (2048|8192)"):
            direct.write_object(BUCKET, "app", body, size=digest.size, sha256=digest.sha256, metadata=metadata)
        assert body.tell() == 0, "no part may be sent first"

    @pytest.mark.usefixtures("both_paths", "sdks_retry_at_once")
    def test_endpoint_with_secrets(self, through: Callable[..., tuple[Store, Store]], cloud: str) -> None:
        """User, password, query and fragment of an endpoint are in no message."""
        _, faulty = through(lambda _: None)
        name = "account_url" if cloud == "azure" else "endpoint"
        changed = faulty._driver._config.model_copy(  # type: ignore[attr-defined]
            update={name: "http://user:hush@127.0.0.1:9/base?token=hush#hush"}
        )
        with pytest.raises(StorageError) as caught:
            open_driver("far", changed).stat(BUCKET, "app")
        assert "hush" not in str(caught.value)


@pytest.mark.usefixtures("both_paths")
class TestDamagedUploads:
    @pytest.mark.parametrize("size", [100, SMALL_PART + 100])
    def test_what_is_damaged_on_the_way_is_no_copy(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, size: int
    ) -> None:
        """Bytes that a line damages are refused by the store, or found when they are read back; nothing is left."""
        done: list[int] = []

        def damage(request: Request) -> Fault:
            sends = (request.method == "PUT" and "app" in request.path) or "/upload/" in request.path
            if sends and "comp=blocklist" not in request.path and int(request.headers.get("Content-Length") or 0) >= 90:
                done.append(1)
                return Damage(at=-60)
            return None

        direct, faulty = through(damage, read_back=None)
        with pytest.raises(StorageError if cloud == "azure" else TransientError):  # azurite has a code of its own
            faulty.write_object(BUCKET, "app", source(some_bytes(size)))
        assert done
        assert not direct.object_exists(BUCKET, "app")

    @pytest.mark.parametrize("size", [100, SMALL_PART + 100])
    def test_what_a_damaged_write_was_to_replace_is_kept(
        self, through: Callable[..., tuple[Store, Store]], size: int
    ) -> None:
        """An object stays as it was when its replacement is damaged on the way; a right one replaces it."""
        damaging, done, counted = [True], [0], [0]

        def damage(request: Request) -> Fault:
            sends = (request.method == "PUT" and "app" in request.path) or "/upload/" in request.path
            bytes_sent = int(request.headers.get("Content-Length") or 0)
            if damaging[0] and sends and "comp=blocklist" not in request.path and bytes_sent >= 90:
                done[0] += 1
                return Damage(at=-60)
            return None

        direct, faulty = through(damage, read_back=True)
        before, _ = direct.write_object(BUCKET, "app", source(b"before"))
        with pytest.raises(StorageError):
            faulty.write_object(BUCKET, "app", source(some_bytes(size)), condition=Match(before.version))
        assert done[0]
        assert direct.stat_object(BUCKET, "app").version == before.version
        assert direct.verify_object(BUCKET, "app").sha256 == digest_of(b"before").sha256
        assert list(direct.iter_stale_uploads()) == []

        damaging[0] = False
        with pytest.raises(PreconditionFailed):
            faulty.write_object(BUCKET, "app", source(some_bytes(size)), condition=Match("1"))
        made, _ = faulty.write_object(
            BUCKET,
            "app",
            source(some_bytes(size)),
            condition=Match(before.version),
            metadata={"name": "value"},
            properties=ObjectProperties(content_type="text/plain"),
            on_read_back=counted.append,
        )
        found = direct.stat_object(BUCKET, "app")
        assert (found.version, found.metadata, found.properties) == (made.version, made.metadata, made.properties)
        assert (found.metadata, found.properties.content_type) == ({"name": "value"}, "text/plain")
        assert direct.verify_object(BUCKET, "app").sha256 == digest_of(some_bytes(size)).sha256
        assert sum(counted) == size
        assert list(direct.iter_stale_uploads()) == []

    def test_an_object_that_a_killed_write_left_before_the_swap_is_cleaned_up(
        self, through: Callable[..., tuple[Store, Store]]
    ) -> None:
        """What was written and not yet swapped in is listed as a stale upload of ours, and removed."""
        direct, _ = through(lambda _: None, read_back=True)

        def staged(content: bytes) -> StaleUpload:
            info = WriteInfo(len(content), digest_of(content).sha256)
            direct._driver.put("zot-staging", "x/releases/app", VerifyingReader(source(content)), info)
            (stale,) = direct.iter_stale_uploads()
            return stale

        earlier, stale = staged(b"x"), staged(b"of a later writer")
        assert not direct.remove_stale_upload(earlier)
        assert stale.ours
        assert "releases/app" in stale.description
        assert direct.remove_stale_upload(stale)
        assert not direct.remove_stale_upload(stale)
        assert list(direct.iter_stale_uploads()) == []

    @pytest.mark.parametrize("cloud", ["azure"], indirect=True)
    def test_a_store_that_copies_nothing_replaces_nothing_unread(
        self, through: Callable[..., tuple[Store, Store]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Azure with a signature makes no copy, which what was read back would need to take the place of an object."""
        direct, _ = through(lambda _: None, read_back=True)
        monkeypatch.setattr(direct._driver, "_copies", False)
        direct.write_object(BUCKET, "app", source(b"before"))
        with pytest.raises(PermanentError, match="delete it first, or write under another key"):
            direct.write_object(BUCKET, "app", source(b"after"))
        assert direct.verify_object(BUCKET, "app").sha256 == digest_of(b"before").sha256

    def test_a_store_that_ignores_checksums_is_found_out(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One wrong checksum tells whether a store refuses damage, and leaves nothing: that of GCS ignores it.

        Until the store answers that, it counts as one that does not, so that what is written is read back.
        """
        direct, _ = through(lambda _: None, read_back=None)

        def unavailable(*_: str) -> bool:
            raise Unavailable("it does not answer now")

        with monkeypatch.context() as now:
            now.setattr(direct._driver, "refuses_damage", unavailable)
            assert not direct.checks_uploads()
        assert direct.checks_uploads() is (cloud != "gcs")
        assert list(direct.list_objects("zot-probe")) == []
        assert list(direct.iter_stale_uploads()) == []

    def test_a_store_that_lets_nothing_be_found_out(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """Credentials that do not reach the place of the probe keep no write from being made, and read back."""
        denied = Say(403, b"<Error><Code>AccessDenied</Code></Error>", {"x-ms-error-code": "AuthorizationFailure"})

        def deny(request: Request) -> Fault:
            asked = "zot-probe" in request.path or ("/upload/" in request.path and not wanted)
            return denied if asked else None

        wanted: list[int] = []
        _, faulty = through(deny, read_back=None)
        assert not faulty.checks_uploads()
        wanted.append(1)
        faulty.write_object(BUCKET, "app", source(b"x"))
        assert faulty.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED


class TestAcceptedAndNotDone:
    """A store answers that it has done what it was asked for, and has not."""

    @pytest.mark.parametrize("conditional", [False, True], ids=["any", "version"])
    def test_a_delete_that_deletes_nothing(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, conditional: bool
    ) -> None:
        """No delete says that it deleted an object which the store still has; it fails transiently."""
        accepted = {"s3": Say(204), "gcs": Say(204), "azure": Say(202)}[cloud]
        direct, faulty = through(lambda request: accepted if _of("app", "DELETE")(request) else None)
        stat, _ = direct.write_object(BUCKET, "app", source(b"hello"))
        condition = Match(stat.version) if conditional else None
        with pytest.raises(NotDeleted, match="far: releases/app: the store accepted the delete"):
            faulty.delete_object(BUCKET, "app", condition=condition)
        assert direct.delete_object(BUCKET, "app", condition=condition)

    def test_delete_before_another_write(self, through: Callable[..., tuple[Store, Store]], cloud: str) -> None:
        """What another writer wrote after the delete of a version is no sign that the version is still there."""
        opened: list[Store] = []
        write = Then(lambda: opened[0].write_object(BUCKET, "app", source(b"newer")))
        direct, faulty = through(lambda request: write if _of("app", "DELETE")(request) else None)
        opened.append(direct)
        stat, _ = direct.write_object(BUCKET, "app", source(b"hello"))
        assert faulty.delete_object(BUCKET, "app", condition=Match(stat.version))
        assert direct.verify_object(BUCKET, "app").sha256 == digest_of(b"newer").sha256

    def test_delete_of_a_probe(self, through: Callable[..., tuple[Store, Store]], cloud: str) -> None:
        """A probe tells that the store does not delete."""
        accepted = {"s3": Say(204), "gcs": Say(204), "azure": Say(202)}[cloud]
        _, faulty = through(lambda request: accepted if request.method == "DELETE" else None)
        assert "accepted the delete and still has the object" in str(probe(faulty))

    @pytest.mark.parametrize("cloud", ["s3", "azure"], indirect=True)
    def test_complete_multipart_upload(self, through: Callable[..., tuple[Store, Store]], cloud: str) -> None:
        """An upload in parts that leaves no object, or a part of it, is no success; one that is replaced at once is."""
        opened: list[Store] = []

        def cut_short() -> None:
            driver: Any = opened[0]._driver
            if cloud == "azure":
                blob = driver._blob(BUCKET, "app")
                metadata = blob.get_blob_properties().metadata
                blob.upload_blob(some_bytes(SMALL_PART), overwrite=True, metadata=metadata)
                return
            place = driver._address(BUCKET, "app")
            metadata = driver._client().head_object(**place)["Metadata"]
            driver._client().put_object(**place, Metadata=metadata, Body=some_bytes(SMALL_PART))

        later = Then(lambda: opened[0].write_object(BUCKET, "app", source(b"later")))
        lies = [later, Then(cut_short), Then(lambda: opened[0].delete_object(BUCKET, "app"))]
        completes = _of("app?comp=blocklist", "PUT") if cloud == "azure" else _of("app?uploadId=", "POST")
        direct, faulty = through(lambda request: lies.pop() if lies and completes(request) else None)
        opened.append(direct)
        with pytest.raises(Conflict, match="far: releases/app: the store accepted the write and has no object"):
            faulty.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1)))
        with pytest.raises(Unavailable, match=f"made an object of {SMALL_PART} bytes of {SMALL_PART + 1}"):
            faulty.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1)))
        made, _ = faulty.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1)))
        assert made.version != direct.stat_object(BUCKET, "app").version
        assert direct.verify_object(BUCKET, "app").sha256 == digest_of(b"later").sha256


def _lost_once(method: str, part_of_path: str = "") -> Callable[[Request], Fault]:
    """Return what loses the answer to the first request of this kind, after which the SDK sends it again."""
    left: list[Fault] = [Lose()]
    return lambda request: left.pop() if left and _of(part_of_path, method)(request) else None


class TestLostAnswers:
    """The store did what it was asked for, and says to the repeated request that there is nothing to do."""

    @pytest.mark.parametrize("conditional", [False, True], ids=["any", "version"])
    def test_an_object(self, through: Callable[..., tuple[Store, Store]], conditional: bool) -> None:
        """A delete whose answer was lost has deleted the object; the next one finds none."""
        direct, faulty = through(_lost_once("DELETE", "app"))
        stat, _ = direct.write_object(BUCKET, "app", source(b"hello"))
        condition = Match(stat.version) if conditional else None
        assert faulty.delete_object(BUCKET, "app", condition=condition)
        assert not direct.object_exists(BUCKET, "app")
        assert not faulty.delete_object(BUCKET, "app", condition=condition)

    def test_a_newer_object_stays(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """What another writer wrote between the two requests is named in the error, and stays."""
        opened: list[Store] = []

        def lose(request: Request) -> Fault:
            if not _of("app", "DELETE")(request):
                return None
            asked.append(request)
            if len(asked) > 1:
                opened[0].write_object(BUCKET, "app", source(b"newer"))
            return Lose() if len(asked) == 1 else None

        asked: list[Request] = []
        direct, faulty = through(lose)
        opened.append(direct)
        stat, _ = direct.write_object(BUCKET, "app", source(b"hello"))
        with pytest.raises(PreconditionFailed, match="far: releases/app was expected in version"):
            faulty.delete_object(BUCKET, "app", condition=Match(stat.version))
        assert direct.verify_object(BUCKET, "app").sha256 == digest_of(b"newer").sha256

    def test_a_stale_upload(self, through: Callable[..., tuple[Store, Store]], cloud: str) -> None:
        """Cleanup counts the upload that it has ended, and leaves nothing of it."""
        direct, faulty = through(_lost_once("PUT", "blocklist") if cloud == "azure" else _lost_once("DELETE"))
        driver: Any = direct._driver
        driver.begin_upload(BUCKET, "app", WriteInfo(1, digest_of(b"x").sha256))
        [stale] = direct.iter_stale_uploads()
        assert faulty.remove_stale_upload(stale)
        assert list(direct.iter_stale_uploads()) == []
        assert not faulty.remove_stale_upload(stale)

    @pytest.mark.parametrize("number", range(6))
    def test_a_trial_of_damaged_bytes(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, number: int
    ) -> None:
        """Whether a store refuses damaged bytes is found out although an answer was lost, and nothing stays of it."""
        asked = list[Request]()

        def lose(request: Request) -> Fault:
            asked.append(request)
            return Lose() if len(asked) == number + 1 else None

        direct, faulty = through(lose)
        assert faulty.refuses_damage() is (cloud != "gcs")  # whose emulator compares no checksum
        assert list(direct.list_objects("zot-probe")) == []


class TestOurOwnUpload:
    @pytest.mark.parametrize("code", ["InvalidPart", "InvalidPartOrder", "EntityTooSmall", "NoSuchUpload"])
    def test_answers_about_our_own_upload_begin_a_new_one(
        self, through: Callable[..., tuple[Store, Store]], cloud: str, code: str
    ) -> None:
        """A multipart upload that the store has spoilt is transient: the next attempt begins a new one."""
        xml = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>no</Message></Error>"
        if cloud == "gcs":
            answer = Say(404, b'{"error": {"code": 404, "errors": [{"reason": "notFound"}]}}')
        else:
            word = code if cloud == "s3" else "InvalidBlockList"
            answer = Say(400, xml % word.encode(), {"x-ms-error-code": word})
        marks = ("uploadId=", "comp=blocklist", "/compose")
        left = [answer]

        def spoil(request: Request) -> Fault:
            completes = request.method in {"POST", "PUT"} and any(mark in request.path for mark in marks)
            if cloud == "s3":
                completes = completes and request.method == "POST"
            return left.pop() if completes and left else None

        _, faulty = through(spoil)
        with pytest.raises(TransientError):
            faulty.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1)))
        assert list(faulty.iter_stale_uploads()) == []
        faulty.write_object(BUCKET, "app", source(some_bytes(SMALL_PART + 1)))
        assert faulty.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    def test_an_upload_to_a_reserved_bucket_is_ours(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """A multipart upload to the quarantine that a killed job has left is known to be ours without a record."""
        direct, _ = through(lambda _: None)
        driver: Any = direct._driver
        info = WriteInfo(1, digest_of(b"x").sha256)
        token = driver.begin_upload("zot-quarantine", "releases/job/app", info)
        driver.upload_part("zot-quarantine", "releases/job/app", token, 1, b"x")
        [stale] = direct.iter_stale_uploads()
        assert stale.ours
        assert direct.remove_stale_upload(stale)
        assert list(direct.iter_stale_uploads()) == []

    def test_upload_that_is_gone_is_told(self, through: Callable[..., tuple[Store, Store]]) -> None:
        """An upload that was aborted is an UploadEnded, which is a NotFound."""
        direct, _ = through(lambda _: None)
        driver: Any = direct._driver
        digest = digest_of(b"x")
        token = driver.begin_upload(BUCKET, "app", WriteInfo(digest.size, digest.sha256))
        driver.abort_upload(BUCKET, "app", token)
        with pytest.raises(NotFound) as caught:
            driver.list_parts(BUCKET, "app", token)
        assert isinstance(caught.value, UploadEnded)
