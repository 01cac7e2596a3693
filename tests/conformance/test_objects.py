"""Written objects are read back unchanged, and missing ones raise NotFound."""

import pytest

from tests.conformance.bodies import digest_of, sizes, some_bytes, source
from tests.conformance.conftest import BucketUnderTest
from tests.conformance.targets import PART
from worker.storage.errors import NotFound, Unavailable

RANGES = ((0, 4), (3, 4), (8, 2), (8, 100), (10, 5), (99, 5), (4, 0))
SIZES = ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (2, 0), (2, 3))


class TestRoundTrip:
    @pytest.mark.unless("layout")
    @sizes(*SIZES)
    def test_bytes_come_back(self, bucket: BucketUnderTest, size: int) -> None:
        """An object of any size comes back byte for byte, with its size and digest beside it."""
        data = some_bytes(size)
        stat = bucket.write("releases/app.tgz", data)
        assert (stat.size, stat.sha256) == (size, digest_of(data).sha256)
        assert bucket.read("releases/app.tgz") == data

    @pytest.mark.reads
    def test_digest_is_kept_beside_it(self, bucket: BucketUnderTest) -> None:
        """A later stat returns the size and the digest that were stored at the write."""
        bucket.write("app", b"hello")
        assert bucket.store.stat_object(bucket.name, "app").size == 5
        assert bucket.store.stat_object(bucket.name, "app").sha256 == digest_of(b"hello").sha256

    @pytest.mark.unless("layout")
    @pytest.mark.reads
    @sizes((0, 5), (1, 1))
    def test_write_tells_the_stat_that_a_question_gets(self, bucket: BucketUnderTest, size: int) -> None:
        """The stat that a write returns is that of the object, with the very version that conditions go by."""
        written = bucket.write("app", some_bytes(size))
        asked = bucket.stat("app")
        assert (written.size, written.version, written.sha256) == (asked.size, asked.version, asked.sha256)
        assert abs((written.modified - asked.modified).total_seconds()) < 5

    @pytest.mark.unless("layout")
    @pytest.mark.reads
    def test_digest_is_of_the_bytes_whatever_the_parts(self, bucket: BucketUnderTest) -> None:
        """The digest is the SHA-256 of the bytes, also where they travelled in parts that have digests of their own."""
        data = some_bytes(2 * bucket.part + 3)
        _, digest = bucket.store.write_object(bucket.name, "app", source(data))
        assert digest == digest_of(data)
        assert bucket.stat("app").sha256 == digest.sha256

    @pytest.mark.unless("layout")
    def test_known_digest_is_not_spooled(self, bucket: BucketUnderTest) -> None:
        """An object whose size and digest are announced is stored as announced."""
        data = some_bytes(bucket.part + 1)
        assert bucket.write_as("app", data, digest_of(data)).sha256 == digest_of(data).sha256
        assert bucket.read("app") == data

    @pytest.mark.unless("layout")
    @pytest.mark.reads
    def test_metadata(self, bucket: BucketUnderTest) -> None:
        """User metadata comes back as it was given, whatever is in its values, where the store keeps any."""
        given = {"owner": "Zoë  <z@example.com> ", "ratio": "100%25", "note": "a\tb"}
        bucket.store.write_object(bucket.name, "app", source(b"x"), metadata=given)
        assert bucket.stat("app").metadata == (given if bucket.capabilities.user_metadata else {})

    @pytest.mark.unless("layout")
    @pytest.mark.parametrize("parts_before, parts_after", [(0, 0), (1, 0), (0, 1)])
    def test_overwrite(self, bucket: BucketUnderTest, parts_before: int, parts_after: int) -> None:
        """A second write replaces bytes, size and digest together and makes another version."""
        before, after = parts_before * bucket.part + 3, parts_after * bucket.part + 5
        first = bucket.write("app", some_bytes(before, 1))
        second = bucket.write("app", some_bytes(after, 2))
        assert first.version != second.version
        assert bucket.read("app") == some_bytes(after, 2)
        assert bucket.stat("app").sha256 == digest_of(some_bytes(after, 2)).sha256

    @pytest.mark.unless("layout")
    def test_progress_is_told(self, bucket: BucketUnderTest) -> None:
        """The callback is told of every byte that is sent and of every byte that is read."""
        data, sent, got = some_bytes(bucket.part + 7), list[int](), list[int]()
        bucket.store.write_object(bucket.name, "app", source(data), on_bytes=sent.append)
        with bucket.store.read_object(bucket.name, "app", on_bytes=got.append) as reader:
            assert sum(len(piece) for piece in reader) == len(data)
        assert sum(sent) == sum(got) == len(data)

    @pytest.mark.unless("layout")
    def test_reader_keeps_its_version(self, bucket: BucketUnderTest) -> None:
        """Who has begun to read reads one version, or gets an error: never bytes of two."""
        old, new = some_bytes(3 * PART, 1), some_bytes(3 * PART, 2)  # more than sockets hold
        bucket.write("app", old)
        with bucket.store.read_object(bucket.name, "app") as reader:
            first = reader.read(10)
            bucket.write("app", new)
            try:
                rest = b"".join(reader)
            except Unavailable:  # where what is read comes in several requests, each of which names the version
                return
            assert first + rest == old


@pytest.mark.reads
class TestMissing:
    def test_everything_says_not_found(self, bucket: BucketUnderTest) -> None:
        """Every question about an object that is not there raises NotFound, which is also a FileNotFoundError."""
        for ask in (bucket.read, bucket.stat, lambda key: bucket.store.stat_object(bucket.name, key).sha256):
            with pytest.raises(NotFound, match="nothing-here"):
                ask("nothing-here")
            with pytest.raises(FileNotFoundError):
                ask("nothing-here")
        assert not bucket.exists("nothing-here")

    def test_range_of_nothing(self, bucket: BucketUnderTest) -> None:
        """A range of an object that is not there is NotFound, also an empty one."""
        for length in (0, 5):
            with pytest.raises(NotFound):
                bucket.store.read_object_range(bucket.name, "nothing-here", 0, length)

    def test_absent_bucket(self, bucket: BucketUnderTest) -> None:
        """A bucket that does not exist holds nothing: reading is NotFound, listing is empty, deleting is no error."""
        with pytest.raises(NotFound):
            bucket.store.stat_object("absent-bucket", "app")
        assert list(bucket.store.list_objects("absent-bucket")) == []
        assert not bucket.store.delete_object("absent-bucket", "app")
        assert not bucket.store.bucket_exists("absent-bucket")


class TestDelete:
    def test_twice(self, bucket: BucketUnderTest) -> None:
        """Deleting says whether anything was there, and doing it again is no error."""
        bucket.write("app", b"x")
        assert bucket.delete("app")
        assert not bucket.exists("app")
        assert not bucket.delete("app")

    def test_only_that_key(self, bucket: BucketUnderTest) -> None:
        """Deleting one key leaves those that begin like it."""
        for key in ("app", "app.tgz", "apps/one"):
            bucket.write(key, key.encode())
        bucket.delete("app")
        assert bucket.keys() == ["app.tgz", "apps/one"]
        assert bucket.read("apps/one") == b"apps/one"


@pytest.mark.unless("layout")
class TestRanges:
    def test_range(self, bucket: BucketUnderTest) -> None:
        """A range is exactly those bytes; a range past the end is shorter, and no error."""
        bucket.write("digits", b"0123456789")
        for offset, length in RANGES:
            with bucket.store.read_object_range(bucket.name, "digits", offset, length) as reader:
                got = b"".join(iter(lambda reader=reader: reader.read(3), b""))
                assert (offset, length, got) == (offset, length, b"0123456789"[offset : offset + length])
                assert reader.stat.size == 10

    def test_range_of_an_empty_object(self, bucket: BucketUnderTest) -> None:
        """Every range of an empty object is empty."""
        bucket.write("empty", b"")
        with bucket.store.read_object_range(bucket.name, "empty", 0, 10) as reader:
            assert reader.read(10) == b""

    def test_range_across_parts(self, bucket: BucketUnderTest) -> None:
        """A range knows nothing of the parts that the object was sent in."""
        data = some_bytes(2 * bucket.part + 3)
        bucket.write("app", data)
        with bucket.store.read_object_range(bucket.name, "app", bucket.part - 2, bucket.part + 4) as reader:
            assert b"".join(iter(lambda: reader.read(1 << 20), b"")) == data[bucket.part - 2 : 2 * bucket.part + 2]
