"""The command `demo`."""

import os
import tempfile
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from worker.cli import demo_steps as steps
from worker.cli.arguments import new_directory
from worker.cli.errors import Failure
from worker.cli.output import AsJson, print_json
from worker.embedded.up_subprocess import UpFailed, running, still_there
from worker.exit_status import Status
from worker.settings.loading import load_settings
from worker.settings.model import ENV_PREFIX

_CONFIG = """\
# Written by `zot-artifacts demo`.
stores:
  primary: {type: filesystem, root: %(home)s/stores/primary}
  dr: {type: filesystem, root: %(home)s/stores/dr}
%(cloud)splacement: [primary]
sweep:
  verify: {every: 2s, period: 10s}
delete: {grace: 0s}
"""


def demo(
    home: Annotated[
        Path | None,
        typer.Option(
            parser=new_directory, metavar="DIR", help="A new data directory to keep; a temporary one by default."
        ),
    ] = None,
    s3_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="ZOT_DEMO_S3_ENDPOINT",
            help="URL of an S3 server, as a third store. Its keys come from AWS_*.",
        ),
    ] = None,
    s3_bucket: Annotated[
        str, typer.Option(metavar="BUCKET", envvar="ZOT_DEMO_S3_BUCKET", help="The bucket on the S3 server.")
    ] = "artifacts",
    as_json: AsJson = False,
) -> None:
    """Show upload, replication, verification and repair on real files.

    The demo runs `zot-artifacts up`, uploads three files, damages a copy, repairs it and deletes everything again.
    Each step checks its effect.
    The exit status is 0 only if every check passed.

    Example:

        zot-artifacts demo
    """
    console = Console(soft_wrap=True, highlight=False, stderr=as_json)
    console.width = min(console.width, 110)
    kept = nullcontext(str(home)) if home else tempfile.TemporaryDirectory(prefix="zot-demo-")
    with kept as directory:
        try:
            _play(console, Path(directory).absolute(), s3_endpoint, s3_bucket)
        except steps.CheckFailed as error:
            raise Failure(f"demo: step {error.step!r} failed: {error}", type_="CheckFailed") from error
        except UpFailed as error:
            raise Failure(f"demo: {error}", type_="UpFailed") from error
    if as_json:
        print_json({"good": True, "steps": [steps.title_of(step) for step in steps.STEPS]})
    raise typer.Exit(Status.GOOD)


def _play(console: Console, home: Path, endpoint: str | None, bucket: str) -> None:
    _configure(home, endpoint, bucket)
    files = steps.three_files(home)
    console.rule("zot-artifacts demo")
    console.print(f"data directory {home}; stores: primary and dr (filesystem){', cloud (S3)' if endpoint else ''}")
    others = ("dr", "cloud") if endpoint else ("dr",)
    with ExitStack() as end:
        with console.status("starting broker, worker, beat and Flower: `zot-artifacts up`"):
            up = end.enter_context(running(home))
        family = up.family()
        console.print(f"[green]✓[/] `zot-artifacts up` is ready: {len(family)} processes")
        stage = end.enter_context(steps.Stage.open(console, up, files, ("primary", *others)))
        for number, step in enumerate(steps.STEPS, 1):
            stage.play(number, step)
        family |= up.family()
    left = still_there(family, 5)
    if left:
        raise steps.CheckFailed("end", f"processes still run: {sorted(left)}")
    console.print(f"[green]✓[/] `up` has shut down; none of its {len(family)} processes is left")
    console.rule("[green]every step passed[/]")


def _configure(home: Path, endpoint: str | None, bucket: str) -> None:
    """Write a configuration, and make it the only one for this process and its children."""
    home.mkdir(parents=True, exist_ok=True)
    cloud = {"cloud": {"type": "s3", "endpoint": endpoint, "bucket": bucket}}
    written = f"  {yaml.safe_dump(cloud, default_flow_style=True, width=1000).strip()[1:-1]}\n" if endpoint else ""
    config = home / "zot.yaml"
    config.write_text(_CONFIG % {"home": home, "cloud": written})
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        del os.environ[name]
    os.environ.update(ZOT_HOME=str(home), ZOT_CONFIG=str(config))
    load_settings()
