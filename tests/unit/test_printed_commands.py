"""Commands in messages can be pasted into a shell, whatever the key of an artifact or the path of a file is."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.servers.process import REPOSITORY

SOURCES = [
    path for place in ("worker", "tasks", "api_client/src") for path in sorted((REPOSITORY / place).rglob("*.py"))
]
COMMANDS = ("zot-artifacts ", "chmod ", "chown ", "rm ")
WITHOUT_SHELL_CHARACTERS = (
    "store", "name", "renamed", "job", "job_id", "writer", "id", "id_", "scope", "what", "error", "to",
)  # fmt: skip
"""Last parts of the names of what a grammar limits to characters that no shell reads: stores, jobs, tokens, errors."""


def test_what_a_printed_command_is_about_is_quoted_for_the_shell() -> None:
    """A key may have spaces, quotes and `$(…)`."""
    unquoted = [found for path in SOURCES for found in unquoted_in(path)]
    assert unquoted == []


def unquoted_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            command = ""  # the text since the last opening backtick; empty outside a pair
            for part in node.values:
                if isinstance(part, ast.Constant):
                    before, tick, after = (command + str(part.value)).rpartition("`")
                    inside = (before + tick).count("`") % 2 == 1
                    command = f"`{after}" if inside else ""
                elif isinstance(part, ast.FormattedValue) and command[1:].startswith(COMMANDS):
                    if not is_quoted(part.value):
                        yield f"{path.relative_to(REPOSITORY)}:{node.lineno}: {ast.unparse(part.value)}"
                    command += "x"


def is_quoted(value: ast.expr) -> bool:
    text = ast.unparse(value)
    if text.startswith(("quote(", "shlex.quote(")):
        return True
    return text.rstrip("]'\"").replace("[", ".").replace("'", ".").split(".")[-1] in WITHOUT_SHELL_CHARACTERS
