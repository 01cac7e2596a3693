"""Sign a file with a key of this run alone and verify it as a user does: `python tools/dry_run_signature.py FILE`.

A release signs SHA256SUMS with the maintainer's SSH key, the one that signs the tag. A dry run has no such key.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SIGNER = "release@zot-artifacts"
NAMESPACE = "file"


def signed_and_verified(program: str, path: Path, directory: Path) -> None:
    """Sign a file and verify the signature; a changed file must not verify.

    Args:
        program: the path of ssh-keygen.
        path: the file; `.sig` beside it is the signature.
        directory: where the key of this run is made.

    Raises:
        subprocess.CalledProcessError: a step failed.
        ValueError: a changed file was verified.
    """
    key, signers = directory / "key", directory / "allowed_signers"
    _run([program, "-q", "-t", "ed25519", "-N", "", "-C", SIGNER, "-f", str(key)])
    signers.write_text(f'{SIGNER} namespaces="{NAMESPACE}" {key.with_suffix(".pub").read_text()}')
    path.with_name(f"{path.name}.sig").unlink(missing_ok=True)
    _run([program, "-q", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(path)])
    verify = [program, "-q", "-Y", "verify", "-n", NAMESPACE, "-I", SIGNER, "-f", str(signers), "-s", f"{path}.sig"]
    _run(verify, path.read_bytes())
    if subprocess.run(verify, input=path.read_bytes() + b"\n", capture_output=True, check=False).returncode == 0:
        raise ValueError(f"{path}: a changed file was verified")


def _run(command: list[str], given: bytes | None = None) -> None:
    subprocess.run(command, input=given, check=True, stdout=subprocess.DEVNULL)


def main(path: Path) -> int:
    """Sign and verify; without ssh-keygen that is told, and is no failure."""
    program = shutil.which("ssh-keygen")
    if program is None:
        print("NOT SIGNED: ssh-keygen is not installed (on Debian: apt install openssh-client)")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        signed_and_verified(program, path, Path(directory))
    print(f"{path.name}.sig: signed with a key of this run, and verified; a release signs with the maintainer's key")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
