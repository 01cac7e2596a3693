"""The command `serve`."""

import ipaddress
from pathlib import Path
from typing import Annotated

import typer

from worker import clock
from worker.cli.arguments import no_stream
from worker.cli.errors import Failure, UsageError
from worker.cli.output import complain, note
from worker.exit_status import Status
from worker.input_files import special_kind
from worker.settings import load_settings

Certificate = Annotated[
    Path | None,
    typer.Option(
        "--certificate", parser=no_stream, metavar="FILE", help="Serve TLS with this certificate chain, in PEM."
    ),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", parser=no_stream, metavar="FILE", help="The private key of the certificate, in PEM."),
]


def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="The port to listen on; 0 for a free one.")
    ] = 8484,
    certificate: Certificate = None,
    key: Key = None,
) -> None:
    """Serve the HTTP gateway, for services in any language.

    It offers jobs, artifacts and their bytes.
    Every request needs a token, which `zot-artifacts tokens add` makes.
    The gateway does no long work itself: it sends jobs to the workers.
    It runs until Ctrl-C or SIGTERM.

    Examples:

        zot-artifacts serve
        zot-artifacts serve --host 0.0.0.0 --port 443 --certificate chain.pem --key key.pem
    """
    if (certificate is None) != (key is None):
        raise UsageError("--certificate and --key go together")
    for option, path in (("--certificate", certificate), ("--key", key)):
        if path is not None and not path.is_file():
            kind = special_kind(path) or ("a directory" if path.is_dir() else None)
            fault = f"it is {kind} and no file" if kind else "there is no such file"
            raise UsageError(f"{option} {path}: {fault}")
    settings = load_settings()
    if certificate is None and not _is_loopback(host):
        complain(f"{host} without --certificate: tokens and bytes can be read on the way; use TLS here or in a proxy")
    if certificate is not None and key is not None:
        _check_certificate(certificate, key)
    from worker.gateway.server import Address, listen, serve

    address = Address(host, port, certificate, key)
    try:
        listener = listen(address)
    except OSError as error:
        way_out = "name another --host or --port"
        raise Failure(f"{host}:{port}: {error.strerror}; {way_out}", Status.USAGE, type_="CannotListen") from None
    with listener:
        if settings.log.format != "json":  # stderr is the log, in which each line is JSON then
            note(f"gateway  {'https' if certificate else 'http'}://{host}:{listener.getsockname()[1]}")
        serve(settings, address, listener)


def _check_certificate(certificate: Path, key: Path) -> None:
    """Return if a server can use these files. Raise Failure, which holds nothing of them."""
    from worker.server_certificate import NO_PAIR, is_chain_with_key, out_of_date

    if not is_chain_with_key(certificate, key):
        raise UsageError(f"--certificate {certificate}, --key {key}: {NO_PAIR}")
    if fault := out_of_date(certificate, clock.now()):
        complain(f"--certificate {certificate}: {fault}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
