"""Access tokens: their form, what they allow, and how a request shows one."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from worker.catalogue import AccessToken
from worker.storage.keys import check_bucket, check_prefix

_TOKEN = re.compile(r"zot_(?P<id>[0-9a-f]{12})_(?P<secret>[0-9a-f]{64})")
_NO_HASH = "0" * 64
ALL = "*"
"""The bucket of a token that is for all buckets."""


class TokenVerb(StrEnum):
    """What a token may allow."""

    READ = "read"
    """List, show and download artifacts, and see the jobs on them."""
    UPLOAD = "upload"
    """Send bytes."""
    IMPORT = "import"
    """Upload a file or URL that the worker reads, below `sources.roots` and from `sources.hosts`."""
    REPLICATE = "replicate"
    VERIFY = "verify"
    DELETE = "delete"
    PURGE = "purge"
    """With `delete`: deletes that cannot be undone (`now`), or that remove the last good copy (`allow_last`)."""
    ADOPT = "adopt"


@dataclass(frozen=True, slots=True)
class Caller:
    """The service that a request comes from, and what its token allows."""

    id: str
    name: str
    buckets: tuple[str, ...]
    verbs: frozenset[str]

    def reaches(self, bucket: str, start: str) -> bool:
        """Return whether the token is for this key, or for all keys that begin with this prefix."""
        for each in self.buckets:
            of, _, prefix = each.partition("/")
            if each == ALL or (of == bucket and start.startswith(prefix)):
                return True
        return False

    def may(self, verb: TokenVerb) -> bool:
        """Return whether the token allows a verb."""
        return verb in self.verbs


def new_token(
    name: str, buckets: Sequence[str], verbs: Sequence[TokenVerb], *, now: datetime, expires_at: datetime | None
) -> tuple[AccessToken, str]:
    """Return a new token as it is recorded, and as its service shows it. The latter is kept nowhere.

    Raises:
        InvalidKey: a bucket or prefix is none.
    """
    for each in buckets:
        bucket, _, prefix = each.partition("/")
        if each != ALL:
            check_bucket(bucket)
            check_prefix(prefix)
    id_, secret = secrets.token_hex(6), secrets.token_hex(32)
    words = tuple(verb.value for verb in dict.fromkeys(verbs))
    record = AccessToken(id_, name, _hash(secret), tuple(dict.fromkeys(buckets)), words, now, expires_at)
    return record, f"zot_{id_}_{secret}"


def id_of(text: str) -> str | None:
    """Return the id of a token as a service shows it, or None if the text is no token."""
    found = _TOKEN.fullmatch(text)
    return found["id"] if found else None


def caller_of(text: str, record: AccessToken | None, now: datetime) -> Caller | None:
    """Return the caller that a token belongs to, or None if it is not valid. The comparison takes constant time."""
    found = _TOKEN.fullmatch(text)
    same = hmac.compare_digest(_hash(found["secret"] if found else ""), record.sha256 if record else _NO_HASH)
    if not same or record is None or not record.valid(now):
        return None
    return Caller(record.id, record.name, record.buckets, frozenset(record.verbs))


def _hash(secret: str) -> str:
    """Return the SHA-256 of a secret. It is 256 random bits, so that a slow hash would protect it no better."""
    return hashlib.sha256(secret.encode()).hexdigest()
