"""`attest` and `export`: statements, PREMIS documents and bags that others can check without this program."""

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from tests.unit.cli.test_status import Zot, catalogue, judge, zot  # noqa: F401 - fixtures
from worker import cli, clock
from worker.catalogue import Artifact, Catalogue
from worker.settings import load_settings
from worker.storage import Digest

P = "{http://www.loc.gov/premis/v3}"
Lay = Callable[..., Artifact]


@pytest.fixture
def lay(catalogue: Catalogue) -> Lay:  # noqa: F811
    """Return what records an artifact with a copy in each of both stores, and writes the copies."""

    def lay(key: str, content: bytes) -> Artifact:
        digest = Digest(len(content), hashlib.sha256(content).hexdigest())
        made = catalogue.artifacts.record("releases", key, digest, {}, clock.now(), stores=["primary", "dr"]).artifact
        for store in ("primary", "dr"):
            path = load_settings().home / "stores" / store / "releases" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            catalogue.artifacts.finish_copy(made, store, tag="1", evidence={}, now=clock.now())
        return made

    return lay


@pytest.fixture
def artifact(lay: Lay, catalogue: Catalogue) -> Artifact:  # noqa: F811
    """Return an artifact whose copies were both read in full."""
    made = lay("app.tgz", b"the bytes")
    for store in ("primary", "dr"):
        judge(catalogue, made, store, "verified")
    return made


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True, capture_output=True)
    path.chmod(0o600)
    return path


def public(key: Path) -> bytes:
    return subprocess.run(["openssl", "pkey", "-in", key, "-pubout"], check=True, capture_output=True).stdout


def attest(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.run(["attest", "releases/app.tgz", *map(str, arguments)]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def read(envelope: dict[str, Any]) -> Envelope:
    """Return the envelope as securesystemslib reads it, which changes the document that it is given."""
    return Envelope.from_dict(json.loads(json.dumps(envelope)))


def test_the_reference_library_verifies_an_attestation(
    artifact: Artifact, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Securesystemslib accepts the envelope with the public key, and no other key or payload."""
    envelope = attest(capsys, "--key", key, "--copies", 2)
    keyid = envelope["signatures"][0]["keyid"]
    raw = load_pem_public_key(public(key)).public_bytes_raw().hex()  # type: ignore[union-attr]
    verifier = SSlibKey(keyid, "ed25519", "ed25519", {"public": raw})
    read(envelope).verify([verifier], 1)
    der = subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-outform", "DER"], check=True, capture_output=True)
    assert keyid == hashlib.sha256(der.stdout).hexdigest()
    forged = {**envelope, "payload": base64.b64encode(b'{"_type":"x"}').decode()}
    with pytest.raises(VerificationError):
        read(forged).verify([verifier], 1)
    other = SSlibKey(keyid, "ed25519", "ed25519", {"public": "00" * 32})
    with pytest.raises(VerificationError):
        read(envelope).verify([other], 1)


def test_the_signature_is_over_the_bytes_that_dsse_says(
    artifact: Artifact, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Computed from the text of the specification, without our code."""
    envelope = attest(capsys, "--key", key)
    payload = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    found = load_pem_public_key(public(key))
    found.verify(signature, signed)  # type: ignore[union-attr, call-arg]
    with pytest.raises(InvalidSignature):
        found.verify(signature, signed + b" ")  # type: ignore[union-attr, call-arg]


def test_the_statement_says_what_was_read(
    artifact: Artifact,
    catalogue: Catalogue,  # noqa: F811
    key: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Subject, predicate and policy as in-toto writes them, and the rows of the log that hold it up."""
    envelope = attest(capsys, "--key", key, "--within", "7d", "--copies", 2, "--verifier", "https://acme.example/v1")
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "releases/app.tgz", "digest": {"sha256": artifact.digest.sha256}}]
    assert statement["predicateType"] == "https://in-toto.io/attestation/svr/v0.2"
    predicate = statement["predicate"]
    assert predicate["verifier"]["id"] == "https://acme.example/v1"
    assert predicate["verifier"]["policies"][0]["uri"].endswith("full-read:copies=2:days=7")
    assert predicate["properties"] == [
        "ZOT_ARTIFACTS_FULL_READ", "ZOT_ARTIFACTS_COPIES_2", "ZOT_ARTIFACTS_READ_WITHIN_7_DAYS",
    ]  # fmt: skip
    rows = {row["hash"] for row in catalogue.verifications.of("releases", "app.tgz")}
    assert {copy["log"]["digest"]["sha256"] for copy in predicate["urn:zot-artifacts:copies"]} == rows


@pytest.mark.parametrize("fault", ["corrupt", "missing", "old", "unread", "few", "not configured"])
def test_nothing_is_signed_that_was_not_shown(
    lay: Lay,
    catalogue: Catalogue,  # noqa: F811
    key: Path,
    fault: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bad, old, unread or unreachable copy, or too few of them, end with 1 and name the store and the way out."""
    made, copies = lay("app.tgz", b"the bytes"), "2"
    judge(catalogue, made, "primary", "verified")
    match fault:
        case "corrupt" | "missing":
            judge(catalogue, made, "dr", fault)
        case "old":
            judge(catalogue, made, "dr", "verified", now=clock.now() - timedelta(days=31))
        case "few":
            judge(catalogue, made, "dr", "verified")
            copies = "3"
        case "not configured":
            judge(catalogue, made, "dr", "verified")
            catalogue.artifacts.finish_copy(
                made, catalogue.artifacts.ensure_copy(made, "old").store, tag="1", evidence={}, now=clock.now()
            )
    assert cli.run(["attest", "releases/app.tgz", "--key", str(key), "--copies", copies]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "zot-artifacts verify releases/app.tgz" in said.err
    assert ("3 are asked for" if fault == "few" else "old:" if fault == "not configured" else "dr:") in said.err


def test_a_key_that_cannot_sign_is_one_line(artifact: Artifact, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An open, absent, foreign or broken key file ends with 2, and its content is not shown."""
    rsa = key.with_name("rsa.pem")
    subprocess.run(["openssl", "genpkey", "-algorithm", "rsa", "-out", rsa], check=True, capture_output=True)
    broken = key.with_name("broken.pem")
    broken.write_text(key.read_text()[:40])
    for path in (rsa, broken):
        path.chmod(0o600)
    opened = key.with_name("open.pem")
    opened.write_bytes(key.read_bytes())
    opened.chmod(0o644)
    secret = key.read_text().splitlines()[1]
    for path, way_out in ((rsa, "genpkey"), (broken, "genpkey"), (opened, "chmod 600"), (key.parent / "no", "no")):
        assert cli.run(["attest", "releases/app.tgz", "--key", str(path)]) == 2
        said = capsys.readouterr()
        assert way_out in said.err
        assert secret[:20] not in said.err + said.out


def test_premis_has_the_digest_the_copies_and_the_reads(
    artifact: Artifact,
    lay: Lay,
    catalogue: Catalogue,  # noqa: F811
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """The order of elements is that of PREMIS 3, and every link leads to an element.

    A bad copy is a failed check, one that cannot be read a warning, and neither is a full read if no byte was read.
    """
    for verdict in ("corrupt", "missing", "unreadable"):
        judge(catalogue, artifact, "dr", verdict)
    assert cli.run(["export", "--premis", "releases/app.tgz"]) == 0
    root = ET.fromstring(capfdbinary.readouterr().out)
    assert (root.tag, root.get("version")) == (f"{P}premis", "3.0")
    kinds = [child.tag.removeprefix(P) for child in root]
    assert kinds == ["object", *["event"] * 6, "agent"]
    found = root.find(f"{P}object")
    assert found is not None
    assert found.get("{http://www.w3.org/2001/XMLSchema-instance}type") == "premis:file"
    names = list(dict.fromkeys(child.tag.removeprefix(P) for child in found))
    assert names == ["objectIdentifier", "objectCharacteristics", "originalName", "storage", "linkingEventIdentifier"]
    traits = found.find(f"{P}objectCharacteristics")
    assert traits is not None
    assert [child.tag.removeprefix(P) for child in traits] == ["fixity", "size", "format"]
    assert traits.findtext(f"{P}fixity/{P}messageDigest") == artifact.digest.sha256
    assert traits.findtext(f"{P}size") == "9"
    values = [each.text for each in root.iter(f"{P}eventIdentifierValue")]
    links = [each.text for each in root.iter(f"{P}linkingEventIdentifierValue")]
    assert sorted(map(str, values)) == sorted(map(str, links))
    outcomes = [each.text for each in root.iter(f"{P}eventOutcome")]
    assert outcomes == ["success", "success", "fail", "fail", "warning"]
    details = [str(each.text).partition(" bytes")[0] for each in root.iter(f"{P}eventDetail")]
    assert details == ["all", "all", "all", "not all", "not all"]
    for event in root.iter(f"{P}event"):
        order = [child.tag.removeprefix(P) for child in event]
        assert order[:3] == ["eventIdentifier", "eventType", "eventDateTime"]
        assert order[-2:] == ["linkingAgentIdentifier", "linkingObjectIdentifier"]
    newer = lay("app.tgz", b"other bytes")
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(newer)["dr"]])
    assert cli.run(["export", "--premis", "releases/app.tgz"]) == 0
    root = ET.fromstring(capfdbinary.readouterr().out)
    assert [each.text for each in root.iter(f"{P}eventType")] == ["ingestion"], "no read is one of another version"
    assert [each.text for each in root.iter(f"{P}storageMedium")] == ["primary"]


def test_a_hostile_key_breaks_no_document(lay: Lay, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Markup, line ends and control characters in a key neither end an element nor a line of a manifest."""
    names = ("</premis:object>", "a\x01b", "per%cent", "two\nlines")
    for name in names:
        lay(name, name.encode())
    assert cli.run(["export", "--premis", *(f"releases/{name}" for name in names)]) == 0
    ET.fromstring(capfdbinary.readouterr().out)
    bag = tmp_path / "bag"
    assert cli.run(["export", "--bagit", str(bag), *(f"releases/{name}" for name in names)]) == 0
    lines = (bag / "manifest-sha256.txt").read_text().split("\n")
    assert len(lines) == len(names) + 1
    assert any(line.endswith("data/releases/two%0Alines") for line in lines)
    assert any(line.endswith("data/releases/per%25cent") for line in lines)


def test_a_bag_is_valid_for_other_programs(
    artifact: Artifact, lay: Lay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sha256sum --check` accepts payload and tags, and each file of the bag is in one of both manifests."""
    lay("dir/notes.txt", b"some notes")
    bag = tmp_path / "bag"
    assert cli.run(["export", "--bagit", str(bag), "releases/app.tgz", "releases/dir/notes.txt"]) == 0
    for manifest in ("manifest-sha256.txt", "tagmanifest-sha256.txt"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", manifest], cwd=bag, check=True)
    assert (bag / "bagit.txt").read_text() == "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
    assert "Payload-Oxum: 19.2\n" in (bag / "bag-info.txt").read_text()
    listed = {
        line.partition("  ")[2]
        for manifest in ("manifest-sha256.txt", "tagmanifest-sha256.txt")
        for line in (bag / manifest).read_text().splitlines()
    }
    there = {str(path.relative_to(bag)) for path in bag.rglob("*") if path.is_file()}
    assert there - listed == {"tagmanifest-sha256.txt"}
    assert cli.run(["export", "--bagit", str(bag), "releases/app.tgz"]) == 2
    assert "name a new directory" in capsys.readouterr().err


def test_rot_makes_no_bag(artifact: Artifact, tmp_path: Path) -> None:
    """Without a right copy the command ends with 1, and the directory is no bag."""
    for store in ("primary", "dr"):
        (load_settings().home / "stores" / store / "releases/app.tgz").write_bytes(b"bad bytes")
    bag = tmp_path / "bag"
    assert cli.run(["export", "--bagit", str(bag), "releases/app.tgz"]) == 1
    assert not (bag / "bagit.txt").exists()
