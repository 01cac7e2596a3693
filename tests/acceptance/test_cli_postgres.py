"""The command line with a catalogue in PostgreSQL: with its URL, without it, and with a wrong one."""

import pytest

from tests.acceptance.commands import Zot
from tests.servers.process import free_port

SECRET = "open-sesame"


@pytest.fixture
def zot(tmp_path):
    return Zot(tmp_path / "home")


def test_a_catalogue_on_a_server_is_made_only_by_what_runs_or_fills_it(zot, postgres):
    """A command says that a database without tables is no catalogue, and makes none; `catalogue rebuild` makes it."""
    with postgres.database(migrated=False) as url:
        elsewhere = zot.with_settings(catalogue=url)
        for command in (["status"], ["jobs"], ["pause", "store", "dr"]):
            told = elsewhere(*command)
            assert (told.status, told.is_one_line()) == (2, True), told
            assert "there is no catalogue at" in told.stderr
            assert "ZOT_CATALOGUE" in told.stderr
        empty = elsewhere("doctor")
        assert "catalogue: there is no catalogue at" in empty.stdout
        assert "store dr: filesystem: writes, reads" in empty.stdout
        assert elsewhere("catalogue", "rebuild").status == 0
        checks = {check["name"]: check["outcome"] for check in elsewhere("doctor", "--json").document["checks"]}
    assert checks["catalogue"] == "good"
    assert {name for name, outcome in checks.items() if outcome != "good"} == {"broker"}
    assert not list(zot.home.glob("*.sqlite3"))


def test_a_catalogue_that_is_down_is_one_line_with_the_way_out(zot):
    """A command that cannot reach the catalogue ends with 3 and names server and setting, and doctor does too."""
    down = zot.with_settings(catalogue=f"postgresql+psycopg://zot:{SECRET}@127.0.0.1:{free_port()}/zot")
    told = [down("jobs"), down("catalogue", "export", "-"), down("catalogue", "import", "/dev/null")]
    assert [(each.status, each.is_one_line()) for each in told] == [(3, True)] * 3
    looked = down("doctor")
    assert looked.status == 3
    for said in (*(each.stderr for each in told), looked.stdout):
        assert "zot:***@127.0.0.1" in said
        assert said.count("check that ZOT_CATALOGUE names a database that answers") == 1
        assert SECRET not in said


def test_a_catalogue_of_another_kind_is_a_matter_of_configuration(zot):
    """A URL that we cannot use ends with 2, and the line says which ones we can."""
    told = zot.with_settings(catalogue=f"mysql://zot:{SECRET}@127.0.0.1/zot")("jobs")
    assert (told.status, told.is_one_line()) == (2, True)
    assert "postgresql+psycopg://" in told.stderr
    assert SECRET not in told.stderr
