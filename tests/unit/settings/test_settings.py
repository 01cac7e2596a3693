"""Every setting that is misspelt or impossible is named, none with its value."""

import fcntl
import os
import subprocess
import sys
from datetime import timedelta
from typing import get_args

import pytest

from tests.servers.process import REPOSITORY
from worker.catalogue import FindingKind
from worker.embedded import supervisor
from worker.settings.alarms import Told
from worker.settings.loading import load_settings
from worker.settings.model import NoBroker, SettingsError


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a configuration file and name it in the environment."""

    def write(text):
        path = tmp_path / "zot.yaml"
        path.write_text(text)
        monkeypatch.setenv("ZOT_CONFIG", str(path))
        monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
        return path

    return write


def problems():
    with pytest.raises(SettingsError) as error:
        load_settings()
    return str(error.value).splitlines()


def test_without_anything_there_are_two_stores_in_the_data_directory(config, tmp_path):
    """The embedded default needs no file: two filesystem stores below ZOT_HOME, both in the placement."""
    config("")
    settings = load_settings()
    assert {name: store.root for name, store in settings.stores.items()} == {
        "primary": tmp_path / "home" / "stores" / "primary",
        "dr": tmp_path / "home" / "stores" / "dr",
    }
    assert settings.placement_stores == ("primary", "dr")
    assert settings.catalogue_url == f"sqlite:///{tmp_path / 'home' / 'catalogue.sqlite3'}"


def test_a_delete_can_be_undone_for_a_week_by_default(config, monkeypatch):
    """Bytes go at once only where the settings say so, or the request does."""
    config("")
    monkeypatch.delenv("ZOT_DELETE__GRACE")
    assert load_settings().delete.grace == timedelta(days=7)


def test_every_kind_of_finding_can_be_a_quiet_one():
    """`alarms.quiet` knows the kinds of the catalogue; canaries are never alarms."""
    assert set(get_args(Told)) == {kind.value for kind in FindingKind} - {"canary"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("webhook: {url: 'ftp://a', secret: 0123456789abcdef}", "alarms.webhook.url: an address such as https://"),
        ("webhook: {url: 'https://u:p@a/', secret: 0123456789abcdef}", "no user and no password"),
        ("webhook: {url: 'https://a/', secret: short}", "fewer than 16 bytes"),
        ("webhook: {url: 'https://a/', secret: 'whsec_!'}", "no base64"),
        ("email: {server: 'smtp://a', sender: a@b.c, recipients: [a@b.c]}", "a server such as smtp.example:587"),
        ("email: {server: a, sender: 'a@b.c\\r\\nBcc: e@f.g', recipients: [a@b.c]}", "an address such as"),
        ("email: {server: a, sender: a@b.c, recipients: [a@b.c], username: u}", "username and password go together"),
        (
            "email: {server: a, sender: a@b.c, recipients: [a@b.c], username: u, password: pä}",
            "alarms.email.password: only letters of ASCII can be sent",
        ),
        (
            "email: {server: a, sender: a@b.c, recipients: [a@b.c], username: u, password: p, security: none}",
            "sent in the clear",
        ),
        ("quiet: [corupt]", "alarms.quiet"),
    ],
)
def test_a_wrong_channel_of_alarms_is_named_without_its_secret(config, text, says):
    """Each mistake names the setting and the way out."""
    config(f"alarms: {{{text}}}\n")
    [problem] = problems()
    assert says in problem
    assert "0123456789abcdef" not in problem


def test_a_locale_whose_file_names_are_not_utf_8_is_refused(tmp_path):
    """A key would be another name on the disk than for the workers and programs beside it, or none at all."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "ZOT_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "worker.cli", "stores"]
    done = subprocess.run(command, env=os.environ | locale, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 2
    assert "the locale has file names in ascii" in done.stderr
    assert "PYTHONUTF8=1" in done.stderr


def test_a_current_directory_that_is_gone_is_told(monkeypatch, tmp_path):
    """A relative path has no meaning there."""
    monkeypatch.delenv("ZOT_HOME", raising=False)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert problems() == ["the current directory is gone: change to another one, or give absolute paths"]


def test_the_environment_wins_over_the_file(config, monkeypatch):
    """A setting in the environment replaces the file's, and its neighbours stay as the file has them."""
    config("retry: {max_attempts: 3, backoff: 5s}")
    monkeypatch.setenv("ZOT_RETRY__BACKOFF", "7s")
    settings = load_settings()
    assert (settings.retry.max_attempts, settings.retry.backoff) == (3, timedelta(seconds=7))


def test_old_names_of_settings_are_read(config, monkeypatch):
    """`sweep.leftovers` sets `sweep.cleanup`, and `jobs.max_put_off` `jobs.max_snooze`, in file and environment."""
    config("{sweep: {leftovers: {age: 2d, foreign_uploads: abort}}, jobs: {max_put_off: 3h}}")
    assert load_settings().jobs.max_snooze == timedelta(hours=3)
    monkeypatch.setenv("ZOT_JOBS__MAX_PUT_OFF", "4h")
    assert load_settings().jobs.max_snooze == timedelta(hours=4)
    monkeypatch.setenv("ZOT_SWEEP__LEFTOVERS__AGE", "3d")
    monkeypatch.setenv("ZOT_SWEEP__CLEANUP__EVERY", "2h")
    cleanup = load_settings().sweep.cleanup
    assert (cleanup.age, cleanup.every, cleanup.foreign_uploads) == (timedelta(days=3), timedelta(hours=2), "abort")


def test_the_old_name_of_the_cleanup_sweep_takes_json_in_a_variable(monkeypatch, tmp_path):
    """A variable that held the whole section before the new name came sets the same values."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path))
    monkeypatch.setenv("ZOT_SWEEP__LEFTOVERS", '{"age": "2d"}')
    assert load_settings().sweep.cleanup.age == timedelta(days=2)
    monkeypatch.setenv("ZOT_SWEEP__LEFTOVERS", "two days")
    with pytest.raises(SettingsError, match=r"sweep\.cleanup"):
        load_settings()


def test_a_setting_under_its_old_and_its_new_name_is_refused(config):
    """One of the two values would be ignored in silence."""
    config("jobs: {max_put_off: 3h, max_snooze: 3h}")
    assert "`max_put_off` is the old name of `max_snooze`, and both are set: keep max_snooze" in problems()[0]
    config("sweep: {leftovers: {age: 2d}, cleanup: {age: 3d}}")
    assert "`leftovers` is the old name of `cleanup`, and both set age: keep cleanup.age" in problems()[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("plcement: [primary]", "plcement is not a setting; did you mean 'placement'?"),
        ("zot_hom: /data", "zot_hom is not a setting; did you mean 'home'?"),
        ("retry: {max_attempt: 3}", "retry.max_attempt is not a setting; did you mean 'max_attempts'?"),
        (
            "stores: {a: {type: filesystem, root: /srv, rooot: /srv}}",
            "stores.a.rooot is not a setting; did you mean 'root'?",
        ),
        (
            "stores: {s3: {type: s3, buckett: b, bucket: b}}",
            "stores.s3.buckett is not a setting; did you mean 'bucket'?",
        ),
        (
            "stores: {g: {type: gcs, bucket: b, anonymus: true}}",
            "stores.g.anonymus is not a setting; did you mean 'anonymous'?",
        ),
        ("stores: {a: {type: s4}}", "stores.a.type: 's4' is no kind of store; there are: filesystem, s3, gcs, azure"),
        ("stores: {a: {root: /srv}}", "stores.a.type is missing; there are: filesystem, s3, gcs, azure"),
        ('stores: {s3: {type: s3, bucket: "b\\n"}}', "stores.s3.bucket: it is the name of one bucket"),
        ("stores: {s3: {type: s3, bucket: a b}}", "stores.s3.bucket: it is the name of one bucket"),
        ('stores: {g: {type: gcs, bucket: "*"}}', "stores.g.bucket: it is the name of one bucket"),
        (
            'stores: {s3: {type: s3, layout: native, reserved_bucket: "r\\u202e"}}',
            "stores.s3.reserved_bucket: it is the name of one bucket",
        ),
        (
            'stores: {s3: {type: s3, layout: native, buckets: ["r-*", "b\\n"]}}',
            "stores.s3.buckets.1: it is the name of a bucket or container, in which * and ? are allowed",
        ),
        ("stores: {s3: {type: s3, bucket: b, part_size: 5 parts}}", "stores.s3.part_size: '5 parts' is not a size"),
        ("retry: {backoff: 5}", "retry.backoff: 5 is not a duration: write a number with a unit"),
        ("sweep: {verify: {period: 0s}}", "sweep.verify.period: it must be longer than 0s"),
        ("sweep: {verify: {periods: {dr: 0s}}}", "sweep.verify.periods.dr: it must be longer than 0s"),
        ("sweep: {purge: {every: 10ms}}", "sweep.purge.every: it must be at least 1s"),
        ("jobs: {lease: 0ms}", "jobs.lease: it must be longer than 0s"),
        ("retry: {max_attempts: 0}", "retry.max_attempts: Input should be greater than or equal to 1"),
        (
            "placement: [primray]",
            "placement names the store 'primray', which is not configured; did you mean 'primary'?",
        ),
        (
            "store_limits: {primray: {}}",
            "store_limits names the store 'primray', which is not configured; did you mean",
        ),
        (
            "store_limits: {dr: {concurency: 2}}",
            "store_limits.dr.concurency is not a setting; did you mean 'concurrency'?",
        ),
        ("store_limits: {dr: {concurrency: 0}}", "store_limits.dr.concurrency: Input should be greater than or equal"),
        ("store_limits: {dr: {bytes_per_second: 5 MB/s}}", "bytes_per_second: '5 MB/s' is not a size"),
        ("breaker: {failure: 3}", "breaker.failure is not a setting; did you mean 'failures'?"),
        ("stores: {a: {type: s3}}", "stores.a: the layout 'prefixed' needs `bucket`"),
        (
            "verification_log: {keep: 365d}\nsweep: {backup: {stores: [dr]}}",
            "verification_log.keep needs two stores in sweep.backup.stores",
        ),
        (
            "verification_log: {keep: 90d}\nsweep: {backup: {stores: [dr, primary]}, verify: {periods: {dr: 91d}}}",
            "verification_log.keep is shorter than a sweep.verify.period",
        ),
        ("broker: amqp://u:hunter2@h//", "broker is a RabbitMQ, which keeps no results: set `results` (ZOT_RESULTS)"),
        ("- a\n- b", "a mapping of settings is expected"),
        ("stores: {a: [", "not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_the_way_out(config, text, says):
    """Each mistake in the file gets one line that names the setting and what would be right."""
    config(text)
    found = problems()
    assert len(found) == 1
    assert says in found[0]


def test_all_mistakes_are_told_at_once(config):
    """Three mistakes are reported as three, not one after the other."""
    config("plcement: [a]\nretry: {max_attempt: 3}\nstores: {a: {type: s4}}")
    assert len(problems()) == 3


def test_a_misspelt_variable_is_an_error(config, monkeypatch):
    """A variable that begins like ours and is none is named, with the one that was meant or with its origin."""
    config("")
    monkeypatch.setenv("ZOT_BROKR", "redis://127.0.0.1")
    assert problems() == ["ZOT_BROKR is not a setting; did you mean 'ZOT_BROKER'?"]
    monkeypatch.delenv("ZOT_BROKR")
    monkeypatch.setenv("ZOT_SERVICE_HOST", "10.0.0.11")
    [told] = problems()
    assert told.startswith("ZOT_SERVICE_HOST is not a setting: Kubernetes tells a Service")


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ("zot_hom", "zot_hom is not a setting; did you mean 'ZOT_HOME'?"),
        ("zot_config", "zot_config is not a setting; did you mean 'ZOT_CONFIG'?"),
        ("Zot_Home__x", "Zot_Home__x is not a setting: ZOT_HOME has no parts"),
        ("zot_stores", "zot_stores: the value must be JSON"),
        ("zot_home", "ZOT_HOME and zot_home are one setting, which is there twice"),
    ],
)
def test_a_variable_in_small_letters_is_told_as_one_in_capitals(monkeypatch, variable, problem):
    """They are read, so that a misspelt one is no variable of another program."""
    monkeypatch.setenv("ZOT_HOME", "/data")
    monkeypatch.setenv(variable, "x")
    [told] = problems()
    assert told.startswith(problem)


def test_a_file_that_is_not_there_is_named(monkeypatch, tmp_path):
    """A configuration file that cannot be read is an error, not the defaults."""
    monkeypatch.setenv("ZOT_CONFIG", str(tmp_path / "absent.yaml"))
    assert "absent.yaml, which cannot be read" in problems()[0]


def test_no_secret_is_ever_printed(config):
    """Neither the settings nor what is wrong with them show a credential."""
    config(
        "broker: redis://:hunter2-broker@127.0.0.1/0\n"
        "stores: {a: {type: s3, bucket: b, access_key_id: hunter2-id, secret_access_key: hunter2-secret}}"
    )
    assert "hunter2" not in repr(load_settings())
    config("stores: {a: {type: s3, bucket: b, secret_access_key: hunter2-secret, secret_acess_key: hunter2-other}}")
    assert "hunter2" not in "\n".join(problems())


def test_without_a_broker_the_error_says_how_to_get_one(config):
    """Nothing configured and nothing running: the error names the command and the variable.

    The URL that a killed `up` has left is not used: in a copy of its data directory it is that of the original.
    """
    config("")
    settings = load_settings()
    settings.prepare()
    with pytest.raises(NoBroker, match="zot-artifacts up.*ZOT_BROKER"):
        _ = settings.broker_url
    settings.broker_file.write_text("redis://127.0.0.1/9\n")
    with settings.up_lock.open("w") as lock:
        with pytest.raises(NoBroker, match="zot-artifacts up.*ZOT_BROKER"):
            _ = settings.broker_url
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert settings.broker_url == "redis://127.0.0.1/9"
    settings.up_lock.unlink()
    os.mkfifo(settings.up_lock)  # is not waited for
    with pytest.raises(NoBroker, match="zot-artifacts up"):
        _ = settings.broker_url


def test_a_command_that_looks_for_the_broker_stops_no_up(config, monkeypatch):
    """It locks the file for a moment; the id that an ended `up` has left there may be that of another process."""
    config("")
    settings = load_settings()
    settings.prepare()
    command = settings.up_lock.open("w")
    command.write(f"{os.getpid()}\n{settings.home}\n")
    command.flush()
    fcntl.flock(command, fcntl.LOCK_SH)
    monkeypatch.setattr(supervisor.time, "sleep", lambda _: command.close())
    with supervisor._locked(settings), pytest.raises(supervisor.AlreadyRunning), supervisor._locked(settings):
        pass


@pytest.mark.parametrize("waits", ["retry: {backoff_max: 12h}", "breaker: {open_max: 12h}", "batch: {step: 4h}"])
def test_redis_never_hands_out_a_job_that_may_still_run_or_wait(config, waits):
    """The visibility timeout is longer than the longest attempt and the longest wait together."""
    config(f"jobs: {{time_limit: 9h}}\n{waits}")
    settings = load_settings()
    assert settings.visibility_timeout > settings.jobs.time_limit + timedelta(hours=12)


def test_a_store_root_that_has_gone_is_not_made_again(config):
    """The data directory's own stores are made once: a root that disappears is a lost disk, not an empty store."""
    config("")
    settings = load_settings()
    settings.prepare()
    settings.stores["dr"].root.rmdir()
    settings.prepare()
    assert settings.stores["primary"].root.is_dir()
    assert not settings.stores["dr"].root.exists()


def test_a_relative_path_in_the_file_starts_at_the_file(config, tmp_path, monkeypatch):
    """Whatever directory a worker is started in, a relative path means the same place."""
    config(
        "stores: {a: {type: filesystem, root: data}, b: {type: gcs, bucket: b, credentials_file: key.json}}\n"
        "sources: {roots: [in]}"
    )
    monkeypatch.chdir("/")
    settings = load_settings()
    assert settings.stores["a"].root == tmp_path / "data"
    assert settings.stores["b"].credentials_file == tmp_path / "key.json"
    assert settings.sources.roots == (tmp_path / "in",)


def test_a_relative_path_in_the_environment_is_refused(config, monkeypatch):
    """A path that would depend on where a process was started is an error that names it."""
    config("")
    monkeypatch.setenv("ZOT_STORES", '{"a": {"type": "filesystem", "root": "data"}}')
    assert problems() == ["ZOT_STORES: a.root: 'data' is not an absolute path"]
