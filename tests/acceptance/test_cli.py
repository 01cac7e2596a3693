"""The command line against a real `zot-artifacts up`: results, exit statuses, JSON, and bad input."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from tests.acceptance.commands import COMMAND, Zot
from tests.acceptance.forked_up import running
from tests.servers import RcloneS3
from tests.servers.process import free_port
from tests.waiting import WITHIN
from worker.catalogue import Catalogue
from zot_artifact_client import ArtifactClient, JobFailed

BUCKET = "artifacts"


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory, rclone: RcloneS3) -> Iterator[RcloneS3]:
    """Return an S3 server that a test may kill; started only where the other one can be."""
    server = RcloneS3(tmp_path_factory.mktemp("doomed"))
    (server.files / BUCKET).mkdir(parents=True)
    with server:
        yield server


@pytest.fixture(scope="module")
def zot(tmp_path_factory: pytest.TempPathFactory, rclone: RcloneS3, doomed: RcloneS3) -> Iterator[Zot]:
    """Return the command line beside an `up` with two filesystem stores and four S3 stores, two of them wrong."""
    directory = tmp_path_factory.mktemp("cli")
    home = directory / "home"
    (rclone.files / BUCKET).mkdir(exist_ok=True)
    s3 = s3_store(rclone)
    stores = {
        "primary": {"type": "filesystem", "root": str(home / "stores" / "primary")},
        "dr": {"type": "filesystem", "root": str(home / "stores" / "dr")},
        "cloud": s3,
        "badkey": s3 | {"bucket": "another", "secret_access_key": "wrong-wrong-wrong"},
        "doomed": s3_store(doomed),
        "nowhere": s3 | {"endpoint": f"http://127.0.0.1:{free_port()}"},
    }
    settings = {
        "stores": stores,
        "placement": ["primary", "dr"],
        "retry": {"max_attempts": 2, "backoff": "3s", "jitter": False},
        "sources": {"roots": [str(directory / "root")]},
    }
    config = directory / "zot.yaml"  # JSON is YAML
    config.write_text(json.dumps(settings))
    (directory / "root").mkdir()
    found = Zot(home, {"ZOT_CONFIG": str(config)})
    with running(home, "--no-beat", "--no-flower", ZOT_CONFIG=str(config)):
        yield found


@pytest.fixture
def key() -> str:
    """Return a key that no other test uses."""
    return f"releases/{uuid4().hex}.tgz"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "app.tgz"
    path.write_bytes(os.urandom(300_000))
    return path


def s3_store(server: RcloneS3) -> dict[str, object]:
    keys = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
    return {"type": "s3", "bucket": BUCKET, "endpoint": server.endpoint, "conditional_writes": False, **keys}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(zot: Zot) -> list[Path]:
    """Return what uploads have left behind in the staging and spooling directories.

    Jobs that are dead or have not ended, such as those of another test to a store that is away, keep their sources.
    """
    open_ = ("--state", "queued", "--state", "running", "--state", "retrying")
    keeping = {job["job"] for job in zot("jobs", "--dead", *open_, "--json").document["jobs"]}
    return [path for name in ("staging", "spool") for path in (zot.home / name).iterdir() if path.name not in keeping]


# What works


def test_an_artifact_lives_from_upload_to_delete(zot: Zot, key: str, source: Path, tmp_path: Path) -> None:
    """Upload, show, ls, replicate, verify, get and delete do what they say, with status 0 and one digest."""
    digest = sha256(source)
    beside = ("--metadata", "team=core", "--tag", "stage=ga", "--property", "content_type=text/plain")
    done = zot("upload", source, key, *beside)
    assert (done.status, done.stderr) == (0, "")
    assert f"{key} version 1 293.0 KiB sha256 {digest} stored in primary, dr" in done.stdout
    again = zot("upload", source, key)
    assert again.status == 0
    assert "unchanged: the same bytes are there already" in again.stdout
    shown = zot("show", key, "--json").document
    assert [copy["store"] for copy in shown["copies"]] == ["dr", "primary"]
    assert (shown["metadata"], shown["tags"]) == ({"team": "core"}, {"stage": "ga"})
    assert shown["properties"] == {"content_type": "text/plain"}
    assert "metadata team=core\ncontent_type text/plain\ntag stage=ga\n" in zot("show", key).stdout
    assert zot("replicate", key, "--to", "cloud").status == 0
    listed = zot("ls", key, "--json").document["artifacts"]
    assert [(each["bucket"], each["sha256"]) for each in listed] == [("releases", digest)]
    verified = zot("verify", key)
    assert verified.status == 0
    assert verified.stdout.count("verified") == 3
    assert zot("get", key, tmp_path / "back").status == 0
    assert sha256(tmp_path / "back") == digest
    assert zot("delete", key).status == 0
    gone = zot("delete", key)
    assert gone.status == 0
    assert "gone already" in gone.stdout
    assert zot("show", key).status == 1


def test_bytes_go_through_pipes(zot: Zot, key: str) -> None:
    """`upload -` takes standard input, `get … -` writes exactly its bytes to standard output, and nothing else."""
    content = os.urandom(10) + b"0123456789" + os.urandom(200_000)
    command = [*COMMAND, "upload", "-", key, "--json"]
    sent = subprocess.run(command, input=content, env=zot.environment, capture_output=True, check=True, timeout=60)
    job = json.loads(sent.stdout)["job"]
    assert zot("jobs", job[:8], "--wait").status == 0
    got = subprocess.run([*COMMAND, "get", key, "-"], env=zot.environment, capture_output=True, check=True, timeout=60)
    assert got.stdout == content
    assert leftovers(zot) == []
    assert zot("get", key, "-", "--range", "10-19").stdout == "0123456789"


def test_a_corrupt_copy_writes_nothing_to_a_pipe(zot: Zot, key: str, source: Path) -> None:
    """Where no copy is right, `get … -` ends with 1 and not a byte of the bad one was written."""
    assert zot("upload", source, key, "--store", "primary").status == 0
    path = zot.home / "stores" / "primary" / key
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    got = zot("get", key, "-")
    assert (got.status, got.stdout) == (1, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_encoding_of_the_terminal_works(zot: Zot, source: Path, encoding: str) -> None:
    """Where the terminal takes no UTF-8, names beyond it are shown as escapes, and no command ends in a traceback."""
    key = f"releases/日本-{uuid4().hex}"
    narrow = Zot(zot.home, {**zot.settings, "PYTHONIOENCODING": encoding})
    for arguments in (["upload", source, key], ["ls", key], ["show", key], ["jobs"], ["stores"]):
        done = narrow(*arguments)
        assert "Traceback" not in done.stderr
        assert done.status in {0, 1, 3}
    assert "\\u65e5" in narrow("ls", key).stdout


def test_a_staged_file_is_removed_with_its_job(zot: Zot, key: str, source: Path) -> None:
    """A file outside the roots is staged for its job, and nothing of it stays when the job has ended well or badly."""
    assert zot("upload", source, key).status == 0
    assert leftovers(zot) == []
    assert zot("upload", source, key, "--store", "badkey").status == 1
    assert leftovers(zot) == []


def test_a_file_under_a_root_is_not_staged(zot: Zot, key: str, source: Path) -> None:
    """The worker reads a file under a configured root where it is."""
    rooted = shutil.copy(source, zot.home.parent / "root" / source.name)
    document = zot("upload", rooted, key, "--json").document
    assert zot("jobs", document["job"], "--json").document["request"]["source"] == str(rooted)


def test_a_rotten_copy_is_found_and_repaired(zot: Zot, key: str, source: Path, tmp_path: Path) -> None:
    """After a flipped byte `verify` ends with 1, `get` takes the other copy, and `replicate` keeps the bad bytes."""
    assert zot("upload", source, key).status == 0
    path = zot.home / "stores" / "primary" / key
    rotten = bytearray(path.read_bytes())
    rotten[1000] ^= 1
    path.write_bytes(rotten)
    fetched = zot("get", key, tmp_path, "--json")
    assert fetched.document["store"] == "dr"
    assert sha256(tmp_path / Path(key).name) == sha256(source)
    found = zot("verify", key, "--json")
    assert found.status == 1
    assert {copy["store"]: copy["verdict"] for copy in found.document["result"]["copies"]} == {
        "primary": "corrupt",
        "dr": "verified",
    }
    repaired = zot("replicate", key, "--to", "primary", "--json").document["result"]["copies"][0]
    quarantined = zot.home / "stores" / "primary" / repaired["quarantined"]
    assert quarantined.read_bytes() == rotten
    assert zot("verify", key).status == 0


# JSON


def test_a_job_is_one_json_document(zot: Zot, key: str, source: Path) -> None:
    """Every job command prints the same document, and `jobs ID` prints it again."""
    uploaded = zot("upload", source, key, "--json").document
    assert list(uploaded) == ["job", "kind", "state", "attempts", "error", "result"]
    assert (uploaded["kind"], uploaded["state"], uploaded["attempts"], uploaded["error"]) == (
        "upload", "succeeded", 1, None,
    )  # fmt: skip
    again = zot("jobs", uploaded["job"], "--json").document
    assert {name: again[name] for name in uploaded} == uploaded
    assert uploaded["job"] in {each["job"] for each in zot("jobs", "--json").document["jobs"]}
    verdicts = zot("verify", key, "--json").document["result"]["copies"]
    assert [(each["store"], each["verdict"], each["sha256"]) for each in verdicts] == [
        (store, "verified", sha256(source)) for store in ("dr", "primary")
    ]


def test_show_prints_what_is_known_of_each_copy(zot: Zot, key: str, source: Path) -> None:
    """`show --json` has the version and, for each copy, its state and when it was last tried and verified."""
    zot("upload", source, key)
    copy = {"state": "stored", "last_verified_at": None, "last_attempt_at": None, "archived": False, "evidence": None}
    assert zot("show", key, "--json").document == {
        "bucket": "releases",
        "key": key.partition("/")[2],
        "version": 1,
        "size": 300_000,
        "sha256": sha256(source),
        "metadata": {},
        "properties": {},
        "tags": {},
        "hold": None,
        "companions": [],
        "companion_of": None,
        "copies": [{"store": "dr", **copy}, {"store": "primary", **copy}],
    }
    zot("verify", key)
    for copy in zot("show", key, "--json").document["copies"]:
        assert copy["state"] == "verified"
        assert copy["last_verified_at"] == copy["last_attempt_at"] != None  # noqa: E711 - one comparison of three


def test_no_wait_returns_an_id_that_can_be_asked_for(zot: Zot, key: str, source: Path) -> None:
    """`--no-wait` prints only the job's id; the same idempotency key is the same job, with another request refused."""
    name = uuid4().hex
    sent = zot("upload", source, key, "--no-wait", "--idempotency-key", name)
    job = sent.stdout.strip()
    assert sent.status == 0
    waited = zot("upload", source, key, "--idempotency-key", name, "--json").document
    assert (waited["job"], waited["state"]) == (job, "succeeded")
    other = zot("upload", source, f"{key}.other", "--idempotency-key", name)
    assert other.status == 2
    assert "was used for another request" in other.stderr
    assert leftovers(zot) == []


def test_stores_and_doctor_tell_which_stores_answer(zot: Zot) -> None:
    """`stores` and `doctor` name the stores that cannot be used; doctor also that no beat runs."""
    listed = zot("stores", "--json")
    assert listed.status == 3
    assert {each["store"]: each["reachable"] for each in listed.document["stores"]} == {
        "primary": True, "dr": True, "cloud": True, "badkey": False, "doomed": True, "nowhere": False,
    }  # fmt: skip
    looked = zot("doctor", "--json")
    assert looked.status == 1
    outcomes = {check["name"]: check["outcome"] for check in looked.document["checks"]}
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "good"} == {
        "beat": "bad", "store badkey": "unknown", "store nowhere": "unknown",
    }  # fmt: skip
    assert {"settings", "data directory", "broker", "workers", "catalogue", "source root"} <= set(outcomes)


# Bad input: a line that names it and the way out, the right status, nothing half-written


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["uplod", "x", "a/b"], 2, ["uplod", "upload"]),
        (["upload", "/nonexistent/app.tgz", "a/b"], 1, ["/nonexistent/app.tgz", "no such file"]),
        (["upload", "/", "a/b"], 1, ["is a directory"]),
        (["upload", "/dev/null", "a/b"], 1, ["/dev/null", "no regular file"]),
        (["upload", __file__, "nokey"], 2, ["'nokey'", "BUCKET/KEY"]),
        (["upload", __file__, "a/../b"], 2, ["'../b'", "'..'"]),
        (["upload", __file__, "zot-mine/b"], 2, ["'zot-mine'", "reserved"]),
        (["upload", __file__, "a/b", "--store", "primry"], 2, ["'primry'", "'primary'"]),
        (["upload", __file__, "a/b", "--sha256", "123"], 2, ["sha256"]),
        (["upload", __file__, "a/b", "--sha256", "0" * 64], 1, [__file__, "0" * 64, "SHA-256"]),
        (["upload", __file__, "a/b", "--metadata", "team"], 2, ["team", "NAME=VALUE"]),
        (["upload", "http://user:pw@example.org/x", "a/b"], 2, ["secrets"]),
        (["upload", "https://example.org/x", "a/b"], 1, ["https://example.org", "sources.hosts"]),
        (["replicate", "a/b", "--to", "primary,sixth"], 2, ["'sixth'"]),
        (["verify", "a/b", "--timeout", "soon"], 2, ["soon"]),
        (["verify", "nothing/here"], 1, ["nothing/here", "not in the catalogue"]),
        (["get", "nothing/here", "x"], 1, ["nothing/here", "not in the catalogue"]),
        (["jobs", "no-such-job"], 3, ["no-such-job"]),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(zot: Zot, arguments: list[str], status: int, words: list[str]) -> None:
    """What is wrong with a command is one line on stderr, and with --json one document on stdout."""
    done = zot(*arguments, "--json")
    assert done.status == status
    assert done.is_one_line()
    assert all(word in done.stderr for word in words), done.stderr
    error = done.document["error"]
    assert error["type"]
    assert all(word in error["message"] for word in words)
    assert leftovers(zot) == []


def test_the_last_good_copy_is_kept(zot: Zot, key: str, source: Path) -> None:
    """Deleting from the stores that hold the last good copy is refused with 1, unless --allow-last says so."""
    zot("upload", source, key, "--store", "primary")
    refused = zot("delete", key, "--store", "primary")
    assert refused.status == 1
    assert "no good copy would remain" in refused.stderr
    assert refused.is_one_line()
    assert zot("delete", key, "--store", "primary", "--allow-last").status == 0


def test_wrong_credentials_fail_at_once(zot: Zot, key: str, source: Path) -> None:
    """Credentials that a store does not accept are a failure at the first attempt, naming the store; no key is told."""
    done = zot("upload", source, key, "--store", "badkey", "--json")
    assert done.status == 1
    assert (done.document["state"], done.document["attempts"]) == ("failed", 1)
    assert "badkey" in done.document["error"]["message"]
    assert "wrong-wrong-wrong" not in done.stdout + done.stderr


def test_a_wrong_endpoint_is_seen_while_it_is_tried(zot: Zot, key: str, source: Path) -> None:
    """An endpoint without a listener is reported at the first attempt; the job is dead when attempts are used up."""
    done = zot("upload", source, key, "--store", "nowhere", "--json")
    assert done.status == 1
    assert (done.document["state"], done.document["attempts"]) == ("dead", 2)
    assert "attempt 1 of 2 failed: nowhere" in done.stderr


def test_waiting_ends_when_the_time_is_up(zot: Zot, key: str, source: Path) -> None:
    """A job that has not ended in --timeout is status 3, and goes on."""
    done = zot("upload", source, key, "--store", "nowhere", "--timeout", "0.1s", "--json")
    assert done.status == 3
    assert done.document["state"] in {"queued", "running", "retrying"}
    assert "it continues" in done.stderr


def test_a_copy_that_cannot_be_read_is_no_verdict_on_its_bytes(
    zot: Zot, doomed: RcloneS3, key: str, source: Path
) -> None:
    """A store that has gone away makes `verify` end with 3 and `unreadable`: it says nothing about the bytes."""
    assert zot("upload", source, key, "--store", "doomed,dr").status == 0
    doomed.kill()
    try:
        done = zot("verify", key, "--json")
        listed = zot("stores", "--json")
    finally:
        doomed.restart()
    assert done.status == 3
    assert {copy["store"]: copy["verdict"] for copy in done.document["result"]["copies"]} == {
        "doomed": "unreadable",
        "dr": "verified",
    }
    assert listed.status == 3
    assert zot("verify", key).status == 0


def test_a_message_that_no_worker_understands_is_refused(zot: Zot, key: str) -> None:
    """A malformed message and an unknown task version are refused, recorded with their cause, and told."""
    with ArtifactClient((zot.home / "run" / "broker-url").read_text().strip()) as client:
        from zot_artifact_client.contract import VERIFY

        app = Celery(broker=(zot.home / "run" / "broker-url").read_text().strip(), set_as_current=False)
        ids = {}
        with app.connection_for_write() as connection:
            for name, kwargs in (("artifact.verify.v1", {"bukcet": "a"}), ("artifact.verify.v9", {"bucket": "a"})):
                sent = app.send_task(name, kwargs=kwargs, queue=VERIFY.queue.value, connection=connection)
                ids[name] = sent.id
        for name, job in ids.items():
            with pytest.raises(JobFailed):
                client.job(job).wait(WITHIN)
            document = zot("jobs", job, "--json").document
            assert document["state"] == "refused"
            assert name in document["error"]["message"]
    assert key not in json.dumps(document)


def test_a_client_cannot_reach_files_outside_the_roots(zot: Zot, source: Path) -> None:
    """Only the command line stages: a service that names a file outside the roots is told which setting would allow."""
    with ArtifactClient((zot.home / "run" / "broker-url").read_text().strip()) as client:
        job = client.upload(source, "releases", uuid4().hex)
        with pytest.raises(JobFailed, match=r"sources\.roots"):
            job.wait(WITHIN)


def test_a_full_disk_leaves_nothing_behind(zot: Zot, key: str, source: Path, tmp_path: Path) -> None:
    """A file that does not fit into the staging directory is one line, status 1, and nothing stays of it."""
    staging = tmp_path / "home" / "staging"
    staging.mkdir(parents=True)
    Catalogue(f"sqlite:///{tmp_path}/home/catalogue.sqlite3").close()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(staging)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small filesystem is not permitted here")
    try:
        broker = (zot.home / "run" / "broker-url").read_text().strip()
        done = Zot(tmp_path / "home", {"ZOT_BROKER": broker})("upload", source, key)
        assert done.status == 1
        assert done.is_one_line()
        assert "No space left" in done.stderr
        assert list(staging.iterdir()) == []
    finally:
        subprocess.run(["umount", str(staging)], check=True)


# Settings and the broker


def test_settings_that_are_misspelt_are_named(zot: Zot, tmp_path: Path) -> None:
    """A misspelt setting, in the file or in the environment, is status 2 with the name that was meant."""
    config = tmp_path / "zot.yaml"
    config.write_text("retry: {max_attemps: 3}\n")
    for wrong, words in (
        (zot.with_settings(config=str(config)), ["retry.max_attemps", "max_attempts"]),
        (zot.with_settings(hoem="x"), ["ZOT_HOEM", "ZOT_HOME"]),
        (zot.with_settings(config="/nonexistent.yaml"), ["/nonexistent.yaml"]),
    ):
        done = wrong("ls", "--json")
        assert done.status == 2
        assert done.is_one_line()
        assert all(word in done.stderr for word in words), done.stderr
        assert done.document["error"]["type"] == "SettingsError"


def test_a_broker_that_does_not_answer_is_told(zot: Zot, key: str, source: Path) -> None:
    """An unreachable broker is one line and status 3 within seconds; the password is not told, nothing stays staged."""
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    done = zot.with_settings(broker=url)("upload", source, key, "--json", within=60)
    assert done.status == 3
    assert done.is_one_line()
    assert done.document["error"]["type"] == "BrokerUnavailable"
    assert "hunter2" not in done.stdout + done.stderr
    assert leftovers(zot) == []


def test_without_a_broker_the_way_out_is_told(tmp_path: Path) -> None:
    """Where no broker was ever started, the line says how to start one; status 3."""
    (tmp_path / "file").write_bytes(b"x")
    done = Zot(tmp_path / "home")("upload", tmp_path / "file", "releases/file")
    assert done.status == 3
    assert done.is_one_line()
    assert "zot-artifacts up" in done.stderr


@pytest.mark.parametrize("verb", [("verify",), ("replicate", "--to", "dr"), ("delete",)], ids=lambda verb: verb[0])
def test_a_verb_on_artifacts_makes_no_catalogue(verb: tuple[str, ...], tmp_path: Path) -> None:
    """In a directory without a catalogue, such as a misspelt ZOT_HOME, the command says so; status 2."""
    done = Zot(tmp_path / "home")(*verb, "releases/file")
    assert done.status == 2
    assert done.is_one_line()
    assert "no catalogue here" in done.stderr
    assert not (tmp_path / "home" / "catalogue.sqlite3").exists()


def test_without_arguments_help_is_printed() -> None:
    """A bare `zot-artifacts` shows what there is."""
    done = Zot(Path("/tmp/unused"))("--help")
    assert done.status == 0
    for command in ("up", "demo", "upload", "replicate", "verify", "delete", "get", "ls", "show", "jobs", "stores"):
        assert command in done.stdout


def test_get_leaves_no_partial_file(zot: Zot, key: str, source: Path, tmp_path: Path) -> None:
    """When no copy is right, `get` ends with 1 and DEST has neither a file nor a part of one."""
    zot("upload", source, key, "--store", "primary")
    path = zot.home / "stores" / "primary" / key
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (tmp_path / "out").mkdir()
    done = zot("get", key, tmp_path / "out")
    assert done.status == 1
    assert list((tmp_path / "out").iterdir()) == []
    missing = zot("get", key, tmp_path / "absent" / "file")
    assert missing.status == 1
    assert "absent" in missing.stderr


def test_a_range_is_proved_and_exact(zot: Zot, key: str, source: Path, tmp_path: Path) -> None:
    """`get --range` brings exactly the bytes that were asked for, and nothing when they have rotted everywhere."""
    content = source.read_bytes()
    zot("upload", source, key)
    assert zot("get", key, tmp_path / "part", "--range", "2-4").status == 0
    assert (tmp_path / "part").read_bytes() == content[2:5]
    assert zot("get", key, tmp_path / "rest", "--range", "3-").status == 0
    assert (tmp_path / "rest").read_bytes() == content[3:]
    wrong = zot("get", key, tmp_path / "none", "--range", "9-2")
    assert (wrong.status, "FIRST-LAST" in wrong.stderr) == (2, True)
    for store in ("primary", "dr"):
        (zot.home / "stores" / store / key).write_bytes(content[:3] + bytes([content[3] ^ 1]) + content[4:])
    rotten = zot("get", key, tmp_path / "rotten", "--range", "2-4")
    assert (rotten.status, (tmp_path / "rotten").exists()) == (1, False)
