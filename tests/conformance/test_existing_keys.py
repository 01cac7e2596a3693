"""What other programs wrote under names that we would not write can be listed, read, verified and deleted."""

import pytest

from tests.conformance.bodies import source
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
]
UNSAFE = ["", "a\0b", "..", "../x", "a/../b", "a/./b", "\ud800", ".zot-tmp-x", "d/.zot-bucket", "k" * 1025]


@pytest.mark.unless("odd_keys")
@pytest.mark.parametrize("key", EXISTING)
def test_a_key_that_exists_is_usable(bucket, key):
    """A store that can hold a key lists, reads, verifies and deletes it; another one refuses it and touches nothing."""
    store: Store = bucket.store
    bucket.write("neighbour", b"neighbour")
    try:
        store.write_object(bucket.name, key, source(b"bytes"), existing_key=True)
    except InvalidKey:
        with pytest.raises((NotFound, InvalidKey)):
            store.stat_object(bucket.name, key)
        assert bucket.keys() == ["neighbour"]
        return
    assert set(bucket.keys()) == {key, "neighbour"}
    assert bucket.read(key) == b"bytes"
    assert store.verify_object(bucket.name, key).verdict == Verdict.VERIFIED
    assert bucket.delete(key)
    assert bucket.keys() == ["neighbour"]


@pytest.mark.parametrize("key", EXISTING)
def test_a_new_key_keeps_to_the_rules(bucket, key):
    """Keys that we make up are those that every store can hold."""
    with pytest.raises(InvalidKey, match=f"{bucket.store.name}: key "):
        bucket.write(key, b"bytes")


@pytest.mark.parametrize("key", UNSAFE)
def test_an_unsafe_key_is_refused_by_every_method(bucket, key):
    """What could name another file, or something of ours, is refused with the names of store and key."""
    store: Store = bucket.store
    for call in (
        lambda: store.stat_object(bucket.name, key),
        lambda: store.read_object(bucket.name, key),
        lambda: store.verify_object(bucket.name, key),
        lambda: store.delete_object(bucket.name, key),
        lambda: store.write_object(bucket.name, key, source(b"x"), existing_key=True),
    ):
        with pytest.raises(InvalidKey, match=f"{store.name}: key "):
            call()


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (2**63, 1), (0, 2**63), (-(2**70), 2**70)])
def test_an_absurd_range_is_a_typed_error(bucket, offset, length):
    """Negative and absurdly large borders are the same error on every store, which names the object."""
    bucket.write("k", b"0123456789")
    with pytest.raises(InvalidRange, match=f"{bucket.store.name}: {bucket.name}/k: "):
        bucket.store.read_object_range(bucket.name, "k", offset, length)


@pytest.mark.parametrize("prefix", ["\ud800", "a\0"])
def test_an_impossible_prefix_is_a_typed_error(bucket, prefix):
    """A prefix, or a key to start after, that is not UTF-8 is refused and ends nothing in a traceback."""
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


@pytest.mark.parametrize("by", [-1, 1])
def test_a_range_of_another_length_is_an_error(bucket, by, monkeypatch):
    """A range that comes back shorter or longer than it is raises at its end, also without a manifest."""
    bucket.write("k", b"0123456789")
    driver = bucket.store._driver
    original = type(driver).open
    monkeypatch.setattr(type(driver), "open", lambda *args, **named: _Cut(original(*args, **named), by))
    with bucket.store.read_object_range(bucket.name, "k", 2, 5) as reader, pytest.raises(SizeMismatch):
        drain(reader)
