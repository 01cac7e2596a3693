"""The arguments and options that several commands take."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

import typer

from worker.cli.errors import UsageError
from worker.storage.durations_and_sizes import parse_duration
from worker.storage.keys import check_bucket, check_existing_key
from zot_artifact_client.globs import compiled


def seconds(text: str) -> float:
    """Read a time to wait, in seconds or with a unit: `90`, `90s`, `15m`, `2h`."""
    return duration(f"{text}s" if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text) else text).total_seconds()


def duration(text: str) -> timedelta:
    """Read a time with a unit: `90s`, `15m`, `30d`."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def glob(text: str) -> str:
    """Return a pattern of --include or --exclude, if it is one."""
    try:
        compiled(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def local_path(name: str | Path) -> Path:
    """Return the path of a file on this machine; `~` and `~user` at its beginning are home directories, if they exist.

    `~$report.docx` is the name of a file, for which `Path.expanduser` raises RuntimeError.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111


Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


def confirm(question: str, *, yes: bool) -> None:
    """Ask at a terminal, unless `yes`; end the command if that is not confirmed."""
    if not yes and sys.stdin.isatty():
        typer.confirm(question, abort=True, err=True)


STREAM = "-"
"""Standard input or output in place of a file."""


def output_file(name: str) -> Path:
    """Return the path of a file to write, as `complete_file` takes it; `-` is standard output."""
    _check_not_empty(name)
    return Path("/dev/stdout") if name == STREAM else local_path(name).absolute()


def input_file(name: str) -> Path:
    """Return the path of a file to read; `-` is standard input."""
    _check_not_empty(name)
    return Path("/dev/stdin") if name == STREAM else local_path(name)


def no_stream(name: str) -> Path:
    """Return the path of a directory, or of a file that is read more than once: neither can be a stream."""
    _check_not_empty(name)
    if name == STREAM:
        raise typer.BadParameter("`-` is standard input or output, which cannot be used here; write ./- for that name")
    return local_path(name)


def new_directory(name: str) -> Path:
    """Return the path of a directory to make; one that is there must be empty, because its files may be in use."""
    path = no_stream(name)
    if path.is_dir() and any(path.iterdir()):
        raise typer.BadParameter(f"{path} is not empty: name a new directory")
    return path


def _check_not_empty(name: str) -> None:
    if not name:
        raise typer.BadParameter("it is empty, and would be the current directory; write . for that")


def refuse(why: str, options: Mapping[str, object]) -> None:
    """Raise Failure if one of these options was given, by its name; `why` says where it goes."""
    for name, value in options.items():
        if value:
            raise UsageError(f"{name} {why}")


ArtifactArgument = Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="The artifact, such as releases/app.tgz.")]
ArtifactsArgument = Annotated[
    str,
    typer.Argument(
        metavar="BUCKET/KEY",
        help="The artifact, such as releases/app.tgz. With --all: a bucket, or a prefix such as releases/2026/.",
        show_default=False,
    ),
]
Stores = Annotated[list[str] | None, typer.Option("--store", metavar="STORE", help="Only this store. Can be repeated.")]
OneStore = Annotated[str | None, typer.Option("--store", metavar="STORE", help="Only this store.")]
IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="A name of your choice for this request: if a job has it already, wait for that job and send none.",
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job's id and exit without waiting for its end.")]
Include = Annotated[
    list[str] | None,
    typer.Option(
        parser=glob, metavar="GLOB", help="With -r: only files that match, by name or by path. Can be repeated."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(parser=glob, metavar="GLOB", help="With -r: no files and directories that match. Can be repeated."),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        parser=seconds,
        metavar="TIME",
        help="Stop waiting after this time, such as 90s or 2h; without it, wait until the end. The job continues.",
    ),
]
Notify = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Tell this webhook of the settings when the job ends, and how. Can be repeated."),
]
All = Annotated[bool, typer.Option("--all", help="All artifacts of the bucket or below the prefix.")]
KeysFrom = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="All artifacts that FILE lists, one BUCKET/KEY on each line. `-` is standard input."
    ),
]
InFlight = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10_000,
        metavar="N",
        help="With --all or --keys-from: the most jobs that wait or run at a time; by default batch.in_flight, 256.",
    ),
]


@dataclass(frozen=True, slots=True)
class ArtifactPath:
    """An artifact as the command line names it: BUCKET/KEY."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str, *, many: str = "") -> Self:
        """Read BUCKET/KEY; `many` is the option with which the command takes a bucket or a prefix.

        Raises:
            Failure: there is no slash in it.
            InvalidKey: naming the rule that it breaks.
        """
        bucket, slash, key = text.partition("/")
        if not (bucket and slash and key):
            told = f"{text!r} names no artifact: write BUCKET/KEY, such as releases/app.tgz"
            way_out = f", or add {many} for all artifacts below it" if many else ""
            raise UsageError(f"{told}{way_out}")
        return cls(check_bucket(bucket), check_existing_key(bucket, key))

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"
