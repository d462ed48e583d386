"""RAM, its limits, and swap."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edge_cl_device.board_files import REFERENCE, load_board
from edge_cl_device.doctor.findings import Finding, note, ok, problem, warning
from edge_cl_device.doctor.scene import Scene

MIB = 1024 * 1024
SYSTEM_BYTES = 100 * MIB
"""What the system should have left."""
ENABLE = "cgroup_enable=memory"
_CARD = re.compile(r"^/dev/mmcblk|^/var/swap|^/swap")


def check(scene: Scene) -> Iterator[Finding]:
    """Whether `MemoryMax` limits anything, whether the device fits, and whether swap wears out the card."""
    yield _cgroup(scene)
    yield from _limit(scene)
    yield from _room(scene)
    yield _swap(scene)


def _cgroup(scene: Scene) -> Finding:
    words = scene.text("proc/cmdline").split()
    # the firmware writes its own word first; the one that is appended after it counts
    asked = [word for word in words if word in ("cgroup_disable=memory", ENABLE)]
    controllers = scene.text("sys/fs/cgroup/cgroup.controllers").split()
    in_v1 = re.search(r"^memory\s+\d+\s+\d+\s+(\d)", scene.text("proc/cgroups"), re.MULTILINE)
    works = "memory" in controllers or bool(in_v1 and in_v1[1] == "1")
    if works and not (asked and asked[-1] != ENABLE):
        return ok("memory-cgroup", "memory limits of services work")
    if not controllers and not in_v1 and not asked:
        return note("memory-cgroup", "cannot tell whether memory limits work", "MemoryMax may do nothing")
    boot = "/boot/firmware/cmdline.txt" if scene.path("boot/firmware").exists() else "/boot/cmdline.txt"
    return problem(
        "memory-cgroup",
        f"the kernel was started {'with ' + asked[-1] if asked else 'without memory cgroups'}",
        "MemoryMax in the unit is silently ignored: one process can take all memory and freeze the board",
        f"sudo sed -i '1s/$/ {ENABLE} cgroup_memory=1/' {boot} && sudo reboot",
    )


def _limit(scene: Scene) -> Iterator[Finding]:
    """`memory.max` of the unit as the kernel has it."""
    folder = "sys/fs/cgroup/system.slice/edge-cl.service"
    text = scene.text(f"{folder}/memory.max")
    if not text:
        return
    if text == "max":
        yield warning(
            "memory-limit",
            "edge-cl.service runs without a memory limit",
            "a fault that takes memory takes the whole board with it",
            "sudo systemctl edit edge-cl: [Service] MemoryMax=192M; then sudo systemctl restart edge-cl",
        )
    elif text.isdigit() and int(text) < (needed := _needed_bytes(scene)):
        yield problem(
            "memory-limit",
            f"edge-cl.service may hold {int(text) / MIB:.0f} MB, it needs about {needed / MIB:.0f}",
            "the kernel ends it, again and again",
            "raise MemoryMax: sudo systemctl edit edge-cl, or lower budget.ram_mb",
        )
    else:
        yield ok("memory-limit", f"edge-cl.service may hold {int(text) / MIB:.0f} MB")


def _room(scene: Scene) -> Iterator[Finding]:
    found = dict(re.findall(r"^(\w+):\s*(\d+) kB", scene.text("proc/meminfo"), re.MULTILINE))
    available, total = (int(found.get(name, 0)) * 1024 for name in ("MemAvailable", "MemTotal"))
    if not total:
        yield note("memory", "the size of the memory cannot be read", "whether the device fits is unknown")
        return
    needed = _needed_bytes(scene)
    if total < needed + SYSTEM_BYTES:
        yield problem(
            "memory",
            f"{total / MIB:.0f} MB, the device needs about {needed / MIB:.0f}",
            "it will be ended by the kernel, or the board will stall",
            f"lower budget.ram_mb ({scene.settings.budget.ram_mb:g}); `edge-cl estimate` says what fits",
        )
    elif not _running(scene) and available < needed:
        yield warning(
            "memory",
            f"{available / MIB:.0f} of {total / MIB:.0f} MB are free, about {needed / MIB:.0f} are needed",
            "something else holds it",
            "ps aux --sort=-rss | head; stop what is not needed, such as a desktop",
        )
    else:
        yield ok("memory", f"about {needed / MIB:.0f} MB needed, {available / MIB:.0f} free")


def _running(scene: Scene) -> bool:
    return scene.path("sys/fs/cgroup/system.slice/edge-cl.service").exists()


def _needed_bytes(scene: Scene) -> int:
    """The budget, and what was measured of everything around it."""
    figures = load_board(REFERENCE).figures
    mb = figures["base_mb"].value + figures["onnx_mb"].value + scene.settings.budget.ram_mb
    if scene.settings.mqtt.url:
        mb += figures["mqtt_mb"].value
    return int(mb * MIB)


def _swap(scene: Scene) -> Finding:
    lines = scene.text("proc/swaps").splitlines()[1:]
    on_card = [line.split()[0] for line in lines if _CARD.match(line) and _is_on_card(scene, line.split()[0])]
    if on_card:
        return warning(
            "swap-on-card",
            f"swap on the SD card: {', '.join(on_card)}",
            "it wears the card out, and a device that swaps misses its windows",
            "sudo dphys-swapfile swapoff && sudo systemctl disable dphys-swapfile; or use zram",
        )
    return ok("swap-on-card", "no swap on a card")


def _is_on_card(scene: Scene, name: str) -> bool:
    if name.startswith("/dev/mmcblk"):
        return True
    mount = scene.mount_of(name)
    return mount is not None and "mmcblk" in mount.device
