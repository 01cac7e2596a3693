"""Multipart uploads: stage blocks, commit them, and clean up those that are not committed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock, BlobClient, BlobProperties

from worker.storage.azure.block_names import CLOSED, MARK, OPEN, Block, new_block, new_token, ours, parts_of
from worker.storage.azure.errors import code_of, translated
from worker.storage.azure.object_stat import DROPPING, METADATA, conditions, version_of, writer_of
from worker.storage.azure.upload import REFUSED, Upload
from worker.storage.cloud.conditional_write import Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import Condition, Match, ObjectStat, Part, PartData, PartLimits, StaleUpload, WriteInfo
from worker.storage.errors import NotFound, PermanentError, UploadEnded
from worker.storage.transfer.split_into_parts import md5_of, rewound

MIB = 1024 * 1024
MAX_PART = 4_000 * MIB
MAX_PARTS = 50_000
_REMEMBERED = 1_000
MakeWrite = Callable[[str, str, WriteInfo, str, Condition], Write]


@dataclass(frozen=True, slots=True)
class Target:
    """A blob: the client for it, and its bucket and key."""

    blob: BlobClient
    bucket: str
    key: str

    @property
    def what(self) -> str:
        return f"{self.bucket}/{self.key}"


def limits(part_size: int) -> PartLimits:
    """Return Azure's limits for blocks; a commit of the same key drops all blocks that it does not use."""
    smallest = min(part_size, MAX_PART)
    return PartLimits(smallest, max_size=MAX_PART, max_parts=MAX_PARTS, exclusive=True, compared_with="md5")


class Parts:
    """Every multipart upload of one store."""

    def __init__(self, origin: Origin, scope: Mapping[str, Any], write: MakeWrite) -> None:
        """Prepare the uploads of one store with the SDK's arguments for blocks; `write` returns the write of a blob."""
        self._origin = origin
        self._scope = scope
        self._write = write
        self._open: set[str] = set()

    def begin(self, target: Target, info: WriteInfo) -> str:
        token = new_token()
        self._write(target.bucket, target.key, info, token, None)  # fails now instead of at the commit
        self._stage(target, new_block(token, MARK, OPEN), OPEN)
        self._remember(token)
        return token

    def put(
        self, target: Target, token: str, number: int, data: PartData, *, sha256: str | None, md5: bytes | None
    ) -> Part:
        """Stage one part.

        Whether the upload is open is asked once in a process: a block list may have thousands of rows. If another
        process ends the upload meanwhile, `complete` raises the error.
        """
        if token not in self._open:
            self._parts(target, token)
            self._remember(token)
        block = new_block(token, number, data, sha256)
        self._stage(target, block, data, md5)
        return _part(block)

    def listed(self, target: Target, token: str) -> list[Part]:
        return [_part(block) for _, block in sorted(self._parts(target, token).items())]

    def complete(
        self, target: Target, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition
    ) -> ObjectStat:
        write = self._write(target.bucket, target.key, info, token, condition)
        upload = Upload(lambda: target.blob, self._origin, write)
        try:
            ids = self._ids(target, token, parts)
        except NotFound as gone:
            return upload.settle(gone)
        stat = upload.from_blocks(ids)
        self._open.discard(token)
        return stat

    def blocks_of(self, target: Target, replaced: Sequence[range]) -> dict[int, str]:
        """Return the ids of the blocks of a blob by their offsets.

        Raises:
            PermanentError: the blob has no blocks, or these ranges do not consist of whole blocks.
        """
        with translated(self._origin, target.what):
            blocks = target.blob.get_block_list("committed")[0]
        starts = list(accumulate((int(block.size) for block in blocks), initial=0))
        bounds = {bound for span in replaced for bound in (span.start, span.stop)}
        if not bounds <= set(starts):
            raise PermanentError(f"{self._origin.store}: {target.what}: its blocks are other ranges than its chunks")
        return {at: str(block.id) for at, block in zip(starts, blocks, strict=False)}

    def patch(
        self,
        target: Target,
        token: str,
        version: str,
        info: WriteInfo,
        replaced: Sequence[range],
        *,
        blocks: Mapping[int, str],
        read: Callable[[range], PartData],
        between: Callable[[], object],
    ) -> ObjectStat:
        """Replace ranges of exactly this version of a blob, which has these `blocks`; all other blocks stay."""
        ids = dict(blocks)
        for number, span in enumerate(replaced, 1):
            between()
            data = read(span)
            block = new_block(token, number, data)
            self._stage(target, block, data)
            ids = {at: id_ for at, id_ in ids.items() if at not in span} | {span.start: block.id}
        write = self._write(target.bucket, target.key, info, token, Match(version))
        return Upload(lambda: target.blob, self._origin, write).from_blocks([ids[at] for at in sorted(ids)])

    def abort(self, target: Target, token: str) -> None:
        self._open.discard(token)
        self._end(target, token)

    def stale(self, target: Target, row: BlobProperties) -> Iterator[StaleUpload]:
        """Yield the uploads of a row of a listing with uncommitted blobs, if it has any.

        The blocks of an ended upload stay until Azure drops them; such an upload is not stale.
        """
        name = (str(row.container), str(row.name))
        if writer_of(row) == DROPPING:
            yield StaleUpload(f"ended upload of {target.what}", _modified(row), (*name, ""))
        elif not (row.size or row.metadata):
            if self._is_committed(target):
                return
            staged = self._staged(target)
            for token, since in _begun(staged).items():
                yield StaleUpload(f"blocks of {target.what}", since, (*name, token))
            if len(ours(staged)) < len(staged):
                what = f"blocks of another program's upload of {target.what}"
                yield StaleUpload(what, _modified(row), (*name, ""), ours=False)

    def remove_stale(self, target: Target, token: str) -> bool:
        """End one upload, or, without a token, delete the blob that a dead process made to drop blocks.

        Blocks of other programs stay: Azure could only drop them by a commit to their key. It drops them itself after
        a week without use.
        """
        if token:
            self._open.discard(token)
            return self._end(target, token)
        return self._remove_dropping(target)

    # Blocks

    def _parts(self, target: Target, token: str) -> dict[int, Block]:
        found = parts_of(ours(self._staged(target)), token)
        if found is None:
            raise UploadEnded(f"{self._origin.store}: {target.what}: the multipart upload is not open any more")
        return found

    def _ids(self, target: Target, token: str, parts: list[Part]) -> list[str]:
        there = self._parts(target, token)
        for part in parts:
            if part.number not in there or _part(there[part.number]) != part:
                raise UploadEnded(
                    f"{self._origin.store}: {target.what}: part {part.number} is not there as it was confirmed"
                )
        return [there[part.number].id for part in parts]

    def _stage(self, target: Target, block: Block, data: PartData, md5: bytes | None = None) -> None:
        md5 = md5 or md5_of(data)
        with translated(self._origin, target.what):
            target.blob.stage_block(
                block.id,
                rewound(data),  # type: ignore[arg-type]
                length=block.size,
                transactional_content_md5=bytearray(md5),
                **self._scope,
            )

    def _staged(self, target: Target) -> list[BlobBlock]:
        """Return the blocks that are staged for a blob; none where there is no blob at all."""
        with translated(self._origin, target.what):
            try:
                return target.blob.get_block_list("uncommitted")[1]
            except HttpResponseError as error:
                if code_of(error) != "BlobNotFound":
                    raise
                return []

    def _remember(self, token: str) -> None:
        if len(self._open) >= _REMEMBERED:
            self._open.clear()
        self._open.add(token)

    # Ending

    def _end(self, target: Target, token: str) -> bool:
        """End an upload; return False if it was not open.

        Blocks cannot be deleted: Azure drops them at the next commit of the blob, or after a week without use. If all
        staged blocks belong to this upload and there is no object, an empty blob is committed and deleted; otherwise
        the upload is marked as ended.
        """
        staged = self._staged(target)
        if parts_of(ours(staged), token) is None:
            return False
        others = any(not str(block.id).startswith(f"{token}-") for block in staged)
        if others or not self._drop(target):
            self._stage(target, new_block(token, MARK, CLOSED), CLOSED)
        return True

    def _drop(self, target: Target) -> bool:
        """Drop the blocks of a key without a blob, by making an empty blob and deleting it; False if there is a blob.

        The empty blob is marked as no object.
        """
        with translated(self._origin, target.what):
            try:
                reply = target.blob.commit_block_list(
                    [], metadata={METADATA.writer: DROPPING}, match_condition=MatchConditions.IfMissing, **self._scope
                )
            except HttpResponseError as error:
                if code_of(error) not in REFUSED:
                    raise
                return self._remove_dropping(target)  # that of the first request, if its answer was lost
        return self._remove(target, version_of(reply["etag"]))

    def _remove_dropping(self, target: Target) -> bool:
        """Remove the blob that a dead process has made to drop blocks."""
        with translated(self._origin, target.what):
            try:
                found = target.blob.get_blob_properties()
            except HttpResponseError as error:
                if code_of(error) != "BlobNotFound":
                    raise
                return False
        return writer_of(found) == DROPPING and self._remove(target, version_of(found.etag))

    def _remove(self, target: Target, version: str) -> bool:
        with translated(self._origin, target.what):
            try:
                target.blob.delete_blob(**conditions(Match(version)))
            except HttpResponseError as error:
                if code_of(error) not in REFUSED | {"BlobNotFound"}:  # another writer has replaced or deleted it
                    raise
        return True

    def _is_committed(self, target: Target) -> bool:
        with translated(self._origin, target.what):
            try:
                target.blob.get_blob_properties()
            except HttpResponseError as error:
                if code_of(error) != "BlobNotFound":
                    raise
                return False
        return True


def _part(block: Block) -> Part:
    return Part(block.number, block.size, block.tag)


def _modified(row: BlobProperties) -> datetime:
    found: datetime | None = row.last_modified  # Azure promises none for blobs that were never committed
    return found or datetime.now(UTC)


def _begun(staged: list[BlobBlock]) -> dict[str, datetime]:
    """Return the worker's open uploads, and since when."""
    blocks = ours(staged)
    tokens = dict.fromkeys(block.token for block in blocks)
    return {
        token: min(block.since for block in blocks if block.token == token)
        for token in tokens
        if parts_of(blocks, token) is not None
    }
