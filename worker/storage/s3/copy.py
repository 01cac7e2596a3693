"""Copy an object between two buckets of one S3 without its bytes passing through us."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from worker.storage.driver import ObjectStat, Part
from worker.storage.errors import SizeMismatch, StorageError
from worker.storage.s3.providers import GIB
from worker.storage.s3.upload import MAX_PART, MAX_PARTS, Upload, Where
from worker.storage.transfer.parts import plan_parts
from worker.storage.transfer.server_copy import Between

COPY_PART = GIB
"""Bytes that the store is asked to copy at a time: a job can be stopped only between two requests."""


class Copy(Upload):
    """Carries out one write whose parts are copied from an object that the store has.

    In parts also where one request could copy it all: that request's condition is one that many stores ignore, while
    the one of the request that completes parts is the one that every write goes by.
    """

    def run(self, source: Where, version: str, part_size: int, between: Between) -> ObjectStat:
        """Make the object of exactly this version of `source`, in parts of at least `part_size` bytes."""
        upload_id = self.begin()
        try:
            size = self._write.size
            part_size = plan_parts(size, min_part=part_size, max_part=MAX_PART, max_parts=MAX_PARTS)
            for number, span in enumerate(_spans(size, part_size), 1):
                between()
                self._copy_part(upload_id, number, source, version, span)
            return self.complete(upload_id, self._copied(upload_id))
        except BaseException:
            with suppress(StorageError):  # never in place of what led here; a sweep ends what is left over
                self.abort(upload_id)
            raise

    def _copy_part(self, upload_id: str, number: int, source: Where, version: str, span: range) -> None:
        # S3 takes no range of an object of 5 MB or less, so the whole is never asked for as a range.
        whole = len(span) == self._write.size
        part: dict[str, Any] = {} if whole else {"CopySourceRange": f"bytes={span.start}-{span.stop - 1}"}
        with self._errors():
            self._patient.upload_part_copy(
                **self._write.where,
                UploadId=upload_id,
                PartNumber=number,
                CopySource={"Bucket": source["Bucket"], "Key": source["Key"]},
                CopySourceIfMatch=f'"{version}"',  # or the parts could be of different objects
                **part,
            )

    def _copied(self, upload_id: str) -> list[Part]:
        """Return the parts as the store lists them: some answer that they have copied, and have not."""
        parts = self.list_parts(upload_id)
        copied = sum(part.size for part in parts)
        if copied != self._write.size:
            raise SizeMismatch(
                f"{self._origin.store}: {self._write.what}: the store copied {copied} bytes of {self._write.size}"
            )
        return parts


def _spans(size: int, part_size: int) -> Iterator[range]:
    return (range(first, min(first + part_size, size)) for first in range(0, size, part_size))
