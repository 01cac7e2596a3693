"""The command `metrics`."""

import logging
import signal
from typing import Annotated

import typer

from worker.cli.errors import Failure
from worker.cli.output import AsJson, print_json, say
from worker.exit_status import Status
from worker.settings import load_settings


def metrics(
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="The address to listen on. No password is asked for, so limit who reaches it."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="The port to listen on; 0 for a free one.")
    ] = 9469,
    as_json: AsJson = False,
) -> None:
    """Serve metrics of jobs, queues, stores and copies for Prometheus.

    It reads the catalogue and the broker itself, so it answers while every worker is busy or dead.
    It runs until Ctrl-C or SIGTERM. /metrics has the figures, and /healthz is its health check.

    Examples:

        zot-artifacts metrics
        zot-artifacts metrics --host 0.0.0.0 --port 9469
    """
    from worker.log_lines import make_safe
    from worker.metrics.exporter import Exporter

    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s")
    settings = load_settings()
    make_safe(logging.getLogger(), as_json=settings.log.format == "json")
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before any thread, so that none of them gets the signal
    try:
        with Exporter(settings).serving(host, port) as server:
            shown = f"http://{host if ':' not in host else f'[{host}]'}:{server.server_address[1]}/metrics"
            if as_json or settings.log.format == "json":  # its output is its log where it runs as a service
                print_json({"url": shown})
            else:
                say(f"metrics  {shown}")
            signal.sigwait(stop)
    except OSError as error:
        told = f"{host}:{port} cannot be used: {error.strerror or error}; name another --host or --port"
        raise Failure(told, Status.USAGE, type_="CannotListen") from error
