"""What gives whoever runs this the right to use a device."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from pathlib import Path


def join(group: str) -> str:
    """The command that does, for messages: devices belong to groups, and groups are read at the start."""
    return f"sudo usermod -aG {group} {current_user()}, then start edge-cl again"


def group_of(file: str | Path, usual: str) -> str:
    """The group that may use a device file: some rules of udev choose another one than is usual."""
    with contextlib.suppress(OSError, KeyError):
        found = Path(file).stat()
        if found.st_gid and found.st_mode & 0o060 == 0o060:
            return grp.getgrgid(found.st_gid).gr_name
    return usual


def current_user() -> str:
    """Who runs this; the service's user when that has no name here."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "edge-cl"
