"""Every setting of the worker, in one frozen model that is built once and passed down.

Sources, the later winning: defaults, the YAML file named by `ZOT_CONFIG`, environment variables (`ZOT_HOME`,
`ZOT_BROKER`, …; nested ones with two underscores, `ZOT_RETRY__MAX_ATTEMPTS`).
"""

import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import parse_qsl, quote, unquote

import yaml
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from worker.input_files import read_input, special_kind
from worker.settings.alarms import AlarmSettings, JobReceiverSettings, JobWebhookSettings
from worker.settings.budgets import Budget, Prices
from worker.settings.private_data_directory import (
    OWN_FOLDERS,
    make_files_private,
    no_file,
    out_of_place,
    tighten,
    way_out_of_home,
)
from worker.settings.section_models import (
    BatchSettings,
    BreakerSettings,
    CacheSettings,
    DeleteSettings,
    FindingSettings,
    GatewaySettings,
    JobSettings,
    LogSettings,
    PageSettings,
    PlacementRule,
    QuarantineSettings,
    ReplicationSettings,
    RetrySettings,
    SourceSettings,
    StoreLimits,
    SweepSettings,
    VerificationLogSettings,
)
from worker.settings.translate_config_of_original_store import OriginalRefused, translate
from worker.storage.config import FilesystemConfig, GcsConfig, StoreConfig
from worker.storage.local_paths import LocalPath, parse_path
from worker.storage.same_place import contains, overlapping
from zot_artifact_client.broker_urls import parse_result_url, parse_url
from zot_artifact_client.contract.requests import STORE_NAME
from zot_artifact_client.errors import InvalidUrl
from zot_artifact_client.host_and_port import split_address
from zot_artifact_client.input_rules import NamedTwice, check_distinct, unique_names

ENV_PREFIX = "ZOT_"
_LONGEST_NAME = 64
"""Characters of the name of a store."""
_KINDS_OF_STORE = {kind.model_fields["type"].default: kind for kind in get_args(get_args(StoreConfig)[0])}
_MAX_FILE = 1 << 20
"""Bytes of the largest configuration file."""
_in_file: ContextVar[Mapping[str, Any]] = ContextVar("_in_file", default=MappingProxyType({}))
"""The settings in the configuration file while `load_settings` uses them: a pipe can be read only once."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|[^:]*:.*")
"""A number to the base 8 or 60."""
_MODES = ("file_mode", "dir_mode")
"""The settings that take no number at all, and say so themselves."""
_OTHER_VARIABLES = ("ZOT_CONFIG", "ZOT_DEMO_", "ZOT_SERVERS_", "ZOT_TEST_", "ZOT_FLOWER_")

_PATHS = {"home", "root", "roots", "signing_key", "public_keys", "credentials_file", "ca_file"}
"""The settings that are paths, in whatever section."""
_FILES_IN_URLS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "sslrootcert", "sslcert", "sslkey", "sslcrl"}
_FILES_OF_SDKS = (
    "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE",
)  # fmt: skip
"""The environment variables by which the SDKs name files, which they open without a time limit."""

NO_DIRECTORY = "the current directory is gone: change to another one, or give absolute paths"


class SettingsError(Exception):
    """The settings cannot be used; the message has one line for each error."""


class NoBroker(SettingsError):
    """No broker is configured, and none runs on the data directory."""


class Settings(BaseSettings):
    """All settings. See `docs/settings.md` for an example file."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", hide_input_in_errors=True
    )

    home: LocalPath = Path("var")
    """The data directory: the embedded catalogue, broker and stores, staged and spooled files."""
    broker: SecretStr | None = None
    """URL of the broker; without it, the one that `zot-artifacts up` runs on this data directory."""
    serve_default_queue: bool | None = None
    """Serve Celery's default queue too, for messages that name no queue; only on a broker that no other application
    uses. By default on the embedded broker alone."""
    results: SecretStr | None = None
    """URL of Celery's result backend; the broker's by default."""
    catalogue: SecretStr | None = None
    """SQLAlchemy URL of the catalogue; SQLite in the data directory by default."""
    stores: dict[str, StoreConfig] = {}
    """The stores by name; without any, `primary` and `dr` in the data directory."""
    placement: tuple[str, ...] | None = None
    """Where artifacts belong whose upload names no store. Those that lack a copy there are replicated.

    Without it, such an upload goes to all stores, and nothing is replicated.
    """
    placement_rules: tuple[PlacementRule, ...] = ()
    """The stores of single buckets or prefixes instead. All artifacts that lack a copy there are replicated."""
    sources: SourceSettings = SourceSettings()
    replication: ReplicationSettings = ReplicationSettings()
    retry: RetrySettings = RetrySettings()
    sweep: SweepSettings = SweepSettings()
    jobs: JobSettings = JobSettings()
    batch: BatchSettings = BatchSettings()
    page: PageSettings = PageSettings()
    delete: DeleteSettings = DeleteSettings()
    findings: FindingSettings = FindingSettings()
    log: LogSettings = LogSettings()
    verification_log: VerificationLogSettings = VerificationLogSettings()
    alarms: AlarmSettings = AlarmSettings()
    webhooks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")], JobReceiverSettings] = {}
    """The receivers of the ends of jobs, by the name that a request has in `notify`. No request can name an address."""
    job_webhooks: JobWebhookSettings = JobWebhookSettings()
    quarantine: QuarantineSettings = QuarantineSettings()
    store_limits: dict[str, StoreLimits] = {}
    """Limits of single stores, by name, for all workers together; a store without limits has none."""
    budgets: dict[str, Budget] = {}
    """What the verify sweep may use of single stores, by name; of a store without a budget it reads what is due."""
    prices: dict[str, Prices] = {}
    """What single stores cost to read, by name. None are built in."""
    breaker: BreakerSettings = BreakerSettings()
    gateway: GatewaySettings = GatewaySettings()
    cache: CacheSettings = CacheSettings()

    @field_validator("sources")
    @classmethod
    def _rooted(cls, sources: SourceSettings) -> SourceSettings:
        for root in sources.roots:
            if not root.is_absolute():
                msg = f"roots: {str(root)!r} is not an absolute path"
                raise ValueError(msg)
        return sources

    @field_validator("placement", "placement_rules")
    @classmethod
    def _are_there_once(cls, value: object) -> object:
        return check_distinct(value)

    @field_validator("stores")
    @classmethod
    def _stores_rooted(cls, stores: dict[str, StoreConfig]) -> dict[str, StoreConfig]:
        if not stores:
            msg = "at least one store is expected; leave it out for two in the data directory"
            raise ValueError(msg)
        for name, store in stores.items():
            if not STORE_NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
                msg = (
                    f"{name!r} is no name of a store: up to 64 letters, digits, . _ @ + - and inner spaces are expected"
                )
                raise ValueError(msg)
            if isinstance(store, FilesystemConfig) and not store.root.is_absolute():
                msg = f"{name}.root: {str(store.root)!r} is not an absolute path"
                raise ValueError(msg)
        return stores

    @field_validator("broker", "results", "catalogue")
    @classmethod
    def _url(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        """Check a URL once, because each library that reads it has another grammar, and some print the password."""
        if url is None:
            return None
        checks: dict[str | None, Callable[[str, str], object]] = {
            "broker": parse_url, "results": parse_result_url, "catalogue": _check_catalogue_url,
        }  # fmt: skip
        try:
            checks[info.field_name](url.get_secret_value(), "")
        except InvalidUrl as error:
            raise ValueError(str(error).removeprefix(": ")) from None
        return url

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        absolute = home.absolute()
        if not _is_unicode(str(absolute)):
            msg = "its name is not UTF-8, or the current directory's is not: the URL of the catalogue could not name it"
            raise ValueError(msg)
        return absolute

    @model_validator(mode="before")
    @classmethod
    def _default_stores(cls, data: dict[str, Any]) -> dict[str, Any]:
        if "stores" not in data:
            try:
                home = Path(parse_path(data.get("home", "var")))  # type: ignore[arg-type]  # raises TypeError if it is none
            except (TypeError, ValueError):
                home = Path("var")  # the error of `home` itself says that it is no path
            stores = home.absolute() / "stores"
            data["stores"] = {name: FilesystemConfig(root=stores / name) for name in ("primary", "dr")}
        return data

    @model_validator(mode="after")
    def _stores_exist(self) -> "Settings":
        named = {
            "placement": self.placement or (),
            **{f"placement_rules.{n}": rule.stores for n, rule in enumerate(self.placement_rules)},
            "sweep.verify.periods": self.sweep.verify.periods,
            "sweep.repair.off": self.sweep.repair.off,
            "sweep.reconcile.off": self.sweep.reconcile.off,
            "sweep.evidence.off": self.sweep.evidence.off,
            "sweep.backup.stores": self.sweep.backup.stores,
            "sweep.canary.off": self.sweep.canary.off,
            "sweep.report.store": filter(None, [self.sweep.report.store]),
            "gateway.staging_store": filter(None, [self.gateway.staging_store]),
            "store_limits": self.store_limits,
            "budgets": self.budgets,
            "prices": self.prices,
        }
        for setting, names in named.items():
            for name in names:
                if name not in self.stores:
                    hint = _did_you_mean(name, self.stores)
                    msg = f"{setting} names the store {name!r}, which is not configured{hint}"
                    raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _archives_have_two_stores(self) -> "Settings":
        keep, verify = self.verification_log.keep, self.sweep.verify
        if keep is not None and len(set(self.sweep.backup.stores)) <= 1:
            msg = "verification_log.keep needs two stores in sweep.backup.stores: months that are archived go there"
            raise ValueError(msg)
        if keep is not None and keep < max([verify.period, *verify.periods.values()]):
            msg = (
                "verification_log.keep is shorter than a sweep.verify.period: the last read of a copy would be archived"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _costs_have_prices(self) -> "Settings":
        for name, budget in self.budgets.items():
            if budget.cost_per_month is not None and name not in self.prices:
                msg = f"budgets.{name}.cost_per_month needs prices.{name}: no prices are built in"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _stores_are_apart(self) -> "Settings":
        for one, two, reason in overlapping(self.stores):
            msg = f"stores {one} and {two} are one physical place ({reason}): a copy in each would be one copy"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _roots_are_apart_from_home(self) -> "Settings":
        for name, store in self.stores.items():
            if not isinstance(store, FilesystemConfig):
                continue
            if contains(store.root, self.home):
                msg = f"stores.{name}.root: {store.root} contains the data directory {self.home}"
                raise ValueError(msg)
            self._check_is_outside_own_folders(f"stores.{name}.root", store.root)
        for root in self.sources.roots:
            if contains(root, self.home):
                msg = f"sources.roots: {root} contains the data directory {self.home}: its catalogue could be uploaded"
                raise ValueError(msg)
            self._check_is_outside_own_folders("sources.roots", root)
        return self

    def _check_is_outside_own_folders(self, setting: str, path: Path) -> None:
        """Raise ValueError for a path in a folder that has the broker's password, logs, or files staged by others."""
        if inside := next((part for part in OWN_FOLDERS if contains(self.home / part, path)), None):
            msg = f"{setting}: {path} is inside {self.home / inside}, which the worker uses itself"
            raise ValueError(msg)

    @model_validator(mode="after")
    def _libraries_get_files(self) -> "Settings":
        for setting, path in self._files():
            if kind := special_kind(path):
                msg = f"{setting} names {path}, which is {kind} and no file"
                raise ValueError(msg)
        return self

    def _files(self) -> Iterator[tuple[str, Path | str]]:
        """Yield each file that a library opens, with the setting or variable that names it."""
        for name, store in self.stores.items():
            if isinstance(store, GcsConfig) and store.credentials_file:
                yield f"stores.{name}.credentials_file", store.credentials_file
        log, email = self.verification_log, self.alarms.email
        yield from (("verification_log.public_keys", path) for path in log.public_keys)
        if log.signing_key:
            yield "verification_log.signing_key", log.signing_key
        if email and email.ca_file:
            yield "alarms.email.ca_file", email.ca_file
        for setting, url in (("broker", self.broker), ("results", self.results), ("catalogue", self.catalogue)):
            query = parse_qsl(url.get_secret_value().partition("?")[2]) if url else ()
            yield from ((f"{name} of the URL of {setting}", path) for name, path in query if name in _FILES_IN_URLS)
        yield from ((name, os.environ[name]) for name in _FILES_OF_SDKS if os.environ.get(name))

    @model_validator(mode="after")
    def _results_are_kept(self) -> "Settings":
        if self.results is None and self.broker is not None and parse_url(self.broker.get_secret_value()).is_rabbitmq:
            msg = "broker is a RabbitMQ, which keeps no results: set `results` (ZOT_RESULTS) to a redis:// URL"
            raise ValueError(msg)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings names the arguments
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use the environment, then the file that `load_settings` has read."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=dict(_in_file.get()))

    # What follows from the settings

    @property
    def placement_stores(self) -> tuple[str, ...]:
        """Return the stores of an upload that names none and to which no rule applies."""
        return self.placement or tuple(self.stores)

    def rule_for(self, bucket: str, key: str) -> PlacementRule | None:
        """Return the placement rule of an artifact, if one applies."""
        return next((rule for rule in self.placement_rules if rule.fits(bucket, key)), None)

    def placement_of(self, bucket: str, key: str) -> tuple[str, ...]:
        """Return the stores of an upload of this artifact that names none."""
        rule = self.rule_for(bucket, key)
        return rule.stores if rule else self.placement_stores

    def wants(self, store: str, bucket: str, key: str, *, stores_named: bool) -> bool:
        """Return whether a copy of an artifact is added to a store in which none was begun.

        `stores_named`: the upload of the artifact named its stores, so that only a rule adds others.
        """
        if rule := self.rule_for(bucket, key):
            return store in rule.stores
        return not stores_named and store in (self.placement or ())

    def wanted_in(self, store: str) -> Callable[..., bool] | None:
        """Return `wants` of a store, None where neither `placement` nor a rule names it."""
        named = frozenset(self.placement or ()).union(*(rule.stores for rule in self.placement_rules))
        return partial(self.wants, store) if store in named else None

    @property
    def broker_url(self) -> str:
        """Return the broker's URL, with its password.

        Raises:
            NoBroker: none is configured, and none runs on this data directory.
            SettingsError: the file with the URL cannot be read, or something else is where it belongs.
        """
        if self.broker:
            return self.broker.get_secret_value()
        if self.broker_file.exists() and not self.broker_file.is_file():
            raise SettingsError(no_file(self.broker_file))
        try:
            return self.broker_file.read_text().strip()
        except FileNotFoundError:
            raise NoBroker(
                f"no broker is configured and none runs on {self.home}: start `zot-artifacts up` or set ZOT_BROKER"
            ) from None
        except OSError as error:
            raise SettingsError(f"ZOT_HOME: {self.broker_file} cannot be read: {error.strerror}") from None

    @property
    def serves_default_queue(self) -> bool:
        """Return whether workers serve Celery's default queue as well."""
        return self.broker is None if self.serve_default_queue is None else self.serve_default_queue

    @property
    def results_url(self) -> str:
        """Return the result backend's URL, with its password."""
        return self.results.get_secret_value() if self.results else self.broker_url

    @property
    def catalogue_url(self) -> str:
        """Return the catalogue's SQLAlchemy URL, with its password."""
        if self.catalogue:
            return self.catalogue.get_secret_value()
        return f"sqlite:///{quote(str(self.catalogue_file))}"  # `%`, `?` and `#` in a path mean something else in a URL

    @property
    def catalogue_file(self) -> Path:
        """Return the file of the embedded catalogue."""
        return self.home / "catalogue.sqlite3"

    @property
    def broker_file(self) -> Path:
        """Return the file that holds the embedded broker's URL while it runs."""
        return self.home / "run" / "broker-url"

    @property
    def staging_dir(self) -> Path:
        """Return the directory into which the command line copies files that are outside sources.roots."""
        return self.home / "staging"

    @property
    def spool_dir(self) -> Path:
        """Return the directory for downloads and streams that wait on disk."""
        return self.home / "spool"

    @property
    def longest_wait(self) -> timedelta:
        """Return the longest time after which a job asks again: a retry, an open circuit breaker, a batch."""
        return max(self.retry.backoff_max, self.breaker.open_max, self.batch.step * 3)

    @property
    def visibility_timeout(self) -> timedelta:
        """Return when Redis may deliver a message again: longer than a job may run or wait for an attempt.

        A message whose eta is further ahead is rejected.
        """
        return self.jobs.time_limit + self.longest_wait + timedelta(minutes=10)

    def prepare(self) -> None:
        """Make the data directory and the directories in it. Stores elsewhere must exist already.

        Files that this process and its children make from now on are private to the worker's user, except in stores
        with a `file_mode` or `dir_mode`. The worker's own files that other users can read become private.

        Raises:
            SettingsError: the directory cannot be made, or something else is where a file of it belongs.
        """
        make_files_private()
        ours = [self.home, self.staging_dir, self.spool_dir, self.broker_file.parent]
        try:
            if fault := next(out_of_place(self.home), None):
                raise SettingsError(fault)
            for directory in ours:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, store in self.stores.items():
                if isinstance(store, FilesystemConfig) and self.home in store.root.parents:
                    _make_once(store, self.broker_file.parent / f"store-{name}")
            tighten(self.home)
        except OSError as error:
            what = "there is another kind of file" if isinstance(error, FileExistsError) else error.strerror
            at = f"{error.filename}: " if error.filename not in {None, str(self.home)} else ""
            raise SettingsError(
                f"the data directory {self.home} cannot be used: {at}{what}; {way_out_of_home(self.home, error)}"
            ) from error


def _make_once(store: FilesystemConfig, made: Path) -> None:
    """Make a store's root once: a root that is missing later is a lost disk and not an empty store."""
    if not made.exists():
        if not store.root.exists():
            store.root.mkdir(parents=True)
            if store.dir_mode is not None:
                store.root.chmod(store.dir_mode)
        made.touch()


_DATABASE_ADDRESS = re.compile(r"(?:[^:/]*(?::[^@]*)?@)?([^/?]*)")
"""The host and port of a database, as SQLAlchemy finds them: a password may have every character but an @."""
_CATALOGUES = {"sqlite", "postgresql", "postgresql+psycopg"}
_SQLITE_PARAMETERS = {"timeout"}
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_SEVERAL = {"host", "port"}
"""The parameters of a PostgreSQL URL of which there may be several: one for each server."""
_NOT_REPLACED = re.compile(r"/*[~$]|[^?]*\$\{")


def _check_catalogue_url(url: str, setting: str) -> None:
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


def load_settings(**overrides: object) -> Settings:
    """Build the settings from the environment and the configuration file.

    Raises:
        SettingsError: names are misspelt or values are wrong; names each of them without its value.
    """
    if sys.getfilesystemencoding() != "utf-8":
        raise SettingsError(
            f"the locale has file names in {sys.getfilesystemencoding()}, in which a directory store would have other "
            "names than for other programs: set PYTHONUTF8=1, or a locale of UTF-8 such as LC_ALL=C.UTF-8"
        )
    problems = list(_unknown_variables(os.environ))
    if not _is_unicode(os.environ.get("ZOT_CONFIG", "")):
        problems.append("ZOT_CONFIG: its value is not UTF-8")
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        in_file = _read_file(os.environ.get("ZOT_CONFIG"))
        read = _in_file.set(in_file)
        try:
            return Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic at run time
        except ValidationError as error:
            raise SettingsError("\n".join(_problems(error, in_file))) from None
        finally:
            _in_file.reset(read)
    except SourceError as error:
        raise SettingsError(_bad_json(error)) from None
    except FileNotFoundError:  # of the current directory: a relative path has no meaning
        raise SettingsError(NO_DIRECTORY) from None
    except RecursionError:
        raise SettingsError("a value of the settings is nested too deeply") from None


def _read_file(name: str | None) -> dict[str, Any]:
    if not name:
        return {}
    data = _parse_file(name)
    if not isinstance(data, dict):
        kind = "null" if data is None else f"a {type(data).__name__}"
        raise SettingsError(f"{name}: a mapping of settings is expected, this is {kind}")
    problems = list(_unusable(data))
    if problems:
        raise SettingsError("\n".join(f"{name}: {problem}" for problem in problems))
    try:
        settings = translate(data) if "storage" in data else data
    except OriginalRefused as error:
        raise SettingsError(str(error)) from None
    spelt: dict[str, str] = {}
    for setting in settings:
        if (other := spelt.setdefault(setting.lower(), setting)) != setting:
            raise SettingsError(f"{name}: {other} and {setting} are one setting, which is there twice")
    settings = {setting.lower(): value for setting, value in settings.items()}  # as pydantic-settings reads them
    _make_absolute(settings, Path(name).absolute().parent)
    return settings


def _parse_file(name: str) -> Any:
    try:
        text = read_input(name, _MAX_FILE + 1).decode()
        if len(text) > _MAX_FILE:
            raise SettingsError(f"ZOT_CONFIG names {name}, which has more than {_MAX_FILE} bytes")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:  # empty, or only comments
            return {}
        for each in _nodes(node):
            if (fault := _named_twice(each) or _other_number(each)) is not None:
                raise SettingsError(f"{name} line {fault[0].start_mark.line + 1}: {fault[0].value} {fault[1]}")
        return loader.construct_document(node)
    except OSError as error:
        raise SettingsError(f"ZOT_CONFIG names {name}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name}: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except yaml.YAMLError as error:
        where = f" line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise SettingsError(f"{name}{where}: not valid YAML: {why}") from None
    except ValueError as error:  # a date or a number that YAML knows and Python does not
        raise SettingsError(f"{name}: not valid YAML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{name}: nested too deeply") from None


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield each node of a document once, also where aliases repeat it or it contains itself."""
    todo, done = [root], set[int]()
    while todo:
        each = todo.pop()
        if id(each) in done:
            continue
        done.add(id(each))
        yield each
        if isinstance(each, yaml.MappingNode):
            todo += [value for _, value in each.value]
        elif isinstance(each, yaml.SequenceNode):
            todo += each.value


def _named_twice(node: yaml.Node) -> tuple[yaml.Node, str] | None:
    """Return a name that is in a mapping twice, and the fault: YAML would use the last one in silence."""
    names = set[str]()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in names:
                return key, "is there twice"
            names.add(key.value)
    return None


def _other_number(node: yaml.Node) -> tuple[yaml.Node, str] | None:
    """Return a number that YAML reads with another base than people do, and the fault: 010 is 8, and 1:30 is 90."""
    values = node.value if isinstance(node, yaml.SequenceNode) else ()
    if isinstance(node, yaml.MappingNode):
        values = [value for key, value in node.value if key.value not in _MODES]
    for each in values:
        if each.tag in _NUMBERS and _OTHER_BASE.fullmatch(each.value):
            return each, "is another number in YAML: write it without a leading 0 or a colon, or in quotes"
    return None


def _unusable(data: Mapping[Any, Any]) -> Iterable[str]:
    """Yield the errors that the models of the settings cannot see."""
    for key in ("home", "stores"):
        if key in data and data[key] is None:
            yield f"{key}: a value is expected, this is null"
    yield from _unusable_in("", data, set())


def _unusable_in(where: str, value: object, seen: set[int]) -> Iterable[str]:
    if isinstance(value, str) and "\0" in value:
        yield f"{where}: the character NUL cannot be part of a value"
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        yield f"{where}: half of a surrogate pair cannot be part of a value"
    if isinstance(value, dict | list) and id(value) not in seen:  # an alias may contain itself
        seen.add(id(value))
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(name, str):  # such as `no`, which YAML takes for false
                yield f"{where}.{name!r} is no name: write it in quotes".removeprefix(".")
            yield from _unusable_in(f"{where}.{name}".removeprefix("."), each, seen)


def _bad_json(error: SourceError) -> str:
    """Return the error that names the variable whose value is no JSON; pydantic-settings names only the field."""
    field = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "")
    begins = f"{ENV_PREFIX}{field.upper()}"
    variables = [
        name for name in sorted(os.environ) if name.upper() == begins or name.upper().startswith(f"{begins}__")
    ]
    return f"{', '.join(variables) or begins}: the value must be JSON, such as '[\"primary\"]' or '{{\"key\": 1}}'"


def _make_absolute(data: dict[str, Any], base: Path) -> None:
    """Resolve relative paths against the file's directory, because its readers start in different directories.

    Raises:
        SettingsError: a path begins with a `~` that names no home directory.
    """
    stores, alarms = data.get("stores"), data.get("alarms")
    sections: list[tuple[str, Any]] = [
        ("", data),
        *((name, data.get(name)) for name in ("sources", "verification_log", "cache")),
    ]
    if isinstance(stores, dict):
        sections += [(f"stores.{name}", store) for name, store in stores.items()]
    if isinstance(alarms, dict):
        sections.append(("alarms.email", alarms.get("email")))
    for where, section in sections:
        for name in _PATHS.intersection(section) if isinstance(section, dict) else ():
            value = section[name]
            try:
                section[name] = [_from(base, each) for each in value] if isinstance(value, list) else _from(base, value)
            except ValueError as error:
                raise SettingsError(f"{where}.{name}: {error}".removeprefix(".")) from None


def _from(base: Path, path: object) -> object:
    found = parse_path(path)
    return base / found if isinstance(found, Path) else found  # the models refuse what is no text


def _unknown_variables(environ: Mapping[str, str]) -> Iterable[str]:
    known = [f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields]
    seen = dict[str, str]()
    for variable in sorted(environ):
        upper = variable.upper()  # pydantic-settings reads `zot_home` as well
        ours = upper.startswith(ENV_PREFIX) and not variable.startswith(_OTHER_VARIABLES)
        name, *inner = upper.split("__")
        if not ours:
            continue
        if (other := seen.setdefault(upper, variable)) != variable:
            yield f"{other} and {variable} are one setting, which is there twice"
        elif name not in known:
            yield f"{variable} is not a setting{_did_you_mean(upper, [*known, 'ZOT_CONFIG'])}"
        elif inner and not _has_parts(Settings.model_fields[name.removeprefix(ENV_PREFIX).lower()].annotation):
            yield f"{variable} is not a setting: {name} has no parts"
        elif not _is_unicode(environ[variable]):
            yield f"{variable}: its value is not UTF-8"
        else:
            yield from (f"{variable}: {fault}" for fault in _unusable_in_json(environ[variable]))


def _is_unicode(text: str) -> bool:
    """Return whether a text from the system was UTF-8; Python keeps other bytes as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_parts(annotation: Any) -> bool:
    """Return whether a setting is no single value, so that a variable may name a part of it."""
    kinds = [annotation, *get_args(annotation)]
    return any(hasattr(kind, "model_fields") or get_origin(kind) not in {None, Union, UnionType} for kind in kinds)


def _unusable_in_json(text: str) -> list[str]:
    """Return the errors in a JSON text that the models cannot see.

    One is a name that is in one object twice: Python would use the last one in silence.
    """
    if not text.lstrip().startswith(("{", "[", '"')):
        return []
    try:
        return list(_unusable_in("", json.loads(text, object_pairs_hook=unique_names), set()))
    except NamedTwice as error:
        return [str(error)]
    except (ValueError, RecursionError):
        return []  # what is no JSON is named when it is read


def _problems(error: ValidationError, in_file: Mapping[str, Any]) -> Iterable[str]:
    """Yield a line for each problem, with the configuration file before a setting that is from there."""
    name, variables = os.environ.get("ZOT_CONFIG"), {variable.upper() for variable in os.environ}
    for problem in error.errors(include_url=False, include_input=False):
        named = [str(part) for part in problem["loc"]]
        # Pydantic puts the type of a store after its name.
        path = named[:2] + named[3:] if named[:1] == ["stores"] else named
        told = _problem(problem, named, path)
        is_from_file = path[:1] and path[0] in in_file and not _is_named_in(variables, path)
        yield f"{name}: {told}" if is_from_file else told


def _is_named_in(variables: Iterable[str], path: Sequence[str]) -> bool:
    """Return whether a variable of the environment has a setting, a section that it is in, or a part of it."""
    ways = {ENV_PREFIX + "__".join(path[:end]).upper() for end in range(1, len(path) + 1)}
    below = ENV_PREFIX + "__".join(path).upper() + "__"
    return any(variable in ways or variable.startswith(below) for variable in variables)


def _problem(problem: Mapping[str, Any], named: list[str], path: list[str]) -> str:
    where = ".".join(path) or "settings"
    if problem["type"] == "extra_forbidden":
        name = path[-1].removeprefix(ENV_PREFIX.lower())  # as a variable of the environment has it
        return f"{where} is not a setting{_did_you_mean(name, _names_near(named))}"
    if problem["type"] == "union_tag_not_found":
        return f"{where}.type is missing; there are: {', '.join(_KINDS_OF_STORE)}"
    if problem["type"] == "union_tag_invalid":
        return f"{where}.type: {problem['ctx']['tag']!r} is no kind of store; there are: {', '.join(_KINDS_OF_STORE)}"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def _names_near(path: list[str]) -> list[str]:
    """Return the known names beside an unknown one, whose path has the type of a store."""
    if path[0] == "stores":
        return list(_KINDS_OF_STORE[path[2]].model_fields)
    model: Any = Settings
    for part in path[:-1]:
        if part not in model.model_fields:  # the name of a store
            continue
        annotation = model.model_fields[part].annotation
        model = next((a for a in (annotation, *get_args(annotation)) if hasattr(a, "model_fields")), Settings)
    return list(model.model_fields)


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
