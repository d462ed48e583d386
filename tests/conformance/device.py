"""edge-cl as a device under test: ``edge-cl run`` with a reading every 0.05 s.

``python -m tests.conformance.device URL SITE DEVICE STATE KEY``
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from tests.worlds import World, make_bundle

SETTINGS = """
[device]
name = "{device}"
site = "{site}"
[mqtt]
url = "{url}"
status_s = 0.5
summary_s = 1.0
health_s = 5.0
[sleep]
after_labels = 0
idle_s = 0
[commands.keys.conformance]
public = "{key}"
allow = ["label", "sleep", "set", "report", "forget", "rollback", "rename", "review"]
"""


def main() -> None:
    """Feed readings until it is told to stop, or killed."""
    url, site, device, state, key = sys.argv[1:]
    folder = Path(state)
    if not (folder / "b.ecl").exists():
        make_bundle(folder / "b.ecl", "slda")
    config = folder / "settings.toml"
    config.write_text(SETTINGS.format(url=url, site=site, device=device, key=key))
    command = [
        sys.executable,
        "-m",
        "edge_cl",
        "run",
        str(folder / "b.ecl"),
        "--state",
        str(folder / "state"),
    ]
    out = (folder / "log").open("ab")
    run = subprocess.Popen([*command, "--config", str(config)], stdin=subprocess.PIPE, stdout=out, stderr=out)
    signal.signal(signal.SIGTERM, lambda *_: run.terminate())
    (folder / "pid").write_text(str(run.pid))
    X, _ = World(seed=os.getpid()).draw(10_000)
    assert run.stdin is not None
    for n, x in enumerate(np.asarray(X, dtype=float)):
        window = {"t": n / 20, "window": [x.tolist()], "id": f"{run.pid}-{n}"}
        try:
            run.stdin.write(msgspec.json.encode(window) + b"\n")
            run.stdin.flush()
        except OSError:
            break
        if run.poll() is not None:
            break
        time.sleep(0.05)
    sys.exit(run.wait())


if __name__ == "__main__":
    main()
