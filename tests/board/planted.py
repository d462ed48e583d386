"""A healthy board as a folder of files, and misconfigurations to plant in it for `edge-cl doctor`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from edge_cl_device.doctor.command import diagnose
from edge_cl_device.doctor.findings import Finding
from edge_cl_device.doctor.scene import Scene

from edge_cl import __version__
from edge_cl.config import settings_from

ELF_64, ELF_32 = b"\x7fELF\x02\x01\x01" + bytes(9), b"\x7fELF\x01\x01\x01" + bytes(9)
SITE = "opt/edge-cl/lib/python3.11/site-packages"
PYTHON = "opt/edge-cl/bin/python"
ANSWERS = """#!/bin/sh
printf '{"version": "1", "providers": ["%s", "CPUExecutionProvider"]}' "${4:-CPUExecutionProvider}"
"""
MOUNTS = """/dev/mmcblk0p2 / ext4 rw,noatime 0 0
/dev/mmcblk0p3 /var/lib/edge-cl ext4 rw,noatime 0 0
tmpfs /tmp tmpfs rw,nosuid,nodev 0 0
"""
PACKAGES = {"numpy": "2.4.0", "onnxruntime": "1.31.1", "edge-cl": __version__, "smbus2": "0.6.1"}
CARD = "sys/class/mmc_host/mmc0/mmc0:0001"
A_YEAR_S = 365 * 86400.0


class Plot:
    """A board's files under `root`, and the settings of its device; healthy at first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings: dict[str, Any] = {
            "device": {"name": "porch"},
            "sensor": {"name": "mpu6050", "options": {"bus": 1}},
            "mqtt": {"url": "mqtts://broker.example"},
        }
        for name, text in _healthy().items():
            self.write(name, text)
        self.write("usr/bin/env", ELF_64)
        self.write(PYTHON, ANSWERS, mode=0o755)
        self.write("dev/i2c-1", "", mode=0o660)
        self.write("dev/rtc0", "")
        for name, version in PACKAGES.items():
            self.package(name, version)
        (root / "var/lib/edge-cl/state").mkdir(parents=True)
        wanted = root / "etc/systemd/system/multi-user.target.wants/edge-cl.service"
        wanted.parent.mkdir(parents=True)
        wanted.symlink_to("/etc/systemd/system/edge-cl.service")

    def write(self, name: str, content: str | bytes, *, mode: int = 0o644) -> Path:
        """A file with its folders."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def package(self, name: str, version: str) -> None:
        """A distribution that is installed in the device's environment."""
        folder = f"{SITE}/{name.replace('-', '_')}-{version}.dist-info"
        self.write(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def drop(self, name: str) -> None:
        """Remove a distribution."""
        for path in (self.root / SITE).glob(f"{name}-*/METADATA"):
            path.unlink()
            path.parent.rmdir()

    def examine(self) -> list[Finding]:
        """What doctor finds here; the broker is not asked."""
        return list(diagnose(Scene(root=self.root, settings=settings_from(self.settings), online=False)))


def _healthy() -> dict[str, str]:
    cpu = "processor\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0b\n\n"
    return {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/device-tree/serial-number": "a1b2c3d4e5f60718\0",
        "proc/cpuinfo": "".join(cpu.format(k) for k in range(4)),
        "proc/sys/kernel/arch": "aarch64\n",
        "proc/meminfo": "MemTotal:        2058004 kB\nMemAvailable:    1600000 kB\n",
        "proc/cmdline": "console=tty1 cgroup_disable=memory root=PARTUUID=x cgroup_enable=memory\n",
        "proc/self/mounts": MOUNTS,
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 524284 0 100\n",
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n',
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "etc/fstab": "PARTUUID=x-02 / ext4 defaults,noatime 0 1\n",
        "etc/passwd": "root:x:0:0::/root:/bin/sh\nedge-cl:x:64990:64990::/var/lib/edge-cl:/bin/false\n",
        "etc/group": f"i2c:x:{os.getgid()}:edge-cl\nedge-cl:x:64990:\n",
        "etc/edge-cl/board": "a1b2c3d4e5f60718\n",
        "etc/systemd/system/edge-cl.service": f"[Unit]\nX-EdgeCL-Version={__version__}\n",
        "etc/systemd/system.conf": "[Manager]\nRuntimeWatchdogSec=14\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
        "sys/fs/cgroup/system.slice/edge-cl.service/memory.max": f"{192 * 2**20}\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48300\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
        f"{CARD}/name": "SN64G\n",
        "sys/fs/ext4/mmcblk0p2/errors_count": "0\n",
        "run/systemd/timesync/synchronized": "",
        "dev/watchdog0": "",
    }


class Planted(NamedTuple):
    """What is wrong, which finding says so, and how it is planted."""

    name: str
    finding: str
    plant: Callable[[Plot], object]


def _future_clock(plot: Plot) -> None:
    path = plot.write("var/lib/systemd/timesync/clock", "")
    later = path.stat().st_mtime + A_YEAR_S
    os.utime(path, (later, later))


def _two_onnxruntimes(plot: Plot) -> None:
    plot.package("onnxruntime-gpu", "1.31.1")


def _old_onnxruntime(plot: Plot) -> None:
    plot.drop("onnxruntime")
    plot.package("onnxruntime", "1.21.0")


def _remote_without_tls(plot: Plot) -> None:
    plot.settings["mqtt"] = {"url": "mqtt://192.0.2.7"}


def _huge_budget(plot: Plot) -> None:
    plot.settings["budget"] = {"disk_mb": 1e9}


def _cuda_wished(plot: Plot) -> None:
    plot.settings["encoder"] = {"provider": "cuda"}
    plot.write(PYTHON, ANSWERS.replace("${4:-CPUExecutionProvider}", "CPUExecutionProvider"), mode=0o755)


def _serial_with_console(plot: Plot) -> None:
    plot.settings["sensor"] = {"name": "serial", "options": {"port": "/dev/serial0"}}
    plot.write("dev/serial0", "", mode=0o666)
    plot.package("pyserial", "3.5")
    plot.write("proc/cmdline", "console=serial0,115200 console=tty1 cgroup_enable=memory\n")


def _default_name(plot: Plot) -> None:
    plot.settings["device"] = {"name": "edge-cl"}


def _small_board(plot: Plot) -> None:
    plot.write("proc/meminfo", "MemTotal:  520000 kB\nMemAvailable: 300000 kB\n")
    plot.settings["budget"] = {"ram_mb": 400}


PLANTED = (
    Planted("memory cgroup off", "memory-cgroup", lambda p: (
        p.write("proc/cmdline", "console=tty1 cgroup_disable=memory root=x\n"),
        p.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n"),
    )),
    Planted("32-bit programs", "os-32bit", lambda p: p.write("usr/bin/env", ELF_32)),
    Planted("no machine id", "machine-id", lambda p: p.write("etc/machine-id", "uninitialized\n")),
    Planted("copied card", "cloned-card", lambda p: p.write("etc/edge-cl/board", "ffffffffffffffff\n")),
    Planted("clock never set", "clock-unset", _future_clock),
    Planted("card at its end", "card-worn", lambda p: p.write(f"{CARD}/life_time", "0x0b 0x0a\n")),
    Planted("RPi.GPIO on a Pi 5", "rpi-gpio", lambda p: p.package("RPi.GPIO", "0.7.1")),
    Planted("onnxruntime 1.21", "onnxruntime-old", _old_onnxruntime),
    Planted("two onnxruntimes", "onnxruntime-twice", _two_onnxruntimes),
    Planted("tflite with numpy 2", "tflite-numpy", lambda p: p.package("tflite-runtime", "2.14.0")),
    Planted("built for another processor", "import-onnxruntime", lambda p: p.write(
        PYTHON, ANSWERS.replace("printf", '[ "$3" = onnxruntime ] && kill -4 $$\nprintf'), mode=0o755
    )),
    Planted("CUDA wished, not had", "providers", _cuda_wished),
    Planted("no right to the I²C bus", "i2c-permission", lambda p: p.write("dev/i2c-1", "", mode=0o600)),
    Planted("no I²C bus", "i2c-missing", lambda p: (p.root / "dev/i2c-1").unlink()),
    Planted("console on the serial line", "serial-console", _serial_with_console),
    Planted("read-only after errors", "root-read-only", lambda p: p.write(
        "proc/self/mounts", MOUNTS.replace("/ ext4 rw", "/ ext4 ro")
    )),
    Planted("errors of the file system", "file-system-errors", lambda p: p.write(
        "sys/fs/ext4/mmcblk0p2/errors_count", "3\n"
    )),
    Planted("state on tmpfs", "state-volatile", lambda p: p.write(
        "proc/self/mounts", MOUNTS.replace("/var/lib/edge-cl ext4", "/var/lib/edge-cl tmpfs")
    )),
    Planted("a budget larger than the disk", "disk-low", _huge_budget),
    Planted("no TLS to another machine", "broker-tls", _remote_without_tls),
    Planted("the default name", "device-name", _default_name),
    Planted("under-voltage", "under-voltage", lambda p: p.write(
        "sys/devices/platform/soc/soc:firmware/get_throttled", "10001\n"
    )),
    Planted("too little memory", "memory", _small_board),
    Planted("a limit below the need", "memory-limit", lambda p: p.write(
        "sys/fs/cgroup/system.slice/edge-cl.service/memory.max", f"{48 * 2**20}\n"
    )),
    Planted("swap on the card", "swap-on-card", lambda p: p.write(
        "proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/var/swap file 524272 0 -2\n"
    )),
    Planted("a password for all to read", "secrets-readable", lambda p: p.write(
        "etc/edge-cl/secrets.env", "EDGE_CL_MQTT_PASSWORD=x\n"
    )),
    Planted("a runtime that tells on the device", "runtime-statistics", lambda p: p.write(
        "var/lib/edge-cl/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid", "0\n"
    )),
    Planted("a unit of another release", "service-old", lambda p: p.write(
        "etc/systemd/system/edge-cl.service", "[Unit]\nX-EdgeCL-Version=0.0.1\n"
    )),
)  # fmt: skip


def found(planted: Planted, folder: Path) -> list[Finding]:
    """What doctor says of one planted misconfiguration: findings of its id that are warnings or problems."""
    plot = Plot(folder)
    planted.plant(plot)
    said = plot.examine()
    return [f for f in said if f.id == planted.finding and f.level in ("warning", "problem")]
