"""Write a blob, from one request or from blocks."""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock, BlobClient

from worker.storage.azure.client import COMMIT_TIMEOUT
from worker.storage.azure.errors import SDK_ERRORS, code_of, translate, translated
from worker.storage.azure.object_stat import conditions, is_object, to_found, written_stat
from worker.storage.cloud.conditional_write import Found, Write, as_found, settle
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.small_writes import SentWrite
from worker.storage.driver import ObjectStat
from worker.storage.errors import NotFound, StorageError, TransientError, Unavailable, UnexpectedAnswer

REFUSED = {"ConditionNotMet", "TargetConditionNotMet", "BlobAlreadyExists", "409", "412"}
_GONE = {"InvalidBlockList"}
_NO_TAGS = {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT}
"""The statuses with which Azure may refuse a write for its tags."""

logger = logging.getLogger(__name__)


def with_tags(send: Callable[[Any], Any], options: Mapping[str, Any], what: str) -> Any:
    """Send a request with its options, and without the tags where the store does not take them.

    The credentials may lack the right to write tags, and accounts with a hierarchical namespace have none.
    """
    try:
        return send(options)
    except HttpResponseError as error:
        code = code_of(error)
        if "tags" not in options or code in REFUSED | _GONE or error.status_code not in _NO_TAGS:
            raise
        logger.warning("%s: written without its tags: %s", what, code)
        return send({name: value for name, value in options.items() if name != "tags"})


class Upload:
    """Carries out one write; `blob` makes the SDK's client, which takes longer than a small write."""

    def __init__(self, blob: Callable[[], BlobClient], origin: Origin, write: Write) -> None:
        self._blob = blob
        self._origin = origin
        self._write = write

    def whole(self, data: bytes, md5: bytes, small: SentWrite) -> ObjectStat:
        """Make an object by one request: `small`, or that of the SDK if it needs that."""
        return self._commit(
            lambda options: (
                small.answer()
                or self._blob().upload_blob(
                    data,
                    length=len(data),
                    overwrite=True,  # otherwise the SDK adds a condition
                    transactional_content_md5=bytearray(md5),
                    metadata=dict(self._write.metadata),
                    **conditions(self._write.condition),
                    **options,
                )
            ),
            md5=md5.hex(),  # that of a blob made of blocks is not computed
        )

    def from_blocks(self, ids: list[str]) -> ObjectStat:
        """Make an object of staged blocks; its stat has the size that the store says, which the commit does not.

        Raises:
            Conflict: there is no object.
        """
        made = self._commit(
            lambda options: self._blob().commit_block_list(
                [BlobBlock(found) for found in ids],
                metadata=dict(self._write.metadata),
                read_timeout=COMMIT_TIMEOUT,
                **conditions(self._write.condition),
                **options,
            )
        )
        return as_found(made, self._write, self._origin, self._found)

    def settle(self, failure: StorageError, *, refused: bool = False) -> ObjectStat:
        """Return the stat of the object if this write made it after all; otherwise raise the translated failure."""
        outcome = settle(self._write, self._origin, failure, self._found, refused=refused)
        if isinstance(outcome, StorageError):
            raise outcome from None
        return outcome

    def _commit(self, send: Callable[[Any], Any], *, md5: str | None = None) -> ObjectStat:
        write = self._write
        failure: StorageError
        try:
            reply = with_tags(send, write.options, f"{self._origin.store}: {write.what}")
            return written_stat(self._origin.store, write, reply, md5=md5)
        except UnexpectedAnswer as error:  # the write may have succeeded
            failure, code = Unavailable(error.message), ""
        except SDK_ERRORS as error:
            failure, code = translate(error, self._origin, write.what), code_of(error)
        if code in REFUSED | _GONE or isinstance(failure, TransientError):
            return self.settle(failure, refused=code in REFUSED)
        raise failure

    def _found(self) -> Found | None:
        try:
            with translated(self._origin, self._write.what):
                properties = self._blob().get_blob_properties()
        except NotFound:
            return None
        if not is_object(properties):
            return None
        return to_found(self._origin.store, self._write.bucket, self._write.key, properties)
