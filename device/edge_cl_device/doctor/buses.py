"""What sensors and buttons are reached by: device files, permissions, and what else holds them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from edge_cl_device.doctor.findings import Finding, note, ok, problem
from edge_cl_device.doctor.scene import SERVICE_USER, VENV, Scene
from edge_cl_device.permission import group_of

BUILT_IN = ("", "stdin", "file", "mqtt")


class Bus(NamedTuple):
    """Which device file a driver needs, who may use it, and how it is enabled."""

    pattern: str
    group: str
    enable: str
    package: str


BUSES = {
    "i2c": Bus("dev/i2c-{bus}", "i2c", "sudo raspi-config nonint do_i2c 0 && sudo reboot", "smbus2"),
    "serial": Bus("{port}", "dialout", "sudo raspi-config nonint do_serial_hw 0 && sudo reboot", "pyserial"),
    "camera": Bus("dev/video{device}", "video", "rpicam-hello --list-cameras; check the ribbon cable", ""),
    "audio": Bus("dev/snd", "audio", "arecord -l; plug the microphone in", "sounddevice"),
    "gpio": Bus("dev/gpiochip0", "gpio", "sudo usermod -aG gpio edge-cl", "gpiozero"),
}
DRIVERS = {
    "mpu6050": "i2c",
    "lsm6dsox": "i2c",
    "serial": "serial",
    "camera": "camera",
    "alsa": "audio",
    "button": "gpio",
}


def check(scene: Scene) -> Iterator[Finding]:
    """Of the sensor and the label sources in the settings."""
    sensor = scene.settings.sensor
    if not sensor.name:
        yield note(
            "sensor",
            "no sensor is set",
            "the device then reads standard input, which a service has not",
            f"set [sensor] name in {scene.config or '/etc/edge-cl/config.toml'} (docs/sensors.md)",
        )
    elif sensor.name not in DRIVERS and sensor.name not in BUILT_IN:
        yield from _foreign(sensor.name)
    if (bus := DRIVERS.get(sensor.name)) is not None:
        yield from _bus(scene, bus, sensor.name, sensor.options)
    if any(labels.name == "button" for labels in scene.settings.labels):
        yield from _bus(scene, "gpio", "button", {})
    yield from _gpio_library(scene)
    if sensor.name == "serial":
        yield from _console(scene, str(sensor.options.get("port", "/dev/serial0")))


def _foreign(name: str) -> Iterator[Finding]:
    known = {point.name for point in entry_points(group="edge_cl.sensors")}
    if name in known:
        yield ok("sensor", f"{name} is installed")
    else:
        yield problem(
            "sensor",
            f"sensor {name!r} is not installed",
            "the device cannot start",
            f"known are: {', '.join(sorted(known | set(DRIVERS) - {'button'}))}",
        )


def _bus(scene: Scene, kind: str, driver: str, options: dict[str, Any]) -> Iterator[Finding]:
    bus = BUSES[kind]
    name = _device_file(bus, options)
    path = scene.path(name)
    if bus.package and scene.packages and bus.package not in scene.packages:
        yield problem(
            f"{kind}-library",
            f"{driver} needs {bus.package}, which is not installed",
            "the driver cannot start",
            f"sudo /{VENV}/bin/pip install 'edge-cl[{kind}]'",
        )
    if not path.exists():
        yield problem(
            f"{kind}-missing",
            f"{driver} needs {name}, which is not there",
            "the bus is not enabled, or nothing is connected",
            bus.enable,
        )
        return
    if _may_use(scene, path):
        yield ok(f"{kind}-permission", f"{SERVICE_USER} may use {name}")
    else:
        yield problem(
            f"{kind}-permission",
            f"{SERVICE_USER} may not use {name}",
            "the driver is refused",
            f"sudo usermod -aG {group_of(path, bus.group)} {SERVICE_USER} && sudo systemctl restart edge-cl",
        )


def _device_file(bus: Bus, options: dict[str, Any]) -> str:
    """Of the driver's options, or what they are by default; a camera may be named by its path."""
    values = {
        "bus": options.get("bus", 1),
        "device": options.get("device", 0),
        "port": options.get("port", "/dev/serial0"),
    }
    if isinstance(values["device"], str) and values["device"].startswith("/") and "{device}" in bus.pattern:
        return values["device"]
    return "/" + bus.pattern.format(**values).lstrip("/")


def _may_use(scene: Scene, path: Path) -> bool:
    """By owner, group and mode, for the user that the service runs as; True where there is no such user."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        inside = sorted(path.iterdir())
        return all(_may_use(scene, part) for part in inside if not part.is_dir())
    account = _account(scene)
    if account is None:
        return True
    uid, groups = account
    if uid == 0:
        return True
    if found.st_uid == uid:
        return bool(found.st_mode & stat.S_IRUSR and found.st_mode & stat.S_IWUSR)
    if found.st_gid in groups:
        return bool(found.st_mode & stat.S_IRGRP and found.st_mode & stat.S_IWGRP)
    return bool(found.st_mode & stat.S_IROTH and found.st_mode & stat.S_IWOTH)


def _account(scene: Scene) -> tuple[int, set[int]] | None:
    """User and group numbers of the service's user, from the files of the machine that is looked at."""
    for line in scene.text("etc/passwd").splitlines():
        parts = line.split(":")
        if len(parts) >= 4 and parts[0] == SERVICE_USER:
            uid, groups = int(parts[2]), {int(parts[3])}
            break
    else:
        return None
    for line in scene.text("etc/group").splitlines():
        parts = line.split(":")
        if len(parts) >= 4 and SERVICE_USER in parts[3].split(","):
            groups.add(int(parts[2]))
    return uid, groups


def _gpio_library(scene: Scene) -> Iterator[Finding]:
    packages = scene.packages
    if scene.board.key == "pi5" and "rpi-gpio" in packages and "rpi-lgpio" not in packages:
        yield problem(
            "rpi-gpio",
            f"RPi.GPIO {packages['rpi-gpio']} on a {scene.board.model}",
            "it cannot reach the pins of this board; gpiozero and others that find it first fail with it",
            f"sudo /{VENV}/bin/pip uninstall -y RPi.GPIO && sudo apt-get install python3-lgpio",
        )


def _console(scene: Scene, port: str) -> Iterator[Finding]:
    """A login prompt on the same line answers whatever the sensor says."""
    names = {Path(port).name}
    link = scene.path(port)
    if link.is_symlink():
        names.add(Path(link.readlink()).name)
    if "serial0" in names:
        names |= {"ttyS0", "ttyAMA0", "ttyAMA10"}
    held = [word for word in scene.text("proc/cmdline").split() if word.startswith("console=")]
    mine = [word for word in held if word.removeprefix("console=").partition(",")[0] in names]
    if mine:
        yield problem(
            "serial-console",
            f"the kernel uses the serial line itself: {', '.join(mine)}",
            "boot messages and a login prompt mix with what the sensor sends",
            "sudo raspi-config nonint do_serial_cons 1 && sudo reboot",
        )
    else:
        yield ok("serial-console", f"no console on {port}")
