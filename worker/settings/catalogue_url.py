"""The URL of the catalogue, checked as that of the broker is."""

import re
from urllib.parse import parse_qsl, unquote

from zot_artifact_client.errors import InvalidUrl
from zot_artifact_client.host_and_port import split_address

_DATABASE_ADDRESS = re.compile(r"(?:[^:/]*(?::[^@]*)?@)?([^/?]*)")
"""The host and port of a database, as SQLAlchemy finds them: a password may have every character but an @."""
_CATALOGUES = {"sqlite", "postgresql", "postgresql+psycopg"}
_SQLITE_PARAMETERS = {"timeout"}
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_SEVERAL = {"host", "port"}
"""The parameters of a PostgreSQL URL of which there may be several: one for each server."""
_NOT_REPLACED = re.compile(r"/*[~$]|[^?]*\$\{")


def check_catalogue_url(url: str, setting: str) -> None:
    """Raise InvalidUrl, which holds no part of the URL, unless it is that of an SQLite or PostgreSQL database."""
    expected = "sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE is expected"
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise InvalidUrl(f"{setting}: it has no scheme; {expected}")
    if scheme not in _CATALOGUES:
        raise InvalidUrl(f"{setting}: it is another kind of database, or another driver; {expected}")
    if scheme.startswith("sqlite") and rest.partition("?")[0] in {"", "/", "/:memory:"}:
        raise InvalidUrl(f"{setting}: a catalogue in memory is lost with its process; sqlite:///PATH is expected")
    if scheme.startswith("sqlite") and _NOT_REPLACED.match(rest):
        raise InvalidUrl(f"{setting}: `~` and variables are not replaced in it: write the path itself, sqlite:////PATH")
    if rest.partition("?")[0].count("@") > 1:
        raise InvalidUrl(f"{setting}: an @ in the user or password must be written as %40")
    if not url.isprintable() or "\0" in unquote(url) or url != url.strip():
        raise InvalidUrl(f"{setting}: there is white space or a control character in or around the URL")
    _check_catalogue_parameters(scheme, rest.partition("?")[2], setting)
    if scheme.startswith("sqlite"):
        return
    try:
        split_address(_DATABASE_ADDRESS.match(rest)[1], 5432)  # type: ignore[index]  # it fits every text
    except ValueError as error:
        raise InvalidUrl(f"{setting}: {error}") from None


def _check_catalogue_parameters(scheme: str, query: str, setting: str) -> None:
    given = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in given]
    if any(names.count(name) > 1 for name in set(names) - _SEVERAL):
        raise InvalidUrl(f"{setting}: a parameter is there twice")
    if scheme.startswith("sqlite"):
        if unknown := sorted(set(names) - _SQLITE_PARAMETERS):
            raise InvalidUrl(f"{setting}: sqlite:// has no parameter {unknown[0][:32]!r}; there is timeout, in seconds")
        if not all(_SECONDS.fullmatch(value) for _, value in given):
            raise InvalidUrl(f"{setting}: timeout is a number of seconds")
