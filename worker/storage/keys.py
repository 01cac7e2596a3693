"""Define which bucket names and keys are allowed.

Every backend can store a key that passes `check_key`, byte for byte, so that an artifact can always be replicated.
The rules are the union of the limits of all backends:

- a bucket is 1 to 63 ASCII letters, digits, `.`, `_` and `-`, and starts with a letter or a digit;
- a key is UTF-8, and bucket and key with the slash between them are at most 1,024 bytes (S3, GCS and Azure);
- a key consists of segments between single slashes: none is empty, `.` or `..` (filesystems, URLs);
- a segment is at most 247 bytes (255 of a filesystem, less the longest sidecar suffix) and ends neither in a dot nor
  in a space (Azure drops the former, Windows tools both);
- no control characters (XML listings cannot carry them) and no backslash (Azure turns it into a slash);
- segments starting with `.zot-` and buckets starting with `zot-` are reserved for temporary files, markers and
quarantine.
"""

import hashlib
import re
import unicodedata

from worker.storage.errors import InvalidKey

MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 247
RESERVED_SEGMENT = ".zot-"
RESERVED_BUCKET = "zot-"
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

_SEGMENT = r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_PLAIN = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
"""Keys that break no rule while they are short: most keys, and checked much faster than by the rules."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_bucket(bucket: str) -> str:
    """Return `bucket` if it may name a bucket that users write to.

    Raises:
        InvalidKey: naming the bucket and the rule it breaks.
    """
    if bucket.startswith(RESERVED_BUCKET):
        raise InvalidKey(f"bucket {bucket!r} is not allowed: names starting with {RESERVED_BUCKET!r} are reserved")
    return check_any_bucket(bucket)


def check_any_bucket(bucket: str) -> str:
    """Return `bucket` if a store can hold it, including the reserved buckets."""
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or bucket.endswith("."):
        raise InvalidKey(
            f"bucket {bucket!r} is not allowed: use 1 to 63 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit, without '..' or a dot at the end"
        )
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
    if is_plain(bucket, key):
        return key
    rule = _broken_rule(bucket, key)
    if rule:
        raise InvalidKey(f"key {key!r} is not allowed: {rule}")
    return key


def is_plain(bucket: str, key: str) -> bool:
    """Return whether a key is short and of letters, digits and `.`, `_`, `-` alone, so that it breaks no rule."""
    return len(bucket) + len(key) < MAX_SEGMENT_BYTES and _PLAIN.fullmatch(key) is not None


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
    if len(f"{reserved}/{found}".encode()) <= MAX_PATH_BYTES:
        return found
    return f"{start}/{hashlib.sha256(key.encode()).hexdigest()}"


def _unsafe_rule(key: str) -> str | None:
    if not key:
        return "it is empty"
    if "\0" in key:
        return "it contains a NUL character"
    if rule := _broken_length(key, "it is"):
        return rule
    segments = key.split("/")
    if not {".", ".."}.isdisjoint(segments):
        return "'.' and '..' cannot be path segments"
    if any(segment.startswith(RESERVED_SEGMENT) for segment in segments):
        return f"segments starting with {RESERVED_SEGMENT!r} are reserved"
    return None


def _broken_length(text: str, what: str) -> str | None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode (lone surrogate)"
    if length > MAX_PATH_BYTES:
        return f"{what} {length} bytes long, at most {MAX_PATH_BYTES} are possible"
    return None


def _broken_rule(bucket: str, key: str) -> str | None:
    if rule := _broken_length(f"{bucket}/{key}", "bucket and key are"):
        return rule
    if "\\" in key:
        return "a backslash cannot be stored by every store"
    if any(unicodedata.category(char) == "Cc" or char in "\ufffe\uffff" for char in key):
        return "control characters cannot be listed by every store"
    return next((rule for segment in key.split("/") if (rule := _broken_segment_rule(segment))), None)


def _broken_segment_rule(segment: str) -> str | None:
    if segment == "":
        return "it is empty, starts or ends with '/', or has '//' in it"
    if segment in {".", ".."}:
        return "'.' and '..' cannot be path segments"
    if segment.endswith((".", " ")):
        return f"segment {segment!r} ends in a dot or a space"
    if segment.startswith(RESERVED_SEGMENT):
        return f"segments starting with {RESERVED_SEGMENT!r} are reserved"
    if len(segment.encode()) > MAX_SEGMENT_BYTES:
        return f"a segment is longer than {MAX_SEGMENT_BYTES} bytes"
    return None
