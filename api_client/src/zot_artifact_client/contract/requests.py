"""The requests that the worker accepts: one model per kind of job, each sent as one JSON object."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from zot_artifact_client.globs import compiled
from zot_artifact_client.input_rules import check_number

STORE_NAME = re.compile(r"(?! )[\w .@+-]+(?<! )")
"""A name with a space at its end could not be given to `--store`, which takes several with commas between."""
_SIGNATURES = re.compile(r"(?i)(^|[-_])(sig|signature|token|credential|key|password|secret)$")


def _without_secrets(source: str) -> str:
    if "://" not in source:
        return source
    url = urlsplit(source)
    if url.username or url.password:
        msg = "a URL with a user or password in it is not accepted: messages carry no secrets"
        raise ValueError(msg)
    for name, _ in parse_qsl(url.query, keep_blank_values=True):
        if _SIGNATURES.search(name):
            msg = f"a URL with the parameter {name!r} is not accepted: messages carry no secrets"
            raise ValueError(msg)
    return source


def _no_url(path: str) -> str:
    if "://" in path:
        msg = "a file is expected, not a URL"
        raise ValueError(msg)
    return path


def _is_glob(text: str) -> str:
    compiled(text)
    return text


def _distinct(what: str) -> AfterValidator:
    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            msg = f"a {what} is named twice"
            raise ValueError(msg)
        return names

    return AfterValidator(check)


def _is_store_name(name: str) -> str:
    if not STORE_NAME.fullmatch(name):
        msg = "no store can have this name: letters, digits, . _ @ + - and spaces inside are expected"
        raise ValueError(msg)
    return name


Bucket = Annotated[str, StringConstraints(min_length=1, max_length=63)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]
Source = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_without_secrets)]
Verb = Literal["replicate", "verify", "delete", "adopt"]
BatchVerb = Literal["replicate", "verify", "delete", "adopt", "upload"]
PageVerb = Literal["replicate", "verify", "delete", "adopt", "upload"]
Symlinks = Literal["skip", "follow", "error"]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_is_glob)]
Globs = Annotated[tuple[Glob, ...], Field(max_length=100)]
StoreName = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_is_store_name)]
StoreNames = Annotated[tuple[StoreName, ...], Field(min_length=1, max_length=64), _distinct("store")]
Receiver = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Receivers = Annotated[tuple[Receiver, ...], Field(max_length=8), _distinct("webhook")]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


def _not_reserved(name: str) -> str:
    if name.lower().startswith("aws:"):
        msg = "the names of tags that begin with aws: are Amazon's"
        raise ValueError(msg)
    return name


_TAG = r"^[\p{L}\p{N} _.:/=+@-]*$"
Tags = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_TAG), AfterValidator(_not_reserved)],
        Annotated[str, StringConstraints(max_length=256, pattern=_TAG)],
    ],
    Field(max_length=10),
]
"""The tags of an object, as S3 has them."""
Header = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[!-~]([ -~]*[!-~])?$")]
"""The value of an HTTP header: printable ASCII without spaces at its ends."""
PROPERTIES = ("content_type", "content_encoding", "content_disposition", "content_language", "cache_control")
"""The fields of an upload that clouds keep beside the bytes, and send as headers to those who download them."""
COMPANION_SUFFIXES = (".sig", ".att", ".sbom", ".sigstore.json")
"""What tools such as cosign add to the key of an artifact for its companions, which need no `companion_of`."""


def with_properties(before: Mapping[str, str] | None, given: Mapping[str, str] | None) -> dict[str, str]:
    """Return the properties of the same bytes uploaded again: given headers replace all headers, given tags all tags.

    What is not given stays as it was before.
    """
    given, before = given or {}, before or {}
    headers = {name: value for name, value in given.items() if name != "tags"} or before
    tags = {"tags": found} if (found := given.get("tags") or before.get("tags")) else {}
    return {name: value for name, value in headers.items() if name != "tags"} | tags


class Message(BaseModel):
    """A request or a result, as one JSON object."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    _check_number = field_validator("*", mode="before")(check_number)

    @classmethod
    def read(cls, payload: object) -> Self:
        """Return the message that this JSON object is; raise pydantic's ValidationError if it is none."""
        return cls.model_validate(payload, strict=False)

    def payload(self) -> dict[str, object]:
        """Return the JSON object to send: without what has its default, so that older workers understand it."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Request(Message):
    """What every request names: one artifact."""

    bucket: Bucket
    key: Key
    notify: Receivers = ()
    """The webhooks, by their names in the worker's settings, that get the end of the job."""


class KeptBesideBytes(Message):
    """What every upload records with an artifact beside its bytes: metadata, headers, tags, and the storage class."""

    metadata: Metadata = {}
    storage_classes: dict[StoreName, Annotated[str, Field(min_length=1, max_length=64)]] = {}
    """The class or tier to use in single stores, by the name it has there, in place of the configured one."""
    content_type: Header | None = None
    content_encoding: Header | None = None
    content_disposition: Header | None = None
    content_language: Header | None = None
    cache_control: Header | None = None
    tags: Tags = {}
    """The tags to give the objects in stores that have tags; the catalogue keeps them for the others."""

    @property
    def properties(self) -> dict[str, str]:
        """Return what to keep beside the bytes: the headers by the names of these fields, and the tags as a query."""
        kept = {name: value for name in PROPERTIES if (value := getattr(self, name)) is not None}
        return kept | ({"tags": urlencode(sorted(self.tags.items()), quote_via=quote)} if self.tags else {})

    @property
    def beside_bytes(self) -> dict[str, object]:
        """Return these fields by name, those that are given: what another request takes over."""
        return {name: value for name in KeptBesideBytes.model_fields if (value := getattr(self, name))}


class UploadRequest(KeptBesideBytes, Request):
    """Write the bytes of a source under a key, to the named stores or to those of the placement rules."""

    source: Source
    """A file under one of the worker's configured roots, or an http(s) URL of a configured host."""
    sha256: Sha256 | None = None
    """The SHA-256 that the bytes must have; a source with other bytes fails the job."""
    stores: StoreNames | None = None
    staged: bool = False
    """The source is in the worker's staging directory and is removed when this job ends."""
    companion_of: Key | None = None
    """The key of the artifact of the same bucket that this one belongs to, as its signature or SBOM does."""


class ReplicateRequest(Request):
    """Copy an artifact to the named stores, from any copy whose bytes are right."""

    to: StoreNames


class VerifyRequest(Request):
    """Read all bytes of the copies in the named stores, or of all copies."""

    stores: StoreNames | None = None
    version: Annotated[int, Field(ge=1)] | None = None
    """The artifact version to verify; the current one by default."""


class EvidenceRequest(Request):
    """Compare what the stores say about the copies, without a read, with what was recorded at their write."""

    stores: StoreNames | None = None


class DeleteRequest(Request):
    """Delete the copies in the named stores, or the artifact everywhere."""

    stores: StoreNames | None = None
    allow_last: bool = False
    """Delete from the named stores even if no good copy remains elsewhere."""
    now: bool = False
    """Remove the bytes at once, although the settings of the worker keep them for some time."""
    by: Annotated[str, StringConstraints(max_length=500)] | None = None
    """Who deletes; it is recorded."""
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None


class AdoptRequest(Request):
    """Record an object that another program wrote into a store, unchanged, from one full read of it."""

    store: StoreName
    first_read: bool = False
    """Where no digest is kept beside the object: record the digest of this read. It does not show what the bytes were
    before.
    """
    sha256: Sha256 | None = None
    """The digest that the bytes must have, such as that of a `SHA256SUMS` file."""


class BatchRequest(KeptBesideBytes):
    """Do one verb to every artifact that a bucket or prefix has now, or to those that a file lists.

    To adopt: to every object that the store of `stores` lists there. A field that the verb does not use is an error.
    What is kept beside the bytes goes with upload, to every file.
    """

    verb: BatchVerb
    bucket: Bucket | None = None
    prefix: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Text that the keys begin with; it need not end at a slash."""
    keys_from: Annotated[Source, AfterValidator(_no_url)] | None = None
    """In place of a bucket: a file below one of the worker's roots, in UTF-8, with one `bucket/key` on each line.

    To upload: an upload list, with one JSON object (`bucket`, `key`, `path`, `size`, `mtime_ns`) on each line.
    To adopt, a line may be a JSON object, too: `bucket`, `key`, and if they are known `size` and `sha256`.
    """
    directory: Annotated[Source, AfterValidator(_no_url)] | None = None
    """To upload: a directory below one of the worker's roots; its files go to `bucket`, with `prefix` before paths."""
    include: Globs = ()
    """With directory: only files whose name, or with a slash in the pattern whose path in it, matches one of them."""
    exclude: Globs = ()
    """With directory: no files and directories that match one of them."""
    symlinks: Symlinks = "skip"
    """With directory: what to do with symbolic links."""
    dry_run: bool = False
    """With directory: count the files and their bytes, and upload nothing."""
    staged: bool = False
    """The file is in the worker's staging directory and is removed when this job ends."""
    to: StoreNames | None = None
    stores: StoreNames | None = None
    """To adopt: the one store that holds the objects."""
    allow_last: bool = False
    first_read: bool = False
    """To adopt, see `AdoptRequest`."""
    everything: bool = False
    """To delete from a bucket without a prefix."""
    by: Annotated[str, StringConstraints(max_length=500)] | None = None
    """Who deletes; it is recorded."""
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None
    """Why; it is recorded."""
    in_flight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """The most jobs of the batch that wait or run at a time; by default a setting of the worker."""
    notify: Receivers = ()
    """The webhooks, by their names in the worker's settings, that get the end of the batch."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for wrong, rule in self._rules():
            if wrong:
                raise ValueError(rule)
        return self

    def _rules(self) -> tuple[tuple[object, str], ...]:
        return (
            ((self.bucket is None) == (self.keys_from is None), "give either bucket or keys_from"),
            (self.prefix and self.bucket is None, "prefix goes with bucket"),
            (
                self.verb == "upload" and (self.keys_from is None) == (self.directory is None),
                "upload takes keys_from or directory",
            ),
            (self.directory is not None and self.verb != "upload", "directory goes with upload"),
            (self._filtered and self.directory is None, "include, exclude and symlinks go with directory"),
            (self.dry_run and self.directory is None, "dry_run goes with directory"),
            (self.staged and self.keys_from is None, "staged goes with keys_from"),
            ((self.to is None) == (self.verb == "replicate"), "to goes with replicate, and it has to have it"),
            (self.stores is not None and self.verb == "replicate", "stores goes with verify, delete, adopt and upload"),
            (self.verb == "adopt" and len(self.stores or ()) != 1, "adopt takes stores, with the name of one store"),
            (self.first_read and self.verb != "adopt", "first_read goes with adopt"),
            (self.allow_last and (self.verb != "delete" or self.stores is None), "allow_last goes with delete, stores"),
            (self.everything and not self._sweeping, "everything goes with delete and a bucket without a prefix"),
            (self._sweeping and not self.everything, "to delete from a whole bucket, say everything"),
            ((self.by or self.reason) and self.verb != "delete", "by and reason go with delete"),
            (self.beside_bytes and self.verb != "upload", "metadata, storage_classes, tags and headers go with upload"),
            (set(self.storage_classes) - set(self.stores or ()), "storage_classes goes with stores that it names"),
        )

    @property
    def _filtered(self) -> bool:
        return bool(self.include or self.exclude or self.symlinks != "skip")

    @property
    def _sweeping(self) -> bool:
        return self.verb == "delete" and self.bucket is not None and not self.prefix


class ClaimSelection(Message):
    """What a sweep has found in one store: copies that are due, which the worker that takes the page claims.

    To adopt: the orphans whose findings name the job of the page.
    """

    store: StoreName
    most: Annotated[int, Field(ge=1)] | None = None
    """Most copies that the page claims; by default a setting of the worker."""


class RangeSelection(Message):
    """The artifacts of a bucket with a prefix, after one key and up to another one."""

    bucket: Bucket
    prefix: Annotated[str, StringConstraints(max_length=1024)] = ""
    after: Annotated[str, StringConstraints(max_length=1024)] = ""
    """The page begins after this key."""
    until: Key
    """The last key of the page."""
    newest: Annotated[int, Field(ge=0)] | None = None
    """The newest artifact version that the catalogue had when the batch began; later ones are no part of it."""
    begun_at: AwareDatetime | None = None
    """In messages of earlier versions; nothing reads it. It is kept, because a job is known by its whole request."""


class LinesSelection(Message):
    """The lines of a file between two offsets in bytes."""

    file: Annotated[Source, AfterValidator(_no_url)]
    offset: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    tag: Annotated[str, StringConstraints(max_length=64)]
    """Tells whether the file was changed."""


class ListedSelection(Message):
    """Lines of the list that a batch has made of a directory, or to adopt of a store, by number: without `end`."""

    batch: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    begin: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]


class PageRequest(KeptBesideBytes):
    """Do one verb to all objects of a page: the part of a batch or sweep that one job does at once.

    The message names a selection, and never the objects. What is kept beside the bytes goes to every object of an
    upload.
    """

    verb: PageVerb
    claim: ClaimSelection | None = None
    range: RangeSelection | None = None
    lines: LinesSelection | None = None
    listed: ListedSelection | None = None
    to: StoreNames | None = None
    stores: StoreNames | None = None
    allow_last: bool = False
    first_read: bool = False
    by: Annotated[str, StringConstraints(max_length=500)] | None = None
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None

    @model_validator(mode="after")
    def _selects_once(self) -> Self:
        if [self.claim, self.range, self.lines, self.listed].count(None) != 3:  # noqa: PLR2004 - one of four is given
            msg = "give one of claim, range, lines and listed"
            raise ValueError(msg)
        if self.listed is not None and self.verb not in {"upload", "adopt"}:
            msg = "listed goes with upload and adopt"
            raise ValueError(msg)
        if self.verb == "adopt" and self.range is not None:
            msg = "adopt takes claim, lines or listed"
            raise ValueError(msg)
        return self


class SweepVerifyRequest(Message):
    """Verify the copies that are due, oldest attempt first; of one store, or of all."""

    store: StoreName | None = None


class _Scope(Message):
    store: StoreName | None = None
    bucket: Bucket | None = None
    prefix: Annotated[str, StringConstraints(max_length=1024)] = ""

    @model_validator(mode="after")
    def _prefix_has_a_bucket(self) -> Self:
        if self.prefix and self.bucket is None:
            msg = "prefix goes with bucket"
            raise ValueError(msg)
        return self


class SweepReplicateRequest(_Scope):
    """Write the copies that placement wants and that do not exist, in one store or in all."""


class SweepRepairRequest(_Scope):
    """Repair the copies that were found bad and that have a good copy elsewhere; of one store, or of all."""


class SweepLeftoversRequest(Message):
    """Remove the stale uploads and files of killed writers, in one store or in all."""

    store: StoreName | None = None


class SweepProbeRequest(Message):
    """Probe one store, or all."""

    store: StoreName | None = None


class _ListedScope(_Scope):
    inventory: Source | None = None
    """In place of the listing of `store`: the manifest of an inventory report of its provider.

    It is `STORE:BUCKET/KEY` of a configured store, a file below one of the worker's roots, or a URL of its hosts.
    """

    @model_validator(mode="after")
    def _inventory_has_a_store(self) -> Self:
        if self.inventory is not None and self.store is None:
            msg = "inventory goes with store"
            raise ValueError(msg)
        return self


class SweepReconcileRequest(_ListedScope):
    """Compare what one store lists, or all of them, with the catalogue: everything, or a bucket and a prefix."""


class SweepEvidenceRequest(_ListedScope):
    """Compare what one store says about its copies, or all of them, with what was recorded at their write."""

    source: Literal["listing", "stat"] | None = None
    """One listing for a bucket, or one request for each object; what the settings say by default."""


class SweepPurgeRequest(Message):
    """Remove the bytes of deleted artifacts whose grace period is over."""


class SweepAlarmsRequest(Message):
    """Tell the findings that changed, and deliver the alarms that wait."""


class SweepWebhooksRequest(Message):
    """Deliver the ends of jobs to the webhooks that their requests name."""


class SweepReportRequest(Message):
    """Write the report to the store that the settings name."""


class SweepCanaryRequest(Message):
    """Check the canaries of one store, or of all, and damage the next ones."""

    store: StoreName | None = None


class SweepBackupRequest(Message):
    """Write a backup of the catalogue to one store, or to those of the settings."""

    store: StoreName | None = None


class SweepRecoverRequest(Message):
    """Send again the jobs without a heartbeat."""
