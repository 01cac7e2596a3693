"""Map keys to file names and back, and the stat of a file to that of an object.

The layout is the original store's, so that each reads the other's data: an object is the file `root/bucket/key`, and
the hex of its SHA-256 is in the sidecar `root/bucket/key.sha256`. A key may itself end in `.sha256`:

- the file of a key `x.sha256` is `x.%sha256`, that of a key `x.%sha256` is `x.%%sha256`, and so on, so that no object
  written here has the name of a sidecar;
- a file with the plain name `x.sha256` is a sidecar, unless it has its own sidecar `x.sha256.sha256` beside it: then
  the original wrote it as an object, and it is the key `x.sha256`. A write to it, or to `x`, moves it to its new name;
- a file `x.sha256` that is not the bare hex of a SHA-256 is no sidecar: another program wrote it, such as `sha256sum`.
  It is the object of the key `x.sha256`, and stays when `x` is written or deleted. The sidecar of `x` is then
  `.zot-s-x`. A line of `sha256sum` in it counts as the digest of `x` where there is no sidecar;
- a file `x.sha256` of bare hex is such an object too if there is no `x` and it has no mark of ours, and it remains one
  when `x` is written.

The worker's own files are under `root/.zot/`, which is no bucket, and have names starting with `.zot-`, which no key
has.
"""

import codecs
import hashlib
import os
import re
import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime

from worker.storage.driver import ObjectStat
from worker.storage.filesystem.inode_numbers import inode_of
from worker.storage.keys import RESERVED_SEGMENT

OWN = ".zot"
LOCKS = (OWN, "locks")
INTENTS = (OWN, "intents")
TEMP = f"{RESERVED_SEGMENT}tmp-"
SIDECAR = ".sha256"
HIDDEN_SIDECAR = f"{RESERVED_SEGMENT}s-"
SIDECAR_SIZES = range(64, 67)
"""Bytes of a sidecar: the hex, with the line end that some programs add."""

_SIDECAR_LIKE = re.compile(r"\.(%*)sha256\Z")
_ESCAPED = re.compile(r"\.%(%*)sha256\Z")
_SIDECAR_LIKES = re.compile(r"(?:\.%*sha256)+\Z")
_CHECKSUM_LINE = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_TAGGED_LINE = re.compile(r"(?P<escaped>\\?)SHA(?:2-)?256 ?\((?P<name>.+)\) ?= (?P<digest>[0-9a-fA-F]{64})")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEX = b"0123456789abcdef"


class ObjectPath:
    """The directory and file names of one object below the root.

    Attributes:
        parents: the directories above the object, the bucket first.
        plain: the name that the original gave the object.
        leaf: the name of the object's data.
        sidecar: the name of the object's sidecar.
        hidden_sidecar: the name of its sidecar where another program has a file of the sidecar's name.
    """

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket, self.key = bucket, key
        *above, self.plain = key.split("/")
        self.parents = (bucket, *above)
        self.leaf = leaf_of(self.plain)
        self.sidecar = self.leaf + SIDECAR
        self.hidden_sidecar = HIDDEN_SIDECAR + self.leaf

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"

    @property
    def lock(self) -> str:
        """Return the name of its lock, one of 256.

        `x` and `x.sha256` share one, because each may move the other; names that some disks fold into one share one.
        """
        name = folded(f"{self.bucket}/{_SIDECAR_LIKES.sub('', self.key)}")
        return hashlib.sha256(name.encode()).hexdigest()[:2]

    @property
    def intent(self) -> str:
        """Return the name of the intent of a replacement."""
        return hashlib.sha256(str(self).encode()).hexdigest()


def version_of(stat: os.stat_result) -> str:
    """Return the version tag of an object, which no other version of its key has.

    On a file system whose inode numbers do not stay, one of the same size and modification time has it, too.
    """
    return f"{inode_of(stat):x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"


def to_time(seconds: float) -> datetime:
    """Return a time of the disk, or the epoch for one outside the years 1 to 9999: no decision depends on it."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def object_stat(path: ObjectPath, found: os.stat_result, sha256: str | None) -> ObjectStat:
    """Return what is known about an object without reading it."""
    return ObjectStat(path.bucket, path.key, found.st_size, version_of(found), to_time(found.st_mtime), sha256)


def folded(name: str) -> str:
    """Return one spelling for all names that differ only in case or in Unicode normalization."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def leaf_of(segment: str) -> str:
    """Return the name on disk for the last segment of a key."""
    return _SIDECAR_LIKE.sub(r".%\1sha256", segment)


def segment_of(leaf: str) -> str:
    """Return the last segment of the key whose data has this name; the reverse of `leaf_of`."""
    return _ESCAPED.sub(r".\1sha256", leaf)


def objects_in(files: Collection[str], foreign: Collection[str] = ()) -> dict[str, str]:
    """Return the last segments of the keys in one directory, each with its name, from the names of all files in it.

    `foreign`: files with the name of a sidecar that another program wrote.
    """
    own = {segment_of(name): name for name in files if not _is_ours(name) and not name.endswith(SIDECAR)}
    markers = {name for name in files if name not in foreign}
    original = {name: name for name in files if name.endswith(SIDECAR) and name + SIDECAR in markers}
    return {name: name for name in foreign if not _is_ours(name)} | own | original


def is_encodable(name: str) -> bool:
    """Return whether a name on disk is UTF-8, as all keys are."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_sidecar(content: bytes) -> str | None:
    """Return the digest in a sidecar, lower-case, or None if its content is something else."""
    if len(content) == SIDECAR_SIZES.start and not content.translate(None, _HEX):  # as all of ours: a sweep reads many
        return content.decode("ascii")
    text = content.decode("ascii", errors="replace").strip().lower()
    return text if _SHA256.fullmatch(text) else None


def parse_checksum_line(content: bytes, name: str) -> str | None:
    """Return the digest that a checksum file gives for a file of this name, lower-case, or None.

    Its lines are those of `sha256sum`, with or without `--tag`, or of `openssl dgst`; PowerShell writes UTF-16.
    """
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    if _SHA256.fullmatch(text.strip().lower()):
        return text.strip().lower()
    for line in text.splitlines():
        found = _CHECKSUM_LINE.fullmatch(line) or _TAGGED_LINE.fullmatch(line)
        if found is None:
            continue
        said = found["name"]
        if found["escaped"]:
            said = re.sub(r"\\[\\nr]", lambda escape: _ESCAPES[escape[0]], said)
        if said.rpartition("/")[2] == name:
            return found["digest"].lower()
    return None


def _is_ours(name: str) -> bool:
    return name.startswith(RESERVED_SEGMENT)
