"""A whole site as its owner has it: a broker, `edge-cl fleet serve`, and boards that run `edge-cl run`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from edge_cl_fleet.command import fleet

from edge_cl.sync import signing
from tests.devices import ENVIRONMENT, Device
from tests.mosquitto import Broker, free_port, wait_until

SETTINGS = """
[device]
site = "home"

[sleep]
after_labels = 0

[state]
commit_ms = 0

[mqtt]
status_s = 0.2

[commands.keys.fleet]
public = "{public}"
allow = ["label", "sleep", "set", "report", "install", "rollback", "release"]
"""


class Site:
    """Everything lies in `folder`; `tell` and the like are real commands on its store."""

    def __init__(self, folder: Path, broker: Broker, store_url: str) -> None:
        self.folder, self.broker, self.url = folder, broker, store_url
        self.key = folder / "fleet.key"
        signing.write_key(self.key, private := signing.make_key())
        (folder / "settings.toml").write_text(SETTINGS.format(public=signing.public_of(private)))
        self.page = f"127.0.0.1:{free_port()}"

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """`edge-cl fleet serve`, until the end of the block."""
        command = [sys.executable, "-m", "edge_cl", "fleet", "serve", "--mqtt", self.broker.url]
        command += ["--store", self.url, "--key", str(self.key), "--http", self.page]
        with (self.folder / "serve.log").open("a") as log:
            process = subprocess.Popen(command, stderr=log, env=ENVIRONMENT)
        try:
            wait_until(self._is_served, "the server is connected", 30.0)
            yield
        finally:
            process.terminate()
            assert process.wait(20) == 0, (self.folder / "serve.log").read_text()

    def _is_served(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{self.page}/healthz") as answer:
            return bool(answer.status == 200)
        return False

    def board(self, name: str, bundle: Path) -> Device:
        """A board with this name and home bundle; runs when it is made."""
        options = ["--config", self.folder / "settings.toml", "--mqtt", self.broker.url, "--device", name]
        return Device(bundle, self.folder / name, *options)

    def call(self, *words: object, code: int = 0) -> str:
        """`edge-cl fleet …`; what it wrote."""
        done = CliRunner().invoke(fleet, [str(word) for word in words], env={"EDGE_CL_STORE": self.url})
        assert done.exit_code == code, (done, done.output, (self.folder / "serve.log").read_text())
        return done.output

    def read(self, *words: object) -> Any:
        """The same as JSON."""
        return json.loads(self.call(*words, "--json"))

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
        """As `wait_until`, with a command's pace."""
        wait_until(condition, what, timeout_s)
