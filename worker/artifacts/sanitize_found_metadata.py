"""Sanitize the metadata and tags of an object that another program may have written, before they are recorded."""

import logging
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from worker.limits.limited_store import AnyStore
from worker.storage import ObjectStat
from worker.storage.cloud.object_tags import encode_tags
from worker.storage.errors import StorageError
from zot_artifact_client.contract import Metadata
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


def valid_metadata(found: Mapping[str, str]) -> Mapping[str, str]:
    """Return the metadata that an artifact may have; another program may have written anything."""
    valid: dict[str, str] = {}
    for name, value in found.items():
        try:
            valid |= _METADATA.validate_python({name: value})
        except ValidationError:
            continue
    kept = dict(list(valid.items())[:16])
    if lost := sorted(set(found) - set(kept)):
        logger.warning("metadata that no artifact can have is not recorded: %s", bounded(", ".join(lost)))
    return kept


def encoded_tags(store: AnyStore, stat: ObjectStat) -> str | None:
    """Return the tags of an object as the catalogue keeps them; None where the credentials may not read them."""
    try:
        return encode_tags(store.tags(stat.bucket, stat.key))
    except StorageError as error:
        logger.warning("%s: the tags of %s/%s cannot be read: %s", store.name, stat.bucket, stat.key, error)
        return None
