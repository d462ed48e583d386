"""Which board it is, from the files of real ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from edge_cl_device.board import read_board, read_power

JETSON_RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37"
)
NVPMODEL = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"


def write(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("model", "family", "key"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0\0", "raspberry-pi", "pi-zero-2w"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3\0", "raspberry-pi", "pi3"),
        ("Raspberry Pi 4 Model B Rev 1.5\0", "raspberry-pi", "pi4"),
        ("Raspberry Pi 400 Rev 1.0\0", "raspberry-pi", "pi4"),
        ("Raspberry Pi Compute Module 4 Rev 1.0\0", "raspberry-pi", "pi4"),
        ("Raspberry Pi 5 Model B Rev 1.1\0", "raspberry-pi", "pi5"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0", "jetson", "jetson-orin-nano"),
        ("Radxa ROCK 5B\0", "other", ""),
    ],
)
def test_models(model: str, family: str, key: str, tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/model", model)
    board = read_board(tmp_path)
    assert (board.model, board.family, board.key) == (model.rstrip("\0"), family, key)


def test_a_jetson_tells_its_release_and_power_mode(tmp_path: Path) -> None:
    write(tmp_path, "etc/nv_tegra_release", JETSON_RELEASE)
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0001 fmode:cool\n")
    write(tmp_path, "etc/nvpmodel.conf", NVPMODEL)
    board = read_board(tmp_path)
    assert (board.family, board.jetson_release, board.power_mode) == ("jetson", "36.4.3", "1 25W")


def test_a_64_bit_kernel_with_32_bit_programs(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/kernel/arch", "aarch64\n")
    write(tmp_path, "usr/bin/env", struct.pack("4sB", b"\x7fELF", 1))
    board = read_board(tmp_path)
    assert (board.kernel_bits, board.userland_bits) == (64, 32)


def test_nothing_to_read_is_no_error(tmp_path: Path) -> None:
    board = read_board(tmp_path)
    assert (board.family, board.model, board.userland_bits, board.ram_bytes) == ("other", "", None, 0)
    assert not read_power(tmp_path).known


def test_this_machine(tmp_path: Path) -> None:
    board = read_board()
    assert board.userland_bits == struct.calcsize("P") * 8
    assert board.n_cores > 0 and board.ram_bytes > 2**20


def test_bits_of_now_and_of_since_the_start(tmp_path: Path) -> None:
    write(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", "d0002\n")
    power = read_power(tmp_path)
    assert power.now == ("frequency capped",)
    assert power.since_boot == ("frequency capped", "soft temperature limit", "throttled", "under-voltage")
    told = read_power(tmp_path / "none", "throttled=0x50001")
    assert told.now == ("under-voltage",) and "throttled" in told.since_boot


def test_the_kernel_s_alarm_is_enough(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
    assert read_power(tmp_path).now == ("under-voltage",)
