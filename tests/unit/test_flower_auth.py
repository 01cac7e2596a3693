"""Flower does not start without authentication."""

import pytest

from worker.flower.authentication import check_authentication, is_flower


def test_flower_without_authentication_is_refused(tmp_path):
    """Neither option, variable nor file: one line that says the way out."""
    assert is_flower(["-A", "worker.app", "flower"])
    assert not is_flower(["-A", "worker.app", "worker"])
    for arguments in (["flower"], ["flower", "--basic-auth="], ["flower", "--port=5555"]):
        with pytest.raises(SystemExit, match="FLOWER_BASIC_AUTH"):
            check_authentication(arguments, {"FLOWER_BASIC_AUTH": ""}, tmp_path)


def test_flower_with_any_authentication_starts(tmp_path):
    """Each of Flower's own ways counts."""
    check_authentication(["flower", "--basic-auth=u:p"], {}, tmp_path)
    check_authentication(["flower", "--basic_auth", "u:p"], {}, tmp_path)
    check_authentication(["flower"], {"FLOWER_BASIC_AUTH": "u:p"}, tmp_path)
    check_authentication(["flower"], {"FLOWER_AUTH": ".*@example.org"}, tmp_path)
    (tmp_path / "flowerconfig.py").write_text("basic_auth = ['u:p']\n")
    check_authentication(["flower"], {}, tmp_path)
