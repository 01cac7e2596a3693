"""Object tags: up to ten pairs of a name and a value beside an object of S3 or Azure.

The catalogue keeps them as the query of a URL, as S3 sends them.
"""

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlencode

MAX_TAGS = 10
MAX_NAME, MAX_VALUE = 128, 256
"""Most characters; both providers have the same limits, and differ in the characters that they allow."""


def encode_tags(tags: Mapping[str, str]) -> str | None:
    """Return tags as the query of a URL, by name; None for no tags."""
    return urlencode(sorted(tags.items()), quote_via=quote) or None


def decode_tags(encoded: str | None) -> dict[str, str]:
    """Return the tags that `encode_tags` has encoded."""
    return dict(parse_qsl(encoded or "", keep_blank_values=True))


def fit(encoded: str | None, characters: re.Pattern[str] | None) -> bool:
    """Return whether a store whose tags have these characters can keep all these tags; True for no tags."""
    tags = decode_tags(encoded)
    if not tags:
        return True
    return (
        characters is not None
        and len(tags) <= MAX_TAGS
        and all(0 < len(name) <= MAX_NAME and len(value) <= MAX_VALUE for name, value in tags.items())
        and all(characters.fullmatch(name + value) for name, value in tags.items())
    )
