"""Read the host and port of a URL: what the addresses of brokers, of result backends and of stores share."""

import re
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import unquote

BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
"""A % in a URL that begins no percent-encoding."""


def split_address(address: str, default_port: int) -> tuple[str, int]:
    """Return the host, without the brackets of an IPv6 address and empty where there is none, and the port.

    The zone of an IPv6 address, `[fe80::1%25eth0]`, is part of the host, as `fe80::1%eth0`.

    Raises:
        ValueError: one line without the name of a setting.
    """
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::(.*))?", address)
    if found is None:
        msg = "the host is no host; an IPv6 address is written in brackets"
        raise ValueError(msg)
    host, port = found[1], found[2]
    if host.startswith("["):
        host = _ipv6(host[1:-1])
    elif not _is_host(host):
        msg = "the host is no host name"
        raise ValueError(msg)
    if not port:
        return host, default_port
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        msg = "the port must be a number from 1 to 65535"
        raise ValueError(msg)
    return host, int(port)


def _ipv6(text: str) -> str:
    address, percent, zone = text.partition("%")
    try:
        IPv6Address(address)
        if not percent or re.fullmatch(r"25[A-Za-z0-9._~-]+", zone):
            return unquote(text)
    except AddressValueError:
        pass
    msg = "there is no IPv6 address in the brackets; a zone follows it like %25eth0"
    raise ValueError(msg)


def _is_host(host: str) -> bool:
    """Return whether a resolver takes the name: one that is no host ends it in UnicodeError and not in OSError."""
    if not re.fullmatch(r"[^\s\x00-\x1f\x7f%/\\;,<>\"'`{}|^]*", host):
        return False
    try:
        host.removesuffix(".").encode("idna")
    except UnicodeError:
        return False
    return True
