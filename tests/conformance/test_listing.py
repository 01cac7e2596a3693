"""Listings, buckets, and keys that are difficult but allowed."""

import contextlib
import uuid

import pytest

from tests.conformance.bodies import digest_of, raises
from tests.conformance.conftest import BucketUnderTest
from tests.conformance.pages import SMALL, make_pages_small
from tests.conformance.targets import Target
from worker.storage.errors import InvalidKey, NotFound, StorageError
from worker.storage.keys import MAX_SEGMENT_BYTES, QUARANTINE_BUCKET

DIFFICULT = (
    "with space",
    " leading",
    "two  spaces",
    "100%",
    "%2B",
    "%252F",
    "a+b",
    "what?",
    "a#b",
    "a&b=c;d",
    "it's",
    'say "hi"',
    "a,b:c*d|e<f>g",
    "~tilde",
    "$HOME",
    "`ls`",
    "(x)[y]{z}",
    "-rf",
    "@at!",
    "caf\u00e9",  # composed
    "cafe\u0301",  # decomposed: another key
    "\u2028x\u200dy\ufeff\u202ez",
    "\u0378\ufdd0\ue000\U000e0041",  # no characters, or no known ones
    "ßİ\uff5e",
    "x%2F",
    "x%00",
    "日本語/ファイル",
    "🚀.tgz",
    "x.sha256",
    "x.sha256.sha256",
    "x.%sha256",
    "x.tmp",
    "..a",
    "a..b",
    "...a",
    ".hidden",
    "UPPER",
    "upper",
    "soap",
    "index.html",
    "a/very/deep/path/with/many/segments",
    "n" * MAX_SEGMENT_BYTES,
)
REFUSED = (
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/./b",
    "a.",
    "a ",
    "a\\b",
    "a\nb",
    "\x00",
    ".zot-x",
    "x/.zot-y",
)


class TestKeys:
    @pytest.mark.unless("quoting")
    @pytest.mark.reads
    @pytest.mark.unless("names")
    def test_difficult_keys(self, bucket: BucketUnderTest) -> None:
        """Every allowed key is written, listed, read and deleted as exactly itself, all of them side by side."""
        for key in DIFFICULT:
            bucket.write(key, key.encode())
        assert bucket.keys() == sorted(DIFFICULT, key=str.encode)
        for key in DIFFICULT:
            stat = bucket.stat(key)
            assert (stat.key, stat.sha256, bucket.read(key)) == (key, digest_of(key.encode()).sha256, key.encode())
        for key in DIFFICULT:
            assert bucket.delete(key)
        assert bucket.keys() == []

    @pytest.mark.unless("names")
    def test_refused_keys(self, bucket: BucketUnderTest) -> None:
        """A key that not all stores can hold is never written; other verbs refuse it too, or find no such object."""
        assert [key for key in REFUSED if not raises(InvalidKey, bucket.write, key, b"x")] == []
        for ask in (bucket.read, bucket.stat):
            assert [key for key in REFUSED if not raises((InvalidKey, NotFound), ask, key)] == []
        for key in REFUSED:
            with contextlib.suppress(InvalidKey):
                assert not bucket.delete(key), key
        assert bucket.keys() == []

    @pytest.mark.unless("names")
    @pytest.mark.unless("prefix_keys")
    def test_key_below_a_key(self, bucket: BucketUnderTest) -> None:
        """`a` and `a/b` are both kept where the store states it; elsewhere the second is refused."""
        bucket.write("a", b"one")
        if bucket.capabilities.prefix_keys:
            bucket.write("a/b", b"two")
            assert (bucket.read("a"), bucket.read("a/b")) == (b"one", b"two")
        else:
            with pytest.raises(StorageError, match="a/b"):
                bucket.write("a/b", b"two")
            assert (bucket.keys(), bucket.read("a")) == (["a"], b"one")

    @pytest.mark.unless("names")
    def test_key_beside_its_folder(self, bucket: BucketUnderTest) -> None:
        """`a/b` and `a.b` do not disturb each other, and deleting the one below leaves no `a`."""
        bucket.write("a/b", b"x")
        bucket.write("a.b", b"y")
        assert bucket.delete("a/b")
        assert (bucket.keys(), bucket.exists("a")) == (["a.b"], False)
        bucket.write("a", b"z")
        assert bucket.read("a") == b"z"


@pytest.mark.unless("names")
class TestListing:
    @pytest.mark.unless("byte_order")
    def test_order_is_that_of_the_bytes(self, bucket: BucketUnderTest) -> None:
        """Keys come by the bytes of their UTF-8, not by folders and not by UTF-16."""
        keys = ["a-b", "a/b", "a0", "B", "\uff5e", "\U0001f680", "é", "z", "a/b-c", "a/b0/x"]
        for key in keys:
            bucket.write(key, b"")
        assert bucket.keys() == sorted(keys, key=str.encode)

    def test_prefix(self, bucket: BucketUnderTest) -> None:
        """A prefix is a beginning of the key, not a folder."""
        for key in ("apple", "app/one", "app/two", "zebra"):
            bucket.write(key, b"")
        assert bucket.keys("app") == ["app/one", "app/two", "apple"]
        assert bucket.keys("app/") == ["app/one", "app/two"]
        assert bucket.keys("app/t") == ["app/two"]
        assert bucket.keys("nothing") == []

    def test_after(self, bucket: BucketUnderTest) -> None:
        """A listing continues after a key, whether that key exists or not."""
        for key in ("a", "b/1", "b/2", "c"):
            bucket.write(key, b"")
        assert bucket.keys(after="b/1") == ["b/2", "c"]
        assert bucket.keys(after="b/11") == ["b/2", "c"]
        assert bucket.keys("b/", after="b/1") == ["b/2"]
        assert bucket.keys(after="c") == []

    @pytest.mark.reads
    def test_rows(self, bucket: BucketUnderTest) -> None:
        """A row has the size and the version that a stat of the object has."""
        bucket.write("app", b"hello")
        [row] = bucket.store.list_objects(bucket.name)
        stat = bucket.stat("app")
        assert (row.size, row.version) == (5, stat.version)
        assert abs((row.modified - stat.modified).total_seconds()) < 2

    @pytest.mark.unless("pages")
    def test_more_than_a_page(self, bucket: BucketUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Objects of several pages are listed completely, in order, and from anywhere."""
        keys = [f"k/{number:04}" for number in range(3 * SMALL + 1)]
        for key in keys:
            bucket.write_as(key, b"", digest_of(b""))
        asked = make_pages_small(monkeypatch)
        assert bucket.keys() == keys
        assert bucket.store.name in {"memory", "filesystem"} or len(asked) >= 4
        assert bucket.keys(after=keys[-2]) == keys[-1:]

    def test_only_this_bucket(self, bucket: BucketUnderTest) -> None:
        """A bucket whose name begins like another's does not show the other's objects."""
        longer = f"{bucket.name}-longer"
        bucket.store.create_bucket(longer)
        bucket.store.write_object(longer, "theirs", Empty())
        assert bucket.keys() == []
        assert bucket.store.delete_object(longer, "theirs")


@pytest.mark.unless("names")
class TestBuckets:
    def test_life(self, bucket: BucketUnderTest) -> None:
        """A bucket is made once, and exists while it is empty."""
        second = f"{bucket.name}-{uuid.uuid4().hex[:6]}"
        assert not bucket.store.bucket_exists(second)
        assert bucket.store.create_bucket(second)
        assert not bucket.store.create_bucket(second)
        assert bucket.store.bucket_exists(second)
        assert list(bucket.store.list_objects(second)) == []

    def test_named(self, bucket: BucketUnderTest) -> None:
        """Every bucket is named that artifacts are in, if it is one of the settings, and no reserved one."""
        second = f"{bucket.name}-second"
        bucket.write("deep/down", b"x")
        bucket.store.create_bucket(second)
        named = bucket.store.list_buckets()
        assert not any(name.startswith("zot-") for name in named)
        if bucket.capabilities.implicit_buckets:
            assert {bucket.name, second} <= set(named)
            assert named == sorted(set(named))

    def test_outlives_its_objects(self, bucket: BucketUnderTest) -> None:
        """A bucket that was created stays when its last object goes."""
        bucket.write("a/b", b"x")
        bucket.delete("a/b")
        assert bucket.store.bucket_exists(bucket.name)

    def test_implicit(self, bucket: BucketUnderTest) -> None:
        """Writing makes the bucket where the store states it; elsewhere the write is refused."""
        implicit = f"{bucket.name}-implicit"
        if bucket.capabilities.implicit_buckets:
            bucket.store.write_object(implicit, "app", Empty())
            assert bucket.store.bucket_exists(implicit)
            bucket.store.delete_object(implicit, "app")
        else:
            with pytest.raises(FileNotFoundError, match=implicit):
                bucket.store.write_object(implicit, "app", Empty())
            assert not bucket.store.bucket_exists(implicit)

    def test_health(self, bucket: BucketUnderTest) -> None:
        """A store that can be reached raises nothing, and its bucket is there."""
        bucket.store.health_check()
        assert bucket.store.bucket_exists(bucket.name)


class TestOwnThings:
    def test_quarantine_keeps_the_bytes(self, bucket: BucketUnderTest) -> None:
        """Quarantined bytes stay, with their digest, when the object is replaced and when it is deleted."""
        bucket.write("deep/app", b"bad bytes")
        place = bucket.store.quarantine_object(bucket.name, "deep/app", "job-1")
        bucket.write("deep/app", b"good bytes!")
        bucket.delete("deep/app")
        quarantine, _, key = place.partition("/")
        try:
            assert quarantine == QUARANTINE_BUCKET
            with bucket.store.read_object(quarantine, key) as reader:
                assert (reader.verified, b"".join(reader)) == (True, b"bad bytes")
        finally:
            bucket.store.delete_object(quarantine, key)

    def test_unfinished_uploads_are_seen_and_ended(self, bucket: BucketUnderTest, target: Target) -> None:
        """What another program left open is listed as not ours, and goes where the store can end just that."""
        if target.open_upload is None:
            assert list(bucket.store.iter_stale_uploads()) == []
            return
        target.open_upload(bucket.name, "left/open")
        [left] = bucket.store.iter_stale_uploads()
        assert "left/open" in left.description
        assert not left.ours
        if target.name.startswith("azure"):  # it drops blocks by a commit only, which would make an object of theirs
            assert not bucket.store.remove_stale_upload(left)
            assert [stale.description for stale in bucket.store.iter_stale_uploads()] == [left.description]
            bucket.write("left/open", b"their own commit")
            bucket.delete("left/open")
        else:
            assert bucket.store.remove_stale_upload(left)
            assert not bucket.store.remove_stale_upload(left)
        assert list(bucket.store.iter_stale_uploads()) == []


class Empty:
    """A source without bytes."""

    def read(self, _size: int, /) -> bytes:
        return b""
