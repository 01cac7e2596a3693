"""Every setting of the worker, in one frozen model that is built once and passed down.

Sources, the later winning: defaults, the YAML file named by `ZOT_CONFIG`, environment variables (`ZOT_HOME`,
`ZOT_BROKER`, …; nested ones with two underscores, `ZOT_RETRY__MAX_ATTEMPTS`).
"""

import difflib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from worker.input_files import special_kind
from worker.settings.alarms import AlarmSettings, JobReceiverSettings, JobWebhookSettings
from worker.settings.budgets import Budget, Prices
from worker.settings.catalogue_url import check_catalogue_url
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
from worker.storage.config import FilesystemConfig, GcsConfig, StoreConfig
from worker.storage.local_paths import LocalPath, parse_path
from worker.storage.same_place import Mount, contains, mounts_here, overlapping
from zot_artifact_client.broker_urls import parse_result_url, parse_url
from zot_artifact_client.contract.requests import STORE_NAME
from zot_artifact_client.errors import InvalidUrl
from zot_artifact_client.input_rules import check_distinct

ENV_PREFIX = "ZOT_"
_LONGEST_NAME = 64
"""Characters of the name of a store."""
in_file: ContextVar[Mapping[str, Any]] = ContextVar("in_file", default=MappingProxyType({}))
"""The settings in the configuration file while `load_settings` uses them: a pipe can be read only once."""
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
            "broker": parse_url, "results": parse_result_url, "catalogue": check_catalogue_url,
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
        if not is_unicode(str(absolute)):
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
                    hint = did_you_mean(name, self.stores)
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
            why = f"are one physical place ({reason}), where a copy in each would be one copy"
            msg = f"stores {one} and {two} {why}: remove one of them, or point it to another place"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _roots_are_apart_from_home(self) -> "Settings":
        mounts = mounts_here()
        for name, store in self.stores.items():
            if not isinstance(store, FilesystemConfig):
                continue
            if contains(store.root, self.home, mounts):
                msg = f"stores.{name}.root: {store.root} contains the data directory {self.home}"
                raise ValueError(msg)
            self._check_is_outside_own_folders(f"stores.{name}.root", store.root, mounts)
        for root in self.sources.roots:
            if contains(root, self.home, mounts):
                msg = f"sources.roots: {root} contains the data directory {self.home}: its catalogue could be uploaded"
                raise ValueError(msg)
            self._check_is_outside_own_folders("sources.roots", root, mounts)
        return self

    def _check_is_outside_own_folders(self, setting: str, path: Path, mounts: list[Mount]) -> None:
        """Raise ValueError for a path in a folder that has the broker's password, logs, or files staged by others."""
        if inside := next((part for part in OWN_FOLDERS if contains(self.home / part, path, mounts)), None):
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
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=dict(in_file.get()))

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
            # A killed `up` leaves the file, and in a copy of a data directory it names the broker of the original.
            if not _is_unlocked(self.up_lock):
                return self.broker_file.read_text().strip()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SettingsError(f"ZOT_HOME: {self.broker_file} cannot be read: {error.strerror}") from None
        raise NoBroker(
            f"no broker is configured and none runs on {self.home}: start `zot-artifacts up`, or set ZOT_BROKER, or "
            "set ZOT_HOME to the data directory of an `up` that runs"
        )

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
    def run_dir(self) -> Path:
        """Return the directory of the locks, ports, secrets and records that only the processes of this machine use."""
        return self.home / "run"

    @property
    def broker_file(self) -> Path:
        """Return the file that holds the embedded broker's URL while it runs."""
        return self.run_dir / "broker-url"

    @property
    def up_lock(self) -> Path:
        """Return the file that `zot-artifacts up` and its broker have locked while they run."""
        return self.run_dir / "up.lock"

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
        ours = [self.home, self.staging_dir, self.spool_dir, self.run_dir]
        try:
            if fault := next(out_of_place(self.home), None):
                raise SettingsError(fault)
            for directory in ours:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, store in self.stores.items():
                if isinstance(store, FilesystemConfig) and self.home in store.root.parents:
                    _make_once(store, self.run_dir / f"store-{name}")
            tighten(self.home)
        except OSError as error:
            what = "there is another kind of file" if isinstance(error, FileExistsError) else error.strerror
            at = f"{error.filename}: " if error.filename not in {None, str(self.home)} else ""
            raise SettingsError(
                f"the data directory {self.home} cannot be used: {at}{what}; {way_out_of_home(self.home, error)}"
            ) from error


def _is_unlocked(path: Path) -> bool:
    """Return whether a file is there that no process has locked."""
    try:
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:  # it may be a FIFO
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is locked, is not there, or cannot be
        return False
    return True


def _make_once(store: FilesystemConfig, made: Path) -> None:
    """Make a store's root once: a root that is missing later is a lost disk and not an empty store."""
    if not made.exists():
        if not store.root.exists():
            store.root.mkdir(parents=True)
            if store.dir_mode is not None:
                store.root.chmod(store.dir_mode)
        made.touch()


def is_unicode(text: str) -> bool:
    """Return whether a text from the system was UTF-8; Python keeps other bytes as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the hint at the known name that is most like a misspelt one; empty without one."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
