"""The record in each store of which copy of the catalogue writes to it, because two copies of one must not both do so.

A restored backup, a copied data directory and a snapshot of a machine have the id of the catalogue that they were made
from. Each copy writes a new random token into the record every few minutes and remembers its own. A copy that finds a
token which it has not written is not alone.
"""

import hashlib
import io
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from worker.storage.driver import Condition, Driver, WriteInfo
from worker.storage.errors import NotFound
from worker.storage.integrity.verifying_reader import VerifyingReader, read_up_to
from worker.storage.keys import MARKER_BUCKET

_LARGEST = 4096
_PLACE = 200
"""Characters of the name of a place, which another program may have written."""
_NO_RECORD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""The errors of reading a record from what another program has written."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of one copy of the catalogue: its newest token, where the copy is, and when it wrote that."""

    token: str
    place: str
    at: datetime


@dataclass(frozen=True, slots=True)
class WriterRecord:
    """The copy that writes to a store.

    `objection`: of another copy, which runs as well and does not write to the store. `refused`: the tokens of copies
    against which an operator has decided; these do not object.
    """

    writer: Sign
    objection: Sign | None = None
    refused: tuple[str, ...] = ()


def read_writer(driver: Driver, catalogue: str) -> WriterRecord | None:
    """Return which copy of this catalogue writes to a store; None if there is no record, or it cannot be understood.

    Raises:
        AccessDenied: the store refuses the record; without the right to list, S3 says so too where there is none.
        StorageError: the store cannot be reached.
    """
    try:
        with driver.open(MARKER_BUCKET, _key(catalogue)) as reader:
            body = read_up_to(reader, _LARGEST)
    except NotFound:
        return None
    with suppress(*_NO_RECORD):
        found = json.loads(body)
        objection = found["objection"]
        refused = tuple(str(token) for token in found["refused"])
        return WriterRecord(_sign(found["writer"]), _sign(objection) if objection else None, refused)
    return None


def write_writer(driver: Driver, catalogue: str, record: WriterRecord, *, condition: Condition = None) -> None:
    """Replace the record of which copy of this catalogue writes to a store, or only create it.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    content = json.dumps(asdict(record), default=datetime.isoformat).encode()
    info = WriteInfo(len(content), hashlib.sha256(content).hexdigest())
    body = VerifyingReader(io.BytesIO(content))
    driver.put(MARKER_BUCKET, _key(catalogue), body, info, condition=condition)


def _key(catalogue: str) -> str:
    return f"writer-{catalogue}"


def _sign(found: dict[str, Any]) -> Sign:
    at = datetime.fromisoformat(found["at"])
    if at.tzinfo is None:
        raise ValueError("the time has no zone")
    place = "".join(char if char.isprintable() else "?" for char in str(found["place"])[:_PLACE])
    return Sign(str(found["token"]), place, at)
