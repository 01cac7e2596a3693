"""Which bucket names and keys every store can hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.storage.errors import InvalidKey
from worker.storage.keys import PROBE_BUCKET, QUARANTINE_BUCKET, check_bucket, check_key

FITS = "a" * 247


@pytest.mark.parametrize("bucket", ["b", "B", "0", "releases", "a.b-c_d", "x" * 63, "zot", "my-zot-"])
def test_a_plain_name_may_be_a_bucket(bucket: str) -> None:
    """Letters, digits, dots, underscores and dashes make a bucket, and it comes back as it is."""
    assert check_bucket(bucket) == bucket


@pytest.mark.parametrize(
    "bucket",
    ["", ".", "..", ".zot", "-a", "_a", "a..b", "a.", "a/b", "a b", "a\n", "a\x00", "é", "x" * 64, "a\\b", "C:"],
)
def test_no_other_name_may_be_a_bucket(bucket: str) -> None:
    """What some store cannot hold, or what leads elsewhere, is refused by an error that names it."""
    for reserved in (False, True):
        with pytest.raises(InvalidKey) as caught:
            check_bucket(bucket, reserved=reserved)
        assert repr(bucket) in str(caught.value)


@pytest.mark.parametrize("bucket", [QUARANTINE_BUCKET, PROBE_BUCKET, "zot-anything"])
def test_our_own_buckets_are_not_for_users(bucket: str) -> None:
    """Names starting with `zot-` are held by stores, but cannot be chosen."""
    assert check_bucket(bucket, reserved=True) == bucket
    with pytest.raises(InvalidKey, match="reserved"):
        check_bucket(bucket)


@pytest.mark.parametrize(
    "key",
    [
        "a", "a/b/c", "a.sha256", "a.%sha256", ".hidden", "...a", "a b", " a", "a..b", "a:b", "a%2Fb", "a?b#c", "é",
        "e\u0301", "文/件", "😀", "~", "-rf", "zot-a", ".zot", ".zottmp", "a.tmp", "\u2028", FITS, f"{FITS}/{FITS}",
    ],
)  # fmt: skip
def test_a_key_that_every_store_holds_is_left_as_it_is(key: str) -> None:
    """A key that passes comes back unchanged: nothing is normalised, case and form of characters count."""
    assert check_key("b", key) == key


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("", "it is empty"),
        ("/", "it is empty"),
        ("/a", "it is empty"),
        ("a/", "it is empty"),
        ("a//b", "it is empty"),
        (".", "cannot be path segments"),
        ("..", "cannot be path segments"),
        ("../a", "cannot be path segments"),
        ("a/../b", "cannot be path segments"),
        ("a/./b", "cannot be path segments"),
        ("a/..", "cannot be path segments"),
        ("a.", "ends in a dot or a space"),
        ("a./b", "ends in a dot or a space"),
        ("a /b", "ends in a dot or a space"),
        ("...", "ends in a dot or a space"),
        ("a\\b", "backslash"),
        ("a\x00b", "control characters"),
        ("a\nb", "control characters"),
        ("a\x7fb", "control characters"),
        ("a\x85b", "control characters"),
        ("a\uffff", "control characters"),
        ("\ud800", "lone surrogate"),
        (".zot-tmp-1", "are reserved"),
        ("a/.zot-x/b", "are reserved"),
        (FITS + "a", "longer than 247 bytes"),
        ("é" * 124, "longer than 247 bytes"),
    ],
)
def test_a_key_that_some_store_cannot_hold_is_refused(key: str, rule: str) -> None:
    """An unsafe key gets an error that names it and the rule it breaks."""
    with pytest.raises(InvalidKey) as caught:
        check_key("b", key)
    assert repr(key) in str(caught.value)
    assert rule in str(caught.value)


def test_bucket_and_key_share_one_length() -> None:
    """Bucket, slash and key are at most 1,024 bytes together, as the stores count them."""
    key = "/".join(["x" * 100] * 10)[:1000]
    bucket = "b" * 23
    assert check_key(bucket, key) == key
    with pytest.raises(InvalidKey, match="1025 bytes long, at most 1024"):
        check_key(bucket + "b", key)


@given(st.text(max_size=30))
def test_any_text_passes_or_is_refused(key: str) -> None:
    """No text makes the check fail in another way, and what passes stays below its bucket."""
    try:
        check_key("b", key)
    except InvalidKey:
        return
    assert key.encode().decode() == key
    assert not {"", ".", ".."} & set(key.split("/"))
