"""The command `attest`."""

import json
import stat
import sys
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from worker import clock
from worker.artifacts.attestation import NotAttested, Policy, sign, statement_of
from worker.cli.arguments import STREAM, ArtifactArgument, ArtifactPath, duration, input_file, output_file
from worker.cli.atomic_file import complete_file
from worker.cli.errors import Failure, UsageError
from worker.cli.output import note, print_json
from worker.cli.session import opened
from worker.exit_status import Status
from worker.input_files import read_input

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MOST_KEY = 64 * 1024


def attest(
    artifact: ArtifactArgument,
    *,
    key: Annotated[
        Path,
        typer.Option(
            "--key",
            parser=input_file,
            metavar="FILE",
            help="The Ed25519 private key to sign with, in PEM; `-` is standard input.",
        ),
    ],
    within: Annotated[
        timedelta,
        typer.Option(
            parser=duration,
            metavar="TIME",
            show_default=False,
            help="How old the last full read of a copy may be; 30d by default.",
        ),
    ] = timedelta(days=30),
    copies: Annotated[int, typer.Option(metavar="N", min=1, help="How many copies there must be at least.")] = 1,
    verifier: Annotated[
        str | None, typer.Option(metavar="URI", help="Who verifies; by default the id of the catalogue.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=output_file,
            metavar="FILE",
            help="Write to FILE and not to standard output, which `-` names too.",
        ),
    ] = None,
) -> None:
    """Sign a statement that every copy of an artifact was read in full and matched.

    It is an in-toto statement, a Simple Verification Result, in a DSSE envelope.
    Nothing is signed, and the exit status is 1, if a copy is bad, or was not read in full within --within.
    Anyone with the public key can check it without the worker.

    Examples:

        openssl genpkey -algorithm ed25519 -out key.pem
        openssl pkey -in key.pem -pubout -out key.pub
        zot-artifacts attest releases/app.tgz --key key.pem --within 30d --copies 2 -o app.tgz.att.json
    """
    at = ArtifactPath.parse(artifact)
    signer = _signer(key)
    with opened() as session:
        found = session.catalogue.artifact(at.bucket, at.key)
        policy = Policy(copies, within)
        try:
            statement = statement_of(
                found, session.catalogue, session.settings, policy, verifier=verifier, now=clock.now()
            )
        except NotAttested as error:
            way_out = f"`zot-artifacts verify {quote(found.path)}` reads all copies"
            raise Failure(f"{error}; {way_out}", Status.BAD, type_="NotAttested") from None
        envelope = sign(statement, signer)
        if output in {None, output_file(STREAM)}:
            print_json(envelope)
            return
        with complete_file(output, session.settings.spool_dir) as file:
            file.write(json.dumps(envelope).encode() + b"\n")
    note(f"{found.path}: {', '.join(statement['predicate']['properties'])}; signed in {output}")
    sys.stdout.flush()


def _signer(path: Path) -> "Ed25519PrivateKey":
    """Return the key in a file.

    Raises:
        Failure: it is none, or other users can read it; the message holds nothing of the file.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        text = read_input(path, _MOST_KEY)
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"--key {path}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"--key {path}: other users can read it (mode {stat.S_IMODE(mode):04o}): `chmod 600 {quote(str(path))}`"
        )
    try:
        found = load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise UsageError(
            f"--key {path}: it is no Ed25519 private key in PEM without a password; "
            "`openssl genpkey -algorithm ed25519` makes one"
        )
    return found
