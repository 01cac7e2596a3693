"""A fingerprint of rows: whether they have changed, without reading each of them."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, ColumnElement, Connection


def fingerprint_of(connection: Connection, time: Column[Any], *where: ColumnElement[bool]) -> list[Any]:
    """Return the number of rows, the sum of their times in seconds since 1970, and the last time.

    Each row has the time at which it was written. If a row is replaced after the clock ran back, neither the number nor
    the last time changes, but the sum does.
    """
    seconds = sa.func.sum(sa.cast(sa.extract("epoch", time), sa.BigInteger))
    last = sa.func.max(time, type_=time.type)
    count, total, at = connection.execute(sa.select(sa.func.count(time), seconds, last).where(*where)).one()
    return [count, int(total or 0), at.isoformat() if at else None]
