"""The sections of the settings, one model each, with what every value means."""

import json
import re
from contextlib import suppress
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr, field_validator, model_validator

from worker.storage.durations_and_sizes import Duration, DurationOrZero, Interval, Size
from worker.storage.local_paths import LocalPath
from zot_artifact_client.http_urls import parse_endpoint
from zot_artifact_client.input_rules import check_distinct, check_number
from zot_artifact_client.key_rules import broken_bucket_rule

_BUCKET_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]+")


class Section(BaseModel):
    """Part of the settings: frozen, without unknown names; its errors never contain a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    _check_number = field_validator("*", mode="before")(check_number)

    @field_validator("*")
    @classmethod
    def _is_there_once(cls, value: object) -> object:
        return check_distinct(value)


class RetrySettings(Section):
    """How Celery retries a job after a transient error."""

    max_attempts: Annotated[int, Field(ge=1)] = 8
    """Attempts in all, the first included; then the job is a dead letter, and a sweep has failed."""
    backoff: Duration = timedelta(seconds=2)
    """The delay before the second attempt; it doubles with each further one. At least 1s."""
    backoff_max: Duration = timedelta(minutes=5)
    """The longest such delay. At least 1s."""
    max_crashes: Annotated[int, Field(ge=1)] = 5
    """Attempts in a row whose worker was killed; then the job is a dead letter."""
    jitter: bool = True
    """Draw each delay from between 0 and its value, so that jobs that failed together are not retried together."""


class SourceSettings(Section):
    """Where uploads may come from. Every other source is rejected."""

    roots: tuple[LocalPath, ...] = ()
    """Directories; files below them can be uploaded, symbolic links out of them cannot."""
    hosts: tuple[str, ...] = ()
    """`host` for https, or a whole origin such as `http://host:port`."""
    timeout: Duration = timedelta(seconds=60)
    """The longest time for which a host may send nothing."""
    max_size: Annotated[Size, Field(ge=1)] = ByteSize(1 << 40)
    """Largest download from a host."""
    min_rate: Size = ByteSize(1024)
    """Bytes a second that a host must send, on average over each `rate_window`; 0 for no such limit."""
    rate_window: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(minutes=1)

    @field_validator("hosts")
    @classmethod
    def _origins(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            url = host if "://" in host else f"https://{host}"
            if parse_endpoint(url, example="https://builds.example", credentials="a source has none").path:
                msg = "a host is allowed as a whole: it is written without a path, such as builds.example"
                raise ValueError(msg)
        return hosts


class ReplicationSettings(Section):
    """How a replicated copy is verified."""

    proof: Literal["provider", "reread"] = "provider"
    """`provider`: the bytes are hashed on the way, and the store confirms the write. `reread`: they are read back."""
    server_side: bool = True
    """Let a provider copy between two of its stores by itself. Such a copy is always read back."""


class PlacementRule(Section):
    """The stores of some buckets or prefixes; the first rule that fits an artifact counts."""

    bucket: Annotated[str, Field(min_length=1, max_length=63)]
    """The bucket's name, or a pattern with `*`, `?` and `[…]`."""
    prefix: Annotated[str, Field(max_length=1024)] = ""
    """Only keys that begin with this text."""
    stores: Annotated[tuple[str, ...], Field(min_length=1)]

    @field_validator("bucket")
    @classmethod
    def _is_a_pattern(cls, bucket: str) -> str:
        if not _BUCKET_PATTERN.fullmatch(bucket):
            msg = "no bucket has such a name: it is without a scheme and a path, and `prefix` has the beginning of keys"
            raise ValueError(msg)
        return bucket

    def fits(self, bucket: str, key: str) -> bool:
        """Return whether the rule applies to this artifact."""
        return fnmatchcase(bucket, self.bucket) and key.startswith(self.prefix)


class VerifySweepSettings(Section):
    """How often every copy is read again."""

    enabled: bool = True
    every: Interval = timedelta(minutes=5)
    """How often the sweep runs."""
    period: Duration = timedelta(days=30)
    """Every copy of a store is fully read within this time."""
    periods: dict[str, Duration] = {}
    """Other periods for single stores, by name."""
    first_read: DurationOrZero = timedelta(days=1)
    """A new copy is fully read for the first time within this time; within the period if that is shorter."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """Most copies of one store that one sweep sends to be read; as many as are due by default."""
    trust: DurationOrZero | None = None
    """How long an upload or replication trusts a copy that it finds unchanged, without a read; the period by default.

    `0s`: it is always read.
    """
    claim: Duration = timedelta(hours=6)
    """How long a claim lasts: then another page may claim the copy."""
    page: Annotated[int, Field(ge=1, le=5000)] = 2500
    """Most copies of one page. A page costs about as much as 50 copies of 16 KiB, so a small one is slow."""

    def trust_of(self, store: str) -> timedelta:
        """Return how long after its last full read a copy in this store is trusted."""
        return self.period_of(store) if self.trust is None else self.trust

    def period_of(self, store: str) -> timedelta:
        """Return the time within which every copy of this store is read again."""
        return self.periods.get(store, self.period)

    def first_read_of(self, store: str) -> timedelta:
        """Return the time within which a new copy of this store is read for the first time."""
        return min(self.first_read, self.period_of(store))


class ReplicateSweepSettings(Section):
    """How often under-replicated artifacts are replicated.

    They lack a copy that `placement` or `placement_rules` want, or one that an upload or a replication has begun.
    """

    enabled: bool = True
    every: Interval = timedelta(minutes=1)
    batch: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """Most copies of one store that one sweep claims."""
    claim: Duration = timedelta(hours=6)
    """How long a claim lasts: then another sweep may claim the copy."""
    late: DurationOrZero = timedelta(minutes=15)
    """How long after its upload an artifact may lack a copy before that is a finding.

    For as long, a copy that a job has begun is left to it.
    """


class RepairSweepSettings(Section):
    """How often copies that were found bad are repaired, and when so many are bad that the store is the suspect."""

    enabled: bool = True
    every: Interval = timedelta(minutes=5)
    off: tuple[str, ...] = ()
    """Stores whose copies are not repaired."""
    batch: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """Most copies of one store that one sweep claims."""
    claim: Duration = timedelta(hours=6)
    """How long a claim lasts: then another sweep may claim the copy."""
    suspect_copies: Annotated[int, Field(ge=1)] = 1000
    """If more copies of a store are found bad within `window`, its repairs stop until it is trusted again."""
    suspect_percent: Annotated[float, Field(gt=0, le=100)] = 5.0
    """The same as a share of the store's copies; 20 bad copies or fewer are never too many by their share."""
    window: Duration = timedelta(days=1)


class ReconcileSweepSettings(Section):
    """How often the listing of each store is compared with the catalogue, and what follows from a difference."""

    enabled: bool = True
    every: Interval = timedelta(days=1)
    off: tuple[str, ...] = ()
    """Stores that are not listed."""
    orphans: Literal["report", "adopt", "adopt_first_read", "ignore"] = "report"
    """What happens to an object that the catalogue does not know.

    `adopt`: it is recorded if the store keeps a digest of it. `adopt_first_read`: else the first read is its digest.
    """
    missing_percent: Annotated[float, Field(gt=0, le=100)] = 5.0
    """A run stops if more of the recorded objects are not listed; 20 or fewer are never too many."""
    batch: Annotated[int, Field(ge=0)] = 1000
    """Most objects that one run sends for one store, to be verified or adopted."""
    most_orphans: Annotated[int, Field(ge=0)] = 10_000
    """Most orphans of one store that become findings; more are only counted."""
    resume: Duration = timedelta(days=2)
    """How long after its begin a run that did not come to its end is continued."""


class EvidenceSweepSettings(Section):
    """How often what each store says about its copies is compared with what was recorded at their write.

    It is cheaper than a read and proves nothing: a copy that differs is read in full.
    """

    enabled: bool = True
    every: Interval = timedelta(days=1)
    off: tuple[str, ...] = ()
    """Stores that are not asked."""
    source: Literal["listing", "stat"] = "listing"
    """`listing`: sizes and version tags, a request for 1,000 objects. `stat`: checksums too, a request for each."""
    batch: Annotated[int, Field(ge=0)] = 500
    """Most jobs that one run sends for one store, to read what differs."""


class PurgeSweepSettings(Section):
    """How often the bytes of deleted artifacts are removed whose grace period is over."""

    enabled: bool = True
    every: Interval = timedelta(hours=1)
    batch: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """Most artifacts that one sweep purges."""


class CleanupSweepSettings(Section):
    """How long stale temporary files, stale uploads and staged sources of killed writers stay."""

    enabled: bool = True
    every: Interval = timedelta(hours=1)
    age: DurationOrZero = timedelta(days=1)
    """Younger ones stay, and so do those that a job which has not ended can resume."""
    foreign_uploads: Literal["report", "abort"] = "report"
    """What cleanup does with open multipart uploads that, as far as is known, this worker did not begin."""


class BackupSweepSettings(Section):
    """How often the catalogue is written to stores, how many of these backups stay, and how often one is rehearsed."""

    stores: tuple[str, ...] = ()
    """The stores that get each backup, two for good measure; without any, there is no backup."""
    every: Interval = timedelta(days=1)
    keep: Annotated[int, Field(ge=1)] = 14
    """Backups that stay in each store; older ones are removed when a new one is there."""
    rehearse: DurationOrZero = timedelta(days=7)
    """How often the newest backup of each store is restored into a scratch database and compared."""


class ProbeSweepSettings(Section):
    """How often a probe writes, reads and deletes a small object in every store; also when a worker starts."""

    enabled: bool = True
    every: Interval = timedelta(hours=1)


class CanarySweepSettings(Section):
    """How often an object of our own is damaged in each store, to measure how soon that is found and repaired."""

    enabled: bool = True
    every: Interval = timedelta(hours=6)
    off: tuple[str, ...] = ()
    """Stores without a canary, such as those that others write."""
    objects: Annotated[int, Field(ge=1, le=100)] = 3
    """Canaries of each store, which are damaged in turn."""
    within: Duration = timedelta(days=1)
    """A canary that is not found, or not repaired, within this time is a finding."""


class ReportSweepSettings(Section):
    """Where the report is written, as a page and as JSON."""

    enabled: bool = True
    every: Interval = timedelta(days=1)
    store: str | None = None
    """The store that gets the report; none by default, and then none is written."""
    bucket: str | None = None
    """A bucket of its own for reports; the reserved bucket `zot-report` by default."""
    keep: Annotated[int, Field(ge=1)] = 90
    """So many reports are kept, and the latest one as `latest.html` and `latest.json`."""

    @field_validator("bucket")
    @classmethod
    def _is_a_bucket(cls, bucket: str | None) -> str | None:
        if bucket is not None and (rule := broken_bucket_rule(bucket, reserved=True)):
            raise ValueError(rule)
        return bucket


class RecoverSweepSettings(Section):
    """How soon a job is sent again whose worker was killed or whose message was lost."""

    enabled: bool = True
    every: Interval = timedelta(seconds=15)
    after: Duration = timedelta(seconds=60)
    """How long a job waits in its queue before it is sent again."""
    again: Duration = timedelta(minutes=5)
    """How long a job that was sent again waits before it is sent once more."""


class SweepSettings(Section):
    """The periodic tasks."""

    recover: RecoverSweepSettings = RecoverSweepSettings()

    verify: VerifySweepSettings = VerifySweepSettings()
    replicate: ReplicateSweepSettings = ReplicateSweepSettings()
    repair: RepairSweepSettings = RepairSweepSettings()
    reconcile: ReconcileSweepSettings = ReconcileSweepSettings()
    evidence: EvidenceSweepSettings = EvidenceSweepSettings()
    purge: PurgeSweepSettings = PurgeSweepSettings()
    cleanup: CleanupSweepSettings = CleanupSweepSettings()
    probe: ProbeSweepSettings = ProbeSweepSettings()
    backup: BackupSweepSettings = BackupSweepSettings()
    report: ReportSweepSettings = ReportSweepSettings()
    canary: CanarySweepSettings = CanarySweepSettings()

    @model_validator(mode="before")
    @classmethod
    def _from_old_name(cls, given: object) -> object:
        """Read `sweep.leftovers`, the name that `sweep.cleanup` had before."""
        if not isinstance(given, dict) or "leftovers" not in given:
            return given
        old, new = given["leftovers"], given.get("cleanup", {})
        if isinstance(old, str):  # JSON in a variable, which pydantic-settings reads for the names of fields alone
            with suppress(ValueError):
                old = json.loads(old)
        rest = {name: value for name, value in given.items() if name not in {"leftovers", "cleanup"}}
        if not isinstance(old, dict) or not isinstance(new, dict):
            return rest | {"cleanup": new or old}
        if twice := sorted(old.keys() & new.keys()):
            msg = f"`leftovers` is the old name of `cleanup`, and both set {', '.join(twice)}: keep cleanup.{twice[0]}"
            raise ValueError(msg)
        return rest | {"cleanup": old | new}


class JobSettings(Section):
    """Limits on a single job."""

    time_limit: Duration = timedelta(hours=6)
    """The longest time of an attempt. After it, the job has a minute to end before it is killed."""
    lease: Duration = timedelta(seconds=30)
    """How long a job belongs to its worker after the last heartbeat."""
    grace: DurationOrZero = timedelta(seconds=5)
    """How long jobs continue after their worker got SIGTERM; then they are requeued at their next chunk."""
    max_snooze: DurationOrZero = timedelta(days=1)
    """How long a job is snoozed in a row for a store that is away or busy; then it is a dead letter."""
    result_expires: Duration = timedelta(days=1)
    """How long results stay in the result backend; the ledger in the catalogue keeps them longer, see `keep`."""
    keep: Annotated[Duration, Field(ge=timedelta(days=1))] | None = None
    """How long the ledger keeps jobs that have ended, except dead ones; without it, for ever."""

    @model_validator(mode="before")
    @classmethod
    def _from_old_name(cls, given: object) -> object:
        """Read `jobs.max_put_off`, the name that `jobs.max_snooze` had before."""
        if not isinstance(given, dict) or "max_put_off" not in given:
            return given
        if "max_snooze" in given:
            msg = "`max_put_off` is the old name of `max_snooze`, and both are set: keep max_snooze"
            raise ValueError(msg)
        return {"max_snooze" if name == "max_put_off" else name: value for name, value in given.items()}


class LogSettings(Section):
    """The form of log lines, and how much of them `zot-artifacts up` keeps."""

    format: Literal["text", "json"] = "text"
    """`json`: one object a line, with the job, its artifact and its attempt in fields of their own."""
    size: Annotated[Size, Field(ge=65_536)] = ByteSize(10 << 20)
    """When a log of `up` is longer, it becomes the file `NAME.log.1`, and a new one begins."""
    keep: Annotated[int, Field(ge=1, le=100)] = 5
    """How many earlier files of each log are kept."""


class VerificationLogSettings(Section):
    """How long the verification log stays in the catalogue, and how its head is signed that every store keeps."""

    keep: Annotated[Duration, Field(ge=timedelta(days=90))] | None = None
    """How long a month that ended stays; then `sweep.backup` archives it in its stores. For good if it is not set."""

    signing_key: LocalPath | None = None
    """A file with an Ed25519 private key in PEM; every head is then signed, and one that is not is a finding."""
    public_keys: tuple[LocalPath, ...] = ()
    """Files with Ed25519 public keys in PEM whose signatures count too: of former keys, or where heads are checked."""


class FindingSettings(Section):
    """How long findings are kept."""

    retention: Annotated[Duration, Field(ge=timedelta(days=1))] = timedelta(days=365)
    """How long a finding stays in the catalogue after it was resolved; an open one always stays."""


class QuarantineSettings(Section):
    """How long the bad bytes are kept that a repair has replaced."""

    retention: Annotated[Duration, Field(ge=timedelta(days=1))] | None = None
    """How long after its repair they are purged by the cleanup sweep; for good if it is not set."""


class DeleteSettings(Section):
    """What keeps the last good copy of an artifact, and how long a delete can be undone."""

    grace: DurationOrZero = timedelta(days=7)
    """How long the bytes of a deleted artifact stay, so that the delete can be undone; `0s`: they go at once."""

    approval_above: Annotated[int, Field(ge=0)] | None = None
    """A delete of more artifacts waits until a second person approves it; without it, none does."""
    approval_window: Duration = timedelta(hours=1)
    """Deletes of one requester within this time count together, so that many small ones need an approval too."""
    approval_expires: Duration = timedelta(days=3)
    """How long a delete waits for its approval; then it fails, and nothing is deleted."""

    archived_counts: bool = False
    """An archived copy, which has to be restored before it can be read, may be the last good one."""


class BatchSettings(Section):
    """How batch jobs plan."""

    in_flight: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Most jobs of one batch that wait or run at a time; a batch may name another number."""
    step: Duration = timedelta(seconds=1)
    """How often a batch counts the ended jobs and sends as many more. It occupies no process in between."""


class PageSettings(Section):
    """How much of a batch or sweep one job does at once."""

    objects: Annotated[int, Field(ge=1, le=1000)] = 500
    """Most objects of a page."""
    size: Annotated[Size, Field(ge=1)] = ByteSize(1 << 30)
    """Most bytes of a page."""
    large: Annotated[Size, Field(ge=1)] = ByteSize(64 << 20)
    """Objects that have more bytes are jobs of their own."""
    threads: Annotated[int, Field(ge=1, le=128)] = 16
    """Objects of one page that are worked on at a time.

    A page that verifies small objects in S3, Azure or Cloud Storage has requested up to eight times as many.
    """
    time: Duration = timedelta(minutes=5)
    """After which a page begins no further object: what is left of a sweep's page is due again, and a batch's page goes
    on behind the jobs that wait."""
    in_flight: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """Most pages of one store that `sweep verify`, `replicate` and `repair` each let wait or run at a time."""


class StoreLimits(Section):
    """The most that all workers together may ask of one store."""

    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Jobs that read from or write to the store at a time."""
    bytes_per_second: Annotated[Size, Field(ge=1024)] | None = None
    """Bytes that are read from and written to the store in a second, together."""
    local_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The part of both limits that one process uses while Redis does not answer; by default an equal part of all
    processes.
    """


class GatewaySettings(Section):
    """Limits of `zot-artifacts serve`, each for one process of it."""

    rate: Annotated[int, Field(ge=1)] = 100
    """Requests of one token in a second."""
    connections: Annotated[int, Field(ge=1)] = 512
    """Connections at a time."""
    downloads: Annotated[int, Field(ge=1, le=256)] = 16
    """Downloads at a time; each has at most two chunks of 16 MiB in memory."""
    max_upload: Annotated[Size, Field(ge=1)] = ByteSize(1 << 40)
    """Most bytes of one upload."""
    max_staged: Annotated[Size, Field(ge=1)] = ByteSize(4 << 40)
    """Most bytes of all uploads of one token that are not complete."""
    staging_store: str | None = None
    """A cloud store to which clients send bytes with signed URLs, past the gateway; without it, bytes go through it."""
    signed_for: Annotated[Duration, Field(ge=timedelta(minutes=1), le=timedelta(hours=12))] = timedelta(minutes=15)
    """How long a signed URL is valid; a client asks for new ones."""


class CacheSettings(Section):
    """The cache of chunks that `zot-artifacts cache` works on, which `ChunkCache` of the Python client made."""

    root: LocalPath | None = None
    """Its directory; `--root` names another one."""
    max_size: Annotated[Size, Field(ge=0)] = ByteSize(10 << 30)
    """Bytes of all chunks together; the least recently used go first."""
    min_free: Annotated[Size, Field(ge=0)] = ByteSize(1 << 30)
    """Bytes that stay free on its disk."""
    gateway: str | None = None
    """The URL of the gateway from which `cache warm` reads."""
    token: SecretStr | None = None
    """The token that it shows there, with the verb `read`."""

    @field_validator("gateway")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None:
            parse_endpoint(url, example="https://gateway.example:8484", credentials="the token belongs in cache.token")
        return url


class BreakerSettings(Section):
    """When the circuit breaker of a store opens, and for how long."""

    enabled: bool = True
    failures: Annotated[int, Field(ge=1)] = 5
    """Transient errors in a row, of all workers, within `within`; then the store's jobs are snoozed."""
    within: Duration = timedelta(minutes=1)
    open: Duration = timedelta(seconds=30)
    """Time until the first half-open probe of the store; doubles each time that the probe fails."""
    open_max: Duration = timedelta(minutes=10)
