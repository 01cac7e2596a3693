"""Listings, buckets, and keys that are difficult but allowed."""

import pytest

from tests.conformance.bodies import digest_of
from tests.conformance.conftest import Room
from tests.conformance.targets import Target
from worker.storage.errors import BucketNotEmpty, InvalidKey, StorageError
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
    def test_difficult_keys(self, room: Room) -> None:
        """Every allowed key is written, listed, read and deleted as exactly itself, all of them side by side."""
        for key in DIFFICULT:
            room.write(key, key.encode())
        assert room.keys() == sorted(DIFFICULT, key=str.encode)
        for key in DIFFICULT:
            assert (room.stat(key).key, room.read(key)) == (key, key.encode())
            assert room.stat(key).sha256 == digest_of(key.encode()).sha256
        for key in DIFFICULT:
            assert room.delete(key)
        assert room.keys() == []

    @pytest.mark.parametrize("key", REFUSED)
    def test_refused_keys(self, room: Room, key: str) -> None:
        """A key that not all stores can hold is refused by every verb before anything is sent, and named."""
        for ask in (room.read, room.stat, room.delete, lambda key: room.write(key, b"x")):
            with pytest.raises(InvalidKey):
                ask(key)
        assert room.keys() == []

    @pytest.mark.unless("prefix_keys")
    def test_key_below_a_key(self, room: Room) -> None:
        """`a` and `a/b` are both kept where the store states it; elsewhere the second is refused."""
        room.write("a", b"one")
        if room.capabilities.prefix_keys:
            room.write("a/b", b"two")
            assert (room.read("a"), room.read("a/b")) == (b"one", b"two")
        else:
            with pytest.raises(StorageError, match="a/b"):
                room.write("a/b", b"two")
            assert (room.keys(), room.read("a")) == (["a"], b"one")

    def test_key_beside_its_folder(self, room: Room) -> None:
        """`a/b` and `a.b` do not disturb each other, and deleting the one below leaves no `a`."""
        room.write("a/b", b"x")
        room.write("a.b", b"y")
        assert room.delete("a/b")
        assert (room.keys(), room.exists("a")) == (["a.b"], False)
        room.write("a", b"z")
        assert room.read("a") == b"z"


class TestListing:
    @pytest.mark.unless("byte_order")
    def test_order_is_that_of_the_bytes(self, room: Room) -> None:
        """Keys come by the bytes of their UTF-8, not by folders and not by UTF-16."""
        keys = ["a-b", "a/b", "a0", "B", "\uff5e", "\U0001f680", "é", "z", "a/b-c", "a/b0/x"]
        for key in keys:
            room.write(key, b"")
        assert room.keys() == sorted(keys, key=str.encode)

    def test_prefix(self, room: Room) -> None:
        """A prefix is a beginning of the key, not a folder."""
        for key in ("apple", "app/one", "app/two", "zebra"):
            room.write(key, b"")
        assert room.keys("app") == ["app/one", "app/two", "apple"]
        assert room.keys("app/") == ["app/one", "app/two"]
        assert room.keys("app/t") == ["app/two"]
        assert room.keys("nothing") == []

    def test_after(self, room: Room) -> None:
        """A listing goes on behind a key, whether that key exists or not."""
        for key in ("a", "b/1", "b/2", "c"):
            room.write(key, b"")
        assert room.keys(after="b/1") == ["b/2", "c"]
        assert room.keys(after="b/11") == ["b/2", "c"]
        assert room.keys("b/", after="b/1") == ["b/2"]
        assert room.keys(after="c") == []

    def test_rows(self, room: Room) -> None:
        """A row has the size and the version that a stat of the object has."""
        room.write("app", b"hello")
        [row] = room.store.list_objects(room.bucket)
        stat = room.stat("app")
        assert (row.size, row.version) == (5, stat.version)
        assert abs((row.modified - stat.modified).total_seconds()) < 2

    @pytest.mark.unless("pages")
    def test_more_than_a_page(self, room: Room) -> None:
        """More than 1,000 objects are listed completely, in order, and from anywhere."""
        keys = [f"k/{number:04}" for number in range(1_001)]
        for key in keys:
            room.write_as(key, b"", digest_of(b""))
        assert room.keys() == keys
        assert room.keys(after="k/0999") == ["k/1000"]

    def test_only_this_bucket(self, room: Room) -> None:
        """A bucket whose name begins like another's does not show the other's objects."""
        longer = f"{room.bucket}-longer"
        room.store.create_bucket(longer)
        room.store.write_object(longer, "theirs", Empty())
        assert room.keys() == []
        assert room.store.delete_object(longer, "theirs")
        assert room.store.delete_bucket(longer)


class TestBuckets:
    def test_life(self, room: Room) -> None:
        """A bucket is made once, exists while it is empty, and is deleted once."""
        bucket = f"{room.bucket}-second"
        assert not room.store.bucket_exists(bucket)
        assert room.store.create_bucket(bucket)
        assert not room.store.create_bucket(bucket)
        assert room.store.bucket_exists(bucket)
        assert list(room.store.list_objects(bucket)) == []
        assert room.store.delete_bucket(bucket)
        assert not room.store.delete_bucket(bucket)
        assert not room.store.bucket_exists(bucket)

    def test_not_empty(self, room: Room) -> None:
        """A bucket that holds an object is not deleted, and the object stays."""
        room.write("deep/down", b"x")
        with pytest.raises(BucketNotEmpty, match=room.bucket):
            room.store.delete_bucket(room.bucket)
        assert room.read("deep/down") == b"x"

    def test_outlives_its_objects(self, room: Room) -> None:
        """A bucket that was created stays when its last object goes."""
        room.write("a/b", b"x")
        room.delete("a/b")
        assert room.store.bucket_exists(room.bucket)

    def test_implicit(self, room: Room) -> None:
        """Writing makes the bucket where the store states it; elsewhere the write is refused."""
        bucket = f"{room.bucket}-implicit"
        if room.capabilities.implicit_buckets:
            room.store.write_object(bucket, "app", Empty())
            assert room.store.bucket_exists(bucket)
            room.store.delete_object(bucket, "app")
            room.store.delete_bucket(bucket)
        else:
            with pytest.raises(FileNotFoundError, match=bucket):
                room.store.write_object(bucket, "app", Empty())
        assert not room.store.bucket_exists(bucket)

    def test_health(self, room: Room) -> None:
        """A store that can be reached says nothing."""
        room.store.health_check()


class TestOwnThings:
    def test_quarantine_keeps_the_bytes(self, room: Room) -> None:
        """Quarantined bytes stay, with their digest, when the object is replaced and when it is deleted."""
        room.write("deep/app", b"bad bytes")
        place = room.store.quarantine_object(room.bucket, "deep/app", "job-1")
        room.write("deep/app", b"good bytes!")
        room.delete("deep/app")
        bucket, _, key = place.partition("/")
        try:
            assert bucket == QUARANTINE_BUCKET
            with room.store.read_object(bucket, key) as reader:
                assert (reader.verified, b"".join(reader)) == (True, b"bad bytes")
        finally:
            room.store.delete_object(bucket, key)

    def test_unfinished_uploads_are_seen_and_ended(self, room: Room, target: Target) -> None:
        """What a dead writer left open is listed with its age, and is gone once it is discarded."""
        if target.open_upload is None:
            assert list(room.store.iter_stale_uploads()) == []
            return
        target.open_upload(room.bucket, "left/open")
        [left] = room.store.iter_stale_uploads()
        assert "left/open" in left.description
        assert room.store.remove_stale_upload(left)
        assert not room.store.remove_stale_upload(left)
        assert list(room.store.iter_stale_uploads()) == []


class Empty:
    """A source without bytes."""

    def read(self, _size: int, /) -> bytes:
        return b""
