"""Which board this is, and how it is doing: read from the files that the kernel keeps.

Everything is read below a `root`, so that a test, or somebody who looks at a card in another machine, can
give another folder. What cannot be read is None or "": a board that does not tell is no error.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Literal

import msgspec

from edge_cl.sleep.surroundings import throttled_bits

Family = Literal["raspberry-pi", "jetson", "other"]

_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
_SINCE_BOOT = 16
_ELF_CLASS = {1: 32, 2: 64}
_SHELLS = ("usr/bin/env", "bin/sh", "usr/bin/sh", "usr/bin/python3")
_NUMBERED = {
    re.compile(r"Raspberry Pi Zero 2"): "pi-zero-2w",
    re.compile(r"(Raspberry Pi|Compute Module) 3"): "pi3",
    re.compile(r"(Raspberry Pi|Compute Module) (4|400)\b"): "pi4",
    re.compile(r"(Raspberry Pi|Compute Module) (5|500)\b"): "pi5",
    re.compile(r"Jetson Orin Nano"): "jetson-orin-nano",
}


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """What the board says of its supply and its heat: now, and at some time since it was switched on."""

    now: tuple[str, ...] = ()
    since_boot: tuple[str, ...] = ()
    known: bool = False


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of this machine.

    Attributes
    ----------
    model
        As the firmware calls it, "" when it does not say.
    key
        Name of the board's file in ``boards/``, "" when there is none.
    kernel_bits, userland_bits
        32 or 64; None when unknown.
    serial
        The processor's own number; a copied card has another.
    power_mode
        Of a Jetson: number and name, "" elsewhere.
    """

    family: Family = "other"
    model: str = ""
    key: str = ""
    os_name: str = ""
    os_id: str = ""
    os_version: str = ""
    machine: str = ""
    kernel_bits: int | None = None
    userland_bits: int | None = None
    n_cores: int = 0
    ram_bytes: int = 0
    serial: str = ""
    jetson_release: str = ""
    power_mode: str = ""


def read_board(root: Path = Path("/")) -> Board:
    """The board whose files are below `root`."""
    model = read_text(root / "proc/device-tree/model") or read_text(
        root / "sys/firmware/devicetree/base/model"
    )
    release = read_text(root / "etc/nv_tegra_release")
    os_release = _os_release(root)
    cpuinfo = read_text(root / "proc/cpuinfo")
    if not model:
        model = read_text(root / "sys/class/dmi/id/product_name")
    return Board(
        family="jetson" if release or "Jetson" in model else "raspberry-pi" if _is_pi(model) else "other",
        model=model,
        key=next((key for pattern, key in _NUMBERED.items() if pattern.search(model)), ""),
        os_name=os_release.get("PRETTY_NAME", ""),
        os_id=os_release.get("ID", ""),
        os_version=os_release.get("VERSION_ID", ""),
        machine=_machine(cpuinfo),
        kernel_bits=_kernel_bits(root, cpuinfo),
        userland_bits=_userland_bits(root),
        n_cores=len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)),
        ram_bytes=_ram_bytes(root),
        serial=_serial(root, cpuinfo),
        jetson_release=_jetson_release(release),
        power_mode=_power_mode(root),
    )


def read_power(root: Path = Path("/"), vcgencmd: str = "") -> Power:
    """Under-voltage and throttling.

    `vcgencmd` is what ``vcgencmd get_throttled`` printed, for a kernel that has no such file.
    """
    bits = throttled_bits(root)
    if bits is None:
        bits = _hexadecimal(vcgencmd.rpartition("=")[2].strip())
    alarms = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    low = [read_text(a / "in0_lcrit_alarm") for a in alarms if read_text(a / "name") == "rpi_volt"]
    now = {name for bit, name in _BITS.items() if bits is not None and bits >> bit & 1}
    since = {name for bit, name in _BITS.items() if bits is not None and bits >> (bit + _SINCE_BOOT) & 1}
    if "1" in low:
        now.add(_BITS[0])
    return Power(
        now=tuple(sorted(now)),
        since_boot=tuple(sorted(since | now)),
        known=bits is not None or bool(low),
    )


def read_text(path: Path) -> str:
    """A small file's text without the zero byte of the device tree; "" when it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip().strip("\0").strip()
    except OSError:
        return ""


def _is_pi(model: str) -> bool:
    return model.startswith(("Raspberry Pi", "Compute Module"))


def _os_release(root: Path) -> dict[str, str]:
    found = {}
    text = read_text(root / "etc/os-release") or read_text(root / "usr/lib/os-release")
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = value.strip().strip("\"'")
    return found


def _machine(cpuinfo: str) -> str:
    """The processor's name: in words on x86, by its part number on Arm."""
    parts = {"0xd03": "Cortex-A53", "0xd08": "Cortex-A72", "0xd0b": "Cortex-A76", "0xd42": "Cortex-A78AE"}
    if part := re.search(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE):
        return parts.get(part[1], f"Arm part {part[1]}")
    named = re.search(r"^model name\s*:\s*(.+)", cpuinfo, re.MULTILINE)
    return named[1].strip() if named else ""


def _kernel_bits(root: Path, cpuinfo: str) -> int | None:
    """By what the kernel says of itself; a 64-bit one may carry a 32-bit userland."""
    if arch := read_text(root / "proc/sys/kernel/arch"):
        return 64 if arch in ("aarch64", "x86_64", "riscv64") else 32
    if architecture := re.search(r"^CPU architecture\s*:\s*(\S+)", cpuinfo, re.MULTILINE):
        return 64 if architecture[1] in ("8", "AArch64") else 32
    return 64 if re.search(r"^flags\s*:.*\blm\b", cpuinfo, re.MULTILINE) else None


def _userland_bits(root: Path) -> int | None:
    """From the header of a program that every system has."""
    for name in _SHELLS:
        path = root / name
        if path.is_symlink() and path.readlink().is_absolute():
            path = root / str(path.readlink()).lstrip("/")
        try:
            with path.open("rb") as program:
                head = program.read(5)
        except OSError:
            continue
        if len(head) == 5 and head[:4] == b"\x7fELF":
            return _ELF_CLASS.get(struct.unpack("B", head[4:])[0])
    return None


def _ram_bytes(root: Path) -> int:
    found = re.search(r"^MemTotal:\s*(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _serial(root: Path, cpuinfo: str) -> str:
    tree = read_text(root / "proc/device-tree/serial-number")
    told = re.search(r"^Serial\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    return tree or read_text(root / "sys/firmware/devicetree/base/serial-number") or (told[1] if told else "")


def _jetson_release(text: str) -> str:
    """``# R36 (release), REVISION: 4.3, …`` as 36.4.3; JetPack 6 is 36, JetPack 7 is 38."""
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def _power_mode(root: Path) -> str:
    """What nvpmodel last set: ``pmode:0002`` in its status file, and the name in its table."""
    found = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status"))
    if not found:
        return ""
    number = int(found[1])
    named = re.search(
        rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+?)\s*>", read_text(root / "etc/nvpmodel.conf")
    )
    return f"{number} {named[1]}" if named else str(number)


def _hexadecimal(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None
