"""A write in parts: in any order, from several threads, again, by another process, and visible only at its end."""

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.conftest import BucketUnderTest
from tests.conformance.targets import Target
from worker.storage import Condition, Match, ObjectStat, Store
from worker.storage.driver import Part, WriteInfo
from worker.storage.errors import AlreadyExists, NotFound, PreconditionFailed, StorageError
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.transfer.split_into_parts import spool_part

pytestmark = pytest.mark.needs("parts")
OLD = b"what was there"


@dataclass(frozen=True)
class Writing:
    """One write in parts, the last of them smaller."""

    driver: Any
    bucket: str
    key: str
    data: bytes
    info: WriteInfo
    token: str
    part: int

    @property
    def numbers(self) -> range:
        return range(1, -(-len(self.data) // self.part) + 1)

    def bytes_of(self, number: int) -> bytes:
        return self.data[(number - 1) * self.part : number * self.part]

    def put(self, number: int, data: bytes | None = None) -> Part:
        sent: Part = self.driver.upload_part(
            self.bucket, self.key, self.token, number, self.bytes_of(number) if data is None else data
        )
        return sent

    def put_all(self) -> list[Part]:
        return [self.put(number) for number in self.numbers]

    def parts(self) -> list[Part]:
        listed: list[Part] = self.driver.list_parts(self.bucket, self.key, self.token)
        return listed

    def complete(self, parts: Sequence[Part], condition: Condition = None) -> ObjectStat:
        stat: ObjectStat = self.driver.complete_upload(
            self.bucket, self.key, self.token, list(parts), self.info, condition=condition
        )
        return stat

    def abort(self) -> None:
        self.driver.abort_upload(self.bucket, self.key, self.token)


def three_parts(bucket: BucketUnderTest) -> bytes:
    """Return two whole parts and a small one."""
    return some_bytes(2 * bucket.part + 3)


@contextmanager
def begun(
    bucket: BucketUnderTest, data: bytes | None = None, key: str = "releases/app.tgz", **metadata: str
) -> Iterator[Writing]:
    """Begin a write in parts, of three parts by default.

    It is ended whatever the case makes of it, so that only what `abort_upload` leaves is left.
    """
    driver: Any = bucket.store._driver
    data = three_parts(bucket) if data is None else data
    digest = digest_of(data)
    info = WriteInfo(digest.size, digest.sha256, metadata)
    writing = Writing(driver, bucket.name, key, data, info, driver.begin_upload(bucket.name, key, info), bucket.part)
    try:
        yield writing
    finally:
        writing.abort()


def left_in(bucket: BucketUnderTest) -> list[str]:
    return [unfinished.description for unfinished in bucket.store.iter_stale_uploads()]


def exclusive(bucket: BucketUnderTest) -> bool:
    limits = bucket.capabilities.parts
    return limits is not None and limits.exclusive


@pytest.mark.unless("layout")
class TestPuttingParts:
    def test_limits_hold_together(self, bucket: BucketUnderTest) -> None:
        """The stated limits let parts of every allowed size make up the largest object."""
        limits = bucket.capabilities.parts
        assert limits is not None
        assert 0 < limits.min_size <= bucket.part <= limits.max_size
        assert limits.max_parts >= 1_000
        assert bucket.capabilities.max_object_size is not None
        assert limits.max_size * limits.max_parts >= bucket.capabilities.max_object_size

    def test_out_of_order(self, bucket: BucketUnderTest) -> None:
        """Parts may come in any order; the object has them in that of their numbers."""
        with begun(bucket) as writing:
            for number in reversed(writing.numbers):
                writing.put(number)
            writing.complete(writing.parts())
            assert bucket.read(writing.key) == writing.data

    def test_from_several_threads(self, bucket: BucketUnderTest) -> None:
        """Parts may be sent by several threads at once."""
        data = some_bytes(4 * bucket.part + 3)
        with begun(bucket, data) as writing, ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(writing.put, writing.numbers))
            assert writing.parts() == parts
            writing.complete(parts)
            assert bucket.read(writing.key) == data

    def test_list_tells_what_was_put(self, bucket: BucketUnderTest) -> None:
        """The store lists the parts that it has, by number, with the size and the tag that were returned for them."""
        with begun(bucket) as writing:
            assert writing.parts() == []
            third, first = writing.put(3), writing.put(1)
            assert writing.parts() == [first, third]
            assert [(part.number, part.size) for part in writing.parts()] == [(1, bucket.part), (3, 3)]

    def test_part_of_a_bytearray(self, bucket: BucketUnderTest) -> None:
        """A part may be a buffer that is filled again as soon as it was sent."""
        data = some_bytes(bucket.part)
        buffer = bytearray(data)
        with begun(bucket, data) as writing:
            part = writing.driver.upload_part(bucket.name, writing.key, writing.token, 1, buffer)
            buffer[:] = b"!" * bucket.part
            writing.complete([part])
            assert bucket.read(writing.key) == data

    def test_parts_from_the_disk(self, bucket: BucketUnderTest, tmp_path: Path) -> None:
        """With less memory than a part takes, an object goes through files, which are gone when it is there."""
        store = Store(bucket.store._driver, spool_dir=tmp_path, memory=bucket.part - 1)
        data = three_parts(bucket)
        digest = digest_of(data)
        store.write_object(bucket.name, "large", source(data), size=digest.size, sha256=digest.sha256)
        assert bucket.read("large") == data
        assert (left_in(bucket), list(tmp_path.iterdir())) == ([], [])

    @pytest.mark.unless("part_again")
    def test_part_file_again(self, bucket: BucketUnderTest, tmp_path: Path) -> None:
        """A part that is a file may be sent again, as after a lost answer; it is read from its beginning."""
        data = three_parts(bucket)[: bucket.part]
        reader = VerifyingReader(source(three_parts(bucket)))
        with begun(bucket, data) as writing, spool_part(reader, bucket.part, tmp_path) as part:
            sent = [writing.driver.upload_part(bucket.name, writing.key, writing.token, 1, part) for _ in range(2)]
            assert writing.parts() == sent[1:]
            writing.complete(sent[1:])
            assert bucket.read(writing.key) == data

    def test_same_part_again(self, bucket: BucketUnderTest) -> None:
        """A part that is sent again with the same bytes, as after a lost answer, is that part."""
        with begun(bucket) as writing:
            parts = writing.put_all()
            again = writing.put(2)
            assert (again.number, again.size) == (2, bucket.part)
            assert writing.parts() == [parts[0], again, parts[2]]
            writing.complete(writing.parts())
            assert bucket.read(writing.key) == writing.data

    @pytest.mark.unless("part_again")
    def test_other_part_again(self, bucket: BucketUnderTest) -> None:
        """A part that is sent again with other bytes replaces the one that was there, and has another tag."""
        with begun(bucket) as writing:
            parts = writing.put_all()
            wrong = writing.put(2, some_bytes(bucket.part, 2))
            right = writing.put(2)
            assert wrong.tag not in {parts[1].tag, right.tag}
            assert writing.parts() == [parts[0], right, parts[2]]
            writing.complete(writing.parts())
            assert bucket.read(writing.key) == writing.data

    def test_two_writes_of_one_key(self, bucket: BucketUnderTest) -> None:
        """Two writes in parts of one key do not see each other's parts; the last to be completed stays.

        Where the store states that parts are exclusive, the first to be completed ends the other.
        """
        with begun(bucket) as one, begun(bucket, three_parts(bucket)[::-1]) as two:
            parts = [writing.put_all() for writing in (one, two)]
            assert [one.parts(), two.parts()] == parts
            one.complete(parts[0])
            assert bucket.read(one.key) == one.data
            if exclusive(bucket):
                with pytest.raises(NotFound, match=two.key):
                    two.complete(parts[1])
                assert (bucket.read(one.key), left_in(bucket)) == (one.data, [])
            else:
                two.complete(parts[1])
                assert bucket.read(two.key) == two.data

    def test_another_write_does_not_disturb(self, bucket: BucketUnderTest) -> None:
        """A whole write of the key in between leaves the parts alone, and is replaced at the end.

        Where the store states that parts are exclusive, it may end them instead, and stays.
        """
        with begun(bucket) as writing:
            parts = writing.put_all()
            bucket.write(writing.key, OLD)
            try:
                assert writing.parts() == parts
                writing.complete(parts)
            except NotFound:
                assert exclusive(bucket)
                assert bucket.read(writing.key) == OLD
            else:
                assert bucket.read(writing.key) == writing.data


class TestCompleting:
    @pytest.mark.reads
    def test_makes_the_object(self, bucket: BucketUnderTest) -> None:
        """The object has exactly the bytes, the digest and the metadata; the stat that is returned is its own."""
        with begun(bucket, owner="Zoë  <z@example.com>", note="100%") as writing:
            written = writing.complete(writing.put_all())
            asked = bucket.stat(writing.key)
            assert bucket.read(writing.key) == writing.data
            assert (asked.size, asked.sha256) == (len(writing.data), digest_of(writing.data).sha256)
            assert asked.metadata == (writing.info.metadata if bucket.capabilities.user_metadata else {})
            assert (written.size, written.version, written.sha256) == (asked.size, asked.version, asked.sha256)
            assert abs((written.modified - asked.modified).total_seconds()) < 5

    @pytest.mark.unless("layout")
    def test_one_part(self, bucket: BucketUnderTest) -> None:
        """A single part, smaller than the smallest that others may be, is an object too."""
        with begun(bucket, b"small") as writing:
            writing.complete([writing.put(1)])
            assert bucket.read(writing.key) == b"small"

    def test_by_another_process(self, bucket: BucketUnderTest, target: Target) -> None:
        """The token is enough to continue where another driver stopped: nothing of a write is in a driver's memory."""
        with begun(bucket) as writing:
            writing.put(1)
            target.store.close()  # its clients are gone, as they are in another process
            for number in (2, 3):
                writing.put(number)
            writing.complete(writing.parts())
            assert bucket.read(writing.key) == writing.data

    def test_nothing_is_visible_before(self, bucket: BucketUnderTest) -> None:
        """Until it is completed neither the object nor anything of its parts can be seen, nor the old one be harmed."""
        bucket.write("old", OLD)
        with begun(bucket) as new, begun(bucket, key="old") as old:
            for writing in (new, old):
                writing.put_all()
            assert (bucket.keys(), bucket.exists(new.key), bucket.read("old")) == (["old"], False, OLD)

    @pytest.mark.unless("layout")
    @pytest.mark.unless("part_left_out")
    def test_exactly_these_parts(self, bucket: BucketUnderTest) -> None:
        """A part that is not named is not in the object."""
        with begun(bucket, some_bytes(2 * bucket.part)) as writing:
            parts = writing.put_all()
            writing.put(3, b"too much")
            writing.complete(parts)
            assert bucket.read(writing.key) == writing.data

    @pytest.mark.unless("layout")
    @pytest.mark.unless("stale_part")
    def test_other_bytes_since(self, bucket: BucketUnderTest) -> None:
        """A part that was replaced after it was named is not taken for it: nothing is written."""
        bucket.write("releases/app.tgz", OLD)
        with begun(bucket) as writing:
            parts = writing.put_all()
            writing.put(2, some_bytes(bucket.part, 2))
            with pytest.raises(StorageError, match=writing.key):
                writing.complete(parts)
            assert bucket.read(writing.key) == OLD

    @pytest.mark.unless("layout")
    def test_part_that_is_not_there(self, bucket: BucketUnderTest) -> None:
        """A part that the store does not have is an error that names the object, and nothing is written."""
        with begun(bucket) as writing:
            parts = [writing.put(1), writing.put(2)]
            absent = Part(3, 3, parts[0].tag)
            with pytest.raises(StorageError, match=writing.key):
                writing.complete([*parts, absent])
            assert not bucket.exists(writing.key)

    @pytest.mark.unless("layout")
    def test_nothing_is_left(self, bucket: BucketUnderTest) -> None:
        """A completed write is not open any more, and nothing of it is left beside the object."""
        with begun(bucket) as writing:
            writing.complete(writing.put_all())
            assert (left_in(bucket), bucket.keys()) == ([], [writing.key])

    @pytest.mark.unless("layout")
    def test_create_only(self, bucket: BucketUnderTest) -> None:
        """A create-only write in parts is refused where something is, which stays, and succeeds where nothing is."""
        bucket.write("old", OLD)
        with begun(bucket, key="old") as old, begun(bucket) as new:
            with pytest.raises(AlreadyExists, match="old"):
                old.complete(old.put_all(), "create_only")
            new.complete(new.put_all(), "create_only")
            assert (bucket.read("old"), bucket.read(new.key)) == (OLD, new.data)

    @pytest.mark.unless("layout")
    def test_match(self, bucket: BucketUnderTest) -> None:
        """A write in parts over a named version succeeds over that one and is refused over any other."""
        first = bucket.write("app", OLD)
        with begun(bucket, key="app") as writing:
            second = writing.complete(writing.put_all(), Match(first.version))
            assert bucket.stat("app").version == second.version
        with begun(bucket, three_parts(bucket)[::-1], key="app") as late:
            with pytest.raises(PreconditionFailed, match="app"):
                late.complete(late.put_all(), Match(first.version))
            assert bucket.read("app") == writing.data

    @pytest.mark.unless("layout")
    def test_match_nothing(self, bucket: BucketUnderTest) -> None:
        """A write in parts over a named version is refused where nothing is."""
        version = bucket.write("app", OLD).version
        bucket.delete("app")
        with begun(bucket, key="app") as writing:
            with pytest.raises(PreconditionFailed, match="app"):
                writing.complete(writing.put_all(), Match(version))
            assert not bucket.exists("app")

    @pytest.mark.unless("layout")
    def test_refused_then_completed(self, bucket: BucketUnderTest) -> None:
        """A refusal does not end the write: its parts are there for another try under another condition."""
        bucket.write("app", OLD)
        with begun(bucket, key="app") as writing:
            parts = writing.put_all()
            with pytest.raises(AlreadyExists):
                writing.complete(parts, "create_only")
            assert writing.parts() == parts
            writing.complete(parts)
            assert bucket.read("app") == writing.data

    @pytest.mark.unless("layout")
    @pytest.mark.unless("race")
    def test_create_only_race(self, bucket: BucketUnderTest) -> None:
        """Of four who complete create-only writes of one key at once one wins, where the store states conditions."""
        writings = [begun(bucket, some_bytes(bucket.part + 1, seed), key="app") for seed in range(4)]
        with writings[0] as a, writings[1] as b, writings[2] as c, writings[3] as d:
            sent = [(writing, writing.put_all()) for writing in (a, b, c, d)]

            def contend(ready: tuple[Writing, list[Part]]) -> StorageError | None:
                try:
                    ready[0].complete(ready[1], "create_only")
                except StorageError as error:
                    return error
                return None

            with ThreadPoolExecutor(4) as pool:
                outcomes = list(pool.map(contend, sent))
            winners = [writing for (writing, _), error in zip(sent, outcomes, strict=True) if error is None]
            assert all(error is None or isinstance(error, AlreadyExists) for error in outcomes), outcomes
            assert len(winners) == 1 if bucket.capabilities.conditional_writes else len(winners) >= 1
            assert bucket.read("app") in {winner.data for winner in winners}


class TestEnding:
    def test_abort_leaves_nothing(self, bucket: BucketUnderTest) -> None:
        """An aborted write leaves neither object nor parts, and spares what was there."""
        bucket.write("releases/app.tgz", OLD)
        with begun(bucket) as writing:
            writing.put_all()
            writing.abort()
            assert (left_in(bucket), bucket.keys(), bucket.read(writing.key)) == ([], [writing.key], OLD)

    def test_abort_by_another_process(self, bucket: BucketUnderTest, target: Target) -> None:
        """The token is enough to cancel a killed worker's job without leaving anything of its write."""
        with begun(bucket) as writing:
            writing.put_all()
            target.store.close()  # its clients are gone, as they are in another process
            target.store.abort_upload(writing.bucket, writing.key, writing.token)
            assert (left_in(bucket), bucket.keys()) == ([], [])

    @pytest.mark.unless("layout")
    def test_abort_twice(self, bucket: BucketUnderTest) -> None:
        """Aborting what is not open any more is no error, and leaves nothing."""
        with begun(bucket) as writing:
            writing.put_all()
            writing.abort()
            writing.abort()
            assert (left_in(bucket), bucket.keys()) == ([], [])

    @pytest.mark.unless("layout")
    def test_abort_spares_the_completed(self, bucket: BucketUnderTest) -> None:
        """Aborting a completed write does not touch its object."""
        with begun(bucket) as writing:
            writing.complete(writing.put_all())
            writing.abort()
            assert bucket.read(writing.key) == writing.data

    @pytest.mark.unless("layout")
    @pytest.mark.parametrize("ending", ["complete", "abort"])
    def test_token_ends_with_the_write(self, bucket: BucketUnderTest, ending: str) -> None:
        """Once completed or aborted, a write takes no part and lists none: NotFound, and nothing is left of the try."""
        with begun(bucket) as writing:
            parts = writing.put_all()
            writing.complete(parts) if ending == "complete" else writing.abort()
            with pytest.raises(NotFound, match=writing.key):
                writing.put(1)
            with pytest.raises(NotFound, match=writing.key):
                writing.parts()
            assert left_in(bucket) == []

    @pytest.mark.unless("layout")
    def test_complete_after_abort(self, bucket: BucketUnderTest) -> None:
        """An aborted write cannot be completed, and nothing becomes visible."""
        with begun(bucket) as writing:
            parts = writing.put_all()
            writing.abort()
            with pytest.raises(NotFound, match=writing.key):
                writing.complete(parts)
            assert not bucket.exists(writing.key)

    def test_unfinished_is_seen_and_discarded(self, bucket: BucketUnderTest) -> None:
        """An open write is listed once, with its key, and discarding it ends it with all its parts."""
        with begun(bucket, key=f"left/{uuid.uuid4().hex}") as writing:
            writing.put(1)
            [left] = bucket.store.iter_stale_uploads()
            assert writing.key in left.description
            assert bucket.store.remove_stale_upload(left)
            assert not bucket.store.remove_stale_upload(left)
            assert left_in(bucket) == []
            with pytest.raises(NotFound):
                writing.parts()

    def test_absent_bucket(self, bucket: BucketUnderTest) -> None:
        """In a bucket that is not there a write in parts is refused, at its beginning or with its first part."""
        if bucket.capabilities.implicit_buckets:
            return
        with pytest.raises(NotFound, match="absent-bucket"):
            begin_and_put(bucket.store._driver, "absent-bucket")


def begin_and_put(driver: Any, bucket: str) -> None:
    digest = digest_of(b"x")
    token = driver.begin_upload(bucket, "app", WriteInfo(digest.size, digest.sha256))
    driver.upload_part(bucket, "app", token, 1, b"x")
