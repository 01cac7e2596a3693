"""One command for many artifacts, against a real `zot-artifacts up`."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.commands import COMMAND, Zot
from tests.acceptance.forked_up import running
from tests.waiting import WITHIN
from worker.cli import run
from worker.cli.session import opened
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import UploadRequest


@pytest.fixture(scope="module")
def zot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zot]:
    """Return the command line beside an `up` with two directories as stores."""
    home = tmp_path_factory.mktemp("many") / "home"
    roots = json.dumps([str(home.parent / "in")])
    with running(home, "--no-beat", "--no-flower", ZOT_SOURCES__ROOTS=roots):
        yield Zot(home)


@pytest.fixture
def bucket(zot: Zot) -> str:
    """Return a bucket of three artifacts."""
    name = f"b-{uuid4().hex[:8]}"
    requests = []
    for key in ("v1/a", "v1/b", "v2/a"):
        source = zot.home.parent / "in" / key.replace("/", "-")
        source.parent.mkdir(exist_ok=True)
        source.write_text(f"the bytes of {key}")
        requests.append(UploadRequest(source=str(source), bucket=name, key=key, stores=("primary",)))
    with ArtifactClient((zot.home / "run" / "broker-url").read_text().strip()) as client:
        for job in client.submit_many(requests):
            job.wait(WITHIN)
    return name


def test_a_prefix_is_replicated_verified_and_deleted(zot: Zot, bucket: str) -> None:
    """Each verb takes --all, counts the outcomes, and ends with 0; other prefixes do not change."""
    done = zot("replicate", f"{bucket}/v1/", "--all", "--to", "dr")
    assert (done.status, done.stdout, done.stderr) == (0, "replicate: 2 objects, 34 B: 2 stored\n", "")
    result = zot("verify", bucket, "--all", "--json").document
    assert (result["kind"], result["state"]) == ("batch", "succeeded")
    assert (result["result"]["objects"], result["result"]["outcomes"]) == (3, {"verified": 3})
    assert zot("delete", f"{bucket}/v1/", "--all").stdout == "delete: 2 objects, 34 B: 2 deleted\n"
    left = zot("ls", f"{bucket}/", "--json").document["artifacts"]
    assert [each["key"] for each in left] == ["v2/a"]


def test_failed_objects_are_named_and_found_again(zot: Zot, bucket: str) -> None:
    """A rotten copy ends the command with 1 and is named; the job and its children can be asked for it later.

    A wrong digest beside right bytes is told, too.
    """
    (zot.home / "stores" / "primary" / bucket / "v1" / "b").write_text("THE bytes of v1/b")
    (zot.home / "stores" / "primary" / bucket / "v2" / "a.sha256").write_text("0" * 64)
    done = zot("verify", bucket, "--all")
    assert (done.status, done.stdout) == (1, "verify: 3 objects, 51 B: 1 corrupt, 2 verified\n")
    assert f"{bucket}/v1/b: corrupt: primary: " in done.stderr
    assert (
        "primary: 1 copy with right bytes and a wrong or lost SHA-256 beside them: `zot-artifacts find" in done.stderr
    )
    job = zot("verify", bucket, "--all", "--json").document["job"]
    failed = zot("jobs", "--parent", job, "--failed", "--json").document["jobs"]
    named = [(bad["key"], bad["outcome"]) for each in failed for bad in each["result"]["failures"]]
    assert named == [("v1/b", "corrupt")]
    (page,) = zot("jobs", "--parent", job, "--limit", 2, "--json").document["jobs"]
    assert (page["kind"], page["result"]["objects"]) == ("page", 3)
    assert zot("jobs", "--parent", job, "--after", page["job"], "--json").document["jobs"] == []
    assert f"verify {bucket}/* up to v2/a" in zot("jobs", "--parent", job).stdout
    assert zot("jobs", job, "--json").document["result"]["objects"] == 3


def test_a_list_comes_from_a_file_or_from_stdin(zot: Zot, bucket: str, tmp_path: Path) -> None:
    """A list that the worker cannot read where it is goes to it with the job, and leaves nothing behind."""
    listed = tmp_path / "list"
    listed.write_text(f"{bucket}/v2/a\n{bucket}/v1/a\n")
    assert zot("verify", "--keys-from", listed).stdout == "verify: 2 objects, 34 B: 2 verified\n"
    piped = subprocess.run(
        [*COMMAND, "verify", "--keys-from", "-"],
        input=f"{bucket}/v1/b\nno-slash\n",
        env=zot.environment, capture_output=True, text=True, check=False, timeout=WITHIN,
    )  # fmt: skip
    assert piped.returncode == 1
    assert "line 2: it has no slash" in piped.stderr
    assert list((zot.home / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["delete", "b", "--all"], "this would delete all of 'b': add --everything"),
        (["delete", "b/", "--all"], "this would delete all of 'b': add --everything"),
        (["delete", "b/v1", "--all", "--everything"], "--everything goes with --all BUCKET"),
        (["delete", "b/v1", "--everything"], "--everything goes with --all BUCKET"),
        (["verify"], "name an artifact, or many with --all"),
        (["verify", "--all"], "--all needs a BUCKET"),
        (["verify", "b", "--keys-from", "list"], "leave out BUCKET/KEY"),
        (["verify", "b/k", "--in-flight", "3"], "--in-flight goes with --all"),
        (["verify", "--keys-from", "/nowhere/list"], "there is no such file"),
    ],
)
def test_what_is_not_said_clearly_is_not_done(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command that names nothing, too much, or more than one can have meant, ends with one line and sends nothing."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    with opened(create=True):
        pass  # there is a catalogue
    assert run(arguments) in {1, 2}
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
