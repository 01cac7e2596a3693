"""Objects of other programs with keys that uploads may not have can be listed, read, verified and deleted."""

import pytest

from tests.conformance.bodies import raises, source
from worker.storage import Store, Verdict
from worker.storage.errors import InvalidKey, InvalidRange, NotFound, SizeMismatch
from worker.storage.integrity.verifying_reader import drain

EXISTING = [
    "folder/",
    "folder//x",
    "/x",
    "x.",
    "d./x",
    "x ",
    "back\\slash",
    "tab\tand\x7fdel",
    "s" * 255,
    "s" * 256,
    "long" * 100 + "/x",
    "é" * 130 + ".sha256",
]
UNSAFE = [
    "",
    "a\0b",
    ".",
    "..",
    "../x",
    "a/../b",
    "a/./b",
    "\ud800",
    ".zot-tmp-x",
    ".zot-x",
    "d/.zot-bucket",
    "x/.zot-y",
    "k" * 1025,
]
ABSURD = [(-1, 1), (0, -1), (2**63, 1), (0, 2**63), (-(2**70), 2**70)]


@pytest.mark.unless("quoting")
@pytest.mark.unless("names")
@pytest.mark.reads
@pytest.mark.unless("odd_keys")
def test_a_key_that_exists_is_usable(bucket):
    """A store that can hold a key lists, reads, verifies and deletes it; another one refuses it and touches nothing."""
    store: Store = bucket.store
    bucket.write("neighbour", b"neighbour")
    for key in EXISTING:
        try:
            store.write_object(bucket.name, key, source(b"bytes"), existing_key=True)
        except InvalidKey:
            assert raises(NotFound, store.stat_object, bucket.name, key), key
            assert (key, store.verify_object(bucket.name, key).verdict) == (key, Verdict.MISSING)
            assert not bucket.delete(key), key
        else:
            assert set(bucket.keys()) == {key, "neighbour"}
            assert (key, bucket.read(key)) == (key, b"bytes")
            assert (key, store.verify_object(bucket.name, key).verdict) == (key, Verdict.VERIFIED)
            assert bucket.delete(key), key
    assert bucket.keys() == ["neighbour"]


@pytest.mark.unless("names")
def test_a_new_key_keeps_to_the_rules(bucket):
    """Keys that we make up are those that every store can hold."""
    refused = f"{bucket.store.name}: key "
    assert [key for key in EXISTING if refused not in raises(InvalidKey, bucket.write, key, b"bytes")] == []


@pytest.mark.unless("names")
@pytest.mark.reads
def test_an_unsafe_key_is_refused_by_every_method(bucket):
    """What could lead out of a bucket, or name something of ours, is refused with the names of store and key."""
    store: Store = bucket.store
    refused = f"{store.name}: key "
    for call in (
        store.stat_object,
        store.object_exists,
        store.read_object,
        store.verify_object,
        store.delete_object,
        lambda name, key: store.write_object(name, key, source(b"x")),
        lambda name, key: store.write_object(name, key, source(b"x"), existing_key=True),
    ):
        assert [key for key in UNSAFE if refused not in raises(InvalidKey, call, bucket.name, key)] == []
    assert bucket.keys() == []


@pytest.mark.unless("layout")
def test_an_absurd_range_is_a_typed_error(bucket):
    """Negative and absurdly large borders are the same error on every store, which names the object."""
    bucket.write("k", b"0123456789")
    read, named = bucket.store.read_object_range, f"{bucket.store.name}: {bucket.name}/k: "
    assert [each for each in ABSURD if named not in raises(InvalidRange, read, bucket.name, "k", *each)] == []


@pytest.mark.unless("names")
def test_an_impossible_prefix_is_a_typed_error(bucket):
    """A prefix, or a key to start after, that is not UTF-8 is refused and ends nothing in a traceback."""
    for prefix in ("\ud800", "a\0"):
        with pytest.raises(InvalidKey, match=f"{bucket.store.name}: prefix "):
            list(bucket.store.list_objects(bucket.name, prefix))
        with pytest.raises(InvalidKey):
            list(bucket.store.list_objects(bucket.name, after=prefix))


class _Cut:
    """A reader that ends one byte early, or one byte late."""

    def __init__(self, reader, by):
        self._reader, self._by = reader, by
        self.stat = reader.stat

    def read(self, size, /):
        data = self._reader.read(size)
        if data and self._by:
            by, self._by = self._by, 0
            return data[:by] if by < 0 else data + b"x" * by
        return data

    def close(self):
        self._reader.close()


@pytest.mark.unless("layout")
def test_a_range_of_another_length_is_an_error(bucket, monkeypatch):
    """A range that comes back shorter or longer than it is raises at its end, also without a manifest."""
    bucket.write("k", b"0123456789")
    driver = type(bucket.store._driver)
    original = driver.open
    for by in (-1, 1):
        monkeypatch.setattr(driver, "open", lambda *args, by=by, **named: _Cut(original(*args, **named), by))
        with bucket.store.read_object_range(bucket.name, "k", 2, 5) as reader, pytest.raises(SizeMismatch):
            drain(reader)
