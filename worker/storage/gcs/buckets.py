"""The real buckets of Cloud Storage. What the SDK raises here, the caller translates."""

from typing import TYPE_CHECKING

import requests

from worker.storage.cloud.error_mapping import Origin
from worker.storage.errors import BucketNotEmpty
from worker.storage.gcs.client import COMMIT_TIMEOUT, retry
from worker.storage.gcs.errors import SDK_ERRORS, status_of
from worker.storage.gcs.upload import REFUSED

if TYPE_CHECKING:
    from google.cloud.storage import Client


def make(client: "Client", real: str) -> bool:
    """Make a bucket, or return False where the name is taken: by us or by somebody else."""
    try:
        client.create_bucket(real, retry=retry(), timeout=COMMIT_TIMEOUT)
    except SDK_ERRORS as error:
        if status_of(error) not in REFUSED:
            raise
        return False
    return True


def delete(client: "Client", origin: Origin, real: str) -> bool:
    """Delete an empty bucket, or return False where there is none.

    Raises:
        BucketNotEmpty: it holds objects.
    """
    try:
        client.bucket(real).delete(retry=retry(), timeout=COMMIT_TIMEOUT)
    except SDK_ERRORS as error:
        if status_of(error) in REFUSED:
            raise BucketNotEmpty(f"{origin.store}: bucket {real!r} still holds objects") from error
        if status_of(error) != requests.codes.not_found:
            raise
        return False
    return True
