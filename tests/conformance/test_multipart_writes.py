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
from tests.conformance.conftest import Room
from tests.conformance.targets import PART, Target
from worker.storage import Condition, Match, ObjectStat, Store
from worker.storage.driver import Part, WriteInfo
from worker.storage.errors import AlreadyExists, NotFound, PreconditionFailed, StorageError
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.transfer.parts import spool_part

DATA = some_bytes(2 * PART + 3)
OLD = b"what was there"


@dataclass(frozen=True)
class Writing:
    """One write in parts of PART bytes each, and a smaller last one."""

    driver: Any
    bucket: str
    key: str
    data: bytes
    info: WriteInfo
    token: str

    @property
    def numbers(self) -> range:
        return range(1, -(-len(self.data) // PART) + 1)

    def bytes_of(self, number: int) -> bytes:
        return self.data[(number - 1) * PART : number * PART]

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


@contextmanager
def begun(room: Room, data: bytes = DATA, key: str = "releases/app.tgz", **metadata: str) -> Iterator[Writing]:
    """Begin a write in parts; end it whatever the case makes of it, so that only what `abort_upload` leaves is left."""
    driver: Any = room.store._driver
    digest = digest_of(data)
    info = WriteInfo(digest.size, digest.sha256, metadata)
    writing = Writing(driver, room.bucket, key, data, info, driver.begin_upload(room.bucket, key, info))
    try:
        yield writing
    finally:
        writing.abort()


def left_in(room: Room) -> list[str]:
    return [unfinished.description for unfinished in room.store.iter_stale_uploads()]


def exclusive(room: Room) -> bool:
    limits = room.capabilities.parts
    return limits is not None and limits.exclusive


@pytest.fixture(autouse=True)
def _has_parts(target: Target) -> None:
    """Ask only the stores that state that they write in parts."""
    if target.store.capabilities.parts is None:
        pytest.skip(f"{target.name} states that it does not write in parts")


class TestPuttingParts:
    def test_limits_hold_together(self, room: Room) -> None:
        """The stated limits let parts of every allowed size make up the largest object."""
        limits = room.capabilities.parts
        assert limits is not None
        assert 0 < limits.min_size <= PART <= limits.max_size
        assert limits.max_parts >= 1_000
        assert room.capabilities.max_object_size is not None
        assert limits.max_size * limits.max_parts >= room.capabilities.max_object_size

    def test_out_of_order(self, room: Room) -> None:
        """Parts may come in any order; the object has them in that of their numbers."""
        with begun(room) as writing:
            for number in reversed(writing.numbers):
                writing.put(number)
            writing.complete(writing.parts())
            assert room.read(writing.key) == DATA

    def test_from_several_threads(self, room: Room) -> None:
        """Parts may be sent by several threads at once."""
        data = some_bytes(4 * PART + 3)
        with begun(room, data) as writing, ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(writing.put, writing.numbers))
            assert writing.parts() == parts
            writing.complete(parts)
            assert room.read(writing.key) == data

    def test_list_tells_what_was_put(self, room: Room) -> None:
        """The store lists the parts that it has, by number, with the size and the tag that were returned for them."""
        with begun(room) as writing:
            assert writing.parts() == []
            third, first = writing.put(3), writing.put(1)
            assert writing.parts() == [first, third]
            assert [(part.number, part.size) for part in writing.parts()] == [(1, PART), (3, 3)]

    def test_part_of_a_bytearray(self, room: Room) -> None:
        """A part may be a buffer that is filled again as soon as it was sent."""
        buffer = bytearray(DATA[:PART])
        with begun(room, DATA[:PART]) as writing:
            part = writing.driver.upload_part(room.bucket, writing.key, writing.token, 1, buffer)
            buffer[:] = b"!" * PART
            writing.complete([part])
            assert room.read(writing.key) == DATA[:PART]

    def test_parts_from_the_disk(self, room: Room, tmp_path: Path) -> None:
        """With less memory than a part takes, an object goes through files, which are gone when it is there."""
        store = Store(room.store._driver, spool_dir=tmp_path, memory=PART - 1)
        digest = digest_of(DATA)
        store.write_object(room.bucket, "large", source(DATA), size=digest.size, sha256=digest.sha256)
        assert room.read("large") == DATA
        assert (left_in(room), list(tmp_path.iterdir())) == ([], [])

    @pytest.mark.unless("part_again")
    def test_part_file_again(self, room: Room, tmp_path: Path) -> None:
        """A part that is a file may be sent again, as after a lost answer; it is read from its beginning."""
        with begun(room, DATA[:PART]) as writing, spool_part(VerifyingReader(source(DATA)), PART, tmp_path) as part:
            sent = [writing.driver.upload_part(room.bucket, writing.key, writing.token, 1, part) for _ in range(2)]
            assert writing.parts() == sent[1:]
            writing.complete(sent[1:])
            assert room.read(writing.key) == DATA[:PART]

    def test_same_part_again(self, room: Room) -> None:
        """A part that is sent again with the same bytes, as after a lost answer, is that part."""
        with begun(room) as writing:
            parts = writing.put_all()
            again = writing.put(2)
            assert (again.number, again.size) == (2, PART)
            assert writing.parts() == [parts[0], again, parts[2]]
            writing.complete(writing.parts())
            assert room.read(writing.key) == DATA

    @pytest.mark.unless("part_again")
    def test_other_part_again(self, room: Room) -> None:
        """A part that is sent again with other bytes replaces the one that was there, and has another tag."""
        with begun(room) as writing:
            parts = writing.put_all()
            wrong = writing.put(2, some_bytes(PART, 2))
            right = writing.put(2)
            assert wrong.tag not in {parts[1].tag, right.tag}
            assert writing.parts() == [parts[0], right, parts[2]]
            writing.complete(writing.parts())
            assert room.read(writing.key) == DATA

    def test_two_writes_of_one_key(self, room: Room) -> None:
        """Two writes in parts of one key do not see each other's parts; the last to be completed stays.

        Where the store states that parts are exclusive, the first to be completed ends the other.
        """
        with begun(room) as one, begun(room, DATA[::-1]) as two:
            parts = [writing.put_all() for writing in (one, two)]
            assert [one.parts(), two.parts()] == parts
            one.complete(parts[0])
            assert room.read(one.key) == one.data
            if exclusive(room):
                with pytest.raises(NotFound, match=two.key):
                    two.complete(parts[1])
                assert (room.read(one.key), left_in(room)) == (one.data, [])
            else:
                two.complete(parts[1])
                assert room.read(two.key) == two.data

    def test_another_write_does_not_disturb(self, room: Room) -> None:
        """A whole write of the key in between leaves the parts alone, and is replaced at the end.

        Where the store states that parts are exclusive, it may end them instead, and stays.
        """
        with begun(room) as writing:
            parts = writing.put_all()
            room.write(writing.key, OLD)
            try:
                assert writing.parts() == parts
                writing.complete(parts)
            except NotFound:
                assert exclusive(room)
                assert room.read(writing.key) == OLD
            else:
                assert room.read(writing.key) == DATA


class TestCompleting:
    def test_makes_the_object(self, room: Room) -> None:
        """The object has exactly the bytes, the digest and the metadata; the stat that is returned is its own."""
        with begun(room, owner="Zoë  <z@example.com>", note="100%") as writing:
            written = writing.complete(writing.put_all())
            asked = room.stat(writing.key)
            assert room.read(writing.key) == DATA
            assert (asked.size, asked.sha256) == (len(DATA), digest_of(DATA).sha256)
            assert asked.metadata == (writing.info.metadata if room.capabilities.user_metadata else {})
            assert (written.size, written.version, written.sha256) == (asked.size, asked.version, asked.sha256)
            assert abs((written.modified - asked.modified).total_seconds()) < 5

    def test_one_part(self, room: Room) -> None:
        """A single part, smaller than the smallest that others may be, is an object too."""
        with begun(room, b"small") as writing:
            writing.complete([writing.put(1)])
            assert room.read(writing.key) == b"small"

    def test_by_another_process(self, room: Room, target: Target) -> None:
        """Whoever has the token goes on where another stopped: nothing of a write is in the memory of its driver."""
        with begun(room) as writing:
            writing.put(1)
            target.store.close()  # its clients are gone, as they are in another process
            for number in (2, 3):
                writing.put(number)
            writing.complete(writing.parts())
            assert room.read(writing.key) == DATA

    def test_nothing_is_visible_before(self, room: Room) -> None:
        """Until it is completed neither the object nor anything of its parts can be seen, nor the old one be harmed."""
        room.write("old", OLD)
        with begun(room) as new, begun(room, key="old") as old:
            for writing in (new, old):
                writing.put_all()
            assert (room.keys(), room.exists(new.key), room.read("old")) == (["old"], False, OLD)

    @pytest.mark.unless("part_left_out")
    def test_exactly_these_parts(self, room: Room) -> None:
        """A part that is not named is not in the object."""
        with begun(room, DATA[: 2 * PART]) as writing:
            parts = writing.put_all()
            writing.put(3, b"too much")
            writing.complete(parts)
            assert room.read(writing.key) == writing.data

    @pytest.mark.unless("stale_part")
    def test_other_bytes_since(self, room: Room) -> None:
        """A part that was replaced after it was named is not taken for it: nothing is written."""
        room.write("releases/app.tgz", OLD)
        with begun(room) as writing:
            parts = writing.put_all()
            writing.put(2, some_bytes(PART, 2))
            with pytest.raises(StorageError, match=writing.key):
                writing.complete(parts)
            assert room.read(writing.key) == OLD

    def test_part_that_is_not_there(self, room: Room) -> None:
        """A part that the store does not have is an error that names the object, and nothing is written."""
        with begun(room) as writing:
            parts = [writing.put(1), writing.put(2)]
            absent = Part(3, 3, parts[0].tag)
            with pytest.raises(StorageError, match=writing.key):
                writing.complete([*parts, absent])
            assert not room.exists(writing.key)

    def test_nothing_is_left(self, room: Room) -> None:
        """A completed write is not open any more, and nothing of it is left beside the object."""
        with begun(room) as writing:
            writing.complete(writing.put_all())
            assert (left_in(room), room.keys()) == ([], [writing.key])

    def test_create_only(self, room: Room) -> None:
        """A create-only write in parts is refused where something is, which stays, and succeeds where nothing is."""
        room.write("old", OLD)
        with begun(room, key="old") as old, begun(room) as new:
            with pytest.raises(AlreadyExists, match="old"):
                old.complete(old.put_all(), "create_only")
            new.complete(new.put_all(), "create_only")
            assert (room.read("old"), room.read(new.key)) == (OLD, DATA)

    def test_match(self, room: Room) -> None:
        """A write in parts over a named version succeeds over that one and is refused over any other."""
        first = room.write("app", OLD)
        with begun(room, key="app") as writing:
            second = writing.complete(writing.put_all(), Match(first.version))
            assert room.stat("app").version == second.version
        with begun(room, DATA[::-1], key="app") as late:
            with pytest.raises(PreconditionFailed, match="app"):
                late.complete(late.put_all(), Match(first.version))
            assert room.read("app") == DATA

    def test_match_nothing(self, room: Room) -> None:
        """A write in parts over a named version is refused where nothing is."""
        version = room.write("app", OLD).version
        room.delete("app")
        with begun(room, key="app") as writing:
            with pytest.raises(PreconditionFailed, match="app"):
                writing.complete(writing.put_all(), Match(version))
            assert not room.exists("app")

    def test_refused_then_completed(self, room: Room) -> None:
        """A refusal does not end the write: its parts are there for another try under another condition."""
        room.write("app", OLD)
        with begun(room, key="app") as writing:
            parts = writing.put_all()
            with pytest.raises(AlreadyExists):
                writing.complete(parts, "create_only")
            assert writing.parts() == parts
            writing.complete(parts)
            assert room.read("app") == DATA

    @pytest.mark.unless("race")
    def test_create_only_race(self, room: Room) -> None:
        """Of four who complete create-only writes of one key at once one wins, where the store states conditions."""
        writings = [begun(room, some_bytes(PART + 1, seed), key="app") for seed in range(4)]
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
            assert len(winners) == 1 if room.capabilities.conditional_writes else len(winners) >= 1
            assert room.read("app") in {winner.data for winner in winners}


class TestEnding:
    def test_abort_leaves_nothing(self, room: Room) -> None:
        """An aborted write leaves neither object nor parts, and spares what was there."""
        room.write("releases/app.tgz", OLD)
        with begun(room) as writing:
            writing.put_all()
            writing.abort()
            assert (left_in(room), room.keys(), room.read(writing.key)) == ([], [writing.key], OLD)

    def test_abort_by_another_process(self, room: Room, target: Target) -> None:
        """Whoever cancels a job of a killed worker leaves nothing of its write, with no more than the token."""
        with begun(room) as writing:
            writing.put_all()
            target.store.close()  # its clients are gone, as they are in another process
            target.store.abort_upload(writing.bucket, writing.key, writing.token)
            assert (left_in(room), room.keys()) == ([], [])

    def test_abort_twice(self, room: Room) -> None:
        """Aborting what is not open any more is no error."""
        with begun(room) as writing:
            writing.abort()
            writing.abort()

    def test_abort_spares_the_completed(self, room: Room) -> None:
        """Aborting a completed write does not touch its object."""
        with begun(room) as writing:
            writing.complete(writing.put_all())
            writing.abort()
            assert room.read(writing.key) == DATA

    @pytest.mark.parametrize("ending", ["complete", "abort"])
    def test_token_ends_with_the_write(self, room: Room, ending: str) -> None:
        """Once completed or aborted, a write takes no part and lists none: NotFound, and nothing is left of the try."""
        with begun(room) as writing:
            parts = writing.put_all()
            writing.complete(parts) if ending == "complete" else writing.abort()
            with pytest.raises(NotFound, match=writing.key):
                writing.put(1)
            with pytest.raises(NotFound, match=writing.key):
                writing.parts()
            assert left_in(room) == []

    def test_complete_after_abort(self, room: Room) -> None:
        """An aborted write cannot be completed, and nothing becomes visible."""
        with begun(room) as writing:
            parts = writing.put_all()
            writing.abort()
            with pytest.raises(NotFound, match=writing.key):
                writing.complete(parts)
            assert not room.exists(writing.key)

    def test_unfinished_is_seen_and_discarded(self, room: Room) -> None:
        """An open write is listed once, with its key, and discarding it ends it with all its parts."""
        with begun(room, key=f"left/{uuid.uuid4().hex}") as writing:
            writing.put(1)
            [left] = room.store.iter_stale_uploads()
            assert writing.key in left.description
            assert room.store.remove_stale_upload(left)
            assert not room.store.remove_stale_upload(left)
            assert left_in(room) == []
            with pytest.raises(NotFound):
                writing.parts()

    def test_absent_bucket(self, room: Room) -> None:
        """In a bucket that is not there a write in parts is refused, at its beginning or with its first part."""
        if room.capabilities.implicit_buckets:
            return
        with pytest.raises(NotFound, match="absent-bucket"):
            begin_and_put(room.store._driver, "absent-bucket")


def begin_and_put(driver: Any, bucket: str) -> None:
    digest = digest_of(b"x")
    token = driver.begin_upload(bucket, "app", WriteInfo(digest.size, digest.sha256))
    driver.upload_part(bucket, "app", token, 1, b"x")
