"""Who runs a command."""

import getpass
import os
import pwd
import socket


def user_name() -> str:
    """Return the name that the environment or the system gives the user; `uid 10001` for a user without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as any uid
        return _system_name()


def origin() -> str:
    """Return the user and the machine, for a record: no variable of the environment can change the user."""
    return f"{_system_name()}@{socket.gethostname()}"


def _system_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
