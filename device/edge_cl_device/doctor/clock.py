"""Time: labels and sleeps follow monotonic clocks, certificates and histories do not."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from edge_cl.sleep.conditions import RELEASE_YEAR
from edge_cl_device.doctor.findings import Finding, note, ok, problem, warning
from edge_cl_device.doctor.scene import Scene

SAVED = ("var/lib/systemd/timesync/clock", "etc/fake-hwclock.data")
"""Touched or written while the time was known: the clock cannot rightly be before."""
SYNCHRONISED = "run/systemd/timesync/synchronized"
SLACK_S = 86400.0
_STA_UNSYNC = 0x40
_MEND = "timedatectl set-ntp true && timedatectl; without a network: sudo date -s '2026-01-31 12:00'"


def check(scene: Scene) -> Iterator[Finding]:
    """Whether the clock was set, by whom, and whether it survives a power cut."""
    now = datetime.now(UTC)
    saved_s = max((_modified_s(scene, name) for name in SAVED), default=0.0)
    if now.year < RELEASE_YEAR or now.timestamp() < saved_s - SLACK_S:
        before = f", before {datetime.fromtimestamp(saved_s, UTC):%Y-%m-%d}, when it was last known"
        yield problem(
            "clock-unset",
            f"the clock shows {now:%Y-%m-%d}{before if saved_s else ''}",
            "it was never set: certificates are not valid yet, night windows and histories are wrong",
            _MEND,
        )
        return
    yield ok("clock-unset", f"the clock shows {now:%Y-%m-%d %H:%M} UTC")
    synchronised = _synchronised(scene)
    has_clock = any(scene.path("dev").glob("rtc*"))
    if synchronised:
        yield ok("clock-ntp", "set by a time server")
    elif synchronised is False:
        yield warning(
            "clock-ntp",
            "no time server has set the clock since the start",
            "it drifts, and TLS and night windows follow it",
            _MEND,
        )
    else:
        yield note("clock-ntp", "cannot tell whether a time server set the clock", "it may drift", _MEND)
    if not has_clock and scene.board.family != "other":
        yield note(
            "clock-rtc",
            "no clock with a battery",
            "after a power cut without network the time is unknown; what is learned does not depend on it",
        )


def _modified_s(scene: Scene, name: str) -> float:
    try:
        return scene.path(name).stat().st_mtime
    except OSError:
        return 0.0


def _synchronised(scene: Scene) -> bool | None:
    """By systemd-timesyncd's mark, else by the kernel, whom every time service tells."""
    if scene.path(SYNCHRONISED).exists():
        return True
    if not scene.live:
        return False if scene.path("run/systemd/timesync").exists() else None
    return _kernel_synchronised()


def _kernel_synchronised() -> bool | None:
    """`adjtimex`: the status is the fifth field of ``struct timex``."""
    buffer = (ctypes.c_long * 64)()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(buffer))
    except AttributeError:
        return None
    if state < 0 or time.time() < 0:
        return None
    # modes (with padding), offset, freq, maxerror, esterror, status
    return not (int(buffer[5]) & _STA_UNSYNC)
