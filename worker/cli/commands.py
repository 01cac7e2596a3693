"""The commands by name: the module of each, and its line in the list of commands.

The function's module is imported when the command runs. The list of commands, `--version` and the completion of
command names import none of them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from shlex import quote
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from worker.cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Entry:
    """A command whose module is not imported yet."""

    panel: str
    summary: str
    target: str
    """`module:name` of a function, or of the Typer application of a group, in this package."""

    def load(self, name: str) -> Any:
        """Import the command and return it as Typer runs it."""
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(f"worker.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(name)(found)
            found = single
        command = get_command(found)
        command.name = name
        for each in (command, *getattr(command, "commands", {}).values()):
            # Typer removes the indentation of examples that follow the first paragraph, unless it is followed by two.
            each.help = (each.help or "").replace("\n\n", "\n\n\n\n", 1)
            _refuse_dropped_options(each)
        return command


_ARTIFACTS, _STORES, _JOBS, _SERVICE = "Artifacts", "Stores and catalogue", "Jobs", "Running the worker"
COMMANDS = {
    "upload": Entry(_ARTIFACTS, "Upload a file, standard input or a URL as an artifact.", "upload:upload"),
    "get": Entry(_ARTIFACTS, "Write an artifact to a file or to standard output.", "get:get"),
    "ls": Entry(_ARTIFACTS, "List artifacts.", "ls:ls"),
    "show": Entry(_ARTIFACTS, "Show one artifact and the state of each copy.", "show:show"),
    "replicate": Entry(_ARTIFACTS, "Copy artifacts to more stores, or repair bad copies.", "replicate:replicate"),
    "verify": Entry(_ARTIFACTS, "Read every copy in full and compare its digest.", "verify:verify"),
    "delete": Entry(_ARTIFACTS, "Delete artifacts, or their copies in single stores.", "delete:delete"),
    "undelete": Entry(
        _ARTIFACTS,
        "Undo the delete of an artifact, or all deletes of a job, within the grace period.",
        "undelete_and_hold:undelete",
    ),
    "deleted": Entry(
        _ARTIFACTS, "List the deletes that can be undone, by whom and why.", "undelete_and_hold:deleted"
    ),
    "deletes": Entry(
        _ARTIFACTS, "List the deletes that wait for a second person, show one, approve or reject it.", "deletes:app"
    ),
    "hold": Entry(_ARTIFACTS, "Forbid deleting or replacing an artifact until `release`.", "undelete_and_hold:hold"),
    "release": Entry(_ARTIFACTS, "End the hold on an artifact.", "undelete_and_hold:release"),
    "holds": Entry(_ARTIFACTS, "List the artifacts that are held, by whom and why.", "undelete_and_hold:holds"),
    "companions": Entry(
        _ARTIFACTS, "List, add or remove what belongs to an artifact: signatures, SBOMs.", "companions:app"
    ),
    "adopt": Entry(_ARTIFACTS, "Record objects that another program wrote into a store.", "adopt:adopt"),
    "attest": Entry(
        _ARTIFACTS, "Sign a statement that every copy of an artifact was read in full and matched.", "attest:attest"
    ),
    "export": Entry(
        _ARTIFACTS, "Export artifacts, with their evidence, for a preservation system.", "export_artifacts:export"
    ),
    "status": Entry(
        _STORES,
        "Show what needs attention: findings, repairs, dead letters, overdue reads.",
        "status:status",
    ),
    "report": Entry(
        _STORES, "Report coverage, findings and what was done about them, as one HTML page or as JSON.", "report:report"
    ),
    "findings": Entry(
        _STORES, "List the findings, show one, or acknowledge it.", "findings:app"
    ),
    "alarms": Entry(_STORES, "List the channels of alarms, or send a test alarm.", "alarms:app"),
    "sweep": Entry(
        _STORES, "Run a periodic task now, and wait until it and the jobs that it sent have ended.", "sweep:sweep"
    ),
    "stores": Entry(_STORES, "List the stores; forget, accept or trust one.", "stores:app"),
    "quarantine": Entry(
        _STORES, "List, fetch, restore or purge the bad bytes that repairs have kept.", "quarantine:app"
    ),
    "catalogue": Entry(_STORES, "Export, import, back up, restore or rebuild the catalogue.", "catalogue:app"),
    "log": Entry(_STORES, "Check that the verification log was not changed.", "log:app"),
    "jobs": Entry(_JOBS, "List jobs, show, retry, cancel or prune them.", "jobs:app"),
    "pause": Entry(_JOBS, "Pause the jobs of a store, a queue or a batch.", "pause:pause"),
    "resume": Entry(_JOBS, "End a pause.", "pause:resume"),
    "pauses": Entry(_JOBS, "List the pauses, with their start and reason.", "pause:pauses"),
    "webhooks": Entry(
        _JOBS,
        "List the webhooks that are told when jobs end, test one, or forget what waits for one.",
        "webhooks:app",
    ),
    "up": Entry(_SERVICE, "Run broker, workers, beat and Flower on this machine.", "up:up"),
    "health": Entry(
        _SERVICE, "Report by the exit status whether a worker or beat works.", "health:app"
    ),
    "metrics": Entry(
        _SERVICE, "Serve metrics of jobs, queues, stores and copies for Prometheus.", "metrics:metrics"
    ),
    "serve": Entry(_SERVICE, "Serve the HTTP gateway, for services in any language.", "serve:serve"),
    "tokens": Entry(_SERVICE, "Make, list, rotate and revoke the access tokens of the gateway.", "tokens:app"),
    "doctor": Entry(_SERVICE, "Check settings, stores, broker, workers and beat.", "doctor:doctor"),
    "cache": Entry(
        _SERVICE, "Show, fill, verify or empty the cache that clients on this machine read through.", "cache:app"
    ),
    "demo": Entry(_SERVICE, "Show upload, replication, verification and repair on real files.", "demo:demo"),
}  # fmt: skip


def _refuse_dropped_options(command: Any) -> None:
    """Refuse an option that Typer would drop in silence, in whatever order the command line has it.

    One is an option for one value that is given twice, of which Typer takes the last. Another is an option of a
    group, such as `findings`, in front of a command of the group, which does not see it. The third is an option behind
    one whose value was forgotten, and which would be that value.
    """
    make_parser = command.make_parser

    def strict_parser(ctx: Any) -> Any:
        parser = make_parser(ctx)
        parse = parser.parse_args

        names = {name for each in command.get_params(ctx) for name in each.opts}

        def parse_strictly(args: list[str]) -> Any:
            found, rest, given = parse(args=list(args))
            options = [each for each in given if isinstance(each, TyperOption) and not each.is_eager]
            for option in options if not ctx.resilient_parsing else ():  # resilient: the shell completes half a line
                name = option.opts[0]
                if options.count(option) > 1 and not (option.multiple or option.count or option.is_flag):
                    raise UsageError(f"{name} is given twice, and takes one value")
                if swallowed := _swallowed(option, found.get(option.name), args, names):
                    told = f"{name} needs a value; if {swallowed} is the value, write {quote(f'{name}={swallowed}')}"
                    raise UsageError(told)
                if isinstance(command, TyperGroup) and rest:
                    told = f"{name} has no effect in front of {rest[0]}: write it behind {rest[0]}, if that has it"
                    raise UsageError(told)
            return found, rest, given

        parser.parse_args = parse_strictly
        return parser

    command.make_parser = strict_parser


def _swallowed(option: TyperOption, given: object, args: Sequence[str], names: Collection[str]) -> str | None:
    """Return the value of an option that looks like another one, unless it is written as one word with the option."""
    for value in given if isinstance(given, list | tuple) else [given]:
        if isinstance(value, str) and (value.startswith("--") or value in names):
            together = {f"{name}{'=' * name.startswith('--')}{value}" for name in option.opts}
            if together.isdisjoint(args):
                return value
    return None


def _use_plain_help() -> None:
    """Show `SOURCE` and `--json` in help texts, where Typer shows `{SOURCE}`, `<str>` and `--json <bool>`."""
    # Typer has no setting for it, and makes the option `--help` by itself.
    options: Any = TyperOption
    arguments: Any = TyperArgument
    options.display_type_rich = _type_of_option
    arguments.display_type_rich = _type_of_argument
    arguments.get_usage_pieces = _usage_of_argument


def _type_of_argument(_: TyperArgument, ctx: Any) -> str | None:  # noqa: ARG001 - Typer's signature
    return None


def _type_of_option(option: TyperOption, ctx: Any) -> str | None:
    return None if option.is_flag else option.metavar or option.display_type(ctx)


def _usage_of_argument(argument: TyperArgument, ctx: Any) -> list[str]:  # noqa: ARG001 - Typer's signature
    name = argument.display_name_raw
    return [name if argument.required else f"[{name}]"]


class LazyGroup(TyperGroup):
    """The commands of `COMMANDS`; each is imported when it is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        _use_plain_help()
        for name, entry in COMMANDS.items():
            self.commands[name] = TyperCommand(name, help=entry.summary, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command, imported, in place of its entry in the list."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = COMMANDS[name].load(name)
        return name, command, rest
