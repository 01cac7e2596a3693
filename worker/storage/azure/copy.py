"""Copy a blob inside its account, and wait until the copy is complete."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from azure.core import MatchConditions
from azure.storage.blob import BlobClient, BlobProperties

from worker.storage.azure.client import COMMIT_TIMEOUT
from worker.storage.azure.errors import translated
from worker.storage.azure.object_stat import METADATA, conditions, version_of, writer_of
from worker.storage.azure.upload import with_tags
from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import Match
from worker.storage.errors import Conflict, StorageError, Timeout, Unavailable
from worker.storage.transfer.server_copy import Between

COPY_WITHIN = 3600.0
"""Seconds that a copy may take before it is aborted; inside one account nearly all end at once."""
COPY_POLL = 1.0


class Copy:
    """One copy that the store makes. Its blob exists at once, but counts as no object before the copy has succeeded."""

    def __init__(self, blob: BlobClient, origin: Origin, what: str, between: Between = lambda: None) -> None:
        """Prepare a copy to `blob`; `between` is called during the wait for it."""
        self._blob = blob
        self._between = between
        self._origin = origin
        self._what = what

    def make(
        self, source: BlobClient, etag: str, metadata: Mapping[str, str], settings: Mapping[str, Any]
    ) -> BlobProperties:
        """Copy the version of `source` that has this ETag, with this metadata, and return the properties of the copy.

        The copy is aborted whatever ends the wait.

        Raises:
            Timeout: it took too long; it was aborted, and its blob removed.
            Conflict: another write was under way.
            Unavailable: the store failed.
        """
        try:
            with translated(self._origin, self._what):
                with_tags(
                    lambda options: self._blob.start_copy_from_url(
                        source.url,
                        metadata=dict(metadata),
                        source_etag=etag,  # otherwise the digest would belong to other bytes
                        source_match_condition=MatchConditions.IfNotModified,
                        read_timeout=COMMIT_TIMEOUT,
                        **options,
                    ),
                    settings,
                    f"{self._origin.store}: {self._what}",
                )
        except StorageError:
            # The SDK repeats a request whose answer got lost, and the store refuses the second one because of the
            # first.
            if not self._is_ours(metadata[METADATA.writer]):
                raise
        return self._ended(metadata[METADATA.writer])

    def _is_ours(self, token: str) -> bool:
        with suppress(StorageError):
            return self._get_blob(token) is not None
        return False

    def _ended(self, token: str) -> BlobProperties:
        where = f"{self._origin.store}: {self._what}"
        deadline = time.monotonic() + COPY_WITHIN
        while (found := self._get_blob(token)).copy.status == "pending":
            try:
                self._between()
                if time.monotonic() > deadline:
                    raise Timeout(f"{where}: the store did not end the copy within {COPY_WITHIN:.0f} s")
                time.sleep(COPY_POLL)  # Azure sends no event at the end of a copy
            except BaseException:
                self._abort_copy(found, token)
                raise
        if found.copy.status != "success":
            self._remove(found)
            raise Unavailable(f"{where}: the store says that the copy is {found.copy.status}")
        return found

    def _get_blob(self, token: str) -> BlobProperties:
        with translated(self._origin, self._what):
            found = self._blob.get_blob_properties()
        if writer_of(found) != token:
            raise Conflict(f"{self._origin.store}: {self._what}: another write was under way at the same time")
        return found

    def _abort_copy(self, found: BlobProperties, token: str) -> None:
        with suppress(StorageError), translated(self._origin, self._what):
            self._blob.abort_copy(str(found.copy.id))
            self._remove(self._get_blob(token))

    def _remove(self, found: BlobProperties) -> None:
        """Delete the empty blob of a copy that failed: it counts as no object here, but other programs see one."""
        with suppress(StorageError), translated(self._origin, self._what):
            self._blob.delete_blob(**conditions(Match(version_of(found.etag))))
