"""Define which bucket names and keys are allowed; the rules are shared with the client's package."""

import hashlib

from worker.storage.errors import InvalidKey
from zot_artifact_client import key_rules

MAX_SEGMENT_BYTES = key_rules.MAX_SEGMENT_BYTES
RESERVED_SEGMENT = key_rules.RESERVED_SEGMENT
RESERVED_BUCKET = key_rules.RESERVED_BUCKET
is_plain = key_rules.is_plain

RESERVED_PREFIX = f"{RESERVED_SEGMENT}reserved/"
"""In the layout `native`: the prefix of the reserved buckets in the real bucket of the setting `reserved_bucket`."""
QUARANTINE_BUCKET = "zot-quarantine"
PROBE_BUCKET = "zot-probe"
STAGING_BUCKET = "zot-staging"
MARKER_BUCKET = "zot-store"
BACKUP_BUCKET = "zot-catalogue"
REPORT_BUCKET = "zot-report"
CANARY_BUCKET = "zot-canary"
UPLOADS_BUCKET = "zot-uploads"


def check_bucket(bucket: str, *, reserved: bool = False) -> str:
    """Return `bucket` if it may name a bucket that users write to; with `reserved` also if it is one of the worker's.

    Raises:
        InvalidKey: naming the bucket and the rule it breaks.
    """
    if rule := key_rules.broken_bucket_rule(bucket, reserved=reserved):
        raise InvalidKey(f"bucket {bucket!r} is not allowed: {rule}")
    return bucket


def is_bucket(name: str) -> bool:
    """Return whether a name may be that of a bucket that users write to."""
    try:
        check_bucket(name)
    except InvalidKey:
        return False
    return True


def check_key(bucket: str, key: str) -> str:
    """Return `key` if every store can hold it, in this bucket, exactly as it is.

    Raises:
        InvalidKey: naming the key and the rule it breaks.
    """
    if rule := key_rules.broken_key_rule(bucket, key):
        raise InvalidKey(f"key {key!r} is not allowed: {rule}")
    return key


def check_existing_key(bucket: str, key: str) -> str:
    """Return `key` if it can name an object that is already in a store, also one that another program wrote.

    Such an object can be read, verified, adopted and deleted under its real name, although `check_key` would not allow
    to write it: a `folder/` marker, `//`, a trailing dot, a backslash, a control character.

    Raises:
        InvalidKey: naming the key and the rule it breaks.
    """
    if is_plain(bucket, key):
        return key
    rule = _unsafe_rule(key)  # in the layout `native` the bucket is not part of the real key
    if rule:
        raise InvalidKey(f"key {key!r} is not allowed: {rule}")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if keys can start with it.

    Raises:
        InvalidKey: naming the prefix and the rule it breaks.
    """
    if not prefix.isascii() and any("\ud800" <= char <= "\udfff" for char in prefix):
        raise InvalidKey(f"prefix {prefix!r} is not allowed: it is not valid Unicode (lone surrogate)")
    if "\0" in prefix:
        raise InvalidKey(f"prefix {prefix!r} is not allowed: it contains a NUL character")
    return prefix


def check_key_prefix(prefix: str) -> str:
    """Return `prefix` if keys that the worker reads or writes can start with it.

    Raises:
        InvalidKey: naming the prefix and the rule it breaks.
    """
    check_prefix(prefix)
    if not {".", ".."}.isdisjoint(prefix.split("/")[:-1]):
        raise InvalidKey(f"prefix {prefix!r} is not allowed: '.' and '..' cannot be path segments")
    return prefix


def reserved_key(reserved: str, start: str, key: str) -> str:
    """Return the key in a reserved bucket for an object of `key`: its digest if the whole would be too long."""
    found = f"{start}/{key}"
    if len(f"{reserved}/{found}".encode()) <= key_rules.MAX_PATH_BYTES:
        return found
    return f"{start}/{hashlib.sha256(key.encode()).hexdigest()}"


def _unsafe_rule(key: str) -> str | None:
    if not key:
        return "it is empty"
    if "\0" in key:
        return "it contains a NUL character"
    if rule := key_rules.broken_length(key, "it is"):
        return rule
    segments = key.split("/")
    if not {".", ".."}.isdisjoint(segments):
        return "'.' and '..' cannot be path segments"
    if any(segment.startswith(RESERVED_SEGMENT) for segment in segments):
        return f"segments starting with {RESERVED_SEGMENT!r} are reserved"
    return None
