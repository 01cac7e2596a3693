"""Conditions of keys that begin with a prefix, or come after a key, that an index can answer."""

import sqlalchemy as sa

from worker.catalogue.tables import artifacts

_SURROGATES = range(0xD800, 0xE000)
"""Surrogates: code points that are no characters."""


def begins_with(column: sa.ColumnElement[str], prefix: str) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of texts that begin with a prefix."""
    # LIKE ignores case in SQLite and not in PostgreSQL, and uses no index.
    if not prefix:
        return []
    end = first_after(prefix)
    return [column >= prefix] if end is None else [column >= prefix, column < end]


def following(prefix: str, after: str, until: str | None = None) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of keys with a prefix after a key, and up to another one.

    They have one lower and one upper bound: SQLite searches by one only, and tests the rows for the other.
    """
    begins = begins_with(artifacts.c.key, prefix)
    bounds = [artifacts.c.key > after, *begins[1:]] if after >= prefix else begins
    if until is None:
        return bounds
    return [*(bounds[:1] if until.startswith(prefix) else bounds), artifacts.c.key <= until]


def first_after(prefix: str) -> str | None:
    """Return the first text in order of code points that comes after all that begin with this, or None."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)
