"""Read the address of an HTTP server, once for stores, sources and gateways: each library has another grammar."""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import unquote

from zot_artifact_client.host_and_port import BAD_ESCAPE, split_address

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})+)*/?")
_MAX_HOST = 253


class InvalidEndpoint(ValueError):
    """The address of a server cannot be used."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a server. `host` is in lower case, an IPv6 address without brackets; `path` ends in no slash."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def text(self) -> str:
        """Return the URL as every library reads it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def place(self) -> str:
        """Return what is the same for two spellings of one address; also for http and https on one port."""
        return f"{self.host.removesuffix('.')}:{self.port}{self.path}"


def parse_endpoint(url: str, *, example: str, credentials: str) -> Endpoint:
    """Return the address that a URL says.

    Args:
        url: http:// or https://, a host, and if need be a port and a path.
        example: a URL that is right, for the error.
        credentials: the settings that hold what must not be in the URL, for the error.

    Raises:
        InvalidEndpoint: one line that says what is wrong, and holds no part of what may be a secret.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidEndpoint("the URL has white space, a control character or a letter that is not ASCII")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        raise InvalidEndpoint(f"the URL begins with neither https:// nor http://; expected is one like {example}")
    if "@" in rest:
        raise InvalidEndpoint(f"no user and no password can be part of the URL: {credentials}")
    if "?" in rest or "#" in rest:
        raise InvalidEndpoint(f"the URL ends before the ? or #: {credentials}")
    address, slash, path = rest.partition("/")
    if BAD_ESCAPE.search(path):
        raise InvalidEndpoint("a % that is no percent-encoding must be written as %25")
    path = slash + path
    if not _PATH.fullmatch(path) or not {".", ".."}.isdisjoint(unquote(path).split("/")):
        raise InvalidEndpoint(
            "the path of the URL has an empty segment, '.' or '..', or a character that must be encoded"
        )
    if address.endswith(":"):
        raise InvalidEndpoint("the port is missing after the colon")
    try:
        host, port = split_address(address, _DEFAULT_PORTS[scheme])
    except ValueError as error:
        raise InvalidEndpoint(str(error)) from None
    return Endpoint(scheme, _host(host, bracketed=address.startswith("["), example=example), port, path.rstrip("/"))


def _host(host: str, *, bracketed: bool, example: str) -> str:
    host = host.lower()
    if bracketed:
        try:
            return str(IPv6Address(host if "%" not in host else ""))
        except AddressValueError:
            raise InvalidEndpoint("there is no IPv6 address in the brackets, or one with a zone") from None
    labels = host.removesuffix(".").split(".")
    if len(host) > _MAX_HOST or not all(map(_LABEL.fullmatch, labels)):
        raise InvalidEndpoint(f"the host is no host name; expected is a URL like {example}")
    if labels[-1].isdigit():
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise InvalidEndpoint(
                "the host is neither a name nor an IPv4 address of four numbers from 0 to 255"
            ) from None
    return host
