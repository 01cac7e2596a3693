"""Hooks of MkDocs: write the reference of the command line from the commands, and leave links out of docs/ as text."""

import os
import re
from pathlib import PurePosixPath
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]*)\)")
PAGE = "cli.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write the page of the commands; in others show a link to a file outside of docs/ as its text and path."""
    if page.file.src_uri == PAGE:
        return cli_reference()
    folder = PurePosixPath(page.file.src_uri).parent

    def plain(found: re.Match[str]) -> str:
        target = os.path.normpath(folder / found[2].partition("#")[0])
        return f"{found[1]} (`{target.removeprefix('../')}`)" if target.startswith("..") else found[0]

    return LINK.sub(plain, markdown)


def cli_reference() -> str:
    """Return a page with the help of every command and subcommand."""
    from worker.cli.commands import COMMANDS

    lines = ["# Command line", "", "Each command takes `--help`; this page is what it prints.", ""]
    panel = ""
    for name, entry in COMMANDS.items():
        if entry.panel != panel:
            panel = entry.panel
            lines += [f"## {panel}", ""]
        command = entry.load(name)
        lines += _section(f"zot-artifacts {name}", command)
        for sub, each in sorted(getattr(command, "commands", {}).items()):
            lines += _section(f"zot-artifacts {name} {sub}", each)
    return "\n".join(lines)


def _section(name: str, command: Any) -> list[str]:
    lines = [f"### `{name}`", ""]
    fenced = False
    for line in (command.help or "").strip().splitlines():
        code = line.startswith("    ")
        if code != fenced and line.strip():
            lines.append("```" if fenced else "```console")
            fenced = code
        lines.append(line.removeprefix("    ") if code else line)
        if not code and line.strip():
            lines.append("")
    lines += ["```", ""] if fenced else [""]
    rows = []
    for parameter in command.params:
        shown = ", ".join(f"`{each}`" for each in parameter.opts) or f"`{parameter.name}`"
        if getattr(parameter, "param_type_name", "") == "argument":
            shown = f"`{parameter.metavar or parameter.name}`"
        elif parameter.metavar:
            shown += f" `{parameter.metavar}`"
        text = " ".join(str(getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
        if parameter.show_default and parameter.default and not getattr(parameter, "is_flag", False):
            text += f" Default: `{getattr(parameter.default, 'value', parameter.default)}`."
        rows.append(f"| {shown} | {text} |")
    return [*lines, "| argument or option | meaning |", "|---|---|", *rows, ""] if rows else lines
