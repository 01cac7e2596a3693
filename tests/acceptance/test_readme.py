"""The examples of the README run as they are written."""

import re
from pathlib import Path

import pytest

from tests.acceptance.commands import Zot
from tests.acceptance.forked_up import running
from tests.servers.process import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
README_OF_CLIENT = (REPOSITORY / "api_client" / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_configuration_loads(tmp_path: Path) -> None:
    """The configuration that the README shows is one that the program takes."""
    config = tmp_path / "zot.yaml"
    config.write_text(block("yaml"))
    done = Zot(tmp_path / "home", {"ZOT_CONFIG": str(config)})("ls", "--json")
    assert done.document["error"]["type"] == "NoCatalogue"


def test_the_commands_exist() -> None:
    """Every command that the README shows is one, with the options shown."""
    from worker.cli import run

    shown = re.findall(r"^zot-artifacts (\w+)", README, flags=re.MULTILINE)
    assert len(shown) > 8
    for command in shown:
        assert run([command, "--help"]) == 0


def test_the_python_example_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A service that does what the README shows has its file uploaded and verified; so for that of the client."""
    source = tmp_path / "in" / "app.tgz"
    source.parent.mkdir()
    source.write_bytes(b"artifact")
    roots = {"ZOT_SOURCES__ROOTS": f'["{source.parent}"]'}
    with running(tmp_path / "home", "--no-beat", "--no-flower", **roots):
        broker = (tmp_path / "home" / "run" / "broker-url").read_text().strip()
        example = block("python").replace("redis://broker:6379/0", broker).replace("/srv/in/app.tgz", str(source))
        exec(compile(example, "README.md", "exec"), {})
        assert capsys.readouterr().out.splitlines()[1:] == ["True"]
        more = re.findall(r"^```python\n(.*?)^```", README_OF_CLIENT, flags=re.MULTILINE | re.DOTALL)
        for example in more:
            there = example.replace("redis://broker.example:6379/0", broker).replace("app-1.2.tgz", "app.tgz")
            exec(compile(there, "api_client/README.md", "exec"), {})
        assert capsys.readouterr().out.count("verdict='verified'") == 2 * (len(more) - 1)  # the last one does not wait
