"""A multipart write resumes after a kill, and trusts only parts whose bytes match the source."""

import hashlib
import io
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event, Lock

import pytest

from tests.memory_driver import MemoryDriver
from tests.open_files import open_below
from tests.waiting import WITHIN
from worker.jobs.interrupt_signal import Interrupted
from worker.storage.driver import Capabilities, Digest, ObjectStat, Part, PartLimits, WriteInfo
from worker.storage.errors import (
    AccessDenied,
    Conflict,
    DigestMismatch,
    NotFound,
    PermanentError,
    SizeMismatch,
    Unavailable,
)
from worker.storage.integrity.manifest import Manifest
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.store import Store
from worker.storage.transfer import multipart
from worker.storage.transfer.multipart import MultipartWrite, OpenUpload, SentPart

PART = 1024 * 1024
LIMITS = PartLimits(PART, 1 << 30, 10_000)


class PartsInMemory(MemoryDriver):
    """The memory store, writing in parts; it tells what was sent and fails when it is told to."""

    def __init__(self):
        super().__init__("memory")
        self.begun: dict[str, dict[int, bytes]] = {}
        self.places: dict[str, tuple[str, str]] = {}
        self.sent: list[int] = []
        self.files = 0
        self.fail_from: int | None = None
        self.limits = LIMITS
        self.abort_fails: BaseException | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            needs_digest_first=True, conditional_writes=True, implicit_buckets=True, prefix_keys=True,
            user_metadata=True, max_object_size=None, copies=False, parts=self.limits,
        )  # fmt: skip

    def begin_upload(self, bucket, key, info) -> str:
        token = f"token-{uuid.uuid4()}"
        self.begun[token], self.places[token] = {}, (bucket, key)
        return token

    def upload_part(self, bucket, key, token, number, data, *, sha256=None, md5=None) -> Part:
        if self.fail_from is not None and number >= self.fail_from:
            raise Unavailable("memory: gone")
        self.sent.append(number)
        self.files += not isinstance(data, bytes | bytearray)
        held = bytes(data) if isinstance(data, bytes | bytearray) else data.read()
        if self.limits.compared_with == "sha256" and hashlib.sha256(held).hexdigest() != sha256:
            raise Unavailable("memory: the bytes were damaged")
        self._parts(token)[number] = held
        return self._part(number, held)

    def list_parts(self, bucket, key, token) -> list[Part]:
        if self.places.get(token) != (bucket, key):
            raise NotFound(f"memory: {token} is not open at {bucket}/{key}")
        return [self._part(number, data) for number, data in sorted(self._parts(token).items())]

    def complete_upload(self, bucket, key, token, parts, info, *, condition=None) -> ObjectStat:
        held = self._parts(token)
        body = VerifyingReader(io.BytesIO(b"".join(held[part.number] for part in parts)))
        del self.begun[token]
        return self.put(bucket, key, body, info, condition=condition)

    def abort_upload(self, bucket, key, token) -> None:
        if self.abort_fails:
            raise self.abort_fails
        if self.places.get(token) == (bucket, key):
            self.begun.pop(token, None)

    def _parts(self, token) -> dict[int, bytes]:
        if token not in self.begun:
            raise NotFound(f"memory: {token} is not open")
        return self.begun[token]

    def _part(self, number, data) -> Part:
        return Part(number, len(data), f"tag-{hash(data)}")


class Notes:
    """A checkpoint in memory."""

    def __init__(self, *, keep=True):
        self.kept: OpenUpload | None = None
        self.keep = keep
        self._lock = Lock()

    def resume(self) -> OpenUpload | None:
        return self.kept

    def begins(self) -> None:
        pass

    def begun(self, token, part_size) -> None:
        self.kept = OpenUpload(token, part_size, {})

    def sent(self, part: SentPart) -> None:
        with self._lock:  # several threads send parts
            assert self.kept is not None
            self.kept = OpenUpload(self.kept.token, self.kept.part_size, {**self.kept.sent, part.part.number: part})

    def ended(self) -> None:
        self.kept = None

    def worth_keeping(self, error) -> bool:
        return self.keep and isinstance(error, Unavailable)


CONTENT = b"".join(bytes([n]) * PART for n in range(8)) + b"the end"


@pytest.fixture
def driver():
    return PartsInMemory()


def write(driver, notes, content=CONTENT, *, sha256=None, **budget):
    digest = VerifyingReader(io.BytesIO(CONTENT))
    while digest.read(PART):
        pass
    info = WriteInfo(len(CONTENT), sha256 or digest.digest.sha256)
    body = VerifyingReader(io.BytesIO(content), size=info.size, sha256=info.sha256)
    return MultipartWrite(driver, "releases", "app.tgz", info, notes, **budget).run(body, None)


def stored(driver) -> bytes:
    with driver.open("releases", "app.tgz") as reader:
        return b"".join(iter(lambda: reader.read(PART), b""))


def broken_off(driver, notes, **budget):
    """Break a write off at its sixth part, and return the numbers of the parts that the store does not have."""
    driver.fail_from = 6
    with pytest.raises(Unavailable):
        write(driver, notes, **budget)
    driver.fail_from = None
    driver.sent.clear()
    held = driver.begun[notes.kept.token]
    assert held
    return [number for number in range(1, 10) if number not in held]


def raising(error):
    """Return a function that raises an error, whatever it is called with."""

    def call(*_of, **_more):
        raise error

    return call


def test_the_object_has_the_parts_in_their_order(driver):
    """However the threads finish, the object is what was read, and nothing stays open."""
    write(driver, Notes())
    assert stored(driver) == CONTENT
    assert not driver.begun


def test_an_object_of_another_size_is_not_taken_for_what_was_sent(driver, monkeypatch):
    """A store that leaves out a part made no copy: the next attempt reads what it made."""
    complete = driver.complete_upload
    monkeypatch.setattr(driver, "complete_upload", lambda *of, **more: replace(complete(*of, **more), size=PART))
    with pytest.raises(Unavailable, match=f"made an object of {PART} bytes of {len(CONTENT)}"):
        write(driver, Notes())


def test_only_what_is_missing_is_sent_again(driver, monkeypatch):
    """After a break the parts that the store confirmed are not sent a second time, also if it was at the very end."""
    notes = Notes()
    missing = broken_off(driver, notes)
    with monkeypatch.context() as away:
        away.setattr(driver, "complete_upload", raising(Unavailable("memory: gone")))
        with pytest.raises(Unavailable):
            write(driver, notes)
    write(driver, notes)
    assert sorted(driver.sent) == missing
    assert stored(driver) == CONTENT
    assert notes.kept is None


def test_parts_beyond_the_budget_go_from_the_disk(driver, tmp_path):
    """Parts that the budget has no room for are sent from files, and go on after a break as others do."""
    notes = Notes()
    budget = {"memory": PART, "spool_dir": tmp_path}
    missing = broken_off(driver, notes, **budget)
    assert open_below(tmp_path) == []
    write(driver, notes, **budget)
    assert sorted(driver.sent) == missing
    assert driver.files == 9
    assert stored(driver) == CONTENT
    assert (open_below(tmp_path), list(tmp_path.iterdir())) == ([], [])


def test_a_directory_in_which_no_body_can_be_spooled_is_named(driver, tmp_path):
    """A body of unknown digest waits on the disk: without the directory for it, the write fails with its name."""
    absent = tmp_path / "absent"
    with pytest.raises(PermanentError, match=f"no file can be made in {absent}"):
        Store(driver, spool_dir=absent).write_object("releases", "app.tgz", io.BytesIO(CONTENT))


def test_a_part_that_was_sent_from_rotten_bytes_is_sent_again(driver):
    """A confirmed part is trusted only if the bytes that are read now are those that were sent then."""
    notes = Notes()
    driver.fail_from = 3
    with pytest.raises(Unavailable):
        write(driver, notes, b"\xff" + CONTENT[1:])
    driver.fail_from = None
    driver.sent.clear()
    write(driver, notes)
    assert 1 in driver.sent
    assert stored(driver) == CONTENT


def test_a_part_that_the_store_has_changed_is_sent_again(driver):
    """A part that the store no longer has as it confirmed it is not trusted."""
    notes = Notes()
    broken_off(driver, notes)
    next(iter(driver.begun.values()))[2] = b"something else"
    write(driver, notes)
    assert 2 in driver.sent
    assert stored(driver) == CONTENT


def test_a_write_that_the_store_has_forgotten_starts_afresh(driver, monkeypatch):
    """When the store has ended the write meanwhile, or has lost a part of it, a new one is begun."""
    notes = Notes()
    with monkeypatch.context() as forgetful:
        forgetful.setattr(driver, "complete_upload", raising(NotFound("memory: part 3 is gone")))
        with pytest.raises(Conflict):
            write(driver, notes)
    assert not driver.begun, "it may be open without a part"
    broken_off(driver, notes)
    driver.begun.clear()
    write(driver, notes)
    assert len(driver.sent) == 9
    assert stored(driver) == CONTENT


def test_an_upload_that_was_begun_at_another_place_is_aborted_there(driver):
    """Whether a store refuses damaged bytes may be unknown to the next worker, which then writes to a staging key."""
    notes = Notes()
    notes.begun(driver.begin_upload("releases", "staged", WriteInfo(len(CONTENT))), PART)
    write(driver, notes, other_place=("releases", "staged"))
    assert stored(driver) == CONTENT
    assert not driver.begun


def test_an_upload_at_another_place_that_may_not_be_aborted_stops_no_write(driver):
    """A credential that may write need not be allowed to abort."""
    notes, driver.abort_fails = Notes(), AccessDenied("memory: no permission to abort")
    left = driver.begin_upload("releases", "staged", WriteInfo(len(CONTENT)))
    notes.begun(left, PART)
    write(driver, notes, other_place=("releases", "staged"))
    assert stored(driver) == CONTENT
    assert list(driver.begun) == [left]


def test_a_failure_without_another_attempt_leaves_nothing(driver):
    """Without a checkpoint, what was begun is aborted, whatever the failure."""
    driver.fail_from = 3
    with pytest.raises(Unavailable):
        write(driver, Notes(keep=False))
    assert not driver.begun


@pytest.mark.parametrize("error", [Unavailable("memory: gone"), Interrupted()])
def test_an_upload_that_could_not_be_aborted_stays_recorded(driver, error):
    """The abort failed, or was interrupted: the record stays, by which the cleanup knows that the upload is ours."""
    notes, driver.fail_from, driver.abort_fails = Notes(keep=False), 3, error
    with pytest.raises(type(error)):
        write(driver, notes)
    assert [notes.kept.token] == list(driver.begun)


def test_parts_that_are_chunks_are_compared_before_they_are_sent(driver):
    """With the manifest each part is compared with its chunk: a wrong one is not sent, and makes no object."""
    digest, manifest = _manifest(PART)
    assert write(driver, Notes(), manifest=manifest).size == len(CONTENT)
    assert stored(driver) == CONTENT
    driver.sent.clear()
    wrong = CONTENT[: 3 * PART] + b"!" + CONTENT[3 * PART + 1 :]
    with pytest.raises(DigestMismatch, match=f"in part 4, not the announced {manifest.chunk(3).sha256}"):
        write(driver, Notes(), wrong, manifest=manifest)
    assert 4 not in driver.sent
    assert not driver.begun
    with pytest.raises(SizeMismatch):
        write(driver, Notes(), CONTENT[:-1], manifest=manifest)
    with pytest.raises(SizeMismatch):
        write(driver, Notes(), CONTENT + b"!", manifest=manifest)
    assert digest.size == driver.stat("releases", "app.tgz").size


def test_a_store_that_compares_parts_gets_their_recorded_digests(driver, monkeypatch):
    """Such a store refuses what is not recorded, and nothing is hashed here; only a refused part is compared."""
    driver.limits, (_, manifest), notes = replace(LIMITS, compared_with="sha256"), _manifest(PART), Notes()
    with monkeypatch.context() as patch:
        patch.delattr(multipart, "sha256_of")
        assert write(driver, Notes(), manifest=manifest).size == len(CONTENT)
    assert stored(driver) == CONTENT
    missing = broken_off(driver, notes, manifest=manifest)
    write(driver, notes, manifest=manifest)
    assert sorted(driver.sent) == missing
    with pytest.raises(DigestMismatch, match=f"in part 4, not the announced {manifest.chunk(3).sha256}"):
        write(driver, notes, CONTENT[: 3 * PART] + b"!" + CONTENT[3 * PART + 1 :], manifest=manifest)
    assert not driver.begun


def test_two_parts_are_in_flight_and_a_third_is_ready(driver, monkeypatch):
    """Parts that end at the same time, in any order, share no memory; a kill finds at most two in flight.

    A fourth is being read meanwhile, and no more memory is taken: later parts are written over earlier ones.
    """
    both, lock, in_flight, most, memory = Barrier(2, timeout=60), Lock(), [0], [0], dict[int, bytearray]()
    upload_part, notes = driver.upload_part, Notes()
    record = notes.sent

    def together(*args, **kwargs) -> Part:
        memory[id(args[-1])] = args[-1]
        with lock:
            in_flight[0] += 1
            most[0] = max(most[0], in_flight[0])
        both.wait()
        return upload_part(*args, **kwargs)

    def recorded(part: SentPart) -> None:
        record(part)
        both.wait()
        with lock:
            in_flight[0] -= 1

    monkeypatch.setattr(driver, "upload_part", together)
    monkeypatch.setattr(notes, "sent", recorded)
    content = CONTENT[: 8 * PART]
    digest = Digest(len(content), hashlib.sha256(content).hexdigest())
    body = VerifyingReader(io.BytesIO(content), size=digest.size, sha256=digest.sha256)
    MultipartWrite(driver, "releases", "app.tgz", WriteInfo(digest.size, digest.sha256), notes).run(body, None)
    assert stored(driver) == content
    assert (most, len(memory)) == ([2], 4)


def test_no_part_is_sent_after_an_error(driver, monkeypatch):
    """A part that is ready when the source fails is not sent; those in flight are recorded."""
    stopping, upload_part = Event(), driver.upload_part

    def wait(*args, **kwargs) -> Part:
        assert stopping.wait(WITHIN)
        return upload_part(*args, **kwargs)

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **options) -> None:
            stopping.set()
            super().shutdown(**options)

    class Source(io.BytesIO):
        def read(self, size=-1) -> bytes:
            if self.tell() == 3 * PART:
                raise Unavailable("memory: the source is away")
            return super().read(size)

    monkeypatch.setattr(driver, "upload_part", wait)
    monkeypatch.setattr(multipart, "ThreadPoolExecutor", Pool)
    info, notes = WriteInfo(len(CONTENT), hashlib.sha256(CONTENT).hexdigest()), Notes()
    body = VerifyingReader(Source(CONTENT), size=info.size, sha256=info.sha256)
    with pytest.raises(Unavailable, match="the source is away"):
        MultipartWrite(driver, "releases", "app.tgz", info, notes).run(body, None)
    assert sorted(driver.sent) == sorted(notes.kept.sent) == [1, 2]


def test_parts_of_another_size_than_chunks_are_hashed_as_a_whole(driver):
    """A resumed upload may have other parts than today's: then the digest of the whole decides."""
    _, manifest = _manifest(2 * PART)
    assert write(driver, Notes(), manifest=manifest).size == len(CONTENT)
    with pytest.raises(DigestMismatch, match="has SHA-256 .*, not the announced"):
        write(driver, Notes(), CONTENT[:-1] + b"!", manifest=manifest)


def _manifest(chunk_size) -> tuple[Digest, Manifest]:
    pieces = [CONTENT[start : start + chunk_size] for start in range(0, len(CONTENT), chunk_size)]
    digests = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    digest = Digest(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    return digest, Manifest(len(CONTENT), chunk_size, digests)


def test_wrong_bytes_are_never_made_visible(driver):
    """A source that turns out wrong at its very end makes no object and leaves nothing."""
    with pytest.raises(DigestMismatch):
        write(driver, Notes(), CONTENT[:-1] + b"!")
    assert not driver.begun
    with pytest.raises(NotFound):
        driver.stat("releases", "app.tgz")
