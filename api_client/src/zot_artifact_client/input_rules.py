"""Rules for what people and services write, in messages and in settings, which pydantic does not have."""

from collections import Counter
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationInfo

from zot_artifact_client.text_escaping import bounded

ValueT = TypeVar("ValueT")

_SHOWN = 64
"""Characters of a name that an error shows."""


def check_number(cls: type[BaseModel], value: ValueT, info: ValidationInfo) -> ValueT:
    """Return the value of a field; raise ValueError for `true` or `false` as a number: to Python they are 1 and 0.

    It is a validator of all fields of a model, before pydantic's own.
    """
    if isinstance(value, bool) and _is_number(cls, str(info.field_name)):
        msg = "a number is expected, not true or false"
        raise ValueError(msg)
    return value


def check_distinct(value: ValueT) -> ValueT:
    """Return a value; raise ValueError for a list that names something twice. The error names the positions alone."""
    if isinstance(value, tuple):
        first: dict[Hashable, int] = {}
        for number, each in enumerate(value, 1):
            if first.setdefault(each, number) != number:
                msg = f"entry {number} is the same as entry {first[each]}"
                raise ValueError(msg)
    return value


class NamedTwice(ValueError):
    """An object of JSON has two fields of one name."""


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON from its fields, as `object_pairs_hook`.

    Python would use the last of two fields of one name in silence, and another parser the first.

    Raises:
        NamedTwice: two fields have one name.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise NamedTwice(f"{bounded(twice, _SHOWN)} is there twice")
    return found


@cache
def _is_number(model: type[BaseModel], field: str) -> bool:
    """Return whether a field takes numbers and no truth values."""
    kinds = set(_kinds_in(model.model_fields[field].annotation))
    return bool not in kinds and not kinds.isdisjoint({int, float})


def _kinds_in(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [kind for each in inner for kind in _kinds_in(each)] if inner else [annotation]
