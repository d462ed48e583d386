"""A real PostgreSQL in a folder of its own, for as long as a test or a benchmark needs it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.mosquitto import free_port


def _folder_of_programs() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    # Debian keeps them out of the path, a folder per version
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3].zfill(3)
    )
    return installed[-1].parent if installed else None


PROGRAMS = _folder_of_programs()


def _missing() -> str:
    if PROGRAMS is None:
        return "PostgreSQL is not installed; on Debian: apt-get install postgresql"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root, and there is no user postgres to run it as"
    return ""


MISSING = _missing()
"""Why there is none, or ""."""


_FAST = ("fsync=off", "full_page_writes=off")
_DURABLE = ("min_wal_size=2GB", "max_wal_size=4GB")
"""Used again, as on a server that has run for a while; a new one makes each file of its log first."""


class PostgreSQL:
    """A server on a port of the loopback, without passwords; :meth:`url` gives a new, empty database.

    `durable` makes it wait for the disk, as it should where its speed is measured.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="edge-cl-pg-"))
        self._data = self._folder / "data"
        self._n_databases = 0
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")

    def start(self) -> None:
        """Make the cluster at the first time, and serve it."""
        if not self._data.exists():
            self._call(
                "initdb", "-D", self._data, "-A", "trust", "-U", "edgecl", "-E", "UTF8", "--locale=C", "-N"
            )
        options = f"-p {self.port} -h 127.0.0.1 -k {self._folder}"
        options += f" -c {' -c '.join(_DURABLE if self._durable else _FAST)}"
        self._call("pg_ctl", "-D", self._data, "-o", options, "-l", self._folder / "log", "-w", "start")

    def stop(self) -> None:
        """End it as a crash would: without a word to its clients."""
        self._call("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        """End it and delete everything."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self) -> str:
        """Of a database made for this call."""
        self._n_databases += 1
        name = f"fleet{self._n_databases}"
        import psycopg  # here: tests that need no server run without it

        server = f"postgresql://edgecl@127.0.0.1:{self.port}"
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return f"{server}/{name}"

    def checkpoint(self) -> None:
        """Write everything to its place, so that the log may be used again."""
        import psycopg

        with psycopg.connect(
            f"postgresql://edgecl@127.0.0.1:{self.port}/postgres", autocommit=True
        ) as connection:
            connection.execute("CHECKPOINT")

    def _call(self, program: str, *arguments: object) -> None:
        assert PROGRAMS is not None
        command = [str(PROGRAMS / program), *map(str, arguments)]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        # its server inherits what it is given: a pipe would never end
        with (Path(tempfile.gettempdir()) / f"{self._folder.name}.log").open("w+") as log:
            done = subprocess.run(command, stdout=log, stderr=log, cwd="/", check=False)
            log.seek(0)
            Path(log.name).unlink()
            if done.returncode:
                raise RuntimeError(f"{program} failed: {log.read().strip()}")
