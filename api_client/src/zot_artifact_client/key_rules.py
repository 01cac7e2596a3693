"""Which bucket names and keys artifacts may have.

Every backend can store a key that breaks none of these rules, byte for byte, so that an artifact can always be
replicated. The rules are the union of the limits of all backends:

- a bucket is 1 to 63 ASCII letters, digits, `.`, `_` and `-`, and starts with a letter or a digit;
- a key is UTF-8, and bucket and key with the slash between them are at most 1,024 bytes (S3, GCS and Azure);
- a key consists of segments between single slashes: none is empty, `.` or `..` (filesystems, URLs);
- a segment is at most 247 bytes (255 of a filesystem, less the longest sidecar suffix) and ends neither in a dot nor
  in a space (Azure drops the former, Windows tools both);
- no control characters, U+FFFE or U+FFFF (XML listings cannot carry them), and no backslash (Azure turns it into a
  slash);
- segments starting with `.zot-` and buckets starting with `zot-` are reserved for temporary files, markers and
quarantine.
"""

import re
import unicodedata

MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 247
RESERVED_SEGMENT = ".zot-"
RESERVED_BUCKET = "zot-"

_SEGMENT = r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_PLAIN = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
"""Keys that break no rule while they are short: most keys, and checked much faster than by the rules."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def is_plain(bucket: str, key: str) -> bool:
    """Return whether a key is short and of letters, digits and `.`, `_`, `-` alone, so that it breaks no rule."""
    return len(bucket) + len(key) < MAX_SEGMENT_BYTES and _PLAIN.fullmatch(key) is not None


def broken_bucket_rule(bucket: str, *, reserved: bool = False) -> str | None:
    """Return the rule that the name of a bucket breaks, or None; with `reserved` it may be one of the worker's own."""
    if bucket.startswith(RESERVED_BUCKET) and not reserved:
        return f"names starting with {RESERVED_BUCKET!r} are reserved"
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or bucket.endswith("."):
        return (
            "use 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit, without '..' or a dot at "
            "the end"
        )
    return None


def broken_key_rule(bucket: str, key: str) -> str | None:
    """Return the rule that a key breaks in this bucket, or None."""
    if is_plain(bucket, key):
        return None
    if rule := broken_length(f"{bucket}/{key}", "bucket and key are"):
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


def broken_length(text: str, what: str) -> str | None:
    """Return the rule that a text breaks which is too long, or no Unicode; it begins with `what`."""
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode (lone surrogate)"
    if length > MAX_PATH_BYTES:
        return f"{what} {length} bytes long, at most {MAX_PATH_BYTES} are possible"
    return None
