"""Two ends of a serial cable: pseudo-terminals of socat that a test may pull out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mosquitto import wait_until

SOCAT = shutil.which("socat")


class Cable:
    """`port` is the driver's end; what is written with `send` comes out there."""

    def __init__(self, folder: Path) -> None:
        if SOCAT is None:
            pytest.skip("socat is not installed; on Debian: apt-get install socat")
        self.port = folder / "ttyTEST"
        self._far = folder / "far"
        self._socat: subprocess.Popen[bytes] | None = None
        self._file: int | None = None
        self.plug()

    def plug(self) -> None:
        ends = [f"pty,raw,echo=0,link={end}" for end in (self.port, self._far)]
        self._socat = subprocess.Popen([str(SOCAT), *ends], stderr=subprocess.DEVNULL)
        wait_until(lambda: self.port.exists() and self._far.exists(), "both ends are there")
        self._file = os.open(self._far, os.O_WRONLY | os.O_NOCTTY)

    def pull(self) -> None:
        if self._socat is not None and self._file is not None:
            os.close(self._file)
            self._socat.kill()
            self._socat.wait(10)
            for end in (self.port, self._far):
                end.unlink(missing_ok=True)
        self._socat = None

    def send(self, data: bytes) -> None:
        assert self._file is not None
        while data:
            data = data[os.write(self._file, data) :]
