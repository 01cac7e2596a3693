"""Objects of other programs in a cloud are adopted, copied, verified and deleted under the names that they have."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.adopt import adopt
from tasks.delete import delete
from tasks.replicate import replicate
from tasks.verify import verify
from tests.conformance.targets import one_of_each, s3_client
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import SourceSettings
from worker.storage.errors import InvalidKey
from zot_artifact_client.contract import AdoptRequest, DeleteRequest, ReplicateRequest, VerifyRequest

BODY = b"written by another program"
ANYWHERE = ["folder/", "folder//x", "/x", "x ", "tab\tand\x7fdel", "%2F?#", "s" * 240 + "é"]
NOT_IN_AZURE = ["x.", "d./x", "back\\slash"]


@pytest.fixture
def settings(tmp_path: Path, source_root: Path, ministack, strict_gcs, azurite) -> Settings:
    (tmp_path / "disk").mkdir()
    stores = one_of_each(ministack, strict_gcs, azurite, tmp_path / "disk")
    return Settings(home=tmp_path / "home", stores=stores, sources=SourceSettings(roots=(source_root,)))


@pytest.fixture
def put(settings: Settings, ministack) -> Callable[[str], None]:
    """Write an object to the S3 store beside our back, with metadata of its own."""
    client = s3_client(ministack)

    def put(key: str) -> None:
        real = settings.stores["s3"].bucket
        client.put_object(Bucket=real, Key=f"releases/{key}", Body=BODY, Metadata={"owner": "another"})

    return put


def content(context: Context, store: str, key: str) -> bytes:
    with context.stores[store].read_object("releases", key) as reader:
        return b"".join(reader)


@pytest.mark.parametrize("key", ANYWHERE + NOT_IN_AZURE)
def test_a_foreign_object_goes_through_every_verb(run, context: Context, put, key: str) -> None:
    """It is adopted with its metadata, replicated to where its name can be, verified and deleted everywhere."""
    place = {"bucket": "releases", "key": key}
    put(key)
    adopted = run(adopt, AdoptRequest(**place, store="s3", first_read=True))
    assert (adopted.key, adopted.size) == (key, len(BODY))
    artifact = context.catalogue.artifacts.current("releases", key)
    assert artifact
    assert artifact.metadata == {"owner": "another"}

    reachable = ["gcs"]
    if key in NOT_IN_AZURE:
        with pytest.raises(InvalidKey, match="azure: ") as refused:
            run(replicate, ReplicateRequest(**place, to=("gcs", "azure")))
        assert key in refused.value.message
    else:
        run(replicate, ReplicateRequest(**place, to=("gcs", "azure")))
        reachable.append("azure")
    for store in reachable:
        assert content(context, store, key) == BODY
        assert context.stores[store].stat_object("releases", key).metadata == {"owner": "another"}

    verdicts = {copy.store: copy.verdict for copy in run(verify, VerifyRequest(**place)).copies}
    assert verdicts == dict.fromkeys(["s3", *reachable], "verified")
    run(delete, DeleteRequest(**place))
    for name in ("s3", *reachable):
        assert not context.stores[name].object_exists("releases", key)
