"""docker-compose.yml is valid by Compose's own schema, every file that it names is there, and linters are silent."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.missing import skip_or_fail
from tests.servers import ServerMissing
from tests.servers.azure import find_node_program
from worker.settings.private_data_directory import readable_by_others

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose-spec.json").read_text())
"""The schema of the Compose specification, as the npm package dclint 3.1.0 has it."""
ONLY_ORDER = ("service-keys-order", "services-alphabetical-order", "top-level-properties-order")
"""Rules of dclint about the order of keys: ours is the order in which the file is read."""


def test_the_file_is_valid() -> None:
    """Compose's schema has no objection."""
    found = [f"{list(error.path)}: {error.message}" for error in Draft7Validator(SCHEMA).iter_errors(COMPOSE)]
    assert found == []


def test_every_name_in_the_file_exists() -> None:
    """Each configuration, volume and service that a service uses is defined, and its file is in this repository."""
    services, configs = COMPOSE["services"], COMPOSE["configs"]
    used = {config["source"] for service in services.values() for config in service.get("configs", ())}
    assert used == configs.keys()
    files = [config["file"] for config in configs.values() if "file" in config]
    assert [file for file in files if not (ROOT / file).is_file()] == []
    mounted = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert mounted == COMPOSE["volumes"].keys()
    needed = {name for service in services.values() for name in service.get("depends_on", ())}
    assert needed <= services.keys()


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_image_has_a_tag(name: str) -> None:
    """No image is the latest one of its name; ours is built here."""
    service = COMPOSE["services"][name]
    assert "build" in service or not service["image"].endswith(":latest")
    assert "build" in service or ":" in service["image"].rsplit("/", 1)[-1]


def test_a_health_check_ends_before_the_next_one() -> None:
    """No health check runs for longer than its interval, so that they do not pile up."""
    checks = {name: each["healthcheck"] for name, each in COMPOSE["services"].items() if "healthcheck" in each}
    late = [name for name, each in checks.items() if int(each["timeout"][:-1]) >= int(each["interval"][:-1])]
    assert late == []


@pytest.mark.installed_server
def test_dclint_has_no_objection(tmp_path: Path) -> None:
    """No port is open to the network, no name or port is there twice, and ports are quoted."""
    resolved = tmp_path / "docker-compose.yml"  # dclint takes a variable for a name of the port's host
    resolved.write_text(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text()))
    try:
        program = find_node_program("dclint/bin/dclint.cjs")
    except ServerMissing as error:
        skip_or_fail(str(error))
    command = [*program, resolved, "--max-warnings", "0", "--disable-rule", *ONLY_ORDER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)


def test_hadolint_has_no_objection() -> None:
    """The image has no fault that hadolint knows: neither in the Dockerfile nor in its shell commands."""
    command = [Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_the_data_directory_of_the_image_is_private(tmp_path: Path) -> None:
    """Docker gives a new volume the mode that the image has for it, and `doctor` asks for one without other users."""
    found = re.search(r"install --directory .*--mode (\d+) /data", (ROOT / "Dockerfile").read_text())
    assert found
    data = tmp_path / "data"
    subprocess.run(["install", "--directory", "--mode", found[1], data], check=True)
    assert readable_by_others([data]) == []
