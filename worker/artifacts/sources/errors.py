"""Why a source cannot be uploaded, and how messages name it without secrets."""

from urllib3.connection import port_by_scheme
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from worker.storage.errors import PermanentError, StorageError
from zot_artifact_client.text_escaping import without_secrets


class SourceRefused(PermanentError):
    """The source is not allowed by the settings, or cannot be trusted."""


def mark_source_error(error: StorageError) -> StorageError:
    """Return an error of a source, marked so that it counts against no store while its bytes are written to one."""
    error.store = ""
    return error


def shown(name: str) -> str:
    """Return a source as messages show it: of a URL neither user, password, query nor fragment."""
    if "://" not in name:
        return name
    return without_secrets(name.split("?", 1)[0].split("#", 1)[0])


def origin_of(url: str) -> str:
    """Return `scheme://host:port` of a URL, without the port where it is the default one.

    The URL is read by the parser of the library that connects: where two parsers disagree, such as about a backslash,
    the host that is checked would not be the host that is asked.

    Raises:
        SourceRefused: it is no URL of a host.
    """
    try:
        parts = parse_url(url)
    except LocationParseError:
        parts = Url()
    if parts.scheme not in {"http", "https"} or not parts.host or not url.isprintable() or "\\" in url:
        raise SourceRefused(f"source {shown(url)}: this is no URL of a host, such as https://builds.example/app.tgz")
    port = "" if parts.port in {None, port_by_scheme[parts.scheme]} else f":{parts.port}"
    return f"{parts.scheme}://{parts.host}{port}".lower()
