"""Objects of the original store in a cloud are adopted, become usual artifacts, and stay readable for it."""

import pytest

from tasks.adopt import adopt
from tasks.replicate import replicate
from tasks.upload import upload
from tasks.verify import verify
from tests.integration.storage.originals import OriginalCloud, OriginalFiles, read, sha256
from worker.artifacts.adoption import Unverifiable
from worker.settings import Settings
from worker.settings.section_models import SourceSettings
from worker.storage.config import FilesystemConfig
from zot_artifact_client.contract import AdoptRequest, ReplicateRequest, UploadRequest, VerifyRequest

BODY = b"written by the original"
PLACE = {"bucket": "releases", "key": "v1/app.tgz"}
REAL = "releases/v1/app.tgz"


@pytest.fixture
def files(tmp_path) -> OriginalFiles:
    (tmp_path / "files").mkdir()
    return OriginalFiles(tmp_path / "files")


@pytest.fixture
def settings(tmp_path, source_root, files: OriginalFiles, cloud: OriginalCloud) -> Settings:
    return Settings(
        home=tmp_path / "home",
        stores={"cloud": cloud.config(), "files": FilesystemConfig(root=files.root)},
        sources=SourceSettings(roots=(source_root,)),
    )


def test_an_object_is_adopted_verified_and_replicated(run, context, files, cloud):
    """Its digest is the evidence; a copy goes to a directory as the original lays it out, and rot is found later."""
    cloud.write(REAL, BODY, {"Sha256": sha256(BODY)})

    assert run(adopt, AdoptRequest(**PLACE, store="cloud")).evidence == "sha256 kept by the store"

    assert run(verify, VerifyRequest(**PLACE)).good
    run(replicate, ReplicateRequest(**PLACE, to=("files",)))
    assert files.read("releases", "v1/app.tgz") == BODY
    cloud.write(REAL, BODY.swapcase(), {"Sha256": sha256(BODY)})
    assert [copy.verdict for copy in run(verify, VerifyRequest(**PLACE)).copies] == ["corrupt", "verified"]


def test_without_a_digest_it_is_adopted_on_request(run, context, cloud):
    """What carries no digest is refused first, and its first read becomes the record when that is asked for."""
    cloud.write(REAL, BODY, {})
    with pytest.raises(Unverifiable):
        run(adopt, AdoptRequest(**PLACE, store="cloud"))
    assert run(adopt, AdoptRequest(**PLACE, store="cloud", first_read=True)).evidence == "first read"
    assert run(verify, VerifyRequest(**PLACE)).good


def test_what_we_bring_there_it_can_read(run, context, source, files, cloud):
    """An upload and a replica of ours carry the digest where the original looks for it."""
    files.write("releases", "v1/app.tgz", BODY, sha256(BODY) + "\n")
    run(adopt, AdoptRequest(**PLACE, store="files"))
    run(replicate, ReplicateRequest(**PLACE, to=("cloud",)))
    assert read(cloud, REAL) == BODY
    run(upload, UploadRequest(bucket="releases", key="ours.tgz", source=source(BODY[::-1]), stores=("cloud",)))
    assert read(cloud, "releases/ours.tgz") == BODY[::-1]
