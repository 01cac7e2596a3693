"""A write is atomic, and happens only if its condition holds."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance.bodies import Breaking, digest_of, sizes, some_bytes, source
from tests.conformance.conftest import BucketUnderTest
from worker.storage import Condition, Digest, Match
from worker.storage.errors import AlreadyExists, DigestMismatch, PreconditionFailed, SizeMismatch, StorageError

OLD = b"what was there"
SIZES = ((0, 7), (1, 1))


@pytest.mark.unless("layout")
class TestFailedWrites:
    @sizes((0, 0), (0, 7), (2, 0))
    def test_body_that_breaks(self, bucket: BucketUnderTest, size: int) -> None:
        """Whatever ends a body in the middle passes through, nothing becomes visible and the old content stays."""
        data = some_bytes(2 * bucket.part + 3)
        whole = digest_of(data)
        bucket.write("old", OLD)
        for error in (RuntimeError("torn"), OSError("disk"), KeyboardInterrupt(), SystemExit(1)):
            for key in ("new", "old"):
                with pytest.raises(type(error)):
                    bucket.store.write_object(
                        bucket.name,
                        key,
                        Breaking(data[:size], error),
                        size=whole.size,
                        sha256=whole.sha256,
                    )
            assert (bucket.keys(), bucket.read("old")) == (["old"], OLD), repr(error)

    @sizes(*SIZES)
    def test_wrong_digest(self, bucket: BucketUnderTest, size: int) -> None:
        """Bytes that are not those announced are refused at their end, before anything becomes visible."""
        self._assert_refused(bucket, some_bytes(size), Digest(size, "0" * 64), DigestMismatch)

    @sizes(*SIZES)
    def test_too_few_bytes(self, bucket: BucketUnderTest, size: int) -> None:
        """A body that ends early is refused."""
        data = some_bytes(size)
        self._assert_refused(bucket, data[:-1], digest_of(data), SizeMismatch)

    @sizes(*SIZES)
    def test_too_many_bytes(self, bucket: BucketUnderTest, size: int) -> None:
        """A body that does not end where it should is refused."""
        data = some_bytes(size)
        self._assert_refused(bucket, data + b"!", digest_of(data), SizeMismatch)

    def _assert_refused(
        self, bucket: BucketUnderTest, data: bytes, announced: Digest, error: type[StorageError]
    ) -> None:
        bucket.write("old", OLD)
        for key in ("new", "old"):
            with pytest.raises(error):
                bucket.write_as(key, data, announced)
        assert bucket.keys() == ["old"]
        assert bucket.read("old") == OLD


@pytest.mark.reads
class TestConditions:
    @pytest.mark.unless("layout")
    @sizes(*SIZES)
    def test_create_only(self, bucket: BucketUnderTest, size: int) -> None:
        """A create-only write succeeds once; the second is refused and changes nothing."""
        bucket.write("app", some_bytes(size, 1), "create_only")
        with pytest.raises(AlreadyExists, match="app"):
            bucket.write("app", some_bytes(size, 2), "create_only")
        assert bucket.read("app") == some_bytes(size, 1)

    @pytest.mark.unless("layout")
    @pytest.mark.reads
    @sizes(*SIZES)
    def test_match(self, bucket: BucketUnderTest, size: int) -> None:
        """A write over a named version succeeds over that one and is refused over any other."""
        first = bucket.write("app", some_bytes(size, 1))
        second = bucket.write("app", some_bytes(size, 2), Match(first.version))
        with pytest.raises(PreconditionFailed, match="app"):
            bucket.write("app", some_bytes(size, 3), Match(first.version))
        assert bucket.read("app") == some_bytes(size, 2)
        assert bucket.stat("app").version == second.version

    @pytest.mark.unless("layout")
    @sizes(*SIZES)
    def test_match_nothing(self, bucket: BucketUnderTest, size: int) -> None:
        """A write over a named version is refused where nothing is."""
        version = bucket.write("app", b"x").version
        bucket.delete("app")
        with pytest.raises(PreconditionFailed, match="app"):
            bucket.write("app", some_bytes(size), Match(version))
        assert not bucket.exists("app")

    @pytest.mark.unless("layout")
    def test_delete_match(self, bucket: BucketUnderTest) -> None:
        """Deleting a named version spares any other."""
        first = bucket.write("app", b"one")
        second = bucket.write("app", b"two!")
        with pytest.raises(PreconditionFailed, match="app"):
            bucket.store.delete_object(bucket.name, "app", condition=Match(first.version))
        assert bucket.read("app") == b"two!"
        assert bucket.store.delete_object(bucket.name, "app", condition=Match(second.version))
        assert not bucket.store.delete_object(bucket.name, "app", condition=Match(second.version))

    @pytest.mark.unless("layout")
    @pytest.mark.unless("race")
    @sizes(*SIZES)
    def test_create_only_race(self, bucket: BucketUnderTest, size: int) -> None:
        """Of eight who create one key at once exactly one wins, where the store states conditional writes."""
        outcomes = race(bucket, "create_only", size)
        winners = [number for number, error in enumerate(outcomes) if error is None]
        assert all(error is None or isinstance(error, AlreadyExists) for error in outcomes), outcomes
        assert len(winners) == 1 if bucket.capabilities.conditional_writes else len(winners) >= 1
        assert bucket.read("app") in {some_bytes(size, winner) for winner in winners}

    @pytest.mark.unless("layout")
    @pytest.mark.unless("race")
    def test_match_race(self, bucket: BucketUnderTest) -> None:
        """Of eight who replace one version at once exactly one wins, where the store states conditional writes."""
        version = bucket.write("app", b"the version that all of them have seen").version
        outcomes = race(bucket, Match(version), 100)
        winners = [number for number, error in enumerate(outcomes) if error is None]
        assert all(error is None or isinstance(error, PreconditionFailed) for error in outcomes), outcomes
        assert len(winners) == 1 if bucket.capabilities.conditional_writes else len(winners) >= 1
        assert bucket.read("app") in {some_bytes(100, winner) for winner in winners}

    @pytest.mark.unless("layout")
    @pytest.mark.unless("race")
    def test_unconditional_race(self, bucket: BucketUnderTest) -> None:
        """Eight who write one key at once leave one of the eight whole, with its own digest beside it."""
        assert race(bucket, None, 50_000) == [None] * 8
        assert bucket.read("app") in {some_bytes(50_000, number) for number in range(8)}


@pytest.mark.unless("layout")
class TestSources:
    def test_unknown_size(self, bucket: BucketUnderTest) -> None:
        """A stream of unknown size and digest is stored, and its digest is found on the way."""
        data = some_bytes(bucket.part + 1)
        stat, digest = bucket.store.write_object(bucket.name, "app", source(data))
        assert (stat.sha256, digest) == (digest_of(data).sha256, digest_of(data))

    def test_small_reads(self, bucket: BucketUnderTest) -> None:
        """A source that gives little at a time, as a pipe does, is read to its end."""
        data = some_bytes(2_000)

        class Trickle:
            def __init__(self) -> None:
                self.rest = source(data)

            def read(self, size: int, /) -> bytes:
                return self.rest.read(min(size, 7))

        bucket.store.write_object(bucket.name, "app", Trickle())
        assert bucket.read("app") == data


def race(bucket: BucketUnderTest, condition: Condition, size: int) -> list[StorageError | None]:
    """Let eight threads write different bytes to one key as nearly at once as can be; return how each ended."""
    start = threading.Barrier(8)

    def contend(number: int) -> StorageError | None:
        data = some_bytes(size, number)
        start.wait()
        try:
            bucket.write("app", data, condition)
        except StorageError as error:
            return error
        return None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(contend, range(8)))
