"""Read the small objects of a store in Azure Blob Storage with plain requests, where its configuration allows it."""

from collections.abc import Callable

from azure.storage.blob import BlobServiceClient

from worker.storage.azure.errors import SDK_ERRORS
from worker.storage.azure.object_stat import version_of
from worker.storage.azure.requests_without_sdk import locator
from worker.storage.cloud.metadata import SHA256
from worker.storage.cloud.plain_requests import PlainAnswer
from worker.storage.cloud.small_reads import PlainReads, whole_object
from worker.storage.config import AzureConfig
from worker.storage.driver import WholeObject

_DIGEST = f"x-ms-meta-{SHA256}"


def plain_reads(config: AzureConfig, service: Callable[[], BlobServiceClient]) -> PlainReads:
    """Return the plain reads of a store."""
    return PlainReads(locator(config, service), _read, SDK_ERRORS)


def _read(answer: PlainAnswer) -> WholeObject | None:
    # Folders, unfinished copies and blobs that drop blocks are empty blobs, and no objects.
    return whole_object(answer, _DIGEST, version_of(answer.headers.get("etag"))) if answer.body else None
