"""Run requests as the worker does, in memory, for the client in `testing`."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zot_artifact_client.contract import (
    ADOPT,
    COMPANION_SUFFIXES,
    DELETE,
    MAX_CHUNKS,
    REPLICATE,
    UPLOAD,
    VERIFY,
    AdoptRequest,
    AdoptResult,
    ArtifactInfo,
    BatchFailure,
    BatchRequest,
    BatchResult,
    CopyInfo,
    CopyVerdict,
    DeletedCopy,
    DeleteRequest,
    DeleteResult,
    ListRequest,
    ListResult,
    ManifestPart,
    PlacedCopy,
    ReplicateRequest,
    ReplicateResult,
    Request,
    ShowRequest,
    ShowResult,
    SweepVerifyRequest,
    SweepVerifyResult,
    TaskSpec,
    UploadRequest,
    UploadResult,
    VerifyRequest,
    VerifyResult,
    with_properties,
)
from zot_artifact_client.errors import ArtifactChanged, JobFailed, NoGoodCopy
from zot_artifact_client.globs import selector
from zot_artifact_client.input_rules import unique_names
from zot_artifact_client.key_rules import broken_bucket_rule, broken_key_rule

CHUNK = 16 * 1024 * 1024
"""Bytes of a chunk."""
_A_LINK = "it is a symbolic link; see --symlinks"
_BAD = ("corrupt", "size_mismatch", "missing")
_WORST_FIRST = (*_BAD, "verified", "repaired", "stored", "already_there", "deleted", "already_gone")


@dataclass(frozen=True, slots=True)
class _Version:
    """One content of an artifact, with what is kept beside it."""

    body: bytes
    metadata: dict[str, str]
    properties: dict[str, str]
    created_at: datetime

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


@dataclass(slots=True)
class _Artifact:
    """All versions, the last one being current, and the copies there should be of that, by store."""

    versions: list[_Version] = field(default_factory=list)
    copies: dict[str, CopyInfo] = field(default_factory=dict)
    deleted: bool = False

    @property
    def present(self) -> bool:
        """Return whether it is an artifact now: one without copies is, until it is deleted."""
        return bool(self.versions) and not self.deleted

    def facts(self, bucket: str, key: str) -> dict[str, Any]:
        current = self.versions[-1]
        return {
            "bucket": bucket, "key": key, "version": len(self.versions), "size": len(current.body),
            "sha256": current.sha256,
        }  # fmt: skip

    def info(self, bucket: str, key: str) -> ArtifactInfo:
        return ArtifactInfo(**self.facts(bucket, key), created_at=self.versions[-1].created_at)

    def stored(self, store: str) -> None:
        """Record a copy that was written and not read."""
        self.copies[store] = CopyInfo(store=store, state="stored")

    def read(self, store: str, verdict: str) -> None:
        """Record the verdict on a copy."""
        now, before = datetime.now(UTC), self.copies[store].last_verified_at
        verified_at = now if verdict == "verified" else before
        self.copies[store] = CopyInfo(store=store, state=verdict, last_verified_at=verified_at, last_attempt_at=now)


class InMemoryWorker:
    """The stores as dictionaries, the versions of the artifacts in them, and the verbs."""

    def __init__(self, stores: Iterable[str], sources: Mapping[str, bytes]) -> None:
        self.stores: dict[str, dict[tuple[str, str], bytes]] = {name: {} for name in stores}
        self._sources = dict(sources)
        self._artifacts: dict[tuple[str, str], _Artifact] = {}
        self._kept: dict[tuple[str, str, str], str] = {}
        self._companion_of: dict[tuple[str, str], str] = {}

    def put(self, store: str, bucket: str, key: str, body: bytes, sha256: str | None) -> None:
        """Put an object into a store, with the digest that its writer kept beside it."""
        self.stores[store][bucket, key] = body
        if sha256 is not None:
            self._kept[store, bucket, key] = sha256

    def stage(self, sha256: str, body: bytes) -> str:
        """Keep the bytes of a file that is sent, and return the source that an upload of them names."""
        source = f"/staging/{sha256}/source"
        self._sources[source] = body
        return source

    def run(self, spec: TaskSpec[Any, Any], request: Any) -> object:
        """Run a request and return its result as JSON. Raise JobFailed."""
        verbs: dict[str, Callable[[Any], Any]] = {
            "upload": self._upload,
            "replicate": self._replicate,
            "verify": self._verify,
            "delete": self._delete,
            "adopt": self._adopt,
            "batch": self._batch,
            "sweep.verify": self._sweep_verify,
        }
        return verbs[spec.kind](request).model_dump(mode="json")

    def show(self, request: ShowRequest) -> ShowResult:
        """Answer a query for one artifact. Raise JobFailed."""
        artifact = self._artifact(request)
        current = artifact.versions[-1]
        return ShowResult(
            **artifact.info(request.bucket, request.key).model_dump(),
            metadata=current.metadata,
            properties=current.properties,
            copies=tuple(artifact.copies[store] for store in sorted(artifact.copies)),
            companions=tuple(self._companions(request.bucket, request.key)),
            companion_of=self._owner(request.bucket, request.key),
            manifest=_manifest(current.body, request.chunks_from),
        )

    def chunk(self, shown: ShowResult, number: int) -> bytes:
        """Return a chunk of an artifact as it was shown, from a good copy. Raise ArtifactChanged, NoGoodCopy."""
        request = Request(bucket=shown.bucket, key=shown.key)
        artifact = self._artifacts[shown.bucket, shown.key]
        if not artifact.present or artifact.versions[-1].sha256 != shown.sha256:
            raise ArtifactChanged(f"{shown.bucket}/{shown.key} has other bytes now: open it again")
        if not any(self._verdict(request, artifact, store) == "verified" for store in artifact.copies):
            stores = ", ".join(sorted(artifact.copies))
            raise NoGoodCopy(f"{shown.bucket}/{shown.key}: no copy is right: {stores}")
        return artifact.versions[-1].body[number * CHUNK : (number + 1) * CHUNK]

    def list(self, request: ListRequest) -> ListResult:
        """Answer a query for the artifacts of a bucket."""
        found = self._below(request.bucket, request.prefix)
        keys = [path for path in found if path[1] > request.after]
        taken = tuple(self._artifacts[path].info(*path) for path in keys[: request.limit])
        return ListResult(artifacts=taken, next=taken[-1].key if taken and len(taken) < len(keys) else None)

    def _upload(self, request: UploadRequest) -> UploadResult:
        _check_key(request.bucket, request.key)
        body = self._read(request.source)
        sha256 = hashlib.sha256(body).hexdigest()
        if request.sha256 not in {None, sha256}:
            msg = f"{request.source} has the SHA-256 {sha256}, expected {request.sha256}"
            raise JobFailed(msg, "DigestMismatch")
        targets = self._known(request.stores or tuple(self.stores))
        if elsewhere := sorted(set(request.storage_classes) - set(targets)):
            msg = f"storage_classes names {elsewhere[0]!r}, which the upload does not go to"
            raise JobFailed(msg, "UnknownStore")
        if request.companion_of is not None:
            self._name_companion(request, request.companion_of)
        artifact = self._artifacts.setdefault((request.bucket, request.key), _Artifact())
        before = artifact.versions[-1] if artifact.present else None
        same_bytes = before is not None and before.body == body
        metadata = dict(request.metadata) or (before.metadata if before and same_bytes else {})
        properties = with_properties(before.properties if before and same_bytes else None, request.properties)
        if before is None or not same_bytes or (before.metadata, before.properties) != (metadata, properties):
            self._drop(request, artifact.copies)
            artifact.versions.append(_Version(body, metadata, properties, datetime.now(UTC)))
            artifact.copies.clear()
            artifact.deleted = False
        copies = tuple(self._place(request, artifact, store, body, None) for store in targets)
        return UploadResult(
            **artifact.facts(request.bucket, request.key), unchanged=_nothing_done(copies), copies=copies
        )

    def _name_companion(self, request: UploadRequest, of: str) -> None:
        bucket, key = request.bucket, request.key
        self._artifact(Request(bucket=bucket, key=of))
        if of == key or self._companion_of.get((bucket, key), of) != of or (bucket, of) in self._companion_of:
            raise JobFailed(f"{bucket}/{key} cannot be a companion of {of}", "WrongCompanion")
        self._companion_of[bucket, key] = of

    def _owner(self, bucket: str, key: str) -> str | None:
        """Return the key of the artifact that one belongs to, as it was named or by the one or two ends of its key."""
        named = self._companion_of.get((bucket, key))
        if named is None:
            bases = {base for one in _without_suffix(key) for base in (one, *_without_suffix(one))}
            above = {self._companion_of[bucket, base] for base in bases if (bucket, base) in self._companion_of}
            owners = sorted(bases | above, key=len)
        else:
            owners = [named]
        return next((each for each in owners if self._artifacts.get((bucket, each), _Artifact()).present), None)

    def _companions(self, bucket: str, key: str) -> Sequence[str]:
        return [each for _, each in self._below(bucket, "") if self._owner(bucket, each) == key]

    def _replicate(self, request: ReplicateRequest) -> ReplicateResult:
        artifact = self._artifact(request)
        targets = self._known(request.to)
        good = [store for store in sorted(artifact.copies) if self._verdict(request, artifact, store) == "verified"]
        if not good:
            msg = f"no copy of {request.bucket}/{request.key} matches its SHA-256: {', '.join(sorted(artifact.copies))}"
            raise JobFailed(msg, "DigestMismatch")
        body = self.stores[good[0]][request.bucket, request.key]
        copies = tuple(self._place(request, artifact, store, body, good[0]) for store in targets)
        return ReplicateResult(
            **artifact.facts(request.bucket, request.key), unchanged=_nothing_done(copies), copies=copies
        )

    def _verify(self, request: VerifyRequest) -> VerifyResult:
        artifact = self._artifact(request)
        if request.version not in {None, len(artifact.versions)}:
            msg = f"{request.bucket}/{request.key} has no version {request.version} here: only the current one is kept"
            raise JobFailed(msg, "NotFound")
        stores = self._known(request.stores or tuple(sorted(artifact.copies)))
        if absent := sorted(set(stores) - set(artifact.copies)):
            where = ", ".join(sorted(artifact.copies)) or "no store"
            raise JobFailed(
                f"{request.bucket}/{request.key} has no copy in {absent[0]!r}; it has one in: {where}", "NotFound"
            )
        copies = tuple(self._read_copy(request, artifact, store) for store in stores)
        return VerifyResult(**artifact.facts(request.bucket, request.key), copies=copies)

    def _delete(self, request: DeleteRequest) -> DeleteResult:
        """Delete an artifact; one that is deleted everywhere takes its companions with it."""
        if request.stores is not None:
            return self._delete_one(request)
        present = self._artifacts.get((request.bucket, request.key), _Artifact()).present
        companions = tuple(self._companions(request.bucket, request.key)) if present else ()
        for each in companions:
            self._delete_one(request.model_copy(update={"key": each}))
        return self._delete_one(request).model_copy(update={"companions": companions})

    def _delete_one(self, request: DeleteRequest) -> DeleteResult:
        artifact = self._artifacts.get((request.bucket, request.key), _Artifact())
        everywhere = request.stores is None
        if not artifact.versions:
            raise JobFailed(f"{request.bucket}/{request.key} was never an artifact", "NotFound")
        targets = self._known(request.stores or tuple(sorted(artifact.copies)))
        rest = artifact.copies.keys() - set(targets)
        if not (everywhere or request.allow_last or not artifact.copies.keys() & set(targets)) and not any(
            self._verdict(request, artifact, store) == "verified" for store in rest
        ):
            msg = f"this would delete the last good copy of {request.bucket}/{request.key}: say allow_last to do it"
            raise JobFailed(msg, "LastCopy")
        gone = tuple(
            DeletedCopy(store=store, outcome="deleted" if store in artifact.copies else "already_gone")
            for store in targets
        )
        self._drop(request, targets)
        for store in targets:
            artifact.copies.pop(store, None)
        before, artifact.deleted = artifact.deleted, artifact.deleted or everywhere
        return DeleteResult(
            bucket=request.bucket,
            key=request.key,
            everywhere=everywhere,
            unchanged=artifact.deleted == before and all(copy.outcome == "already_gone" for copy in gone),
            copies=gone,
        )

    def _adopt(self, request: AdoptRequest) -> AdoptResult:
        [store] = self._known((request.store,))
        path = f"{request.bucket}/{request.key}"
        body = self.stores[store].get((request.bucket, request.key))
        if body is None:
            raise JobFailed(f"{store}: {path} is not there", "NotFound")
        sha256, kept = hashlib.sha256(body).hexdigest(), self._kept.get((store, request.bucket, request.key))
        artifact = self._artifacts.get((request.bucket, request.key)) or _Artifact()
        known = artifact.versions[-1].sha256 if artifact.present else None
        if kept not in {None, sha256}:
            raise JobFailed(
                f"{store}: {path} has the SHA-256 {sha256}, not the {kept} that is kept beside it", "DigestMismatch"
            )
        if request.sha256 not in {None, sha256}:
            raise JobFailed(
                f"{store}: {path} has the SHA-256 {sha256}, not the requested {request.sha256}", "DigestMismatch"
            )
        if known not in {None, sha256}:
            raise JobFailed(f"{store}: {path} has the SHA-256 {sha256}, not the recorded {known}", "OtherContent")
        if kept is known is request.sha256 is None and not request.first_read:
            raise JobFailed(f"{store}: {path} has no digest to compare its bytes with", "Unverifiable")
        after_delete = known is None and bool(artifact.versions)
        if known is None:
            artifact.versions.append(_Version(body, {}, {}, datetime.now(UTC)))
            artifact.deleted = False
        self._artifacts[request.bucket, request.key] = artifact
        unchanged = store in artifact.copies
        if not unchanged:
            artifact.stored(store)
            artifact.read(store, "verified")
        compared = {"kept by the store": kept, "of the request": request.sha256, "in the catalogue": known}
        evidence = next((f"sha256 {name}" for name, digest in compared.items() if digest), "first read")
        return AdoptResult(
            **artifact.facts(request.bucket, request.key), store=store, evidence=evidence, unchanged=unchanged,
            after_delete=after_delete,
        )  # fmt: skip

    def _batch(self, request: BatchRequest) -> BatchResult:
        self._known(request.to or request.stores or ())
        if request.verb == UPLOAD.kind:
            return self._upload_directory(request)
        if request.verb == ADOPT.kind:
            return self._adopt_all(request)
        paths = self._listed(request.keys_from) if request.keys_from else self._below(request.bucket, request.prefix)
        if not paths and request.verb != DELETE.kind:
            raise JobFailed(f"{request.keys_from or request.bucket}: there is no artifact there", "NotFound")
        found = self._artifacts
        size = sum(len(found[path].versions[-1].body) for path in paths if path in found and found[path].present)
        outcomes = [(path, *self._one_of(request, *path)) for path in paths]
        failures = tuple(
            BatchFailure(job="", bucket=path[0], key=path[1], outcome=outcome, message=message)
            for path, outcome, message in outcomes
            if message is not None
        )
        counts = dict(Counter(outcome for _, outcome, _ in outcomes))
        return BatchResult(
            verb=request.verb, objects=len(paths), bytes=size, outcomes=counts, failed=len(failures), failures=failures
        )

    def _adopt_all(self, request: BatchRequest) -> BatchResult:
        """Adopt the objects that a store has below a prefix, or that a list names."""
        store = (request.stores or ("",))[0]
        if request.keys_from is None:
            wanted = [
                {"bucket": bucket, "key": key}
                for bucket, key in sorted(self.stores[store])
                if bucket == request.bucket and key.startswith(request.prefix)
            ]
        else:
            lines = [line for line in self._read(request.keys_from).decode("utf-8-sig").splitlines() if line]
            named = [
                json.loads(line, object_pairs_hook=unique_names) if line.startswith("{") else _path_of(line)
                for line in lines
            ]
            wanted = [{name: row[name] for name in ("bucket", "key", "sha256") if row.get(name)} for row in named]
        if not wanted:
            raise JobFailed(f"{store}: there is no object below {request.bucket}/{request.prefix}", "NotFound")
        size, counts, failures = 0, Counter[str](), list[BatchFailure]()
        for row in wanted:
            asked = ADOPT.request.read({**row, "store": store, "first_read": request.first_read})
            try:
                done: Any = self.run(ADOPT, asked)
            except JobFailed as error:
                counts[error.type] += 1
                size += len(self.stores[store].get((asked.bucket, asked.key), b""))
                failures.append(
                    BatchFailure(job="", bucket=asked.bucket, key=asked.key, outcome=error.type, message=error.message)
                )
                continue
            size += done["size"]
            new = "adopted_after_delete" if done["after_delete"] else "adopted"
            counts["already_there" if done["unchanged"] else new] += 1
        return BatchResult(
            verb="adopt", objects=counts.total(), bytes=size, outcomes=dict(counts), failed=len(failures),
            failures=tuple(failures),
        )  # fmt: skip

    def _upload_directory(self, request: BatchRequest) -> BatchResult:
        """Upload the files of a directory, or with `dry_run` count them."""
        if request.directory is None:
            raise JobFailed(f"{request.keys_from}: upload lists need a real worker", "SourceRefused")
        files, refused = _files_below(request.directory, request)
        size, counts = 0, Counter[str]({"failed": len(refused)} if refused else {})
        for below, path in files:
            if request.dry_run:
                size += path.stat().st_size
                counts["would_upload"] += 1
                continue
            wanted = UPLOAD.request.read(
                {"bucket": request.bucket, "key": request.prefix + below, "source": str(path.absolute()),
                 **request.model_dump(include={"stores"}, exclude_none=True), **request.beside_bytes}
            )  # fmt: skip
            done: Any = self.run(UPLOAD, wanted)
            size += done["size"]
            counts["already_there" if done["unchanged"] else "stored"] += 1
        if not counts:
            raise JobFailed(f"{request.directory}: there is no file there to upload", "NotFound")
        failures = tuple(
            BatchFailure(job="", bucket=str(request.bucket), key=below, outcome="failed", message=_A_LINK)
            for below in refused
        )
        return BatchResult(
            verb="upload", objects=counts.total(), bytes=size, outcomes=dict(counts),
            failed=len(failures), failures=failures,
        )  # fmt: skip

    def _below(self, bucket: str | None, prefix: str) -> Sequence[tuple[str, str]]:
        below = (path for path, artifact in self._artifacts.items() if artifact.present and path[0] == bucket)
        return sorted(path for path in below if path[1].startswith(prefix))

    def _listed(self, source: str) -> Sequence[tuple[str, str]]:
        lines = [line for line in self._read(source).decode("utf-8-sig").splitlines() if line]
        paths = [(bucket, key) for bucket, _, key in (line.partition("/") for line in lines)]
        bad = [number for number, (bucket, key) in enumerate(paths, 1) if not (bucket and key)]
        if bad:
            raise JobFailed(f"{source}: nothing was done, line {bad[0]} names no artifact", "BadKeyList")
        return paths

    def _one_of(self, batch: BatchRequest, bucket: str, key: str) -> tuple[str, str | None]:
        """Do the verb to one object of a batch; return its outcome, and the error if it failed."""
        asked = batch.model_dump(include={"to", "stores", "allow_last"}, exclude_none=True)
        spec = next(spec for spec in (REPLICATE, VERIFY, DELETE) if spec.kind == batch.verb)
        fields = {name: value for name, value in asked.items() if name in spec.request.model_fields}
        try:
            done: Any = self.run(spec, spec.request.read({"bucket": bucket, "key": key, **fields}))
        except JobFailed as error:
            return error.state, error.message
        words = [copy.get("verdict") or copy["outcome"] for copy in done["copies"]]
        if not words and spec is VERIFY:
            return "missing", "it has no copy in any store"
        worst = next((word for word in _WORST_FIRST if word in words), "already_gone")
        return worst, worst if worst in _BAD else None

    def _sweep_verify(self, request: SweepVerifyRequest) -> SweepVerifyResult:
        stores = self._known((request.store,) if request.store else tuple(self.stores))
        copies = [store for artifact in self._artifacts.values() for store in artifact.copies]
        return SweepVerifyResult(claimed={store: copies.count(store) for store in stores})

    def _read(self, source: str) -> bytes:
        if source in self._sources:
            return self._sources[source]
        if not Path(source).is_absolute():
            raise JobFailed(f"source {source!r}: give an absolute path", "SourceRefused")
        try:
            return Path(source).read_bytes()
        except IsADirectoryError:
            raise JobFailed(f"source {source}: it is a directory", "SourceRefused") from None
        except OSError as error:
            raise JobFailed(f"{source} cannot be read: {error.strerror}", "NotFound") from None

    def _known(self, stores: tuple[str, ...]) -> tuple[str, ...]:
        for store in stores:
            if store not in self.stores:
                raise JobFailed(f"no store {store!r}; there are {', '.join(self.stores)}", "UnknownStore")
        return stores

    def _artifact(self, request: Request) -> _Artifact:
        artifact = self._artifacts.get((request.bucket, request.key))
        if artifact is None or not artifact.present:
            raise JobFailed(f"no artifact {request.bucket}/{request.key}", "NotFound")
        return artifact

    def _drop(self, request: Request, stores: Iterable[str]) -> None:
        for store in stores:
            self.stores[store].pop((request.bucket, request.key), None)

    def _place(self, request: Request, artifact: _Artifact, store: str, body: bytes, source: str | None) -> PlacedCopy:
        verdict = self._verdict(request, artifact, store)
        known = store in artifact.copies
        if verdict == "verified":
            if not known:
                artifact.stored(store)
            return PlacedCopy(store=store, outcome="already_there")
        self.stores[store][request.bucket, request.key] = body
        artifact.stored(store)
        return PlacedCopy(store=store, outcome="repaired" if known else "stored", source=source)

    def _read_copy(self, request: Request, artifact: _Artifact, store: str) -> CopyVerdict:
        body = self.stores[store].get((request.bucket, request.key))
        read = None if body is None else hashlib.sha256(body).hexdigest()
        verdict = self._verdict(request, artifact, store)
        artifact.read(store, verdict)
        return CopyVerdict(store=store, verdict=verdict, sha256=read)

    def _verdict(self, request: Request, artifact: _Artifact, store: str) -> str:
        body = self.stores[store].get((request.bucket, request.key))
        recorded = artifact.versions[-1].body
        if body is None:
            return "missing"
        if len(body) != len(recorded):
            return "size_mismatch"
        return "verified" if body == recorded else "corrupt"


def _check_key(bucket: str, key: str) -> None:
    """Return if an artifact may have this key. Raise JobFailed."""
    if rule := broken_bucket_rule(bucket):
        raise JobFailed(f"bucket {bucket!r} is not allowed: {rule}", "InvalidKey")
    if rule := broken_key_rule(bucket, key):
        raise JobFailed(f"key {key!r} is not allowed: {rule}", "InvalidKey")


def _without_suffix(key: str) -> list[str]:
    return [key.removesuffix(end) for end in COMPANION_SUFFIXES if key.endswith(end)]


def _path_of(line: str) -> dict[str, str]:
    bucket, _, key = line.partition("/")
    return {"bucket": bucket, "key": key}


def _manifest(body: bytes, first: int | None) -> ManifestPart | None:
    if first is None or not body:
        return None
    digests = [hashlib.sha256(body[at : at + CHUNK]).hexdigest() for at in range(0, len(body), CHUNK)]
    part = tuple(digests[first : first + MAX_CHUNKS])
    return ManifestPart(chunk_size=CHUNK, total=len(digests), first=first, sha256=part)


def _nothing_done(copies: tuple[PlacedCopy, ...]) -> bool:
    return all(copy.outcome == "already_there" for copy in copies)


def _files_below(directory: str, request: BatchRequest) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return the files to upload, each with its path in the directory, and the symbolic links that are refused."""
    files, refused = [], []
    wants = selector(request.include, request.exclude)
    for at, directories, names in os.walk(directory, followlinks=request.symlinks == "follow"):
        for name in sorted([*directories, *names]):
            path = Path(at) / name
            below = path.relative_to(directory).as_posix()
            if path.is_symlink() and request.symlinks == "error":
                refused.append(below)
            elif path.is_file() and (request.symlinks == "follow" or not path.is_symlink()) and wants(below):
                files.append((below, path))
    return sorted(files), sorted(refused)
