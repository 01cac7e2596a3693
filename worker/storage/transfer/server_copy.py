"""Copy an object between two stores of one provider, server-side."""

from collections.abc import Callable

from worker.storage.driver import Driver, FullDriver, Match, ObjectStat, WriteInfo
from worker.storage.errors import AlreadyExists, NotFound, PreconditionFailed, SizeMismatch, StorageError
from worker.storage.transfer.multipart import Checkpoint, part_size_of
from worker.storage.transfer.upload_intents import announced

Between = Callable[[], object]
"""Called between the requests of a copy. What it raises ends the copy; nothing becomes visible."""
OnUpload = Callable[[str], object]
"""Called with the token of the multipart upload that makes a copy."""


def copy_server_side(
    source: FullDriver,
    target: FullDriver,
    bucket: str,
    key: str,
    info: WriteInfo,
    *,
    between: Between,
    checkpoint: Checkpoint,
) -> ObjectStat | None:
    """Make `target` copy an object of `source` server-side to an empty key; return None where that is impossible.

    An empty object is not copied server-side, because a copy is made of ranges, and an empty object has none.
    `checkpoint` records the multipart upload of the copy, so that cleanup knows it after this process was killed.

    Raises:
        AlreadyExists: an object is at the destination.
        PreconditionFailed: the original was overwritten or deleted meanwhile.
        SizeMismatch: the original or the copy has another size than announced; the copy was removed.
        StorageError: its `store` is set if it is about the source.
    """
    realm = target.capabilities.realm
    if realm is None or realm != source.capabilities.realm or not info.size:
        return None
    try:
        found = source.stat(bucket, key)
        if found.size != info.size:
            raise SizeMismatch(f"{source.name}: {bucket}/{key} has {found.size} bytes, not the recorded {info.size}")
    except StorageError as error:
        error.store = source.name
        raise

    def begun(token: str) -> None:
        if earlier := checkpoint.resume():  # of a process that was killed
            target.abort_upload(bucket, key, earlier.token)
        checkpoint.begun(token, part_size_of(target, found.size))

    try:
        original = source.location(bucket, key)
        with announced(target, checkpoint.begins):
            made = target.copy_from(original, found, info, between=between, begun=begun)
        checkpoint.ended()
    except AlreadyExists:
        raise
    except StorageError as error:
        if change := _change(source, found):
            change.store = source.name
            raise change from error
        raise
    if made.size != info.size:
        target.delete(bucket, key, condition=Match(made.version))
        raise SizeMismatch(f"{target.name}: {bucket}/{key}: the store made a copy of {made.size} bytes of {info.size}")
    return made


def _change(source: Driver, found: ObjectStat) -> StorageError | None:
    """Return the error if the original was replaced or deleted since it was found; None if not, or if unknown."""
    try:
        now = source.stat(found.bucket, found.key).version
    except NotFound:
        now = None
    except StorageError:
        return None
    if now == found.version:
        return None
    there = f"version {now}" if now else "nothing"
    return PreconditionFailed(
        f"{source.name}: {found.bucket}/{found.key} was to be copied in version {found.version}, {there} is there"
    )
