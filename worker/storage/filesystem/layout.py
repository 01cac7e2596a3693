"""Map keys to file names and back.

The layout is the original store's, so that each reads the other's data: an object is the file `root/bucket/key`, and
the hex of its SHA-256 is in the sidecar `root/bucket/key.sha256`. A key may itself end in `.sha256`:

- the file of a key `x.sha256` is `x.%sha256`, that of a key `x.%sha256` is `x.%%sha256`, and so on, so that no object
  written here has the name of a sidecar;
- a file with the plain name `x.sha256` is a sidecar, unless it has its own sidecar `x.sha256.sha256` beside it: then
  the original wrote it as an object, and it is the key `x.sha256`. A write to it, or to `x`, moves it to its new name.

Our own files are under `root/.zot/`, which is no bucket, and in names starting with `.zot-`, which no key has.
"""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from worker.storage.keys import RESERVED_SEGMENT

OWN = ".zot"
LOCKS = (OWN, "locks")
INTENTS = (OWN, "intents")
TEMP = f"{RESERVED_SEGMENT}tmp-"
SIDECAR = ".sha256"

_SIDECAR_LIKE = re.compile(r"\.(%*)sha256\Z")
_ESCAPED = re.compile(r"\.%(%*)sha256\Z")
_SIDECAR_LIKES = re.compile(r"(?:\.%*sha256)+\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """The directory and file names of one object below the root."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"

    @property
    def parents(self) -> tuple[str, ...]:
        """Return the directories above the object, the bucket first."""
        return (self.bucket, *self.key.split("/")[:-1])

    @property
    def plain(self) -> str:
        """Return the name that the original gave the object."""
        return self.key.rpartition("/")[2]

    @property
    def leaf(self) -> str:
        """Return the name of the object's data."""
        return leaf_of(self.plain)

    @property
    def sidecar(self) -> str:
        """Return the name of the object's sidecar."""
        return self.leaf + SIDECAR

    @property
    def lock(self) -> str:
        """Return the name of its lock, one of 256; `x` and `x.sha256` share one, because each may move the other."""
        return _hashed(f"{self.bucket}/{_SIDECAR_LIKES.sub('', self.key)}")[:2]

    @property
    def intent(self) -> str:
        """Return the name of the intent of a replacement."""
        return _hashed(str(self))


def leaf_of(segment: str) -> str:
    """Return the name on disk for the last segment of a key."""
    return _SIDECAR_LIKE.sub(r".%\1sha256", segment)


def segment_of(leaf: str) -> str:
    """Return the last segment of the key whose data has this name; the reverse of `leaf_of`."""
    return _ESCAPED.sub(r".\1sha256", leaf)


def objects_in(files: Collection[str]) -> dict[str, str]:
    """Return the last segments of the keys in one directory, each with its name, from the names of all files in it."""
    own = {segment_of(name): name for name in files if not _is_ours(name) and not name.endswith(SIDECAR)}
    return own | {name: name for name in files if name.endswith(SIDECAR) and name + SIDECAR in files}


def orphans_in(files: Collection[str]) -> list[str]:
    """Return the last segments of the keys whose sidecars are in a directory without objects."""
    return [segment_of(name.removesuffix(SIDECAR)) for name in files if name.endswith(SIDECAR) and not _is_ours(name)]


def is_encodable(name: str) -> bool:
    """Return whether a name on disk is UTF-8, as all keys are."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_sidecar(content: bytes) -> str | None:
    """Return the digest in a sidecar, lower-case, or None if its content is something else."""
    text = content.decode("ascii", errors="replace").strip().lower()
    return text if _SHA256.fullmatch(text) else None


def _is_ours(name: str) -> bool:
    return name.startswith(RESERVED_SEGMENT)


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
