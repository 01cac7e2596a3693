"""Bytes that arrive damaged never become visible, and the object that they would replace stays."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.targets import SMALL_PART, make_s3_bucket, s3_config
from tests.servers import RcloneS3
from tests.servers.proxy import Damage, Fault, FaultyProxy, Request
from worker.storage import Match, Store
from worker.storage.configured_stores import open_driver
from worker.storage.driver import HashedBytes, SmallPut
from worker.storage.errors import AlreadyExists, Conflict, PermanentError, PreconditionFailed, Unavailable
from worker.storage.s3 import driver as s3_driver
from worker.storage.s3 import upload as s3_upload

pytestmark = pytest.mark.usefixtures("small_parts")


class Line:
    """A store as it is, and through a line that may spoil the bytes that are sent to it."""

    near: Store
    far: Store

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.damaging = True
        self.seen: Callable[[Request], None] = lambda _request: None


@pytest.fixture
def line(rclone: RcloneS3, tmp_path: Path) -> Iterator[Callable[..., Line]]:
    """Return what opens such a store, with changes of its configuration."""
    with ExitStack() as stack:

        def open_line(**changes: Any) -> Line:
            config = s3_config(rclone, conditional_writes=False, read_back=None, **changes)
            made = Line(f"releases-{uuid.uuid4().hex[:8]}")
            make_s3_bucket(rclone, config.bucket or made.bucket)

            def fault(request: Request) -> Fault:
                made.seen(request)
                sends = request.method == "PUT" and int(request.headers.get("Content-Length") or 0) >= 90
                return Damage(at=-60) if made.damaging and sends and "app" in request.path else None

            proxy = stack.enter_context(FaultyProxy(rclone.port, fault))
            through = config.model_copy(update={"endpoint": proxy.endpoint})
            made.near, made.far = (
                Store(open_driver(name, c), spool_dir=tmp_path) for name, c in (("near", config), ("far", through))
            )
            stack.callback(made.near.close)
            stack.callback(made.far.close)
            return made

        yield open_line


def _ignores_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no checksum, as if the store read none."""
    monkeypatch.setattr(s3_upload, "_content_md5", lambda _data: {})


@pytest.mark.parametrize(
    ("size", "layout"),
    [(100, {}), (SMALL_PART + 100, {}), (100, {"layout": "native", "bucket": None})],
    ids=["whole", "parts", "native"],
)
def test_a_store_of_plain_files_refuses_what_is_damaged(
    line: Callable[..., Line], size: int, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rclone serve s3` compares the MD5 of each request: what is damaged is neither seen nor replaces anything."""
    if layout:
        monkeypatch.setattr(Store, "checks_uploads", lambda _store: True)  # there is no place to try it
    stores = line(**layout)
    assert stores.near.checks_uploads()
    with pytest.raises(Unavailable, match="the bytes were damaged"):
        stores.far.write_object(stores.bucket, "app", source(some_bytes(size)))
    assert not stores.near.object_exists(stores.bucket, "app")
    stores.near.write_object(stores.bucket, "app", source(b"before"))
    with pytest.raises(Unavailable, match="the bytes were damaged"):
        stores.far.write_object(stores.bucket, "app", source(some_bytes(size)))
    assert stores.near.verify_object(stores.bucket, "app").sha256 == digest_of(b"before").sha256
    assert list(stores.near.iter_stale_uploads()) == []


@pytest.mark.parametrize(
    ("size", "before"),
    [(100, None), (100, b"before"), (SMALL_PART + 100, b"before")],
    ids=["new", "over_another", "parts_over_another"],
)
def test_a_store_without_checksums_shows_nothing_that_was_not_read_back(
    line: Callable[..., Line], size: int, before: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its bytes were read back a new object is not there, and one that is replaced is as it was.

    It replaces only what the condition of the write allows.
    """
    _ignores_checksums(monkeypatch)
    stores = line()
    assert not stores.far.checks_uploads()
    group = [SmallPut(stores.bucket, "app", HashedBytes.of(some_bytes(100)))]
    assert stores.far.write_objects(group) == [], "nothing of it would be read back"
    version = stores.near.write_object(stores.bucket, "app", source(before))[0].version if before else None
    shown: list[str | None] = []

    def look(request: Request) -> None:
        if "/zot-staging/" in request.path:
            there = stores.near.object_exists(stores.bucket, "app")
            shown.append(stores.near.stat_object(stores.bucket, "app").version if there else None)

    stores.damaging = True
    condition = Match(version) if version else None
    with pytest.raises(Unavailable, match="far: releases-[0-9a-f]+/app: the bytes were damaged"):
        stores.far.write_object(stores.bucket, "app", source(some_bytes(size)), condition=condition)
    assert stores.near.object_exists(stores.bucket, "app") is bool(before)
    stores.damaging, stores.seen = False, look
    made, _ = stores.far.write_object(
        stores.bucket, "app", source(some_bytes(size)), condition=condition or "create_only"
    )
    assert set(shown[:3]) == {version}
    for late in ("create_only", Match("another version")):  # also of what was read back
        with pytest.raises((AlreadyExists, PreconditionFailed)):
            stores.far.write_object(stores.bucket, "app", source(b"late"), condition=late)
    assert stores.near.verify_object(stores.bucket, "app").sha256 == digest_of(some_bytes(size)).sha256
    assert stores.near.stat_object(stores.bucket, "app").version == made.version
    assert [*stores.near.iter_stale_uploads(), *stores.near.list_objects("zot-staging")] == []


def test_what_replaces_the_new_bytes_after_they_were_read_is_not_shown(
    line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another write of the same bytes, such as that of a worker that was taken for dead, may be damaged."""
    _ignores_checksums(monkeypatch)
    stores = line()
    assert not stores.far.checks_uploads()
    found, _ = stores.near.write_object(stores.bucket, "app", source(b"before"))
    read: list[Request] = []

    def replace(request: Request) -> None:
        if "/zot-staging/" in request.path and request.method == "GET":
            read.append(request)
        elif "/zot-staging/" in request.path and request.method == "HEAD" and read:  # it is about to be copied
            [row] = stores.near.list_objects("zot-staging")
            stores.near.write_object("zot-staging", row.key, source(b"of another writer"), existing_key=True)

    stores.damaging, stores.seen = False, replace
    with pytest.raises(Conflict, match="was replaced by another writer"):
        stores.far.write_object(stores.bucket, "app", source(some_bytes(100)), condition=Match(found.version))
    assert stores.near.verify_object(stores.bucket, "app").sha256 == digest_of(b"before").sha256
    [kept] = stores.near.list_objects("zot-staging")
    assert stores.near.delete_object("zot-staging", kept.key), "what is another writer's stays"


def test_what_no_single_request_copies_is_kept_too(line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the largest copy of the store an object stays as it was, whatever the store makes of a copy in parts."""
    _ignores_checksums(monkeypatch)
    monkeypatch.setattr(s3_driver, "MAX_COPY", 50)
    stores = line()
    stores.near.write_object(stores.bucket, "app", source(b"before"))
    with pytest.raises(Unavailable, match="the bytes were damaged"):
        stores.far.write_object(stores.bucket, "app", source(some_bytes(100)))
    assert stores.near.verify_object(stores.bucket, "app").sha256 == digest_of(b"before").sha256
    stores.damaging = False
    try:
        stores.far.write_object(stores.bucket, "app", source(some_bytes(100)))
        expected = digest_of(some_bytes(100))
    except PermanentError:
        expected = digest_of(b"before")
    assert stores.near.verify_object(stores.bucket, "app").sha256 == expected.sha256


def test_without_a_reserved_bucket_nothing_is_replaced_unread(
    line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that has no place for new bytes refuses to write over an object, and says what to configure."""
    _ignores_checksums(monkeypatch)
    stores = line(layout="native", bucket=None)
    with pytest.raises(Unavailable, match="the bytes were damaged"):
        stores.far.write_object(stores.bucket, "app", source(some_bytes(100)))
    assert not stores.near.object_exists(stores.bucket, "app")
    stores.near.write_object(stores.bucket, "app", source(b"before"))
    for condition in (None, Match(stores.near.stat_object(stores.bucket, "app").version)):
        with pytest.raises(PermanentError, match=r"far: releases-[0-9a-f]+/app: .* set stores\.far\.reserved_bucket"):
            stores.far.write_object(stores.bucket, "app", source(some_bytes(100)), condition=condition)
    with pytest.raises(AlreadyExists):
        stores.far.write_object(stores.bucket, "app", source(some_bytes(100)), condition="create_only")
    assert stores.near.verify_object(stores.bucket, "app").sha256 == digest_of(b"before").sha256

    def replace(request: Request) -> None:
        if request.method == "GET" and stores.near.stat_object(stores.bucket, "app2").size == 100:
            stores.near.delete_object(stores.bucket, "app2")
            stores.near.write_object(stores.bucket, "app2", source(b"of a later writer"))

    stores.seen = replace
    with pytest.raises(Unavailable, match="the bytes were damaged"):
        stores.far.write_object(stores.bucket, "app2", source(some_bytes(100)))
    assert stores.near.verify_object(stores.bucket, "app2").sha256 == digest_of(b"of a later writer").sha256
