"""Headers, tags and metadata of an artifact: what a store keeps of them beside the bytes of its copy."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from worker.catalogue import Artifact
from worker.limits.limited_store import LimitedStore
from worker.storage.cloud.metadata import is_header
from worker.storage.cloud.object_tags import decode_tags, fit
from worker.storage.driver import ObjectProperties
from worker.storage.errors import StorageError
from worker.storage.store import BesideBytes

logger = logging.getLogger(__name__)


def kept_beside(artifact: Artifact, store: LimitedStore) -> BesideBytes:
    """Return the metadata, headers and tags that the store can keep beside the bytes of its copy."""
    metadata = _metadata(artifact, store)
    if not store.capabilities.user_metadata:
        return {"metadata": metadata}
    valid = {name: value for name, value in artifact.properties.items() if name == "tags" or is_header(value)}
    properties = ObjectProperties(**valid)
    if not fit(properties.tags, store.capabilities.tags):
        properties = replace(properties, tags=None)
    return {"metadata": metadata, "properties": properties}


def _metadata(artifact: Artifact, store: LimitedStore) -> Mapping[str, str]:
    """Return the metadata that the store can keep: the artifact may have more, from the store where it was adopted."""
    rules = store.capabilities.metadata
    return artifact.metadata if rules is None else rules.kept(artifact.metadata)


def not_kept(artifact: Artifact, store: LimitedStore) -> list[str]:
    """Return the names of the headers, tags and metadata that the store does not keep beside its copy."""
    kept = store.capabilities
    lost = sorted(
        name
        for name, value in artifact.properties.items()
        if not kept.user_metadata or (name != "tags" and not is_header(value))
    )
    if kept.user_metadata and not _has_tags(artifact, store):
        lost.append("tags")
    if artifact.metadata and not kept.user_metadata:
        lost.append("metadata")
    elif _metadata(artifact, store) != artifact.metadata:
        lost.append("some metadata")
    return lost


def _has_tags(artifact: Artifact, store: LimitedStore) -> bool:
    """Ask the store whether the copy has the tags of the artifact: some stores ignore tags without an error."""
    wanted = decode_tags(artifact.properties.get("tags"))
    if not wanted:
        return True
    try:
        return store.tags(artifact.bucket, artifact.key) == wanted
    except StorageError as error:
        logger.warning("%s: the tags of %s cannot be read: %s", store.name, artifact.path, error)
        return False
