"""The keys of what belongs to an artifact, and of what an artifact belongs to."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.bulk import by_bucket, one_of
from worker.catalogue.tables import artifacts, companions
from worker.catalogue.types import Text
from zot_artifact_client.contract import COMPANION_SUFFIXES

_LONGEST_KEY = 1024
OWNERS = sa.select(companions.c.key, companions.c.of_key).where(
    companions.c.bucket == sa.bindparam("of", type_=Text()), one_of(companions.c.key, sa.bindparam("keys"))
)
"""What users have said about `keys` of the bucket `of`. A statement made for each job would be a cycle of objects."""
_NAMED = sa.select(companions.c.key).where(
    companions.c.bucket == sa.bindparam("of", type_=Text()), companions.c.of_key == sa.bindparam("owner", type_=Text())
)


def companion_keys(connection: Connection, bucket: str, key: str) -> list[str]:
    """Return the keys that companions of an artifact have, whether or not there is anything under them."""
    named = named_for(connection, bucket, key)
    by_name = [each for base in (key, *named) for each in _with_suffixes(base)]
    said = set(connection.execute(OWNERS, {"of": bucket, "keys": by_name}).scalars())
    return sorted({*named, *(each for each in by_name if each not in said)} - {key})


def owner_keys(connection: Connection, bucket: str, key: str) -> list[str]:
    """Return the keys of the artifacts that this one is a companion of, if they exist; the shortest first."""
    bases = [key, *_without_suffixes(key)]
    said = {row.key: row.of_key for row in connection.execute(OWNERS, {"of": bucket, "keys": bases})}
    if key in said:
        return [said[key]] if said[key] is not None else []
    above = [said[base] for base in bases if said.get(base) is not None]  # the signature of one that a user named
    return sorted({*bases[1:], *above}, key=len)


def named_for(connection: Connection, bucket: str, key: str) -> list[str]:
    """Return the keys that a user has named as companions of an artifact."""
    return list(connection.execute(_NAMED, {"of": bucket, "owner": key}).scalars())


def _with_suffixes(key: str) -> list[str]:
    """Return the keys of companions by name: also of what signs them, as in `app.tgz.att.sig`."""
    once = [key + suffix for suffix in COMPANION_SUFFIXES]
    return [
        each
        for each in (*once, *(one + more for one in once for more in COMPANION_SUFFIXES))
        if len(each) <= _LONGEST_KEY
    ]


def _without_suffixes(key: str) -> list[str]:
    once = [key.removesuffix(suffix) for suffix in COMPANION_SUFFIXES if key.endswith(suffix)]
    twice = [one.removesuffix(suffix) for one in once for suffix in COMPANION_SUFFIXES if one.endswith(suffix)]
    return [each for each in (*once, *twice) if each and not each.endswith("/")]


_ITSELF, _SIGNED = companions.alias("itself"), companions.alias("signed")
_KEY = artifacts.c.key
_SIZE = sa.func.length(_KEY)
_BASE = sa.case(
    *(
        (sa.func.substr(_KEY, _SIZE - len(end) + 1) == end, sa.func.substr(_KEY, 1, _SIZE - len(end)))
        for end in COMPANION_SUFFIXES
    )
)
PLACED_AS: sa.ColumnElement[str] = sa.case(
    (_ITSELF.c.key.is_not(None), sa.func.coalesce(_ITSELF.c.of_key, artifacts.c.key)),
    else_=sa.func.coalesce(_SIGNED.c.of_key, artifacts.c.key),
)
"""The key by which the placement rules choose the stores of an artifact, in a query with `with_owners`.

It is that of the artifact for which a user has named it, or what it signs, as a companion. The other companions begin
with the key of theirs, so that the same rule applies.
"""


def with_owners(query: sa.Select[Any]) -> sa.Select[Any]:
    """Return a query of artifacts that knows `PLACED_AS` of each."""
    for table, key in ((_ITSELF, artifacts.c.key), (_SIGNED, _BASE)):
        query = query.outerjoin(table, sa.and_(table.c.bucket == artifacts.c.bucket, table.c.key == key))
    return query


def placed_as(connection: Connection, bucket: str, key: str) -> str:
    """Return `PLACED_AS` of one key, whether or not there is an artifact."""
    return all_placed_as(connection, [(bucket, key)])[bucket, key]


def all_placed_as(connection: Connection, paths: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return `PLACED_AS` of several keys, by bucket and key."""
    bases = {
        (bucket, key): [key, *(key.removesuffix(end) for end in COMPANION_SUFFIXES if key.endswith(end))]
        for bucket, key in paths
    }
    said: dict[tuple[str, str], str | None] = {}
    for bucket, keys in by_bucket((path[0], base) for path, of in bases.items() for base in of):
        for row in connection.execute(OWNERS, {"of": bucket, "keys": keys}):
            said[bucket, row.key] = row.of_key
    return {
        (bucket, key): next((said[bucket, each] or key for each in of if (bucket, each) in said), key)
        for (bucket, key), of in bases.items()
    }
