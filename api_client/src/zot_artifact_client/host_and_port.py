"""Read the host and port of a URL: what the addresses of brokers, of result backends and of stores share."""

import re

BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
"""A % in a URL that begins no percent-encoding."""


def split_address(address: str, default_port: int) -> tuple[str, int]:
    """Return the host, without the brackets of an IPv6 address and empty where there is none, and the port.

    Raises:
        ValueError: one line without the name of a setting.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::(.*))?", address)
    if found is None:
        msg = "the host is no host; an IPv6 address is written in brackets"
        raise ValueError(msg)
    host, port = found[1].strip("[]"), found[2]
    if not found[1].startswith("[") and not _is_host(host):
        msg = "the host is no host name"
        raise ValueError(msg)
    if not port:
        return host, default_port
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        msg = "the port must be a number from 1 to 65535"
        raise ValueError(msg)
    return host, int(port)


def _is_host(host: str) -> bool:
    """Return whether a resolver takes the name: one that is no host ends it in UnicodeError and not in OSError."""
    if not re.fullmatch(r"[^\s\x00-\x1f\x7f%/\\;,<>\"'`{}|^]*", host):
        return False
    try:
        host.removesuffix(".").encode("idna")
    except UnicodeError:
        return False
    return True
