"""Metadata and properties are read back as they were written, however the object was made."""

import pytest

from tests.conformance.bodies import sizes, some_bytes, source
from tests.conformance.conftest import BucketUnderTest
from worker.storage.driver import ObjectProperties
from worker.storage.errors import Conflict, InvalidMetadata

pytestmark = pytest.mark.reads
PROPERTIES = ObjectProperties(
    content_type="text/html; charset=utf-8",
    content_encoding="identity",
    content_disposition='attachment; filename="page.html"',
    content_language="de",
    cache_control="max-age=60",
)


@pytest.mark.unless("layout")
@sizes((0, 5), (1, 1))
def test_properties_come_back(bucket: BucketUnderTest, size: int) -> None:
    """Content-Type, -Encoding, -Disposition, -Language and Cache-Control are kept by one request and by parts."""
    if not bucket.capabilities.user_metadata:
        return
    written, _ = bucket.store.write_object(bucket.name, "page", source(some_bytes(size)), properties=PROPERTIES)
    assert written.properties == PROPERTIES
    assert bucket.stat("page").properties == PROPERTIES
    with bucket.store.read_object(bucket.name, "page") as reader:
        assert reader.stat.properties == PROPERTIES
        assert b"".join(reader) == some_bytes(size)


@pytest.mark.unless("layout")
def test_nothing_is_made_up(bucket: BucketUnderTest) -> None:
    """An object that was written without properties has none, whatever default a store puts there."""
    bucket.write("plain", b"x")
    assert bucket.stat("plain").properties == ObjectProperties()


def test_a_copy_has_them_too(bucket: BucketUnderTest) -> None:
    """A copy inside the store has the properties of the original."""
    if not bucket.capabilities.user_metadata:
        return
    bucket.store.write_object(bucket.name, "page", source(b"page"), properties=PROPERTIES)
    driver = bucket.store._driver
    if bucket.capabilities.copies:
        driver.copy(bucket.name, "page", bucket.name, "twin")
        assert bucket.stat("twin").properties == PROPERTIES


@pytest.mark.unless("layout")
def test_another_version_than_was_read_is_not_copied(bucket: BucketUnderTest) -> None:
    """A copy of a version that another writer has replaced is a Conflict; the version that is there is copied."""
    driver = bucket.store._driver
    if not hasattr(driver, "refuses_damage") or not bucket.capabilities.copies:
        return
    read = bucket.write("page", b"one")
    bucket.write("page", b"two")
    with pytest.raises(Conflict, match=f"{bucket.name}/page was replaced"):
        driver.copy(bucket.name, "page", bucket.name, "twin", version=read.version)
    assert not bucket.exists("twin")
    assert driver.copy(bucket.name, "page", bucket.name, "twin", version=bucket.stat("page").version).size == 3


@pytest.mark.unless("layout")
def test_what_is_no_header_is_refused(bucket: BucketUnderTest) -> None:
    """A property that cannot travel as a header is refused before anything is sent, with the key."""
    if not bucket.capabilities.user_metadata or bucket.store.name == "memory":
        return
    bad = ObjectProperties(content_disposition="attachment\r\nx: y")
    with pytest.raises(InvalidMetadata, match=f"{bucket.name}/page"):
        bucket.store.write_object(bucket.name, "page", source(b"x"), properties=bad)
    assert not bucket.exists("page")
