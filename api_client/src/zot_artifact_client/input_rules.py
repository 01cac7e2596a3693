"""Rules for what people and services write, in messages and in settings, which pydantic does not have."""

from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel

ValueT = TypeVar("ValueT")


def check_number(model: type[BaseModel], field: str | None, value: ValueT) -> ValueT:
    """Return the value of a field; raise ValueError for `true` or `false` as a number: to Python they are 1 and 0."""
    if isinstance(value, bool) and _is_number(model, str(field)):
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


@cache
def _is_number(model: type[BaseModel], field: str) -> bool:
    """Return whether a field takes numbers and no truth values."""
    kinds = set(_kinds_in(model.model_fields[field].annotation))
    return bool not in kinds and not kinds.isdisjoint({int, float})


def _kinds_in(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [kind for each in inner for kind in _kinds_in(each)] if inner else [annotation]
