"""Bound and escape text that comes from outside, before it reaches a log, a terminal, a result or the ledger."""

import re
import unicodedata

LINE = 500
"""Characters of an error message, or of one line of a log."""
_URL = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/?#'"]*@)?([^\s?#'"]*)(?:[?#][^\s'"]*)?""")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def bounded(text: object, limit: int = LINE, *, keep_end: bool = False) -> str:
    """Return a text of at most `limit` characters, in which what a terminal or a log could misread is escaped.

    A text that is cut ends with the count of all its characters; with `keep_end` it is cut in its middle instead.
    """
    raw = text if isinstance(text, str) else str(text)
    if keep_end:
        shown = escaped(raw if len(raw) <= 2 * limit else raw[:limit] + raw[-limit:])
        head = limit // 2
        return shown if len(shown) <= limit else f"{shown[:head]}…{shown[len(shown) - (limit - head - 1) :]}"
    kept = escaped(raw[:limit])
    if len(raw) <= limit and len(kept) <= limit:
        return kept
    note = f"... ({len(raw)} characters)"
    return kept[: max(0, limit - len(note))] + note


def without_secrets(text: str) -> str:
    """Return a text whose URLs have neither user, password, query nor fragment: any of them may be a secret."""
    return _URL.sub(r"\1\2", text) if "://" in text else text


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return a text with each character that is hidden as an escape, such as `\x1b`, but for those in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if is_hidden(char) and char not in keep else char for char in text
    )


def is_hidden(char: str) -> bool:
    """Return whether a character can move the cursor, end a line, turn the direction of text or hide in it.

    These are control and format characters (soft hyphens, tags, direction marks), line ends and lone surrogates.
    """
    return unicodedata.category(char) in _HIDDEN
