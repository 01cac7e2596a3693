"""The blocks of open multipart uploads: how they are named, and which of them belong together.

Azure keeps the staged blocks of a blob under ids, in no documented order, and returns only their ids and sizes. So the
id holds everything: the write, the number of the part, when it was sent, and a digest of its bytes. The latest block of
a number is the part. All ids of one blob have to be equally long, at most 64 bytes.

Part number 0 has one byte, which says whether the write is open; the latest such block counts.
"""

import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from azure.storage.blob import BlobBlock

from worker.storage.driver import PartData

OPEN = b"o"
CLOSED = b"x"
MARK = 0
_TOKEN, _NUMBER, _STAMP, _DIGEST = 22, 5, 13, 22  # characters; two more are between
_LENGTH = _TOKEN + _NUMBER + _STAMP + _DIGEST + 2


@dataclass(frozen=True, slots=True)
class Block:
    """One staged block of ours.

    Attributes:
        id: as Azure knows it.
        token: of the write.
        number: of the part, or MARK.
        sent: microseconds since 1970, by the clock of the sender.
        tag: digest of the bytes.
        size: in bytes.
    """

    id: str
    token: str
    number: int
    sent: int
    tag: str
    size: int

    @property
    def since(self) -> datetime:
        return datetime.fromtimestamp(self.sent / 1_000_000, UTC)


def new_token() -> str:
    """Return the name of a new write."""
    return secrets.token_urlsafe(16)


def tag_of(sha256: str) -> str:
    """Return 128 bits of the SHA-256 of a part's bytes, as the block's id has room for."""
    return urlsafe_b64encode(bytes.fromhex(sha256)[:16]).decode().rstrip("=")


def sha256_of(data: PartData) -> str:
    """Return the SHA-256 of a part's bytes."""
    return sha256(data).hexdigest() if isinstance(data, bytes | bytearray) else data.sha256


def new_block(token: str, number: int, data: PartData, sha256: str | None = None) -> Block:
    """Return the name under which a part is sent now. Its SHA-256 is computed where it is not known."""
    sent, tag = time.time_ns() // 1_000, tag_of(sha256 or sha256_of(data))
    return Block(f"{token}-{number:05d}{sent:013x}-{tag}", token, number, sent, tag, len(data))


def ours(blocks: Iterable[BlobBlock]) -> list[Block]:
    """Return the blocks whose ids this module has made."""
    return [block for found in blocks if (block := _parsed(str(found.id), found.size))]


def parts_of(blocks: Iterable[Block], token: str) -> dict[int, Block] | None:
    """Return the parts of a write by number, or None if it is not open."""
    latest: dict[int, Block] = {}
    for block in sorted((block for block in blocks if block.token == token), key=lambda block: block.sent):
        latest[block.number] = block
    mark = latest.pop(MARK, None)
    return latest if mark and mark.tag == tag_of(sha256_of(OPEN)) else None


def _parsed(found: str, size: int) -> Block | None:
    if len(found) != _LENGTH or found[_TOKEN] != "-" or found[-_DIGEST - 1] != "-":
        return None
    number, sent = found[_TOKEN + 1 : _TOKEN + 1 + _NUMBER], found[_TOKEN + 1 + _NUMBER : -_DIGEST - 1]
    try:
        return Block(found, found[:_TOKEN], int(number), int(sent, 16), found[-_DIGEST:], size)
    except ValueError:
        return None
