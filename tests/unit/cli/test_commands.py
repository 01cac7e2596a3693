"""The list of commands: complete, true to the commands, and cheap."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperOption

from tests.waiting import WITHIN
from worker.catalogue import Catalogue
from worker.cli import run
from worker.cli.commands import COMMANDS
from worker.cli.errors import failure_of
from worker.cli.session import no_catalogue
from worker.cli.sweep import _SWEEPS
from worker.exit_status import Status
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
HEAVY = (
    "alembic", "azure", "billiard", "boto3", "botocore", "celery", "fastapi", "google", "kombu", "psycopg", "redis",
    "starlette", "uvicorn",
)  # fmt: skip


def modules_after(commands: list[str], home: Path) -> set[str]:
    """Return the modules that a process has imported once it has run these commands."""
    script = "import sys; from worker.cli import run; " + "".join(f"run({each.split()!r}); " for each in commands)
    script += "print(*sys.modules, file=sys.stderr)"
    environment = {"ZOT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    """The line in the list of commands is the first line of the command's own help."""
    command = COMMANDS[name].load(name)
    assert command.help.splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains itself with status 0, with plain names of arguments and no types of Python.

    Each example is indented, as text to type, also where it follows the first paragraph.
    """
    commands = [[name], *([name, each] for each in getattr(COMMANDS[name].load(name), "commands", {}))]
    for each in commands:
        assert run([*each, "--help"]) == 0
        shown = capsys.readouterr().out
        assert not re.findall(r"\[\[|\{|<bool>|<str>", shown), each
        assert re.search(rf"^ {{5}}.*zot-artifacts {each[0]}", shown, re.MULTILINE), each


def test_the_list_of_all_commands_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """A newcomer finds the first commands to type, and where the options of each are."""
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^ {5}zot-artifacts upload app\.tgz releases/app\.tgz", shown, re.MULTILINE)
    assert "zot-artifacts COMMAND --help" in shown


def test_the_help_of_sweep_says_what_each_sweep_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Every sweep that can be named has a line of its own, and no line names another."""
    assert run(["sweep", "--help"]) == 0
    listed = re.findall(r"^ {5}(\w+) {2,}\w", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(_SWEEPS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_of_help_is_a_sentence(name: str) -> None:
    """Typer keeps the line ends of a help text, so that a line which breaks a sentence shows as broken."""
    command = COMMANDS[name].load(name)
    texts = [each.help or "" for each in (command, *getattr(command, "commands", {}).values())]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith(" ")]
    assert [line for line in lines if line[-1] not in ".:"] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_for_one_value_is_refused_when_it_is_given_twice(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last value would be taken in silence, such as one store of two; it holds for the whole tree of commands."""
    command = COMMANDS[name].load(name)
    for each in (command, *getattr(command, "commands", {}).values()):
        path = [name] if each is command else [name, each.name]
        single = [o for o in each.params if isinstance(o, TyperOption) and not (o.multiple or o.is_flag)]
        for option in single:
            assert run([*path, option.opts[0], "1", f"{option.opts[0]}=2", "--help"]) == 2
            told = f"{option.opts[0]} is given twice, and takes one value"
            assert told in capsys.readouterr().err, path


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_without_its_value_does_not_take_the_next_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`delete --all --store --yes` would be about a store named --yes; it holds for the whole tree of commands."""
    command = COMMANDS[name].load(name)
    for each in (command, *getattr(command, "commands", {}).values()):
        path = [name] if each is command else [name, each.name]
        for option in (o for o in each.params if isinstance(o, TyperOption) and not o.is_flag):
            assert run([*path, option.opts[0], "--help"]) == 2
            told = f"{option.opts[0]} needs a value; if --help is the value, write {option.opts[0]}=--help"
            assert told in capsys.readouterr().err, path


def test_what_to_write_for_such_a_value_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    """A reason has words, and a shell would take each for an argument."""
    assert run(["hold", "b/k", "--reason", "-- see 7"]) == 2
    assert "write '--reason=-- see 7'" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "status"), [(["--by=--all"], 0), (["--by", "-"], 0), (["--by", "-h"], 2)])
def test_a_value_may_look_like_an_option_in_one_word_with_its_own(value: list[str], status: int) -> None:
    """What is no option of the command is a value anyway."""
    assert run(["hold", "b/k", *value, "--help"]) == status


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_of_a_group_is_refused_in_front_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`findings --store dr ls` would list every store."""
    group = COMMANDS[name].load(name)
    for option in (o for o in group.params if isinstance(o, TyperOption) and not o.is_eager):
        for inner in getattr(group, "commands", {}):
            value = [] if option.is_flag else ["1"]
            assert run([name, option.opts[0], *value, inner, "--help"]) == 2
            assert f"{option.opts[0]} has no effect in front of {inner}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["ls"], ["get", "releases/a", "x" * 300], ["status"]])
def test_a_data_directory_whose_name_is_too_long_is_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file system says of a path is a line, not a traceback."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / ("x" * 300)))
    assert run(arguments) == 2
    assert "no catalogue here" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["get", "a/b"], ["get", "-r", "a"], ["quarantine", "get", "dr", "1"]])
def test_an_empty_destination_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An unset variable of a script names no file: nothing is written to the current directory."""
    assert run([*command, ""]) == 2
    assert "DEST is empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["upload", "-r", "/in", "b"], ["get", "-r", "b", "/out"]])
def test_a_pattern_that_is_none_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It is one line that names the option."""
    assert run([*command, "--include", "[z-a]"]) == Status.USAGE
    error = capsys.readouterr().err
    assert ("--include" in error, "bad character range z-a" in error, error.count("\n")) == (True, True, 1)


def test_an_error_of_the_file_system_names_the_file() -> None:
    """Whatever command meets it, it is one line and the exit status 1."""
    found = failure_of(OSError(36, "File name too long", "/x"))
    assert found is not None
    assert (found.message, found.status) == ("/x: File name too long", Status.BAD)
    assert failure_of(ValueError("a bug")) is None


def test_help_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    """The list of commands needs no SDK, no Celery, no database and no settings."""
    modules = modules_after(["--help"], tmp_path)
    heavy = {name for name in modules if name.split(".")[0] in {*HEAVY, "pydantic", "sqlalchemy"}}
    assert heavy == set()
    assert {name for name in modules if name.startswith("worker")} <= {
        "worker", "worker.bounded_exit", "worker.cli", "worker.cli.commands", "worker.cli.errors", "worker.cli.output",
        "worker.exit_status", "worker.readable",
    }  # fmt: skip


def test_help_of_a_verb_imports_no_celery(tmp_path: Path) -> None:
    """A verb connects to the broker when it runs: its help needs neither Celery nor a broker's client."""
    verbs = ("upload", "replicate", "verify", "delete", "adopt")
    modules = modules_after([f"{verb} --help" for verb in verbs], tmp_path)
    assert {f"worker.cli.{verb}" for verb in verbs} <= modules
    assert {module for module in modules if module.split(".")[0] in HEAVY} == set()


def test_without_a_broker_its_clients_are_not_imported(tmp_path: Path) -> None:
    """What asks the catalogue first has no use for Celery and the broker's clients where no broker is configured.

    Listing artifacts needs no SDK either; a new catalogue alone needs Alembic.
    """
    settings = Settings(home=tmp_path)
    settings.prepare()
    Catalogue(settings.catalogue_url).close()
    modules = modules_after(["status", "stores", "ls"], tmp_path)
    assert {"worker.catalogue", "worker.cli.status", "worker.cli.stores", "worker.cli.ls"} <= modules
    assert {module for module in modules if module.split(".")[0] in {*HEAVY, "limits"}} == set()


def test_what_a_command_imported_is_not_walked_at_its_end() -> None:
    """Python's collections at its end took a quarter of the time of `ls`; what is frozen is left out of them."""
    script = """
import atexit, gc, sys
from worker.cli_entry_point import main
atexit.register(lambda: print(gc.get_freeze_count() > len(gc.get_objects())))
sys.argv = ["zot-artifacts", "--version"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[1:] == ["True"]


def test_a_data_directory_of_another_user_is_not_called_empty(tmp_path: Path) -> None:
    """The command names what it may not read: to start `up`, as for a directory without a catalogue, would not help."""
    settings, user = Settings(home=tmp_path / "home"), os.geteuid()
    settings.home.mkdir(mode=0o000)
    if user == 0:
        os.seteuid(65534)
    try:
        failure = no_catalogue(settings)
    finally:
        os.seteuid(user)
    assert failure is not None
    assert "catalogue.sqlite3: Permission denied: run this command as the user" in str(failure)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints name and version."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("zot-artifacts 0.")


def test_an_interrupt_while_modules_are_imported_prints_nothing() -> None:
    """Ctrl-C in the first moments of a command ends it without a traceback, as a later one does."""
    script = """
import builtins, os, signal
from worker.cli_entry_point import main
signal.signal(signal.SIGINT, signal.default_int_handler)
real = builtins.__import__
def imported(name, *more, **named):
    if name == "typer":
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *more, **named)
builtins.__import__ = imported
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_command_leaves_nothing_behind(number: signal.Signals) -> None:
    """`timeout`, systemd and a closed terminal end a command as Ctrl-C does: what it has written in part is removed."""
    script = f"""
import os, time
from worker import cli
def command(*_, **__):
    try:
        os.kill(os.getpid(), {number.value})
        time.sleep(60)
    finally:
        print("removed", flush=True)
cli.app = command
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "removed\n", "")


def test_a_thread_that_hangs_does_not_keep_a_command_that_a_signal_ends() -> None:
    """`timeout 30 zot-artifacts stores` would wait for a silent store for as long as its requests are repeated."""
    script = """
import functools, os, signal, threading
from concurrent.futures import ThreadPoolExecutor
from worker import cli
def command(*_, **__):
    with ThreadPoolExecutor(1) as pool:
        hangs = pool.submit(threading.Event().wait)
        os.kill(os.getpid(), signal.SIGTERM)
        hangs.result()
cli.app = command
cli.end_within = functools.partial(cli.end_within, 0.2)
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=WITHIN
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert "ThreadPoolExecutor" in done.stderr


def test_the_shell_completes_commands() -> None:
    """The shell's completion offers the commands that begin with what was typed."""
    environment = {
        "PYTHONPATH": str(ROOT), "_ZOT_ARTIFACTS_COMPLETE": "complete_bash",
        "COMP_WORDS": "zot-artifacts re", "COMP_CWORD": "1",
    }  # fmt: skip
    script = "from worker.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["replicate", "release", "report", "resume"]


@pytest.mark.parametrize("prefix", ["a/../b", "a/./b", "R\u00e9/x", "/a", "a/../"])
def test_ls_of_what_no_key_begins_with_is_an_error(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped prefix is no empty bucket."""
    assert run(["ls", prefix]) == Status.USAGE
    assert "is not allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "closed"),
    [
        ("ls --json", "full"),
        ("ls --json", "closed"),
        ("stores", "full"),
        ("ls --help", "closed"),
        ("ls --json", "pipe"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(command: str, closed: str, tmp_path: Path) -> None:
    """A full disk and a closed stream are one line and status 1; a reader that has gone is silent."""
    Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}").close()
    redirect = {"full": ">/dev/full", "closed": ">&-", "pipe": "| true; exit ${PIPESTATUS[0]}"}[closed]
    line = f"sleep 0.1; exec {sys.executable} -m worker.cli {command}"
    script = f"({line}) {redirect}"
    environment = {
        "ZOT_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "ZOT_BROKER": "redis://127.0.0.1:1/0",
    }
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == Status.BAD, done.stderr
    assert len(done.stderr.splitlines()) == (0 if closed == "pipe" else 1), done.stderr
    assert closed == "pipe" or "standard output: " in done.stderr


def test_closed_standard_input_is_no_empty_artifact(tmp_path: Path) -> None:
    """What is to be read from a stream that the caller has closed is an error of one line."""
    Catalogue(f"sqlite:///{tmp_path}/catalogue.sqlite3").close()
    line = f"{sys.executable} -m worker.cli upload - releases/a <&-"
    environment = {
        "ZOT_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "ZOT_BROKER": "redis://127.0.0.1:1/0",
    }
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == Status.BAD
    assert len(done.stderr.splitlines()) == 1, done.stderr
