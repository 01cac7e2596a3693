"""Bound and escape text that comes from outside, before it reaches a log, a terminal, a result or the ledger."""

import re

LINE = 500
"""Characters of an error message, or of one line of a log."""
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Control characters, line ends, bidirectional overrides, invisible characters, halves of surrogate pairs."""


def bounded(text: object, limit: int = LINE) -> str:
    """Return a text of at most `limit` characters, in which what a terminal or a log could misread is escaped.

    A text that is cut ends with the count of all its characters.
    """
    raw = text if isinstance(text, str) else str(text)
    kept = _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), raw[:limit])
    if len(raw) <= limit and len(kept) <= limit:
        return kept
    note = f"... ({len(raw)} characters)"
    return kept[: max(0, limit - len(note))] + note
