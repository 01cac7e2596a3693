"""The client's wheel alone in an empty environment, as other services install it."""

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from tools.environments import Installer

ROOT = Path(__file__).resolve().parents[2]

USE_IT = """
import importlib, importlib.util, pkgutil, sys
import zot_artifact_client as client
from zot_artifact_client.contract import VERIFY

for module in pkgutil.walk_packages(client.__path__, "zot_artifact_client."):
    importlib.import_module(module.name)
request = VERIFY.request.read({"bucket": "releases", "key": "app.tgz"})
assert request.payload() == {"bucket": "releases", "key": "app.tgz"}, request
print(client.__file__)
print(*[name for name in ("worker", "tasks", "sqlalchemy", "boto3") if importlib.util.find_spec(name)])
"""


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} said: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, because setuptools leaves build/ behind where it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "api_client"
    shutil.copytree(ROOT / "api_client", source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.fixture
def empty_python(tmp_path: Path) -> Path:
    """Make an environment that holds nothing, and return its interpreter."""
    venv.create(tmp_path / "empty")
    return tmp_path / "empty" / "bin" / "python"


def _locked_versions(into: Path) -> Path:
    """Write the lock's versions as constraints; without its hashes, which pip would then ask of our wheel too."""
    pins = re.findall(r"^([\w.-]+==\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    into.write_text("\n".join(pins))
    return into


def test_the_only_top_level_name_is_the_package(wheel: Path) -> None:
    """The wheel overwrites no other `tasks` or `worker`: everything in it is in `zot_artifact_client`."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"zot_artifact_client"}


def test_the_wheel_carries_its_types_and_its_licence(wheel: Path) -> None:
    """Type checkers of other services see our signatures, and the licence travels with the code."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "zot_artifact_client/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_nothing_is_required_but_celery_and_pydantic(metadata: Message) -> None:
    """The installed client brings no store SDK, no database and nothing of the worker's."""
    required = {re.split(r"[\[<>=!~; ]", line)[0] for line in metadata.get_all("Requires-Dist", [])}
    assert required == {"celery", "pydantic"}


@pytest.mark.slow
def test_the_client_works_alone_in_an_empty_environment(wheel: Path, empty_python: Path, tmp_path: Path) -> None:
    """Installed with its dependencies only, every module of the client imports and a request can be made."""
    pins = _locked_versions(tmp_path / "constraints.txt")
    Installer(Path(sys.executable)).install(
        "install the client", ["--constraint", pins, wheel], print, into=empty_python
    )
    where, present = _run(empty_python, "-I", "-c", USE_IT, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(tmp_path / "empty")
    assert not present
