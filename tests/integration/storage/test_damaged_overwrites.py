"""An object in a store that knows neither checksums nor conditions stays when its replacement arrives damaged."""

from pathlib import Path

import pytest

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.targets import PART, make_s3_bucket, s3_config
from tests.servers import RcloneS3
from tests.servers.proxy import Damage, Fault, FaultyProxy, Request
from worker.storage import Match, Store
from worker.storage.errors import Unavailable
from worker.storage.registry import open_driver

BUCKET = "releases"


@pytest.mark.parametrize("size", [100, PART + 100])
def test_a_store_of_plain_files_keeps_what_a_damaged_write_was_to_replace(
    rclone: RcloneS3, tmp_path: Path, size: int
) -> None:
    """`rclone serve s3` is found to check nothing, so that only bytes that were read back replace an object."""
    config = s3_config(rclone, conditional_writes=False, read_back=None)
    make_s3_bucket(rclone, str(config.bucket))
    direct = Store(open_driver("near", config), spool_dir=tmp_path)
    damaging = [True]

    def damage(request: Request) -> Fault:
        sends = request.method == "PUT" and "app" in request.path
        return Damage(at=-60) if damaging and sends and int(request.headers.get("Content-Length") or 0) >= 90 else None

    with FaultyProxy(rclone.port, damage) as proxy:
        through = config.model_copy(update={"endpoint": proxy.endpoint})
        far = Store(open_driver("far", through), spool_dir=tmp_path)
        assert not far.checks_uploads()
        before, _ = direct.write_object(BUCKET, "app", source(b"before"))
        with pytest.raises(Unavailable, match="far: releases/app: the bytes were damaged"):
            far.write_object(BUCKET, "app", source(some_bytes(size)), condition=Match(before.version))
        assert direct.verify_object(BUCKET, "app").expected == digest_of(b"before")
        assert direct.stat_object(BUCKET, "app").version == before.version
        damaging.clear()
        made, _ = far.write_object(BUCKET, "app", source(some_bytes(size)), condition=Match(before.version))
        assert direct.verify_object(BUCKET, "app").expected == digest_of(some_bytes(size))
        assert direct.stat_object(BUCKET, "app").version == made.version
        assert [*direct.iter_stale_uploads(), *direct.list_objects("zot-staging")] == []
        far.close()
    direct.close()
