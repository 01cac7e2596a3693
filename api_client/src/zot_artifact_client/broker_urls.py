"""Read the URL of a broker or result backend, once for worker, client and command line.

Celery, kombu and redis-py each have a grammar of their own for these URLs. `parse_url` accepts what `docs/settings.md`
names, refuses everything else in one line, and gives each library the spelling that it reads.
"""

import difflib
import re
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from zot_artifact_client.errors import InvalidUrl
from zot_artifact_client.host_and_port import BAD_ESCAPE, split_address

if TYPE_CHECKING:
    import redis
    import redis.asyncio

_DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379, "amqp": 5672, "pyamqp": 5672, "amqps": 5671}
_SOCKETS = {"redis+socket", "unix"}
REDIS_SCHEMES = frozenset({"redis", "rediss", "sentinel", *_SOCKETS})
RABBITMQ_SCHEMES = frozenset({"amqp", "amqps", "pyamqp"})
_SCHEMES = (*sorted(REDIS_SCHEMES), *sorted(RABBITMQ_SCHEMES))
_EXAMPLE = "expected is a URL like redis://:PASSWORD@HOST:6379/0"
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_SOME_SECONDS = re.compile(rf"(?![0.]+$){_SECONDS.pattern}")
_VALUES = {
    **dict.fromkeys(("socket_timeout", "socket_connect_timeout"), (_SOME_SECONDS, "a number of seconds above 0")),
    **dict.fromkeys(("health_check_interval", "heartbeat"), (_SECONDS, "a number of seconds")),
    "client_name": (re.compile(r"[!-~]{1,64}"), "a name of ASCII letters without white space"),
    "protocol": (re.compile("[23]"), "2 or 3"),
    "master_name": (re.compile(r"[^\s]+"), "the name of the master that the Sentinels watch"),
}
"""What the parameters are that fail in a library, or only at the first connection."""
_TLS = {"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_REDIS_QUERY = {"socket_timeout", "socket_connect_timeout", "health_check_interval", "client_name", "protocol"}
_QUERY = {
    "redis": _REDIS_QUERY,
    "rediss": _REDIS_QUERY | _TLS,
    "redis+socket": {"virtual_host", "db", "username", "password"},
    "sentinel": {"master_name", "sentinel_password"},
    "amqp": {"heartbeat", "login_method"},
    "pyamqp": {"heartbeat", "login_method"},
    "amqps": {"heartbeat", "login_method", "ssl", *_TLS},
}
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "socket_timeout": float,
    "socket_connect_timeout": float,
    "health_check_interval": float,
    "client_name": str,
}
"""What kombu takes beside the URL of a Redis, and not as a part of it."""
_SAID_OF_MASTER = {"user": "users", "password": "passwords", "path": "databases"}
_MOST_DATABASES = 1 << 31
_CERT_REQS = {"required": "CERT_REQUIRED", "optional": "CERT_OPTIONAL", "none": "CERT_NONE"}
_DEFAULT_MASTER = "mymaster"
"""The name of the master in Sentinel's own sample configuration."""


@dataclass(frozen=True, slots=True)
class _Server:
    """One server of a URL. `user` and `password` are as they are, not percent-encoded."""

    scheme: str
    host: str
    port: int
    user: str | None
    password: str | None
    path: str
    query: dict[str, str]


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A URL that was read.

    Attributes:
        text: the URL as Celery and kombu read it, with its credentials.
        transport_options: what kombu and Celery take beside the URL.
        tls: kombu's `ssl`, which Celery calls `broker_use_ssl`. None if the URL says it, or there is no TLS.
    """

    scheme: str
    text: str = field(repr=False)
    transport_options: dict[str, Any] = field(default_factory=dict, repr=False)
    tls: dict[str, Any] | None = field(default=None, repr=False)
    servers: tuple[_Server, ...] = field(default=(), repr=False)

    @property
    def broker_settings(self) -> dict[str, Any]:
        """Return the settings of a Celery application with this broker."""
        return {"broker_url": self.text, "broker_transport_options": self.transport_options, "broker_use_ssl": self.tls}

    @property
    def is_redis(self) -> bool:
        """Return whether the server is Redis or Valkey."""
        return self.scheme in REDIS_SCHEMES

    @property
    def is_rabbitmq(self) -> bool:
        """Return whether the server is RabbitMQ, or another one that speaks AMQP 0-9-1."""
        return self.scheme in RABBITMQ_SCHEMES

    @property
    def is_socket(self) -> bool:
        """Return whether the server is reached over a Unix socket."""
        return self.scheme in _SOCKETS


def parse_url(url: str, setting: str = "broker_url") -> ServerUrl:
    """Return a URL as each library reads it; TLS certificates are verified unless the URL says otherwise.

    Args:
        url: redis://, rediss://, redis+socket://, sentinel://, amqp:// or amqps://; of the last three also several with
            `;` between.
        setting: the name of the setting, for the error.

    Raises:
        InvalidUrl: one line that names the setting and the way out, and holds no part of the user or password.
    """
    if url != url.strip() or not url.isprintable():
        raise InvalidUrl(f"{setting}: there is white space or a control character in or around the URL")
    servers = [_parse_server(part, setting) for part in url.split(";")]
    schemes = {server.scheme for server in servers}
    if len(schemes) > 1:
        raise InvalidUrl(f"{setting}: all URLs of a list need the same scheme")
    scheme = schemes.pop()
    if len(servers) > 1 and scheme in REDIS_SCHEMES - {"sentinel"}:
        # Two Redis servers are no cluster: what one of them holds is lost to the other.
        raise InvalidUrl(f"{setting}: one {scheme}:// server is expected; for a failover use sentinel://")
    if scheme == "sentinel":
        servers = _told_once(servers, setting)
    if scheme == "amqps":
        servers = [replace(each, query=each.query | _same_query(servers, _TLS, setting)) for each in servers]
    query = servers[0].query
    options: dict[str, Any] = {name: _OPTIONS[name](query[name]) for name in _OPTIONS.keys() & query.keys()}
    if scheme == "sentinel":
        options["master_name"] = query.get("master_name", _DEFAULT_MASTER)
        if "sentinel_password" in query:
            options["sentinel_kwargs"] = {"password": query["sentinel_password"]}
    tls = _amqp_tls(query) if scheme == "amqps" else None
    return ServerUrl(scheme, ";".join(map(_for_celery, servers)), options, tls, tuple(servers))


def _told_once(servers: list[_Server], setting: str) -> list[_Server]:
    """Return the Sentinels of a list with what any of them says of the master, which is the same for all.

    Celery and kombu would read it from the first one alone.
    """
    for name in ("user", "password", "path"):
        if len({getattr(server, name) for server in servers} - {None, ""}) > 1:
            raise InvalidUrl(f"{setting}: the Sentinels name different {_SAID_OF_MASTER[name]}; name one of each once")
    query = _same_query(servers, _QUERY["sentinel"], setting)
    user = next((server.user for server in servers if server.user), None)
    password = next((server.password for server in servers if server.password), None)
    path = next((server.path for server in servers if server.path), "")
    return [replace(server, user=user, password=password, path=path, query=query) for server in servers]


def _same_query(servers: list[_Server], names: Iterable[str], setting: str) -> dict[str, str]:
    """Return those of the parameters of a list of servers that are the same for all. Raise InvalidUrl: they differ."""
    query: dict[str, str] = {}
    for name, value in ((name, server.query[name]) for server in servers for name in names if name in server.query):
        if query.setdefault(name, value) != value:
            raise InvalidUrl(f"{setting}: the servers have different values of {name}; write it once")
    return query


def _amqp_tls(query: dict[str, str]) -> dict[str, Any]:
    """Return the options of TLS as kombu gives them to amqp, which by itself does not compare the host's name."""
    reqs = ssl.VerifyMode[query.get("ssl_cert_reqs", "CERT_REQUIRED")]
    files = {name.removeprefix("ssl_"): query[name] for name in _TLS & query.keys() - {"ssl_cert_reqs"}}
    checked = {} if reqs is ssl.CERT_NONE else {"server_hostname": None}  # kombu fills it in
    return {"cert_reqs": reqs, **files, **checked}


def parse_result_url(url: str, setting: str = "result_url") -> ServerUrl:
    """Return the URL of a result backend: that of a Redis is read by `parse_url`, any other is left to Celery.

    Raises:
        InvalidUrl: it is none.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in _SCHEMES or difflib.get_close_matches(scheme, sorted(REDIS_SCHEMES), n=1, cutoff=0.75) or not scheme:
        parsed = parse_url(url, setting)
        if parsed.scheme not in {"redis", "rediss"}:
            return parsed
        return replace(parsed, text=_with_query(parsed))
    if "://" not in url:
        raise InvalidUrl(f"{setting}: it has no scheme, {_EXAMPLE}")
    _check_backend(scheme, url, setting)
    return ServerUrl(scheme, url)


def _check_backend(scheme: str, url: str, setting: str) -> None:
    """Raise InvalidUrl unless Celery has a result backend of this scheme, and it can be used here."""
    from celery import Celery

    try:
        with Celery("url", backend=url, set_as_current=False) as app:
            app.backend  # noqa: B018 - made here, so that a wrong URL is found now and not at the first result
    except Exception as error:  # noqa: BLE001 - what a backend raises over its URL, or a library that is absent
        raise InvalidUrl(f"{setting}: {scheme}:// cannot be used: {type(error).__name__}; {_EXAMPLE}") from None


def redis_client(url: str, setting: str = "broker_url", **options: Any) -> "redis.Redis":
    """Return a client of redis-py for any spelling of a Redis URL; `options` are redis-py's own.

    Raises:
        InvalidUrl: the URL is none, or is not that of a Redis.
    """
    import redis
    from redis.sentinel import Sentinel

    class Sentinels(Sentinel):
        """Asks over connections of its own, and closes them: redis-py leaves them open when the client is closed.

        Threads ask at one time. So none may close a connection of another one.
        """

        def __init__(self, hosts: list[tuple[str, int]], **options: Any) -> None:
            super().__init__(hosts, **options)  # type: ignore[no-untyped-call]
            self._hosts, self._options = hosts, options

        def discover_master(self, service_name: str) -> Any:
            asked = Sentinel(self._hosts, **self._options)  # type: ignore[no-untyped-call]
            try:
                found = asked.discover_master(service_name)  # type: ignore[no-untyped-call]
                self._hosts = _hosts_of(asked)
                return found
            finally:
                for each in asked.sentinels:
                    each.close()

    made: redis.Redis = _make_redis(parse_url(url, setting), redis.Redis, Sentinels, setting, options)
    return made


def async_redis_client(url: str, setting: str = "broker_url", **options: Any) -> "redis.asyncio.Redis":
    """Return a client of redis.asyncio for any spelling of a Redis URL; `options` are redis-py's own.

    Raises:
        InvalidUrl: the URL is none, or is not that of a Redis.
    """
    import redis.asyncio
    from redis.asyncio.sentinel import Sentinel

    class Sentinels(Sentinel):
        """Asks over connections of its own, and closes them, as those of `redis_client`."""

        def __init__(self, hosts: list[tuple[str, int]], **options: Any) -> None:
            super().__init__(hosts, **options)  # type: ignore[no-untyped-call]
            self._hosts, self._options = hosts, options

        async def discover_master(self, service_name: str) -> Any:
            asked = Sentinel(self._hosts, **self._options)  # type: ignore[no-untyped-call]
            try:
                found = await asked.discover_master(service_name)
                self._hosts = _hosts_of(asked)
                return found
            finally:
                for each in asked.sentinels:
                    await each.aclose()

    made: redis.asyncio.Redis = _make_redis(parse_url(url, setting), redis.asyncio.Redis, Sentinels, setting, options)
    return made


def _hosts_of(asked: Any) -> list[tuple[str, int]]:
    """Return the Sentinels in the order in which they were left: the one that answered is the first."""
    kept = (each.connection_pool.connection_kwargs for each in asked.sentinels)
    return [(each["host"], each["port"]) for each in kept]


def _make_redis(parsed: ServerUrl, client: Any, sentinels: Any, setting: str, options: dict[str, Any]) -> Any:
    """Return a client of either kind; redis-py's two kinds are made alike."""
    if not parsed.is_redis:
        raise InvalidUrl(f"{setting}: a {parsed.scheme}:// URL is no Redis; {_EXAMPLE}")
    first = parsed.servers[0]
    if parsed.scheme == "sentinel":
        hosts = [(server.host, server.port) for server in parsed.servers]
        given = {name: value for name, value in (("username", first.user), ("password", first.password)) if value}
        known = {**options, **given, "db": int(first.path or 0)}
        sentinel = sentinels(hosts, sentinel_kwargs=parsed.transport_options.get("sentinel_kwargs"), **known)
        return sentinel.master_for(parsed.transport_options["master_name"])
    if parsed.is_socket:
        options.pop("socket_connect_timeout", None)
        database = int(first.query["virtual_host"])
        options |= {name: value for name, value in (("username", first.user), ("password", first.password)) if value}
        return client(unix_socket_path=first.path, db=database, **options)
    text = _with_query(parsed)
    for name, constant in _CERT_REQS.items():
        text = text.replace(f"ssl_cert_reqs={constant}", f"ssl_cert_reqs={name}")
    return client.from_url(text, **options)


def _with_query(parsed: ServerUrl) -> str:
    """Return the URL of a Redis as redis-py and Celery's result backend read it, which take options in it."""
    options = {name: value for name, value in parsed.servers[0].query.items() if name in _REDIS_QUERY}
    if not options:
        return parsed.text
    return f"{parsed.text}{'&' if '?' in parsed.text else '?'}{urlencode(options, quote_via=quote)}"


def _parse_server(url: str, setting: str) -> _Server:
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise InvalidUrl(f"{setting}: it has no scheme; {_EXAMPLE}")
    scheme = {"unix": "redis+socket"}.get(scheme.lower(), scheme.lower())
    if scheme not in _SCHEMES:
        raise InvalidUrl(f"{setting}: {_unknown_scheme(scheme)}")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    credentials, at, address = authority.rpartition("@")
    if "@" in credentials or "@" in tail or "#" in tail:
        raise InvalidUrl(
            f"{setting}: the user or password has a character that must be percent-encoded: @ is %40, / is %2F, "
            "# is %23, ? is %3F"
        )
    if BAD_ESCAPE.search(rest):
        raise InvalidUrl(f"{setting}: a % that is no percent-encoding must be written as %25")
    if "\0" in unquote(rest):
        raise InvalidUrl(f"{setting}: the URL has a NUL character (%00)")
    user, colon, password = credentials.partition(":")
    path, _, query_text = tail.partition("?")
    query = _query(scheme, query_text, setting)
    secret = unquote(password) if at and colon else None
    if scheme == "redis+socket":
        if address or len(path) < len("/x"):
            raise InvalidUrl(f"{setting}: the path of a socket is expected, like redis+socket:///run/valkey.sock")
        user, secret = query.pop("username", unquote(user)), query.pop("password", secret)
        return _Server(scheme, "", 0, user or None, secret, unquote(path), query)
    host, port = _address(scheme, address, setting)
    path = path.removeprefix("/")
    if scheme in REDIS_SCHEMES and path and not _is_database(path):
        raise InvalidUrl(f"{setting}: the path is the number of the database, like /0")
    return _Server(scheme, host, port, unquote(user) if user else None, secret, path, query)


def _unknown_scheme(scheme: str) -> str:
    shown = f"{scheme}:// is no known scheme" if re.fullmatch(r"[a-z][a-z0-9+.-]{0,31}", scheme) else "unknown scheme"
    close = difflib.get_close_matches(scheme, _SCHEMES, n=1)
    return f"{shown}; did you mean {close[0]}://?" if close else f"{shown}; {_EXAMPLE}"


def _address(scheme: str, address: str, setting: str) -> tuple[str, int]:
    try:
        host, port = split_address(address, _DEFAULT_PORTS[scheme])
    except ValueError as error:
        raise InvalidUrl(f"{setting}: {error}") from None
    return host or "127.0.0.1", port


def _query(scheme: str, text: str, setting: str) -> dict[str, str]:
    given = parse_qsl(text, keep_blank_values=True)
    query = dict(given)
    unknown = sorted(query.keys() - _QUERY[scheme]) if scheme in _QUERY else []
    if unknown:
        known = ", ".join(sorted(_QUERY[scheme]))
        raise InvalidUrl(f"{setting}: {scheme}:// has a parameter that is unknown; there are {known}")
    if len(given) > len(query):
        twice = next(name for name in sorted(query) if [each for each, _ in given].count(name) > 1)
        raise InvalidUrl(f"{setting}: {twice} is there twice")
    for name in _VALUES.keys() & query.keys():
        fits, expected = _VALUES[name]
        if not fits.fullmatch(query[name]):
            raise InvalidUrl(f"{setting}: {name} is {expected}")
    if scheme == "redis+socket":
        database = query.pop("db", query.pop("virtual_host", "0"))
        if not _is_database(database):
            raise InvalidUrl(f"{setting}: virtual_host is the number of the database")
        query["virtual_host"] = database
    if scheme == "rediss" or "ssl_cert_reqs" in query:
        wanted = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
        if wanted not in _CERT_REQS:
            raise InvalidUrl(f"{setting}: ssl_cert_reqs is one of {', '.join(_CERT_REQS)}")
        query["ssl_cert_reqs"] = _CERT_REQS[wanted]
    return query


def _is_database(text: str) -> bool:
    return re.fullmatch("[0-9]{1,10}", text) is not None and int(text) < _MOST_DATABASES


def _for_celery(server: _Server) -> str:
    user = quote(server.user, safe="") if server.user else ""
    secret = f":{quote(server.password, safe='')}" if server.password is not None else ""
    credentials = f"{user}{secret}@" if user or secret else ""
    if server.scheme == "redis+socket":
        return f"redis+socket://{credentials}{quote(server.path)}?{urlencode(server.query)}"
    host = f"[{server.host.replace('%', '%25')}]" if ":" in server.host else server.host
    left_out = {*_REDIS_QUERY, *_QUERY["sentinel"], "ssl", *(_TLS if server.scheme == "amqps" else ())}
    query = urlencode({name: value for name, value in server.query.items() if name not in left_out})
    query = f"?{query}" if query else ""
    path = server.path or ("0" if server.scheme in REDIS_SCHEMES else "")
    return f"{server.scheme}://{credentials}{host}:{server.port}/{path}{query}"
