"""Why a source cannot be uploaded, and how messages name it without secrets."""

from urllib.parse import urlsplit

from worker.storage.errors import PermanentError, StorageError
from zot_artifact_client.text import without_secrets


class SourceRefused(PermanentError):
    """The source is not allowed by the settings, or cannot be trusted."""


def about_no_store(error: StorageError) -> StorageError:
    """Return an error of a source, marked so that it counts against no store while its bytes are written to one."""
    error.store = ""
    return error


def shown(name: str) -> str:
    """Return a source as messages show it: of a URL neither user, password, query nor fragment."""
    if "://" not in name:
        return name
    return without_secrets(name.split("?", 1)[0].split("#", 1)[0])


def origin_of(url: str) -> str:
    """Return `scheme://host:port` of a URL, without the user and password that it may have."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()
