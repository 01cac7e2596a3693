"""What is wrong with the fields of a request, told without a value of it."""

from collections.abc import Iterable, Mapping
from typing import Any

_RULES = {"tuple_type": "Input should be a valid list", "dict_type": "Input should be a valid object"}
"""Rules that pydantic words for Python, in the words of JSON."""
_PATTERNS = {
    r"^[0-9a-fA-F]{64}$": "must be 64 hexadecimal digits",
    r"^[A-Za-z0-9._-]{1,64}$": "must be 1 to 64 letters, digits, '.', '_' or '-'",
    r"^[a-z][a-z0-9_]{0,63}$": "a name must be 1 to 64 of a-z, 0-9 and '_', beginning with a letter",
}
"""What the regular expressions of the contract say, where that is shorter in words."""


def faults_of(errors: Iterable[Mapping[str, Any]], *, whole: str = "request") -> str:
    """Return which fields break which rules, from the errors of pydantic; `whole` is the name of all fields together.

    Deeper names are the caller's values, such as keys of metadata: only positions in a list are named.
    """
    return "; ".join(dict.fromkeys(f"{_place(each['loc']) or whole}: {rule_of(each)}" for each in errors))


def rule_of(error: Mapping[str, Any]) -> str:
    """Return the rule that a field breaks."""
    pattern = str(error["msg"]).removeprefix("String should match pattern ").strip("'")
    return _RULES.get(error["type"]) or _PATTERNS.get(pattern) or str(error["msg"]).removeprefix("Value error, ")


def _place(location: tuple[int | str, ...]) -> str:
    position = f"[{location[1]}]" if len(location) > 1 and isinstance(location[1], int) else ""
    return f"{location[0]}{position}" if location and isinstance(location[0], str) else ""
