"""What is delivered has licences that allow it, and this repository holds no secret."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

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
