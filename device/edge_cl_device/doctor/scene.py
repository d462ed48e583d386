"""Where the checks look: a root of files, the settings, and the few processes they may start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cached_property
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_cl.bundle import Bundle
from edge_cl.config import Settings
from edge_cl_device.board import Board, read_board, read_text
from edge_cl_device.measurements import NO_STATISTICS

SERVICE_USER = "edge-cl"
VENV = "opt/edge-cl"
SECRETS = "etc/edge-cl/secrets.env"
SYSTEM_PACKAGES = "usr/lib/python3/dist-packages"
"""Of apt, which an environment may see: bindings of GPIO and cameras on Debian and its kin."""
_SEES_SYSTEM = re.compile(r"^include-system-site-packages\s*=\s*true", re.MULTILINE | re.IGNORECASE)
PROBE = "edge_cl_device.doctor.probe"
COMMAND_S = 20.0


class Mount(NamedTuple):
    """A mounted file system."""

    device: str
    point: str
    kind: str
    options: tuple[str, ...]


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What a module said when it was imported in a process of its own; `error` says how that ended."""

    version: str = ""
    providers: tuple[str, ...] = ()
    error: str = ""


class Scene:
    """What is looked at.

    Parameters
    ----------
    root
        ``/``, or a folder that holds such files.
    settings, state
        The device's; the state folder as the settings or the user name it.
    bundle
        What the device runs, None when that is not known.
    online
        Whether the broker may be asked.
    """

    def __init__(
        self,
        *,
        root: Path = Path("/"),
        settings: Settings | None = None,
        state: Path = Path("/var/lib/edge-cl/state"),
        bundle: Bundle | None = None,
        config: Path | None = None,
        online: bool = True,
    ) -> None:
        self.root = root
        self.settings = settings or Settings()
        self.state = state
        self.bundle = bundle
        self.config = config
        self.online = online
        self.live = root == Path("/")

    @cached_property
    def board(self) -> Board:
        """Which board it is."""
        return read_board(self.root)

    def path(self, name: str | Path) -> Path:
        """An absolute path of the machine that is looked at."""
        return self.root / str(name).lstrip("/")

    def exists(self, name: str | Path) -> bool:
        """Whether it is there, as far as this user can see."""
        try:
            return self.path(name).exists()
        except OSError:
            return False

    def text(self, name: str | Path) -> str:
        """A small file's text, "" when it cannot be read."""
        return read_text(self.path(name))

    def run(self, *command: str) -> str:
        """What a program prints; "" when it is not there, fails, or the root is not this machine's."""
        if not self.live:
            return ""
        try:
            done = subprocess.run(command, capture_output=True, timeout=COMMAND_S)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.decode(errors="replace").strip()

    @cached_property
    def python(self) -> str:
        """The interpreter that the device runs with: that of the service's environment when there is one."""
        installed = self.path(f"{VENV}/bin/python")
        if installed.exists():
            return str(installed)
        return sys.executable if self.live else ""

    @cached_property
    def packages(self) -> dict[str, str]:
        """Installed distributions and their versions, by lower-case name."""
        folders = [str(p) for p in sorted(self.path(VENV).glob("lib/python3*/site-packages"))]
        if folders and _SEES_SYSTEM.search(self.text(f"{VENV}/pyvenv.cfg")):
            folders.append(str(self.path(SYSTEM_PACKAGES)))
        if not folders and not self.live:
            return {}
        found: dict[str, str] = {}
        for package in distributions(path=folders) if folders else distributions():
            name = package.metadata["Name"]
            if name:
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), package.version)
        return found

    def probe(self, module: str, *arguments: str) -> Probed | None:
        """Import a module in a process of its own, which may die of it; None when there is no interpreter."""
        if not self.python:
            return None
        command = [self.python, "-m", PROBE, module, *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=COMMAND_S, env=os.environ | NO_STATISTICS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Probed(error=str(error))
        try:
            return msgspec.json.decode(done.stdout, type=Probed)
        except msgspec.DecodeError:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            if done.returncode < 0:
                return Probed(error=f"ended by signal {-done.returncode}")
            return Probed(error=said[-1] if said else f"ended with {done.returncode}")

    @cached_property
    def mounts(self) -> list[Mount]:
        """What is mounted, in the order of the kernel."""
        found = []
        for line in (self.text("proc/self/mounts") or self.text("proc/mounts")).splitlines():
            parts = line.split()
            if len(parts) >= 4:
                found.append(Mount(parts[0], parts[1], parts[2], tuple(parts[3].split(","))))
        return found

    def mount_of(self, name: str | Path) -> Mount | None:
        """The file system that a path is on, None when unknown."""
        path = Path("/") / str(name).lstrip("/")
        best = None
        for mount in self.mounts:
            inside = path == Path(mount.point) or Path(mount.point) in path.parents
            if inside and (best is None or len(mount.point) >= len(best.point)):
                best = mount
        return best
