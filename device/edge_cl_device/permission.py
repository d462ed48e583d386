"""What gives whoever runs this the right to use a device."""

from __future__ import annotations

import os
import pwd


def join(group: str) -> str:
    """The command that does, for messages: devices belong to groups, and groups are read at the start."""
    return f"sudo usermod -aG {group} {current_user()}, then start edge-cl again"


def current_user() -> str:
    """Who runs this; the service's user when that has no name here."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "edge-cl"
