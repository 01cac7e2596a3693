"""Flower does not start without authentication."""

import pytest
from flower import command

from tests.servers.tls import Authority
from worker.flower.require_authentication import check_authentication, is_flower
from worker.flower.setup import _check_certificate


def test_flower_without_authentication_is_refused(tmp_path):
    """Neither option, variable nor file: one line that says the way out."""
    assert is_flower(["-A", "worker.app", "flower"])
    assert not is_flower(["-A", "worker.app", "worker"])
    for arguments in (["flower"], ["flower", "--basic-auth="], ["flower", "--port=5555"]):
        with pytest.raises(SystemExit, match="FLOWER_BASIC_AUTH"):
            check_authentication(arguments, {"FLOWER_BASIC_AUTH": ""}, tmp_path)


def test_flower_with_any_authentication_starts(tmp_path):
    """Each of Flower's own ways counts: with none of them is there a SystemExit."""
    check_authentication(["flower", "--basic-auth=u:p"], {}, tmp_path)
    check_authentication(["flower", "--basic_auth", "u:p"], {}, tmp_path)
    check_authentication(["flower"], {"FLOWER_BASIC_AUTH": "u:p"}, tmp_path)
    check_authentication(["flower"], {"FLOWER_AUTH": ".*@example.org"}, tmp_path)
    (tmp_path / "flowerconfig.py").write_text("basic_auth = ['u:p']\n")
    check_authentication(["flower"], {}, tmp_path)


def test_a_user_without_a_password_is_no_authentication(tmp_path):
    """Neither an empty password or user, nor one of several users, lets Flower start."""
    for users in ("u:", ":p", ":", "u", "u:p,v:", "u:p,"):
        with pytest.raises(SystemExit, match="USER:PASSWORD"):
            check_authentication(["flower", f"--basic-auth={users}"], {}, tmp_path)
        with pytest.raises(SystemExit, match="USER:PASSWORD"):
            check_authentication(["flower"], {"FLOWER_BASIC_AUTH": users}, tmp_path)


def test_a_password_that_flower_cannot_compare_is_refused(tmp_path):
    """Flower compares ASCII only: such a password would never be right."""
    with pytest.raises(SystemExit, match="not ASCII"):
        check_authentication(["flower"], {"FLOWER_BASIC_AUTH": "u:pä"}, tmp_path)


def test_a_comment_in_the_file_is_no_authentication(tmp_path):
    """A file that only mentions an option, or sets it to nothing, does not count."""
    file = tmp_path / "flowerconfig.py"
    for text in (
        "# basic_auth = ['u:p']\n",
        "basic_auth = None\n",
        "basic_auth = []\n",
        'auth = ""\n',
        "no_auth = 1\n",
    ):
        file.write_text(text)
        with pytest.raises(SystemExit, match="FLOWER_BASIC_AUTH"):
            check_authentication(["flower", f"--conf={file}"], {}, tmp_path)


def test_a_certificate_without_its_key_is_refused(tmp_path, monkeypatch, caplog):
    """Flower does not start with the key of another certificate, or with a file that is none: each is one line.

    It starts with a certificate that has expired, and says so.
    """
    one, other = Authority(tmp_path, "one"), Authority(tmp_path, "other")
    one.context()
    pair = (tmp_path / "server.pem").rename(tmp_path / "pair.pem")
    other.context()
    monkeypatch.setattr(command, "extract_settings", lambda: None)
    _check_certificate()
    for certificate, key in ((pair, tmp_path / "server.pem"), (tmp_path / "absent.pem", pair)):
        monkeypatch.setitem(command.settings, "ssl_options", {"certfile": certificate, "keyfile": key})
        with pytest.raises(SystemExit, match="--certfile .* no certificate chain with its key"):
            command.extract_settings()
    monkeypatch.setitem(command.settings, "ssl_options", {"certfile": pair, "keyfile": pair})
    command.extract_settings()
    assert not caplog.messages
    other.context(expired=True)
    expired = tmp_path / "server.pem"
    monkeypatch.setitem(command.settings, "ssl_options", {"certfile": expired, "keyfile": expired})
    command.extract_settings()
    assert "it expired on" in caplog.text
