"""Every command, option and setting that the documentation names exists."""

import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tasks
from tools.mkdocs_hooks import cli_reference, on_page_markdown
from worker.cli.commands import COMMANDS
from worker.settings import Settings
from worker.storage import errors
from worker.storage.errors import StorageError
from zot_artifact_client.contract import PAGE, QUERIES, SWEEP_RECOVER, TASKS

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "howto").glob("*.md"))]
NOT_OF_JOBS = (
    "worker.artifacts.verified_download",
    "worker.artifacts.verify_layouts",
    "worker.artifacts.catalogue_backup",
)
"""The modules that only commands and the gateway use: their errors end no job."""
CAUGHT = {"BadSource", "DisorderedListing"}
"""Errors that the task which raises them catches."""
COMMAND = re.compile(r"`zot-artifacts ([^`\n]+)`|^(?:\$ )?(?:\w+=\S+ )*zot-artifacts ([^\n#|>]+)", re.MULTILINE)


def named(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each command that a page names."""
    for one, two in COMMAND.findall(page.read_text()):
        text = (one or two).strip().rstrip("\\").replace("…", "").replace("...", "")
        try:
            yield shlex.split(text)
        except ValueError:  # the rest of the line is prose
            yield text.split()[:1]


def wrong(arguments: list[str]) -> str | None:
    """Return what of a command line does not exist, if anything."""
    if not arguments or arguments[0].startswith("-"):
        return None
    if arguments[0] not in COMMANDS:
        return arguments[0]
    command: Any = COMMANDS[arguments[0]].load(arguments[0])
    commands = getattr(command, "commands", {})
    known = {option for each in command.params for option in each.opts} | {"--help"}
    for each in commands.values():
        known |= {option for parameter in each.params for option in parameter.opts}
    options = [each.partition("=")[0] for each in arguments[1:] if each.startswith("--")]
    return next((option for option in options if option not in known), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_commands_and_options_that_exist(page: Path) -> None:
    """What a reader copies from the page is a command with options that it has."""
    found = {" ".join(arguments): bad for arguments in named(page) if (bad := wrong(arguments)) is not None}
    assert found == {}


def test_the_table_of_tasks_has_every_task_with_its_queue() -> None:
    """A service without our library finds what it may send: all but the pages and the recovery of the worker."""
    rows = re.findall(r"^\| `([\w.]+)`[^|]* \| `(\w+)` \|", (ROOT / "docs/enqueue.md").read_text(), re.MULTILINE)
    sent = [spec for spec in (*TASKS.values(), *QUERIES.values()) if spec not in {PAGE, SWEEP_RECOVER}]
    assert sorted(rows) == sorted((spec.name, spec.queue.value) for spec in sent)


def test_the_table_of_folders_has_every_folder_and_module() -> None:
    """A newcomer finds in docs/architecture.md what each folder holds, and each module that is in none."""
    table = (ROOT / "docs/architecture.md").read_text()
    modules = {f"worker/{path.name}" for path in (ROOT / "worker").glob("*.py")} - {"worker/__init__.py"}
    folders = {f"worker/{path.parent.name}/" for path in (ROOT / "worker").glob("*/__init__.py")}
    assert [each for each in sorted(modules | folders) if f"`{each}`" not in table] == []


def test_every_setting_of_the_table_exists() -> None:
    """The first table of docs/settings.md names settings by their path, and no setting that is gone."""
    missing = []
    for line in (ROOT / "docs/settings.md").read_text().splitlines():
        cells = re.match(r"\| ((?:`[\w.]+`(?:, )?)+) \|", line)
        names = re.findall(r"`([\w.]+)`", cells[1]) if cells else []
        if not names or names[0].split(".")[0] not in Settings.model_fields:
            continue
        parent = names[0].rpartition(".")[0]
        paths = [f"{parent}{name}" if name.startswith(".") else name for name in names]
        missing += [path for path in paths if not _is_setting(path)]
    assert missing == []


def _is_setting(path: str) -> bool:
    model: Any = Settings
    for part in path.split("."):
        fields = getattr(model, "model_fields", None)
        if fields is None:
            return True  # inside a mapping by name
        if part not in fields:
            return False
        model = fields[part].annotation
    return True


def test_the_reference_of_errors_is_that_of_the_code() -> None:
    """It has every error of a store with whether it is retried, in alphabetical order, and no type that is gone."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    for module in pkgutil.walk_packages(tasks.__path__, "tasks."):
        importlib.import_module(module.name)
    kinds = _subclasses(StorageError) - {errors.TransientError, errors.PermanentError, errors.IntegrityError}
    of_jobs = {each for each in kinds if not each.__module__.startswith(NOT_OF_JOBS) and each.__name__ not in CAUGHT}
    retried = {each.__name__: "yes" if issubclass(each, errors.TransientError) else "no" for each in of_jobs}
    assert retried.items() - rows == set()
    assert [name for name, _ in rows] == sorted(name for name, _ in rows)
    code = "".join(path.read_text() for folder in ("worker", "tasks") for path in (ROOT / folder).rglob("*.py"))
    assert [name for name, _ in rows if f"class {name}(" not in code and f'type="{name}"' not in code] == []


def _subclasses(kind: type) -> set[type]:
    return {kind for each in kind.__subclasses__() for kind in (each, *_subclasses(each))}


def test_the_site_has_a_section_for_every_command() -> None:
    """The reference is written from the commands, with each option and its meaning."""
    page = cli_reference()
    assert [name for name in COMMANDS if f"### `zot-artifacts {name}`" not in page] == []
    assert "| `--ready` | Fail also while" in page


def test_a_link_out_of_the_site_becomes_text() -> None:
    """A link to a file that the site does not have names the file; one inside the site stays a link."""

    class Page:
        class file:  # noqa: N801 - MkDocs' name
            src_uri = "decisions/0001.md"

    text = on_page_markdown("[a](../glossary.md) and [b](../../SECURITY.md#x)", Page)
    assert text == "[a](../glossary.md) and b (`SECURITY.md`)"
