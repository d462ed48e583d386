"""Supply and heat."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from edge_cl.sleep import Surroundings
from edge_cl_device.board import read_power
from edge_cl_device.doctor.findings import Finding, note, ok, problem, warning
from edge_cl_device.doctor.scene import Scene

HOT_CELSIUS = 80.0
"""A Raspberry Pi slows down from here on."""
_LOW = "under-voltage"


def check(scene: Scene) -> Iterator[Finding]:
    """Under-voltage, throttling, temperature."""
    power = read_power(scene.root, scene.run("vcgencmd", "get_throttled"))
    if scene.board.family == "raspberry-pi" or power.known:
        yield _supply(power.now, power.since_boot, known=power.known)
        hot = [what for what in power.now if what != _LOW]
        if hot:
            yield warning(
                "throttled",
                f"the processor is slowed down now: {', '.join(hot)}",
                "answers take longer than was measured, sleeps much longer",
                "cool the board, or set sleep.max_celsius = 70",
            )
    surroundings = Surroundings(scene.root)
    surroundings.look(datetime.now())
    celsius = surroundings.celsius
    if celsius is None:
        yield note("temperature", "no temperature can be read", "sleep.max_celsius has no effect")
    elif celsius >= HOT_CELSIUS:
        yield warning(
            "temperature",
            f"{celsius:.0f} °C",
            f"boards slow down from about {HOT_CELSIUS:g} °C on",
            "give it a heat sink or a fan, or set sleep.max_celsius = 70",
        )
    else:
        yield ok("temperature", f"{celsius:.0f} °C")


def _supply(now: tuple[str, ...], since_boot: tuple[str, ...], *, known: bool) -> Finding:
    mend = "take the supply made for this board, and a short, thick cable; unplug what draws much"
    if _LOW in now:
        means = "a power cut is near: writes may be lost, and cards are damaged by it"
        return problem("under-voltage", "the supply's voltage is too low now", means, mend)
    if _LOW in since_boot:
        means = "it will happen again under load; cards are damaged by it"
        return warning("under-voltage", "the supply's voltage was too low since the start", means, mend)
    if not known:
        return note("under-voltage", "this system does not tell of under-voltage", "it goes unseen")
    return ok("under-voltage", "the supply's voltage is right")
