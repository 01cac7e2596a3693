"""What a store says about an object agrees with what it said at the write, until the object is written anew."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from tests.conformance.bodies import digest_of, sizes, some_bytes
from tests.conformance.conftest import BucketUnderTest
from worker.artifacts.check_evidence import compare_listed, compare_stat
from worker.catalogue import RecordedEvidence
from worker.storage import ObjectStat
from worker.storage.writer_record import Sign, WriterRecord


def recorded(key: str, data: bytes, written: ObjectStat) -> RecordedEvidence:
    return RecordedEvidence(
        1, key, 1, len(data), digest_of(data).sha256, written.version, written.storage_tags, written.modified
    )


@pytest.mark.unless("layout")
@sizes((0, 0), (0, 5), (2, 3))
def test_evidence_agrees_until_the_object_is_written_anew(bucket: BucketUnderTest, size: int) -> None:
    """By stat and by listing, of objects in one request and in parts; other bytes of the same size differ."""
    data = some_bytes(size)
    known = recorded("app", data, bucket.write("app", data))
    [listed] = bucket.store.list_objects(bucket.name, "app")
    assert compare_listed(known, listed).outcome == "agrees"
    found = compare_stat(known, bucket.stat("app"))
    assert (found.outcome, found.detail) == ("agrees", None)
    bucket.write("app", bytes(size + 1) if size == 0 else bytes(reversed(data)))
    assert compare_stat(known, bucket.stat("app")).outcome == "differs"
    [listed] = bucket.store.list_objects(bucket.name, "app")
    assert compare_listed(known, listed).outcome == "differs"


def test_the_record_of_the_writer_is_replaced(bucket: BucketUnderTest) -> None:
    """A store without a record has no writer; each record takes the place of the one before, without a condition."""
    catalogue, sign = str(uuid4()), Sign(uuid4().hex, "catalogue.sqlite3 of vm", datetime.now(UTC))
    assert bucket.store.writer(catalogue) is None
    for record in (WriterRecord(sign), WriterRecord(sign, objection=sign, refused=("a", "b"))):
        bucket.store.set_writer(catalogue, record)
        assert bucket.store.writer(catalogue) == record
