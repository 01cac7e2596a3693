"""What is delivered has licences that allow it and no known vulnerability, and this repository holds no secret."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.audit import audit, read
from tools.dry_run_signature import signed_and_verified

ROOT = Path(__file__).resolve().parents[2]
PINS = re.findall(r"^([a-z0-9][a-z0-9.-]*)==", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
ALLOWED = re.compile(
    r"Apache|BSD|MIT|ISC|PSF|Python Software Foundation|Mozilla Public License 2.0|MPL-2.0|Unlicense|LGPL-3.0-only"
)
"""LGPL is psycopg's, which is used as a library and not changed; MPL is that of certifi's list of certificates."""
SECRETS = {
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(rb"-----BEGIN (?:RSA |EC |OPENSSH |ENCRYPTED )?PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}"),
    "a token of GitHub": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36}\b"),
    "a token of Slack": re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
    "an API key of Google": re.compile(rb"\bAIza[0-9A-Za-z_-]{35}\b"),
    "a URL of a service with its password": re.compile(
        rb"\w+://[\w.-]+:[^\s@/{}$:<>'\"]{16,}@[\w-]+\.(?:com|net|io)\b"
    ),
}
EXAMPLES = (b"AKIAIOSFODNN7EXAMPLE",)
"""What Amazon prints in its documentation."""


@pytest.mark.parametrize("name", PINS)
def test_a_dependency_may_be_delivered(name: str) -> None:
    """Each distribution that the worker is delivered with names a licence, and one of those that allow it."""
    try:
        found = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is of another platform or Python")
    classifiers = [each for each in found.get_all("Classifier") or [] if each.startswith("License ::")]
    said = found.get("License-Expression") or " ".join(classifiers) or (found.get("License") or "").split("\n")[0]
    assert ALLOWED.search(said), f"{name}: {said!r}"


def test_no_file_holds_a_secret() -> None:
    """No tracked file has what keys and tokens of known services are like; keys of tests are made when they run."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    found = []
    for name in filter(None, listed.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 2 << 20:
            text = path.read_bytes()
            for known in EXAMPLES:
                text = text.replace(known, b"")
            found += [f"{name}: {what}" for what, pattern in SECRETS.items() if pattern.search(text)]
    assert found == []


def test_a_known_vulnerability_fails_the_audit() -> None:
    """A report with a vulnerability is a failure that names the package, the advisory and the version that fixes it."""
    vulnerable = {"name": "celery", "version": "5.7", "vulns": [{"id": "PYSEC-1", "fix_versions": ["5.8"]}]}
    good, told = read({"dependencies": [vulnerable, {"name": "amqp", "version": "1", "vulns": []}]}, Path("a.lock"))
    assert not good
    assert told == [
        "audit: a.lock: 2 packages asked about, 1 vulnerabilities known", "celery 5.7: PYSEC-1, fixed in 5.8"
    ]  # fmt: skip


def test_what_was_not_audited_is_told_and_is_no_failure(tmp_path: Path) -> None:
    """An index without advisories, a network that does not answer and one that fails are told, and fail nothing."""
    unknown = {"name": "celery", "skip_reason": "not found on PyPI"}
    good, [told] = read({"dependencies": [unknown]}, Path("a.lock"))
    assert good
    assert "NOT AUDITED" in told
    good, told_of_one = read({"dependencies": [unknown, {"name": "amqp", "version": "1", "vulns": []}]}, Path("a.lock"))
    assert (good, told_of_one[1]) == (True, "audit: NOT AUDITED: celery")
    program = tmp_path / "pip-audit"
    for script, why in (("echo no route >&2; exit 1", "no route"), ("exec sleep 60", "no answer within 0.5 s")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        good, [told] = audit(str(program), Path("a.lock"), within=0.5)
        assert good
        assert f"NOT AUDITED for known vulnerabilities: {why}" in told


def test_a_signed_release_verifies_and_a_changed_one_does_not(tmp_path: Path) -> None:
    """The checksums of a release are signed and verified as CONTRIBUTING.md says; a changed file does not verify."""
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("ssh-keygen is not installed")
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("0 a\n")
    (tmp_path / "keys").mkdir()
    signed_and_verified(program, sums, tmp_path / "keys")
    assert sums.with_name("SHA256SUMS.sig").read_text().startswith("-----BEGIN SSH SIGNATURE-----")
