"""Generated keys: a store keeps exactly what the grammar allows, and never sees what it refuses.

A cloud is asked with one key of each kind instead, in `test_listing.py` and `test_existing_keys.py`.
"""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.bodies import raises
from tests.conformance.conftest import BucketUnderTest
from worker.storage.errors import InvalidKey, PermanentError
from worker.storage.keys import check_existing_key, check_key

AWKWARD = st.sampled_from(
    [" ", "%", "+", "?", "#", '"', "'", "\\", "\n", "\x00", ".", "/", "//", "&", "=", ";", "~", ":"]
)
LETTERS = st.sampled_from(["a", "A", "b", "é", "e\u0301", "文", "\uff5e", "\U0001f680", "\u2028", "\u200d", "ß", "İ"])
SUFFIXES = st.sampled_from(["", ".sha256", ".sha256.sha256", ".%sha256", ".tmp", ".zot-tmp", "/", "%2F", "%00"])
KEYS = st.builds(
    lambda pieces, suffix: "".join(pieces) + suffix,
    st.lists(st.one_of(LETTERS, AWKWARD, st.text(max_size=3)), min_size=1, max_size=12),
    SUFFIXES,
)
FEW = settings(
    max_examples=20,  # each is a score of keys
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def passes(check: Callable[[str, str], str], key: str) -> bool:
    try:
        check("b" * 63, key)
    except InvalidKey:
        return False
    return True


def is_absent(bucket: BucketUnderTest, key: str) -> bool:
    """Return whether no verb finds an object of this name; a store may refuse the name, too, in words of its own."""
    for verb in (bucket.read, bucket.delete, bucket.exists):
        try:
            if verb(key):
                return False
        except PermanentError:
            continue
    return True


def apart(keys: list[str]) -> list[str]:
    """Return the keys of which none is a folder of another, whatever a store makes of sidecars."""
    kept: list[str] = []
    for key in keys:
        folders = {f"{key}/", f"{key}.sha256/", f"{key}.%sha256/"}
        below = any(other.startswith(tuple(folders)) for other in keys)
        if not below:
            kept.append(key)
    return kept


@pytest.mark.unless("server")
@FEW
@given(st.lists(KEYS, min_size=20, max_size=30, unique=True))
def test_allowed_keys_are_kept_and_others_refused(bucket: BucketUnderTest, keys: list[str]) -> None:
    """Every allowed key is listed, read and deleted as itself; no other one is written, and unsafe ones are refused."""
    kept = apart([key for key in keys if passes(check_key, key)])
    for key in kept:
        bucket.write(key, key.encode())
    for key in keys:
        if not passes(check_key, key):
            assert raises(InvalidKey, bucket.write, key, b"x"), f"{key!r} was written"
            assert is_absent(bucket, key), f"{key!r} is found"
        if not passes(check_existing_key, key):
            for verb in (bucket.read, bucket.delete, bucket.exists):
                assert raises(InvalidKey, verb, key), f"{key!r} was not refused"
    listed = bucket.keys()
    assert sorted(listed, key=str.encode) == sorted(kept, key=str.encode)
    assert {key: bucket.read(key) for key in kept} == {key: key.encode() for key in kept}
    for key in kept:
        assert bucket.delete(key)
    assert bucket.keys() == []
