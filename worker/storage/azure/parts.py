"""Writes in parts, as blocks that are staged and then committed, and what becomes of those that are not."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock, BlobClient, BlobProperties

from worker.storage.azure.blocks import CLOSED, MARK, OPEN, Block, new_block, new_token, ours, parts_of
from worker.storage.azure.errors import code_of, translated
from worker.storage.azure.objects import ENDED, SHA256, WRITER, conditions, is_object, stored_metadata, to_metadata
from worker.storage.azure.upload import REFUSED, Upload, Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import Condition, Match, ObjectStat, Part, PartData, PartLimits, StaleUpload, WriteInfo
from worker.storage.errors import NotFound
from worker.storage.transfer.parts import rewound

MIB = 1024 * 1024
MAX_PART = 4_000 * MIB
MAX_PARTS = 50_000
_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class Place:
    """A blob: the client for it, and the bucket and key that it stands for."""

    blob: BlobClient
    bucket: str
    key: str

    @property
    def what(self) -> str:
        return f"{self.bucket}/{self.key}"


def limits(part_size: int) -> PartLimits:
    """Return what Azure says of blocks; a commit of the same key drops all blocks that it does not use."""
    return PartLimits(min_size=min(part_size, MAX_PART), max_size=MAX_PART, max_parts=MAX_PARTS, exclusive=True)


class Parts:
    """Every write in parts of one store."""

    def __init__(
        self, origin: Origin, scope: Mapping[str, Any], settings: Callable[[WriteInfo], Mapping[str, Any]]
    ) -> None:
        """Remember where errors come from, and the SDK's arguments for blocks and for whole blobs."""
        self._origin = origin
        self._scope = scope
        self._settings = settings
        self._open: set[str] = set()

    def begin(self, place: Place, info: WriteInfo) -> str:
        token = new_token()
        to_metadata(info, token)  # refuses now what the commit would refuse
        self._settings(info)  # so does this
        self._stage(place, new_block(token, MARK, OPEN), OPEN)
        self._remember(token)
        return token

    def put(self, place: Place, token: str, number: int, data: PartData) -> Part:
        """Stage one part.

        Whether the write is open is asked once in a process: a block list may have thousands of rows. Who goes on
        staging while another process ends the write hears of it from `complete`.
        """
        if token not in self._open:
            self._parts(place, token)
            self._remember(token)
        block = new_block(token, number, data)
        self._stage(place, block, data)
        return _part(block)

    def listed(self, place: Place, token: str) -> list[Part]:
        return [_part(block) for _, block in sorted(self._parts(place, token).items())]

    def complete(
        self, place: Place, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition
    ) -> ObjectStat:
        size = sum(part.size for part in parts)
        metadata = to_metadata(info, token)
        upload = Upload(
            place.blob, self._origin, Write(place.bucket, place.key, size, metadata, condition, self._settings(info))
        )
        try:
            ids = self._ids(place, token, parts)
        except NotFound as gone:
            return upload.settle(gone)
        stat = upload.from_blocks(ids)
        self._open.discard(token)
        return stat

    def abort(self, place: Place, token: str) -> None:
        self._open.discard(token)
        self._end(place, token)

    def stale(self, place: Place, row: BlobProperties) -> Iterator[StaleUpload]:
        """Yield the writes that a row of a listing with uncommitted blobs stands for, if it stands for any."""
        name = (str(row.container), str(row.name))
        if stored_metadata(row).get(WRITER) == ENDED:
            yield StaleUpload(f"ended write of {place.what}", row.last_modified, (*name, ""))
        elif not row.size and SHA256 not in stored_metadata(row) and is_object(row):
            if self._is_committed(place):
                return
            staged = self._staged(place)
            open_now = _begun(staged)
            for token, since in open_now.items():
                yield StaleUpload(f"blocks of {place.what}", since, (*name, token))
            if not open_now:
                yield StaleUpload(f"blocks of {place.what}", _modified(row), (*name, ""))

    def discard(self, place: Place, token: str) -> bool:
        """End one write, or, without a token, whatever is staged for a blob that nobody has committed."""
        if token:
            self._open.discard(token)
            return self._end(place, token)
        if self._is_committed(place):
            return self._remove_ended(place)
        staged = self._staged(place)
        return bool(staged) and not _begun(staged) and self._drop(place)

    # Blocks

    def _parts(self, place: Place, token: str) -> dict[int, Block]:
        found = parts_of(ours(self._staged(place)), token)
        if found is None:
            raise NotFound(f"{self._origin.store}: {place.what}: the write in parts is not open any more")
        return found

    def _ids(self, place: Place, token: str, parts: list[Part]) -> list[str]:
        there = self._parts(place, token)
        for part in parts:
            if part.number not in there or _part(there[part.number]) != part:
                raise NotFound(
                    f"{self._origin.store}: {place.what}: part {part.number} is not there as it was confirmed"
                )
        return [there[part.number].id for part in parts]

    def _stage(self, place: Place, block: Block, data: PartData) -> None:
        with translated(self._origin, place.what):
            place.blob.stage_block(block.id, rewound(data), length=block.size, **self._scope)  # type: ignore[arg-type]

    def _staged(self, place: Place) -> list[BlobBlock]:
        """Return what is staged for a blob; nothing where there is no blob at all."""
        with translated(self._origin, place.what):
            try:
                return place.blob.get_block_list("uncommitted")[1]
            except HttpResponseError as error:
                if code_of(error) != "BlobNotFound":
                    raise
                return []

    def _remember(self, token: str) -> None:
        if len(self._open) >= _REMEMBERED:
            self._open.clear()
        self._open.add(token)

    # Ending

    def _end(self, place: Place, token: str) -> bool:
        """End a write; return False if it was not open.

        Blocks cannot be deleted: they go with the next commit of the blob, or after a week without use. Where nobody
        else has staged anything and there is no object, a commit is made for that; elsewhere the write is marked.
        """
        staged = self._staged(place)
        if parts_of(ours(staged), token) is None:
            return False
        others = any(not str(block.id).startswith(f"{token}-") for block in staged)
        if others or not self._drop(place):
            self._stage(place, new_block(token, MARK, CLOSED), CLOSED)
        return True

    def _drop(self, place: Place) -> bool:
        """Drop the blocks of a blob that is not there, by making it for a moment; False if it is there.

        Whoever looks in this moment sees a blob that says that it is no object.
        """
        with translated(self._origin, place.what):
            try:
                reply = place.blob.commit_block_list(
                    [], metadata={WRITER: ENDED}, match_condition=MatchConditions.IfMissing, **self._scope
                )
            except HttpResponseError as error:
                if code_of(error) not in REFUSED:
                    raise
                return False
        return self._remove(place, str(reply["etag"]))

    def _remove_ended(self, place: Place) -> bool:
        """Remove the blob that a dead process has made to drop blocks."""
        with translated(self._origin, place.what):
            try:
                found = place.blob.get_blob_properties()
            except HttpResponseError as error:
                if code_of(error) != "BlobNotFound":
                    raise
                return False
        return stored_metadata(found).get(WRITER) == ENDED and self._remove(place, str(found.etag))

    def _remove(self, place: Place, etag: str) -> bool:
        with translated(self._origin, place.what):
            try:
                place.blob.delete_blob(**conditions(Match(etag.strip('"'))))
            except HttpResponseError as error:
                if code_of(error) not in REFUSED | {"BlobNotFound"}:  # somebody has written over it, or was faster
                    raise
        return True

    def _is_committed(self, place: Place) -> bool:
        with translated(self._origin, place.what):
            try:
                place.blob.get_blob_properties()
            except HttpResponseError as error:
                if code_of(error) != "BlobNotFound":
                    raise
                return False
        return True


def _part(block: Block) -> Part:
    return Part(block.number, block.size, block.tag)


def _modified(row: BlobProperties) -> datetime:
    found: datetime | None = row.last_modified  # Azure does not promise one for what was never committed
    return found or datetime.now(UTC)


def _begun(staged: list[BlobBlock]) -> dict[str, datetime]:
    """Return the open writes, and since when."""
    blocks = ours(staged)
    tokens = dict.fromkeys(block.token for block in blocks)
    return {
        token: min(block.since for block in blocks if block.token == token)
        for token in tokens
        if parts_of(blocks, token) is not None
    }
