"""The headers beside the bytes are part of an artifact: recorded, carried and restored."""

import dataclasses
import io
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore.awsrequest import AWSResponse

from tasks.adopt import adopt
from tasks.batch_jobs import ObjectJob, new_item
from tasks.delete import delete
from tasks.page import page
from tasks.plan_listed_pages import next_listed_pages
from tasks.replicate import replicate
from tasks.upload import upload
from tests.conformance import targets
from tests.conformance.targets import s3_client, s3_config
from worker import clock
from worker.artifacts import batch_lists
from worker.artifacts.batch_lists import ListedFile
from worker.context import Context
from worker.storage import Stores
from worker.storage.cloud.object_tags import encode_tags
from worker.storage.driver import ObjectProperties
from zot_artifact_client.contract import (
    AdoptRequest,
    BatchRequest,
    DeleteRequest,
    LinesSelection,
    PageRequest,
    ReplicateRequest,
    UploadRequest,
)

PROPERTIES = {
    "content_type": "text/html; charset=utf-8",
    "content_encoding": "identity",
    "content_disposition": 'attachment; filename="page.html"',
    "content_language": "de",
    "cache_control": "max-age=60",
}
HEADERS = {
    "ContentType": PROPERTIES["content_type"],
    "ContentEncoding": PROPERTIES["content_encoding"],
    "ContentDisposition": PROPERTIES["content_disposition"],
    "ContentLanguage": PROPERTIES["content_language"],
    "CacheControl": PROPERTIES["cache_control"],
}


@pytest.fixture
def cloud(ministack):
    client = s3_client(ministack)
    config = s3_config(ministack)
    client.create_bucket(Bucket=config.bucket)
    return client, config


@pytest.fixture
def with_cloud(run, context: Context, settings, cloud):
    """Run a verb on the directories and on a bucket of S3."""
    wide = dataclasses.replace(context, stores=Stores({**settings.stores, "cloud": cloud[1]}))
    yield lambda work, request: run(work, request, context=wide)
    wide.stores.close()


def head(cloud, key="page.html"):
    client, config = cloud
    answer = client.head_object(Bucket=config.bucket, Key=f"releases/{key}")
    return {name: answer.get(name) for name in HEADERS}


def test_properties_are_recorded_carried_and_restored(with_cloud, context, source, cloud):
    """What an upload names is in the catalogue and in S3, and comes back there from a copy in a directory."""
    wish = UploadRequest(bucket="releases", key="page.html", source=source(b"<html>"), stores=("primary", "cloud"))
    result = with_cloud(upload, wish.model_copy(update=PROPERTIES))

    assert head(cloud) == HEADERS
    assert context.catalogue.artifacts.current("releases", "page.html").properties == PROPERTIES
    assert {copy.store: copy.not_kept for copy in result.copies} == {"primary": tuple(sorted(PROPERTIES)), "cloud": ()}

    with_cloud(delete, DeleteRequest(bucket="releases", key="page.html", stores=("cloud",)))
    with_cloud(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("cloud",)))
    assert head(cloud) == HEADERS

    client, config = cloud
    client.put_object(Bucket=config.bucket, Key="releases/page.html", Body=b"<h")
    with_cloud(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("cloud",)))
    assert head(cloud) == HEADERS, "repaired with its headers"


def test_properties_of_an_adopted_object_are_its_own(with_cloud, context, cloud):
    """Adopting an object records the headers that its store keeps."""
    client, config = cloud
    client.put_object(
        Bucket=config.bucket, Key="releases/page.html", Body=b"<html>", ChecksumAlgorithm="SHA256", **HEADERS
    )
    with_cloud(adopt, AdoptRequest(bucket="releases", key="page.html", store="cloud"))
    assert context.catalogue.artifacts.current("releases", "page.html").properties == PROPERTIES


def test_what_a_target_cannot_hold_is_told_and_the_rest_is_carried(with_cloud, context, source, cloud):
    """S3 keeps 2 KB of metadata and ASCII headers; what was adopted from another cloud may be more of both."""
    with_cloud(upload, UploadRequest(bucket="releases", key="page.html", source=source(b"<html>"), stores=("primary",)))
    before, catalogue = context.catalogue.artifact("releases", "page.html"), context.catalogue
    metadata = {"origin": "build 7"} | {f"note_{number}": "é" * 100 for number in range(8)}
    properties = PROPERTIES | {"content_disposition": 'attachment; filename="é"'}
    made = catalogue.artifacts.record(
        "releases", "page.html", before.digest, metadata, clock.now(), properties=properties, stores=["primary"],
        replaces_headers=True,
    ).artifact  # fmt: skip
    old = catalogue.artifacts.copies(before)["primary"]
    catalogue.artifacts.finish_copy(made, "primary", tag=old.tag, evidence={}, now=clock.now())

    (copy,) = with_cloud(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("cloud",))).copies
    assert (copy.outcome, copy.not_kept) == ("stored", ("content_disposition", "some metadata"))
    client, config = cloud
    kept = client.head_object(Bucket=config.bucket, Key="releases/page.html")["Metadata"]
    assert {"origin", "note_0", "note_1", "note_2"} <= set(kept)
    assert "note_3" not in kept
    assert head(cloud) == HEADERS | {"ContentDisposition": None}


def test_the_files_of_a_directory_get_what_one_upload_would_give(with_cloud, context, source_root, cloud):
    """A page gives each file the metadata, headers, tags and storage class of its request.

    Other metadata, headers or tags are a new version.
    """
    path = source_root / "page.html"
    path.write_bytes(b"<html>")
    found = path.stat()
    line = ListedFile("releases", "page.html", str(path), found.st_size, found.st_mtime_ns).line()
    (source_root / "list").write_bytes(line)
    tag = batch_lists.check(str(source_root / "list"), ListedFile, context.settings, lambda: None, job="page").tag
    lines = LinesSelection(file=str(source_root / "list"), offset=0, end=len(line), tag=tag)
    shared = {"verb": "upload", "lines": lines, "stores": ("primary", "cloud")}
    given = {"metadata": {"build": "7"}, "tags": {"team": "core"}, **PROPERTIES}
    given["storage_classes"] = {"cloud": "STANDARD_IA"}

    placed = with_cloud(page, PageRequest.read(shared | given))
    assert placed.not_kept == {"primary": tuple(sorted([*PROPERTIES, "tags", "metadata"]))}
    client, config = cloud
    where = {"Bucket": config.bucket, "Key": "releases/page.html"}
    assert head(cloud) == HEADERS
    found = client.head_object(**where)
    assert (found["Metadata"]["build"], found["StorageClass"]) == ("7", "STANDARD_IA")
    assert client.get_object_tagging(**where)["TagSet"] == [{"Key": "team", "Value": "core"}]

    again = with_cloud(page, PageRequest.read(shared | given))
    assert again.not_kept == placed.not_kept
    plain = with_cloud(page, PageRequest.read(shared))
    assert plain.not_kept == {}
    assert again.outcomes == plain.outcomes == {"already_there": 1}
    with_cloud(page, PageRequest.read(shared | {"tags": {"team": "ops"}}))
    artifact = context.catalogue.artifacts.current("releases", "page.html")
    assert (artifact.version, artifact.metadata) == (2, {"build": "7"})
    assert artifact.properties == {**PROPERTIES, "tags": "team=ops"}, "only the tags were given, and replaced"
    assert client.get_object_tagging(**where)["TagSet"] == [{"Key": "team", "Value": "ops"}]
    assert head(cloud) == HEADERS
    assert {copy.state.good for copy in context.catalogue.artifacts.copies(artifact).values()} == {True}


def test_the_pages_and_jobs_of_a_batch_carry_what_it_gives(context, source_root):
    """A page and the job of a file that leaves it name the metadata, headers and tags of the batch."""
    (source_root / "list").write_bytes(ListedFile("releases", "k", str(source_root / "list"), 1, 1).line())
    given = {"metadata": {"build": "7"}, "tags": {"team": "core"}, "content_type": "text/plain"}
    request = BatchRequest.read({"verb": "upload", "keys_from": str(source_root / "list"), **given})
    tag = batch_lists.check(str(source_root / "list"), ListedFile, context.settings, lambda: None, job="batch").tag
    cursor = {"file": str(source_root / "list"), "offset": 0, "tag": tag}
    before = context.catalogue.batches.begin("batch", cursor, total=1, total_bytes=1, now=clock.now())
    [planned] = next_listed_pages(request, context, before, 1).jobs
    single = new_item(request, before, 1, ObjectJob("releases", "k", 1, "/in/k"))
    for payload in (planned.request.payload(), single.request):
        assert payload | given == payload


def test_a_message_without_properties_is_the_one_of_before(source):
    """Older workers understand an upload that names no property, and newer ones know it as having none."""
    plain = UploadRequest(bucket="releases", key="page.html", source="/in/page.html")
    assert not set(plain.payload()) & set(PROPERTIES)
    assert plain.properties == {}


@pytest.mark.parametrize("value", ["", " x", "x\r\ny: z", "\u00e4", "x" * 513])
def test_what_is_no_header_is_refused(value):
    """A value that could not be sent as a header is no valid request."""
    with pytest.raises(ValueError, match="content_type"):
        UploadRequest(bucket="releases", key="page.html", source="/in/page.html", content_type=value)


def test_the_same_bytes_with_other_headers_are_a_new_version(with_cloud, context, source, cloud):
    """The last upload wins: what it names replaces what was there, and what it leaves out is kept."""
    client, config = cloud
    wish = UploadRequest(bucket="releases", key="page.html", source=source(b"<html>"), stores=("primary", "cloud"))
    first = {"metadata": {"build": "1"}, "content_type": "text/plain", "cache_control": "no-store"}
    with_cloud(upload, wish.model_copy(update=first))
    with_cloud(upload, wish.model_copy(update={"content_type": "text/html"}))
    again = with_cloud(upload, wish.model_copy(update={"content_type": "text/html"}))
    plain = with_cloud(upload, wish)

    artifact = context.catalogue.artifacts.current("releases", "page.html")
    assert (artifact.version, artifact.properties, artifact.metadata) == (
        2,
        {"content_type": "text/html"},
        {"build": "1"},
    )
    assert (again.unchanged, plain.unchanged) == (True, True)
    found = client.head_object(Bucket=config.bucket, Key="releases/page.html")
    assert (found["ContentType"], found.get("CacheControl"), found["Metadata"]["build"]) == ("text/html", None, "1")
    assert {copy.state for copy in context.catalogue.artifacts.copies(artifact).values()} == {"stored"}

    with_cloud(upload, wish.model_copy(update={"metadata": {"build": "2"}}))
    assert client.head_object(Bucket=config.bucket, Key="releases/page.html")["Metadata"]["build"] == "2"
    assert head(cloud)["ContentType"] == "text/html"


def test_a_directory_keeps_its_file_when_only_headers_change(with_cloud, context, source, stored):
    """A store that keeps no headers is not written to for them: its file is read, and is a copy of the new version."""
    wish = UploadRequest(bucket="releases", key="page.html", source=source(b"<html>"), stores=("primary",))
    with_cloud(upload, wish)
    before = stored("primary", "page.html").stat()
    result = with_cloud(upload, wish.model_copy(update={"content_type": "text/html"}))
    assert (result.version, [copy.outcome for copy in result.copies]) == (2, ["already_there"])
    assert stored("primary", "page.html").stat().st_ino == before.st_ino
    assert stored("primary", "page.html").stat().st_mtime_ns == before.st_mtime_ns


def test_what_no_artifact_has_is_told_at_adoption(with_cloud, cloud):
    """What S3 keeps beside the bytes and no artifact has stays there, and the result of adopting names it."""
    client, config = cloud
    where = {"Bucket": config.bucket, "Key": "releases/page.html"}
    client.put_object(
        **where, Body=b"<html>", ChecksumAlgorithm="SHA256", Tagging="team=a", WebsiteRedirectLocation="/x"
    )
    wish = AdoptRequest(bucket="releases", key="page.html", store="cloud", first_read=True)
    assert "tags" not in with_cloud(adopt, wish).not_recorded


@pytest.mark.parametrize("metadata", [{"build-id": "7"}, {"note": "x" * 2000}])
def test_metadata_that_no_artifact_can_have_is_told_at_adoption(with_cloud, cloud, metadata):
    """A name or a value that another program chose and no request may have is not lost in silence."""
    client, config = cloud
    where = {"Bucket": config.bucket, "Key": "releases/page.html"}
    client.put_object(**where, Body=b"<html>", ChecksumAlgorithm="SHA256", Metadata=metadata | {"team": "core"})
    assert with_cloud(adopt, AdoptRequest(bucket="releases", key="page.html", store="cloud")).not_recorded == (
        "metadata",
    )


def test_a_copy_with_other_headers_than_recorded_is_told_at_adoption(with_cloud, cloud, source):
    """The artifact keeps what was recorded first; the result names what the adopted object has different."""
    wish = UploadRequest(bucket="releases", key="page.html", source=source(b"<html>"), stores=("primary",))
    with_cloud(upload, wish.model_copy(update={"content_type": "text/html", "metadata": {"build": "7"}}))
    client, config = cloud
    where = {"Bucket": config.bucket, "Key": "releases/page.html"}
    client.put_object(**where, Body=b"<html>", ContentType="text/plain", Metadata={"build": "8"})
    result = with_cloud(adopt, AdoptRequest(bucket="releases", key="page.html", store="cloud"))
    assert result.not_recorded == ("content_type", "metadata")


TAGS = {"team": "a=b/c", "stage": "caf\u00e9 +1", "empty": ""}


@pytest.fixture
def clouds(ministack, strict_gcs, azurite, tmp_path):
    return targets.one_of_each(ministack, strict_gcs, azurite, tmp_path)


@pytest.fixture
def three(run, context: Context, settings, cloud, clouds):
    """Run a verb on the directories, a bucket of S3, a container of Azure and a bucket of Cloud Storage."""
    named = {"cloud": cloud[1], "blue": clouds["azure"], "google": clouds["gcs"]}
    wide = dataclasses.replace(context, stores=Stores({**settings.stores, **named}))
    yield lambda work, request: run(work, request, context=wide)
    wide.stores.close()


@pytest.fixture
def blue(clouds):
    """Return the store of the container of Azure, which no job has opened."""
    with closing(Stores({"blue": clouds["azure"]})) as stores:
        yield stores["blue"]


def tag_set(cloud, key="page.html"):
    client, config = cloud
    found = client.get_object_tagging(Bucket=config.bucket, Key=f"releases/{key}")["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in found}


def put_tagged(cloud, tags, body=b"<html>"):
    client, config = cloud
    client.put_object(
        Bucket=config.bucket, Key="releases/page.html", Body=body, ChecksumAlgorithm="SHA256", Tagging=urlencode(tags)
    )


def test_tags_of_an_adopted_object_are_carried_and_restored(with_cloud, context, cloud):
    """Adopting records the tags; a delete and a repair bring them back, and a store without tags says so."""
    put_tagged(cloud, TAGS)
    assert with_cloud(adopt, AdoptRequest(bucket="releases", key="page.html", store="cloud")).not_recorded == ()

    away = with_cloud(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("primary",)))
    assert away.copies[0].not_kept == ("tags",)
    with_cloud(delete, DeleteRequest(bucket="releases", key="page.html", stores=("cloud",)))
    back = with_cloud(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("cloud",)))
    assert (back.copies[0].not_kept, tag_set(cloud)) == ((), TAGS)

    client, config = cloud
    client.put_object(Bucket=config.bucket, Key="releases/page.html", Body=b"<h")
    with_cloud(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("cloud",)))
    assert tag_set(cloud) == TAGS, "repaired with its tags"


@pytest.mark.parametrize(("tags", "lost"), [({"team": "a/b:c"}, ()), ({"team": "a@b"}, ("tags",))])
def test_a_replica_has_the_tags_that_its_store_can_hold(three, cloud, azurite, tags, lost):
    """Azure gets the tags as index tags if it allows their characters; Cloud Storage has none. What is lost is told."""
    put_tagged(cloud, tags)
    three(adopt, AdoptRequest(bucket="releases", key="page.html", store="cloud"))
    result = three(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("blue", "google")))
    assert {copy.store: copy.not_kept for copy in result.copies} == {"blue": lost, "google": ("tags",)}


def test_index_tags_of_azure_become_tags_of_s3(three, cloud, blue):
    """They are carried there and back."""
    tags = {"team": "a/b:c", "stage": "one"}
    blue.write_object("releases", "page.html", io.BytesIO(b"x"), properties=ObjectProperties(tags=encode_tags(tags)))
    three(adopt, AdoptRequest(bucket="releases", key="page.html", store="blue"))
    three(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("cloud",)))
    assert tag_set(cloud) == tags
    three(delete, DeleteRequest(bucket="releases", key="page.html", stores=("blue",)))
    back = three(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("blue",)))
    assert (back.copies[0].not_kept, blue.tags("releases", "page.html")) == ((), tags)


def test_tags_of_a_large_object_are_sent_and_their_absence_is_told(three, cloud, blue):
    """A multipart upload has the tags of its object; this server ignores them there, which the result tells."""
    put_tagged(cloud, {"team": "a"}, body=b"x" * (targets.PART + 1))
    three(adopt, AdoptRequest(bucket="releases", key="page.html", store="cloud"))
    assert three(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("blue",))).copies[0].not_kept == ()
    assert blue.tags("releases", "page.html") == {"team": "a"}
    three(delete, DeleteRequest(bucket="releases", key="page.html", stores=("cloud",)))
    back = three(replicate, ReplicateRequest(bucket="releases", key="page.html", to=("cloud",)))
    assert (back.copies[0].not_kept, tag_set(cloud)) == (("tags",), {})


@pytest.mark.parametrize("size", [6, targets.PART + 1])
def test_an_object_is_written_without_tags_where_the_store_refuses_them(cloud, size):
    """Both ways to write send the tags; a refusal, such as for lack of s3:PutObjectTagging, fails no write."""
    sent = list[str]()

    def refuse(params: dict[str, Any], **_: object) -> tuple[AWSResponse, dict[str, object]] | None:
        if "x-amz-tagging" not in params["headers"]:
            return None
        sent.append(params["headers"]["x-amz-tagging"])
        body = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        return AWSResponse("", 403, {}, None), body

    with closing(Stores({"cloud": cloud[1]})) as stores:
        store = stores["cloud"]
        client = store._driver._client()
        for operation in ("PutObject", "CreateMultipartUpload"):
            client.meta.events.register(f"before-call.s3.{operation}", refuse)
        store.write_object(
            "releases", "page.html", io.BytesIO(b"x" * size), size=size, properties=ObjectProperties(tags="team=a")
        )
        assert sent == ["team=a"]
        assert store.stat_object("releases", "page.html").size == size


def test_an_upload_carries_tags(with_cloud, context, source, cloud):
    """They are recorded and given to the object, also to one that is there already; a store without tags says so."""
    wish = UploadRequest(bucket="releases", key="page.html", source=source(b"<html>"), stores=("primary", "cloud"))
    first = with_cloud(upload, wish.model_copy(update={"tags": {"team": "b"}}))
    assert {copy.store: copy.not_kept for copy in first.copies} == {"primary": ("tags",), "cloud": ()}
    assert tag_set(cloud) == {"team": "b"}
    tagged = with_cloud(upload, wish.model_copy(update={"tags": TAGS}))
    assert (tagged.version, tag_set(cloud)) == (2, TAGS)
    assert context.catalogue.artifacts.current("releases", "page.html").properties == {"tags": encode_tags(TAGS)}
    assert with_cloud(upload, wish.model_copy(update={"tags": TAGS})).unchanged


@pytest.mark.parametrize(
    "tags",
    [{"aws:team": "a"}, {"": "a"}, {"team\n": "a"}, {"team": "a\u202e"}, {str(number): "" for number in range(11)}],
)
def test_tags_that_no_store_has_are_refused(tags):
    """S3 has the widest limits of a tag; what is beyond them is no valid request."""
    with pytest.raises(ValueError, match="tags"):
        UploadRequest(bucket="releases", key="page.html", source="/in/page.html", tags=tags)
