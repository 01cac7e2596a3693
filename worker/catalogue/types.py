"""The types of the catalogue's columns, alike in both dialects; migrations use them, so change none and add another."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, String, TypeDecorator
from sqlalchemy.types import TypeEngine

_NAIVE = "a moment without a time zone: {}"
Id = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER counts up by itself in SQLite


class Text(TypeDecorator[str]):
    """Text that is ordered and compared byte by byte; the length is informative, and no database enforces it.

    SQLite does so by itself. PostgreSQL would order by the locale of the database, refuse what is longer,
    and refuse the NUL character, which becomes U+FFFD there: no key of a store has it, but what a message says may.
    """

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return VARCHAR, in PostgreSQL of any length and with the collation of bytes."""
        impl = String(collation="C") if dialect.name == "postgresql" else self.impl_instance
        return dialect.type_descriptor(impl)

    def bind_processor(self, dialect: Dialect) -> Callable[[str | None], str | None] | None:
        """Return the function that removes what the database cannot store, or None."""
        return without_nul if dialect.name == "postgresql" else None


class UtcDateTime(TypeDecorator[datetime]):
    """Moments in UTC. SQLite drops the zone, PostgreSQL returns the session's; both are converted on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse moments without a zone; turn the others to UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError(_NAIVE.format(value))
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return the value in UTC."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        """Return the function that turns a moment into a value of the driver, in SQLite into SQLAlchemy's text."""
        return _as_text if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        """Return the function that turns a value of the driver into a moment."""
        return _from_text if dialect.name == "sqlite" else super().result_processor(dialect, coltype)


def _as_text(value: datetime | None) -> str | None:
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError(_NAIVE.format(value))
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _from_text(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC)


def without_nul(value: str | None) -> str | None:
    """Return the text as PostgreSQL can store it."""
    return value.replace("\0", "\ufffd") if value else value
