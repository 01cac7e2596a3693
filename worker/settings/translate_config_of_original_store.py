"""The original store's configuration file, read unchanged: its `storage:` becomes one store named `default`.

The names are those of the original's storage package (`type` and a section of that name) and of the server around it
(`rootDirectory`, `storageDriver`). Go compared them without case, so case, `_` and `-` do not count here either.
`docs/settings.md` lists which settings are used, ignored and refused.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from worker.storage.config import StoreConfig

STORE = "default"
"""The name of the one store that the original had."""

_LAYOUT = {"layout": "layout"}
"""The one setting that the original did not have: `native` finds what its S3 backend wrote at the top of the bucket."""
_NAMES: dict[str, dict[str, str]] = {
    "filesystem": dict.fromkeys(("rootdirectory", "rootdir", "root", "directory", "path"), "root"),
    "s3": {
        "bucket": "bucket", "region": "region", "endpoint": "endpoint", "regionendpoint": "endpoint",
        "accesskeyid": "access_key_id", "accesskey": "access_key_id",
        "secretaccesskey": "secret_access_key", "secretkey": "secret_access_key", "sessiontoken": "session_token",
        "usessl": "ssl", "secure": "ssl", "forcepathstyle": "path_style", "usepathstyle": "path_style",
        "skipverify": "skip_verify",
    } | _LAYOUT,
    "gcs": {
        "bucket": "bucket", "credentialsfile": "credentials_file", "keyfile": "credentials_file",
        "projectid": "project", "project": "project", "endpoint": "endpoint",
    } | _LAYOUT,
    "azure": {
        "accountname": "account_name", "accountkey": "account_key", "containername": "container",
        "container": "container", "endpoint": "endpoint",
    } | _LAYOUT,
}  # fmt: skip
"""The settings of each section, with their names here. Names that are no setting here are translated below."""

_FLAGS = {"ssl", "path_style", "skip_verify"}
_ROOT = "rootdirectory"
_DRIVER = "storagedriver"
_CHOOSING = {"type", _ROOT, _DRIVER, *_NAMES}
_READ_PAST = {"enablechecksum", "maxretries", "retrydelay", "dedupe", "gc", "gcdelay", "gcinterval", "commit"}
"""In `storage:`: settings that have no effect here: bytes are always hashed, and stores neither retry, deduplicate nor
collect garbage.
"""
_OTHER_SECTIONS = {
    "distspecversion", "http", "server", "log", "logging", "extensions", "auth", "rbac", "supplychain", "metrics",
    "tracing", "health", "limits", "cluster", "database",
}  # fmt: skip
"""Beside `storage:`: settings of the original's own server, which have no effect here."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_CONFIG: TypeAdapter[Any] = TypeAdapter(StoreConfig)


class OriginalRefused(ValueError):
    """The file cannot be read as the original's; the message has one line for each error."""


def translate(file: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file with `storage:` as a file with `stores:`; other settings do not change.

    Raises:
        OriginalRefused: names each error as the file does, without its value.
    """
    if "stores" in file:
        msg = "storage and stores exclude each other: the original's file has the one, ours the other"
        raise OriginalRefused(msg)
    ours = {name: value for name, value in file.items() if name != "storage" and _plain(name) not in _OTHER_SECTIONS}
    return ours | {"stores": {STORE: _store(file["storage"])}}


def _store(storage: object) -> dict[str, Any]:
    if not isinstance(storage, Mapping):
        msg = "storage: a mapping is expected, with `type` and a section of that name"
        raise OriginalRefused(msg)
    said = {_plain(name): value for name, value in storage.items()}
    problems = list(_unknown("storage", storage, _CHOOSING | _READ_PAST))
    for kind in _NAMES.keys() & said.keys():
        section = said[kind] or {}
        if not isinstance(section, Mapping):
            raise OriginalRefused("\n".join([*problems, f"storage.{kind}: a mapping is expected"]))
        problems += _unknown(f"storage.{kind}", section, _NAMES[kind])
    where, kind, section = _chosen(said)
    if _DRIVER in said:
        problems += _unknown(where, section, _NAMES[kind])
    values = dict(_values(where, section, _NAMES[kind], problems))
    if not problems:
        config = {"type": kind, **_SETTLE[kind](values)}
        problems += _refusals(where, section, config)
    if problems:
        raise OriginalRefused("\n".join(problems))
    return config


def _chosen(said: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """Return the section of the backend in use: its place in the file, its backend and its values."""
    driver = said.get(_DRIVER)
    if driver is not None and not isinstance(driver, Mapping):
        msg = "storage.storageDriver: a mapping is expected"
        raise OriginalRefused(msg)
    where, kind = ("storage.storageDriver.name", driver.get("name")) if driver else ("storage.type", said.get("type"))
    kind = str(kind or "filesystem").lower()
    if kind not in _NAMES:
        msg = f"{where}: {kind!r} is no backend of the original: it had {', '.join(_NAMES)}"
        raise OriginalRefused(msg)
    if driver:
        return "storage.storageDriver", kind, {name: value for name, value in driver.items() if name != "name"}
    section = dict(said.get(kind) or {})
    if kind == "filesystem" and not section and _ROOT in said:
        return "storage", kind, {"rootDirectory": said[_ROOT]}
    return f"storage.{kind}", kind, section


def _unknown(where: str, section: Mapping[str, Any], known: Iterable[str]) -> Iterable[str]:
    names = list(known)
    for name in section:
        if _plain(name) not in names:
            close = difflib.get_close_matches(_plain(name), names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"{where}.{name} is not a setting of the original{hint}"


def _values(
    where: str, section: Mapping[str, Any], names: Mapping[str, str], problems: list[str]
) -> Iterable[tuple[str, Any]]:
    """Yield the values of a section under the names here; an empty value counts as left out, as in Go."""
    for name, given in section.items():
        ours, value = names.get(_plain(name)), given
        if isinstance(given, str) and (variable := _VARIABLE.fullmatch(given.strip())):
            value = os.environ.get(variable[1])
            if value is None:
                problems.append(f"{where}.{name}: the variable {variable[1]} is not set")
        if ours in _FLAGS and not isinstance(value, bool):
            problems.append(f"{where}.{name}: true or false is expected")
        elif ours is not None and value not in (None, ""):
            yield ours, value


def _settle_s3(values: dict[str, Any]) -> dict[str, Any]:
    ssl, path_style = values.pop("ssl", False), values.pop("path_style", None)
    if values.pop("skip_verify", False):
        msg = "skipverify: certificates are always verified here; name your authority's in AWS_CA_BUNDLE instead"
        raise OriginalRefused(msg)
    if endpoint := values.get("endpoint"):
        values["endpoint"] = endpoint = _with_scheme(str(endpoint), ssl=ssl)
        if (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com"):
            values["provider"] = "aws"
    if path_style is not None:
        values["addressing"] = "path" if path_style else "auto"
    return values


def _with_scheme(endpoint: str, *, ssl: bool) -> str:
    """Return an endpoint as a URL. The original's SDK used `useSSL` only where there was no scheme."""
    if "://" in endpoint:
        return endpoint
    return f"{'https' if ssl else 'http'}://{endpoint}"


def _settle_azure(values: dict[str, Any]) -> dict[str, Any]:
    account, endpoint = values.pop("account_name", None), values.pop("endpoint", None)
    if account and endpoint and (key := values.pop("account_key", None)):
        # An endpoint need not begin with the account's name, and only a connection string has both.
        values["connection_string"] = f"AccountName={account};AccountKey={key};BlobEndpoint={endpoint}"
    elif endpoint or account:
        values["account_url"] = endpoint or f"https://{account}.blob.core.windows.net"
    return values


def _as_it_is(values: dict[str, Any]) -> dict[str, Any]:
    return values


_SETTLE = {"filesystem": _as_it_is, "s3": _settle_s3, "gcs": _as_it_is, "azure": _settle_azure}


def _refusals(where: str, section: Mapping[str, Any], config: dict[str, Any]) -> Iterable[str]:
    """Yield the errors of the store's model under the names that the file uses."""
    try:
        _CONFIG.validate_python(config)
    except ValidationError as error:
        names = {_NAMES[config["type"]].get(_plain(name)): name for name in section}
        for problem in error.errors(include_url=False, include_input=False, include_context=False):
            path = problem["loc"][1:]  # the first is the discriminator's value
            place = f".{names.get(str(path[0]), path[0])}" if path else ""
            yield f"{where}{place}: {problem['msg'].removeprefix('Value error, ')}"


def _plain(name: object) -> str:
    return str(name).replace("_", "").replace("-", "").lower()
