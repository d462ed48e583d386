"""The systemd unit, its secrets and the watchdog."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from edge_cl import __version__
from edge_cl_device.doctor.findings import Finding, note, ok, problem, warning
from edge_cl_device.doctor.scene import SECRETS, Scene

UNIT = "etc/systemd/system/edge-cl.service"
WANTED = "etc/systemd/system/multi-user.target.wants/edge-cl.service"
STATISTICS = "var/lib/edge-cl/.cache/Microsoft/DeveloperTools/.onnxruntime"
_VERSION = re.compile(r"^X-EdgeCL-Version=(\S+)", re.MULTILINE)


def check(scene: Scene) -> Iterator[Finding]:
    """Whether the device starts by itself, stays up, and keeps its secrets."""
    unit = scene.text(UNIT)
    if not unit:
        yield note(
            "service",
            "no service is installed",
            "the device does not start with the board",
            "sudo device/install.sh",
        )
    else:
        yield from _unit(scene, unit)
    yield from _secrets(scene)
    yield from _statistics(scene)
    yield _watchdog(scene)


def _unit(scene: Scene, unit: str) -> Iterator[Finding]:
    if not scene.path(WANTED).is_symlink():
        yield warning(
            "service-enabled",
            "edge-cl.service is not enabled",
            "the device does not start with the board",
            "sudo systemctl enable edge-cl",
        )
    else:
        yield ok("service-enabled", "starts with the board")
    state = scene.run("systemctl", "is-active", "edge-cl")
    if state == "failed":
        yield problem(
            "service-running",
            "edge-cl.service has failed",
            "the device does not run",
            "journalctl -u edge-cl -n 50",
        )
    elif state == "active":
        yield ok("service-running", "edge-cl.service runs")
    elif scene.live:
        yield note("service-running", "edge-cl.service does not run now", "", "sudo systemctl start edge-cl")
    written = _VERSION.search(unit)
    if written is None or written[1] != __version__:
        release = written[1] if written else "of an unknown release"
        yield warning(
            "service-old",
            f"the unit is of edge-cl {release}, installed is {__version__}",
            "it may lack limits or settings of this release",
            "run device/install.sh again",
        )


def _secrets(scene: Scene) -> Iterator[Finding]:
    path = scene.path(SECRETS)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & 0o077:
        yield problem(
            "secrets-readable",
            f"/{SECRETS} has mode {mode:04o}",
            "every user of this system can read the broker's password",
            f"sudo chmod 600 /{SECRETS}",
        )
    else:
        yield ok("secrets-readable", f"/{SECRETS} is for root only")


def _statistics(scene: Scene) -> Iterator[Finding]:
    """Newer releases of onnxruntime on Linux keep a number of the device, and send what they count."""
    kept = scene.path(STATISTICS)
    if (kept / "deviceid").exists():
        yield warning(
            "runtime-statistics",
            f"onnxruntime keeps a number of this device in /{STATISTICS}",
            "it sends statistics to its maker, and writes a database on the card",
            f"set ORT_DISABLE_TELEMETRY=1 (the unit does) and sudo rm -r /{STATISTICS}",
        )


def _watchdog(scene: Scene) -> Finding:
    texts = [scene.text("etc/systemd/system.conf")]
    texts += [path.read_text() for path in sorted(scene.path("etc/systemd/system.conf.d").glob("*.conf"))]
    set_to = [
        m[1] for text in texts for m in re.finditer(r"^\s*RuntimeWatchdogSec=(\S+)", text, re.MULTILINE)
    ]
    if any(scene.path("dev").glob("watchdog*")):
        if set_to and set_to[-1] not in ("0", "off"):
            return ok("watchdog", f"the board restarts when it hangs for {set_to[-1]}")
        return note(
            "watchdog",
            "the board's watchdog is not used",
            "when the whole system hangs, somebody has to switch it off and on",
            "set RuntimeWatchdogSec=14 in /etc/systemd/system.conf, sudo systemctl daemon-reexec",
        )
    return ok("watchdog", "this machine has no watchdog")
