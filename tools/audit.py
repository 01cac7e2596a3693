"""Ask for known vulnerabilities of what is delivered: `python tools/audit.py PIP_AUDIT [LOCK]`.

pip-audit asks a service on the network. A machine without that network must still be able to check everything else, so
what could not be asked is told, and is no failure. pip-audit itself ends with 0 when the index knows nothing about a
package, which would show an index without advisories as a clean result.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
_WITHIN = 180
"""Seconds for all of it: a network that swallows packets must not hold up a check."""


def audit(program: str, lock: Path, *, within: float = _WITHIN) -> tuple[bool, list[str]]:
    """Return whether no vulnerability is known, and the lines to show.

    Args:
        program: the path of pip-audit.
        lock: requirements with versions and hashes.
        within: seconds after which the service counts as not reached.
    """
    options = ["--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    command = [program, *options, "--requirement", str(lock)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=within)
        document = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return True, _not_audited(lock, f"no answer within {within:g} s")
    except ValueError:
        return True, _not_audited(lock, (done.stderr.strip().splitlines() or ["no output"])[-1][:300])
    return read(document, lock)


def read(document: Mapping[str, Any], lock: Path) -> tuple[bool, list[str]]:
    """Return whether a report of pip-audit names no vulnerability, and the lines to show."""
    packages = document["dependencies"]
    skipped = [each for each in packages if "skip_reason" in each]
    bad = [
        f"{each['name']} {each['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for each in packages
        for found in each.get("vulns", ())
    ]
    if packages and len(skipped) == len(packages):
        return True, _not_audited(lock, "the index has no advisories")
    told = [
        f"audit: {lock.name}: {len(packages) - len(skipped)} packages asked about, {len(bad)} vulnerabilities known"
    ]
    if skipped:
        told.append(f"audit: NOT AUDITED: {', '.join(each['name'] for each in skipped)}")
    return not bad, told + bad


def _not_audited(lock: Path, why: str) -> list[str]:
    return [
        f"audit: {lock.name} was NOT AUDITED for known vulnerabilities: {why}. Run `make audit` where PyPI answers."
    ]


def main(arguments: Sequence[str]) -> int:
    """Audit, and return 1 when a vulnerability is known."""
    program, *locks = arguments
    good, told = audit(program, Path(locks[0]) if locks else LOCK)
    print("\n".join(told))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
