"""What commands are told: artifacts as BUCKET/KEY, stores by name, times with a unit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Self

import typer

from worker.cli.errors import Failure, Status
from worker.context import Context
from worker.settings import load_settings
from worker.storage.keys import check_bucket, check_key
from worker.storage.units import parse_duration

PlaceText = Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="The artifact, such as releases/app.tgz.")]


@dataclass(frozen=True, slots=True)
class Place:
    """An artifact as people name it."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read BUCKET/KEY.

        Raises:
            Failure: there is no slash in it.
            InvalidKey: naming the rule that it breaks.
        """
        bucket, slash, key = text.partition("/")
        if not (bucket and slash and key):
            raise Failure(f"{text!r} names no artifact: write BUCKET/KEY, such as releases/app.tgz", Status.USAGE)
        return cls(check_bucket(bucket), check_key(bucket, key))

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"


@contextmanager
def opened() -> Iterator[Context]:
    """Open the catalogue and the stores of these settings."""
    context = Context.open(load_settings())
    try:
        yield context
    finally:
        context.close()


def store_names(context: Context, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the stores that were named, by one option each or with commas between; None if none was.

    Raises:
        UnknownStore: naming those that there are. Nothing has been sent.
    """
    names = tuple(dict.fromkeys(name.strip() for each in given or () for name in each.split(",") if name.strip()))
    for name in names:
        if name not in context.settings.stores:
            context.stores[name]  # whose error knows what the name may have been meant to be
    return names or None


def seconds(text: str) -> float:
    """Read a time to wait: `90`, or with a unit `90s`, `15m`, `2h`."""
    try:
        value = float(text) if text.replace(".", "", 1).isdigit() else parse_duration(text).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return value
