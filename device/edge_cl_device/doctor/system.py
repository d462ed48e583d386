"""Board, operating system, identity."""

from __future__ import annotations

from collections.abc import Iterator

from edge_cl_device.board import Board
from edge_cl_device.doctor.findings import Finding, note, ok, problem, warning
from edge_cl_device.doctor.scene import Scene

IDENTITY = "etc/edge-cl/board"
"""The board's serial number when edge-cl was installed; written by the installer."""
_ID_DIGITS = 32


def check(scene: Scene) -> Iterator[Finding]:
    """What machine this is, whether it is 64-bit, and whether it is the one that was installed."""
    board = scene.board
    yield ok("board", _describe(board))
    yield _bits(board)
    if board.family == "jetson":
        release, mode = board.jetson_release or "unknown", board.power_mode or "unknown"
        yield note(
            "jetson",
            f"Jetson Linux {release}, power mode {mode}",
            "what `edge-cl verify --bench` measures holds for this power mode only",
            "sudo nvpmodel -q",
        )
    yield from _identity(scene)
    yield _name(scene)


def _describe(board: Board) -> str:
    parts = [board.model or "a board that does not say its name"]
    if board.n_cores:
        parts.append(f"{board.n_cores} × {board.machine or 'unknown processor'}")
    if board.ram_bytes:
        parts.append(f"{board.ram_bytes // 1024**2:,} MB")
    parts.append(board.os_name or "unknown system")
    return ", ".join(parts)


def _bits(board: Board) -> Finding:
    if board.userland_bits == 32:
        kernel = " under a 64-bit kernel" if board.kernel_bits == 64 else ""
        return problem(
            "os-32bit",
            f"programs are 32-bit{kernel}",
            "numpy, onnxruntime and LiteRT publish no wheels for 32-bit Arm: nothing can be installed",
            "write the card anew with Raspberry Pi OS (64-bit), in Raspberry Pi Imager",
        )
    if board.userland_bits is None:
        return note("os-32bit", "cannot tell whether programs are 32-bit or 64-bit", "64-bit is needed")
    return ok("os-32bit", "64-bit programs")


def _identity(scene: Scene) -> Iterator[Finding]:
    machine_id = scene.text("etc/machine-id")
    if len(machine_id) != _ID_DIGITS or set(machine_id) <= {"0"}:
        yield problem(
            "machine-id",
            f"/etc/machine-id is {machine_id!r}" if machine_id else "/etc/machine-id is empty or missing",
            "this system was never started properly, or was copied; services and logs mix up such machines",
            "sudo systemd-machine-id-setup && sudo reboot",
        )
    else:
        yield ok("machine-id", "this system has an identity")
    installed_on, now = scene.text(IDENTITY), scene.board.serial
    if installed_on and now and installed_on != now:
        yield problem(
            "cloned-card",
            f"edge-cl was installed on the board {installed_on}, this is {now}",
            "the card was copied or moved: two boards with one name and one state disconnect each other",
            "set another device.name, remove or move the state folder, then: "
            f"printf %s {now} | sudo tee /{IDENTITY}",
        )


def _name(scene: Scene) -> Finding:
    device, mqtt = scene.settings.device, scene.settings.mqtt
    if mqtt.url and device.name == type(device)().name:
        return warning(
            "device-name",
            f"device.name is {device.name!r}, which every new device has",
            "a second board of this name on the same broker and site takes over its session",
            f"set [device] name in {scene.config or '/etc/edge-cl/config.toml'}",
        )
    return ok("device-name", f"{device.site}/{device.name}")
