"""The systemd units run commands that exist, without rights, and systemd takes them."""

import os
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from worker.cli.commands import COMMANDS

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "systemd"
UNITS = sorted(path.name for path in FOLDER.iterdir())
PROGRAMS = [name for name in UNITS if name.endswith(".service") and "-health" not in name]


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(FOLDER / name)
    return parser


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_a_unit_runs_a_command_that_exists(name: str) -> None:
    """Each starts Celery with our application, or a command of ours, as a user without rights."""
    service = unit(name)["Service"]
    program, *arguments = service["ExecStart"].split()
    if program.endswith("/celery"):
        assert arguments[:2] == ["-A", "worker.app"]
    else:
        assert (program, arguments[0] in COMMANDS) == ("/opt/zot/bin/zot-artifacts", True)
    assert service["User"] == "zot"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_restarted_and_confined(name: str) -> None:
    """A program that ends is started again, gains no rights, and sees a read-only system."""
    service = unit(name)["Service"]
    assert (service["Restart"], service["NoNewPrivileges"], service["ProtectSystem"]) == ("always", "yes", "strict")
    assert service["CapabilityBoundingSet"] == ""


def test_every_health_check_is_of_a_program() -> None:
    """Each timer has its service, and each service names the program that it restarts."""
    timers = [name for name in UNITS if name.endswith(".timer")]
    assert {name.replace(".timer", ".service") for name in timers} <= set(UNITS)
    for name in timers:
        program = name.replace("-health.timer", ".service")
        assert program in unit(name.replace(".timer", ".service"))["Service"]["ExecStopPost"]
        assert program in PROGRAMS


def test_systemd_takes_the_units() -> None:
    """Systemd's own checker finds nothing but the programs that are not installed here."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    paths = [str(FOLDER / name) for name in UNITS]
    done = subprocess.run([analyze, "verify", "--man=no", *paths], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if FOLDER.name in line or line.startswith("zot-")]
    assert [line for line in said if "is not executable" not in line] == []


@pytest.mark.parametrize("reader", [["sh", "-c"], ["bash", "-c"]])
def test_the_environment_file_says_the_same_to_a_shell(reader: list[str], tmp_path: Path) -> None:
    """The page has values in quotes: the shell that runs commands by hand reads the file of the units too."""
    page = (FOLDER.parents[1] / "docs" / "howto" / "deploy.md").read_text()
    [line] = [line for line in page.splitlines() if "/etc/zot-artifacts/environment  " in line]
    written = re.findall(r"(ZOT_[A-Z]+=\S*?)…(\S*?)(?=,|\s)", line)
    assert [name for name, _ in written] == ["ZOT_BROKER='", "ZOT_CATALOGUE='"]
    url = "postgresql+psycopg://zot:a$b@db/zot?sslmode=verify-full&sslrootcert=/etc/ssl/db.pem"
    (tmp_path / "environment").write_text("".join(f"{before}{url}{after}\n" for before, after in written))
    script = f'set -a; . {tmp_path}/environment; printf "%s\\n" "$ZOT_BROKER" "$ZOT_CATALOGUE"'
    done = subprocess.run(
        [*reader, script], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    assert done.stdout.splitlines() == [url, url]
