"""What every file of this repository promises, and no linter knows."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["requirements.lock", "tests/servers/requirements.lock"]
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+?)(?: ; [^\\]+)? \\$")


def _tests() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(ROOT)}::{node.name}", node


def test_every_test_says_what_it_promises() -> None:
    """Each test has a docstring, so that a red one says what no longer holds."""
    silent = [name for name, node in _tests() if not ast.get_docstring(node)]
    assert silent == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index(lock: str) -> None:
    """Whoever installs uses an index of their own choice: no lock holds an address or an option of pip."""
    lines = (ROOT / lock).read_text().splitlines()
    assert [line for line in lines if "://" in line or line.startswith("-")] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_everything_with_hashes(lock: str) -> None:
    """Nothing that was not checked is installed: every requirement has one version and at least one SHA-256."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    entries = re.split(r"\n(?! )", text.strip())
    assert entries
    assert [entry for entry in entries if not PIN.match(entry.split("\n")[0]) or "--hash=sha256:" not in entry] == []


def test_the_lock_holds_what_the_distributions_ask_for() -> None:
    """A dependency that was added to a pyproject file is in the lock too, or `make lock` was forgotten."""
    asked: set[str] = set()
    for project in ("pyproject.toml", "api_client/pyproject.toml"):
        table = tomllib.loads((ROOT / project).read_text())["project"]
        for group in (table["dependencies"], *table.get("optional-dependencies", {}).values()):
            asked |= {re.split(r"[\[<>=!~; ]", name)[0].lower().replace("_", "-") for name in group}
    locked = {match[1] for line in (ROOT / "requirements.lock").read_text().splitlines() if (match := PIN.match(line))}
    assert asked - locked == {"zot-artifact-client"}


def test_compose_starts_the_processes_that_up_starts() -> None:
    """The containers run the application as worker, beat and Flower, beside a broker that forgets nothing."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    roles = {name: each["command"][:4] for name, each in services.items() if "celery" in each.get("command", ())}
    programs = {"worker": "worker", "sweeper": "worker", "beat": "beat", "flower": "flower"}
    assert roles == {role: ["celery", "-A", "worker.app", program] for role, program in programs.items()}
    served = [services[role]["command"][6:] for role in ("worker", "sweeper")]
    assert served == [["--queues", "interactive,transfer"], ["--queues", "sweep", "--concurrency", "1"]]
    broker = " ".join(services["broker"]["command"])
    assert "--appendonly yes" in broker
    assert "--maxmemory-policy noeviction" in broker


def test_compose_opens_nothing_beyond_loopback() -> None:
    """Only Flower is published, to the host's loopback, and it cannot start without a password."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"flower": ["127.0.0.1:5555:5555"]}
    assert services["flower"]["environment"]["FLOWER_BASIC_AUTH"].startswith("${FLOWER_BASIC_AUTH:?")


def test_every_promise_names_tests_that_exist() -> None:
    """Each of the ten promises is followed by at least one test, and every test that is named is there."""
    there = {name for name, _ in _tests()}
    promises = re.split(r"^## ", (ROOT / "docs" / "promises.md").read_text(), flags=re.MULTILINE)[1:]
    named = [re.findall(r"^- `(tests/\S+)`", promise, flags=re.MULTILINE) for promise in promises]
    assert len(named) == 10
    assert all(named)
    assert [test for tests in named for test in tests if test not in there] == []


def test_the_arrows_run_one_way() -> None:
    """Tasks know the worker, the worker knows the contract, and never the other way round."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
