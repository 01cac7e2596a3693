"""Read which proxy the environment names for an address, and say why one cannot be used."""

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass

from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import ProxyError

from zot_artifact_client.host_and_port import split_address
from zot_artifact_client.tls_faults import causes

_PORTS = {"http": 80, "https": 443}
_TUNNEL = re.compile("Tunnel connection failed: ([0-9]{3})")
"""How `http.client` says that a proxy answers CONNECT with another status than 200."""
UNAUTHENTICATED = "407"


class Proxy(NamedTuple):
    """The URL of a proxy without its user, and `user:password` or None. The latter is a secret."""

    url: str
    user: str | None


def proxies_for(url: str) -> dict[str, str]:
    """Return the proxy through which an address is reached, by the scheme of the address, as the SDKs take it.

    `no_proxy` is read in one way for all of them: domains, networks, and names and addresses with and without a port.
    """
    parts = urlsplit(url)
    given = None if proxy_bypass(parts.netloc.rpartition("@")[2]) else select_proxy(url, get_environ_proxies(url))
    return {parts.scheme: given} if given else {}


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy through which an address is reached, None for none.

    Raises:
        ValueError: the environment names none that can be used. The text holds no part of the user or password.
    """
    given = next(iter(proxies_for(url).values()), None)
    if given is None:
        return None
    scheme, separator, rest = given.strip().partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("http", given.strip())
    if scheme not in _PORTS:
        kind = scheme if scheme.isascii() and scheme.isalnum() else "another kind"
        msg = f"the environment names a proxy of the kind {kind}; http and https proxies can be used"
        raise ValueError(msg)
    user, _, address = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")
    try:
        host, port = split_address(address, _PORTS[scheme])
        if not host:
            raise ValueError("there is no host")
    except ValueError as error:
        msg = (
            f"the URL of the proxy that the environment names cannot be used: {error}; "
            "expected is one like http://USER:PASSWORD@proxy.example:3128, with @ / # ? as %40 %2F %23 %3F"
        )
        raise ValueError(msg) from None
    known, _, password = user.partition(":")
    host = f"[{host}]" if ":" in host else host
    return Proxy(f"{scheme}://{host}:{port}", f"{unquote(known)}:{unquote(password)}" if known else None)


def through_proxy(url: str) -> str:
    """Return what a message adds to an address that is reached through a proxy: which one; nothing for none."""
    try:
        proxy = proxy_for(url)
    except ValueError:  # the error about it has been told
        return ""
    return f" through the proxy {proxy.url}" if proxy else ""


def proxy_fault(error: BaseException) -> str | None:
    """Return why the proxy that the environment names cannot be used; None if the error is about something else.

    The libraries show the URL of the proxy, with its password, in some of their texts, so none is quoted.
    """
    found = list(causes(error))
    for each in found:
        if isinstance(each, OSError) and (refused := _TUNNEL.search(str(each))):
            way_out = "; put the right user and password into its URL" if refused[1] == UNAUTHENTICATED else ""
            return f"the proxy that the environment names refuses the connection with status {refused[1]}{way_out}"
    if any(isinstance(each, ProxyError) for each in found):
        return "the proxy that the environment names cannot be reached"
    return None
