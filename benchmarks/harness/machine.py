"""The facts that numbers depend on: the machine, its kernel and the versions of the programs."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from tests.servers.process import find_server
from tests.servers.valkey import find_valkey


def facts(directory: Path) -> list[tuple[str, str]]:
    """Return the facts by name; `directory` is on the disk that was measured."""
    return [
        ("CPU", f"{_cpu('model name')}, {os.cpu_count()} cores, SHA instructions: {_has_sha()}"),
        ("Memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"),
        ("Disk", f"{_filesystem(directory)}, load average at the end {os.getloadavg()[0]:.1f}"),
        ("Kernel", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("Celery", version("celery")),
        ("Valkey", _first_words([find_valkey(), "--version"], 3)),
        ("sha256sum", _first_words(["sha256sum", "--version"], 4)),
        ("openssl", _first_words(["openssl", "version"], 2)),
        ("rclone", _first_words([find_server("rclone"), "version"], 2)),
        ("s5cmd", _first_words([find_server("s5cmd"), "version"], 1)),
    ]


def _has_sha() -> str:
    flags = {*_cpu("flags").split(), *_cpu("Features").split()}
    return "yes" if flags & {"sha_ni", "sha2"} else "no"


def _cpu(field: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return "unknown" if field == "model name" else ""


def _filesystem(directory: Path) -> str:
    found = subprocess.run(["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _first_words(command: list[str], count: int) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return "not here"
    return " ".join(said.split()[:count])
