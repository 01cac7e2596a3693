"""Copy an object inside Cloud Storage without its bytes passing through us."""

from typing import Any

from worker.storage.gcs.client import COMMIT_TIMEOUT, Connection, retry
from worker.storage.gcs.objects import CACHE_CONTROL, CONTENT_TYPE
from worker.storage.gcs.upload import Write
from worker.storage.transfer.server_copy import Between


def rewrite(connection: Connection, original: Any, write: Write, pin: int, between: Between = lambda: None) -> Any:
    """Make an object of exactly the generation that `original` names, over generation `pin`, and return its blob.

    Nothing is visible before the last of the requests, of which a copy to another place or class takes several.
    """
    blob = connection.blob(write.place)
    blob.metadata = dict(write.metadata)
    blob.content_type = CONTENT_TYPE
    blob.cache_control = CACHE_CONTROL
    if write.storage_class:
        blob.storage_class = write.storage_class
    pins = {"if_generation_match": pin, "if_source_generation_match": original.generation}
    token = None
    while True:  # each request goes on where the last one ended
        between()
        token, _, _ = blob.rewrite(original, token=token, retry=retry(), timeout=COMMIT_TIMEOUT, **pins)
        if token is None:
            return blob
