"""The headers beside the bytes are part of an artifact: recorded, carried and restored."""

import dataclasses

import pytest

from tasks.adopt import adopt
from tasks.delete import delete
from tasks.replicate import replicate
from tasks.upload import upload
from tests.conformance.targets import s3_client, s3_config
from worker.context import Context
from worker.storage import Stores
from zot_artifact_client.contract import AdoptRequest, DeleteRequest, ReplicateRequest, UploadRequest

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
    yield client, config
    client.close()


@pytest.fixture
def with_cloud(run, context: Context, settings, cloud):
    """Run a verb on the directories and on a bucket of S3."""
    wide = dataclasses.replace(context, stores=Stores({**settings.stores, "cloud": cloud[1]}))
    yield lambda work, request: run(lambda r, _c, job: work(r, wide.for_job(job), job), request)
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
    """Tags and other things that S3 keeps beside the bytes stay there, and the result of adopting names them."""
    client, config = cloud
    where = {"Bucket": config.bucket, "Key": "releases/page.html"}
    client.put_object(
        **where, Body=b"<html>", ChecksumAlgorithm="SHA256", Tagging="team=a&stage=b", WebsiteRedirectLocation="/x"
    )
    wish = AdoptRequest(bucket="releases", key="page.html", store="cloud", first_read=True)
    result = with_cloud(adopt, wish)
    assert "tags" in result.not_recorded
    assert len(client.get_object_tagging(**where)["TagSet"]) == 2
