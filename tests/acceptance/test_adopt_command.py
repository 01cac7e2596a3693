"""`zot-artifacts adopt` on the original's own tree and configuration file, beside a real `up`."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.commands import Zot
from tests.acceptance.forked_up import running


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("original")


@pytest.fixture(scope="module")
def zot(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Zot]:
    """Return the command line beside an `up` that was started with the original's file."""
    directory = tmp_path_factory.mktemp("adopt")
    config = directory / "config.yaml"
    config.write_text(
        f"http: {{port: '8081'}}\nstorage: {{rootDirectory: {root}, dedupe: false}}\nlog: {{level: info}}"
    )
    with running(directory / "home", "--no-beat", "--no-flower", ZOT_CONFIG=str(config)):
        yield Zot(directory / "home", {"ZOT_CONFIG": str(config)})


@pytest.fixture
def bucket(root: Path) -> str:
    """Return a bucket that no other test uses."""
    name = f"b{uuid4().hex[:8]}"
    (root / name).mkdir()
    return name


def lay(path: Path, body: bytes, sidecar: str | None) -> None:
    """Write an object as the original does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    if sidecar is not None:
        path.with_name(f"{path.name}.sha256").write_text(sidecar)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_one_object(zot: Zot, root: Path, bucket: str, tmp_path: Path) -> None:
    """An object is adopted by name, then listed, read back and verified like one of ours."""
    lay(root / bucket / "v1" / "app.tgz", b"body", sha256(b"body"))
    done = zot("adopt", f"{bucket}/v1/app.tgz", "--store", "default")
    assert (done.status, done.stderr) == (0, "")
    assert f"sha256 {sha256(b'body')} adopted in default, evidence: sha256 kept by the store" in done.stdout
    result = zot("adopt", f"{bucket}/v1/app.tgz", "--store", "default", "--json").document["result"]
    assert (result["unchanged"], result["version"]) == (True, 1)
    assert zot("verify", f"{bucket}/v1/app.tgz").status == 0
    assert zot("get", f"{bucket}/v1/app.tgz", tmp_path / "back").status == 0
    assert (tmp_path / "back").read_bytes() == b"body"


def test_without_a_digest(zot: Zot, root: Path, bucket: str) -> None:
    """What nothing vouches for could not be told, status 3, in one line, until the first read is asked for."""
    lay(root / bucket / "old.bin", b"body", None)
    told = zot("adopt", f"{bucket}/old.bin", "--store", "default")
    assert (told.status, told.stdout, told.is_one_line()) == (3, "", True)
    assert "unverifiable" in told.stderr
    document = zot("adopt", f"{bucket}/old.bin", "--store", "default", "--first-read", "--json").document
    assert (document["state"], document["result"]["evidence"]) == ("succeeded", "first read")


def test_a_whole_bucket(zot: Zot, root: Path, bucket: str) -> None:
    """A whole bucket is adopted from its listing, a rotten object costs only itself, and again changes nothing."""
    for number in range(40):
        lay(root / bucket / "many" / f"{number:02}", b"%d" % number, sha256(b"%d" % number))
    lay(root / bucket / "many" / "rotten", b"rotten", sha256(b"right"))
    lay(root / bucket / "many" / "bare", b"bare", None)
    done = zot("adopt", f"{bucket}/", "--store", "default", "--json")
    assert done.status == 1
    document = done.document
    assert (document["adopted"], document["unchanged"], document["failed"]) == (40, 0, 2)
    failures = {(failure["key"], failure["type"]) for failure in document["failures"]}
    assert failures == {("many/bare", "Unverifiable"), ("many/rotten", "DigestMismatch")}
    assert zot("jobs", document["job"], "--json").document["kind"] == "batch"
    again = zot("adopt", f"{bucket}/many/", "--store", "default", "--first-read", "--idempotency-key", bucket)
    assert f"{bucket}/many/: 1 adopted, 40 known already, 1 not" in again.stdout
    assert len(zot("ls", bucket, "--json").document["artifacts"]) == 41
    same = zot("adopt", f"{bucket}/many/", "--store", "default", "--first-read", "--idempotency-key", bucket)
    assert (same.stdout, same.status) == (again.stdout, again.status)


def test_digests_of_lists(zot: Zot, root: Path, bucket: str) -> None:
    """With --sums a bucket is adopted by its `SHA256SUMS`; bytes that do not match are told, and the others adopted."""
    for name in ("good", "bad"):
        lay(root / bucket / name, name.encode(), None)
    lay(root / bucket / "SHA256SUMS", f"{sha256(b'good')}  good\n{sha256(b'other')}  bad\n".encode(), None)
    done = zot("adopt", f"{bucket}/", "--store", "default", "--sums", "--json")
    assert done.status == 1
    assert (done.document["adopted"], done.document["failed"]) == (1, 1)
    assert [(each["key"], each["type"]) for each in done.document["failures"]] == [("bad", "DigestMismatch")]


def test_a_prefix_without_objects(zot: Zot, bucket: str) -> None:
    """A bucket or a prefix without objects is told, status 1: it may be misspelt."""
    ended = zot("adopt", f"{bucket}/relases/", "--store", "default")
    assert (ended.status, ended.stdout, ended.is_one_line()) == (1, "", True)
    assert f"there is no object below {bucket}/relases/" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense", "--store", "default"), "write BUCKET/KEY"),
        (("b/k", "--store", "defualt"), "did you mean 'default'?"),
        (("zot-quarantine/", "--store", "default"), "reserved"),
    ],
)
def test_bad_input(zot: Zot, arguments: tuple[str, ...], says: str) -> None:
    """What cannot be meant is one line that says so, status 2, and no job."""
    ended = zot("adopt", *arguments)
    assert (ended.status, ended.is_one_line()) == (2, True), ended
    assert says in ended.stderr
