"""The card and the state folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from edge_cl_device.doctor.findings import Finding, note, ok, problem, warning
from edge_cl_device.doctor.scene import SERVICE_USER, Mount, Scene

MIB = 1024 * 1024
WORN = 0x0B
"""`life_time` of eMMC: tenths of its life in steps of one, 0x0B beyond its end (JEDEC eMMC 5.0)."""
NEARLY_WORN = 9
_END_OF_LIFE = {"0x02": "has used 80 % of its spare blocks", "0x03": "has hardly a spare block left"}
VOLATILE = ("tmpfs", "ramfs", "overlay")
SPARE_BYTES = 64 * MIB


def check(scene: Scene) -> Iterator[Finding]:
    """Whether the card is well, and what is learned is written where it stays."""
    yield from _life(scene)
    yield from _file_system(scene)
    yield from _state(scene)
    yield _journal_budget(scene)


def _life(scene: Scene) -> Iterator[Finding]:
    cards = sorted(scene.path("sys/class/mmc_host").glob("mmc*/mmc*:*"))
    for card in cards:
        name = card.name
        spent = [int(word, 16) for word in re.findall(r"0x[0-9a-fA-F]+", _read(card / "life_time"))]
        spare = _END_OF_LIFE.get(_read(card / "pre_eol_info"), "")
        mend = "make a backup now (edge-cl backup) and replace the card or module"
        if spare or max(spent, default=0) >= WORN:
            found = f"{name} {spare or 'is beyond its estimated life'}"
            yield problem("card-worn", found, "it will soon refuse writes, or lose them", mend)
        elif max(spent, default=0) >= NEARLY_WORN:
            found = f"{name} has used {10 * (max(spent) - 1)} to {10 * max(spent)} % of its life"
            yield warning("card-worn", found, "it wears out with writes", mend)
        else:
            told = f"{name}: {_read(card / 'name') or 'a card'}"
            yield ok(
                "card-worn",
                told + (f", {10 * max(spent)} % used at most" if any(spent) else ", tells no wear"),
            )


def _file_system(scene: Scene) -> Iterator[Finding]:
    for folder in sorted(scene.path("sys/fs/ext4").glob("*")):
        count = _read(folder / "errors_count")
        if count.isdigit() and int(count):
            yield problem(
                "file-system-errors",
                f"{folder.name}: the kernel counted {count} errors of the file system",
                "files may be damaged, and it may be made read-only at any time",
                "edge-cl backup; then check it (fsck.mode=force in cmdline.txt); else a new card",
            )
    root = scene.mount_of("/")
    if root is None:
        return
    if "ro" in root.options and root.kind not in ("overlay", "squashfs") and _wanted_rw(scene):
        yield problem(
            "root-read-only",
            f"{root.device} is mounted read-only, /etc/fstab wants it writable",
            "the kernel does so after errors: the card is failing, nothing is saved",
            "dmesg | grep -i ext4; make a copy of the card, then replace it",
        )
    elif "ro" in root.options or root.kind == "overlay":
        means = "fine, when the state folder is on a partition that is written (docs/boards.md)"
        yield note("root-read-only", "the system is read-only", means)
    else:
        yield ok("root-read-only", f"/ is {root.kind}, writable")


def _wanted_rw(scene: Scene) -> bool:
    for line in scene.text("etc/fstab").splitlines():
        parts = line.split()
        if len(parts) >= 4 and parts[1] == "/" and not line.lstrip().startswith("#"):
            return "ro" not in parts[3].split(",")
    return False


def _state(scene: Scene) -> Iterator[Finding]:
    there = next(scene.path(p) for p in (scene.state, *scene.state.parents) if scene.exists(p))
    mount = scene.mount_of(scene.state)
    yield _kept(scene, mount)
    yield _space(scene, there)
    if mount is not None and "ro" in mount.options:
        yield problem(
            "state-writable",
            f"{scene.state} is on {mount.device}, which is read-only",
            "nothing can be learned",
            f"mount a partition for it that is written, or name another folder: --state ({mount.point})",
        )
    elif scene.live and not os.access(there, os.W_OK):
        yield warning(
            "state-writable",
            f"{scene.state} cannot be written by this user",
            f"run as {SERVICE_USER} or root, doctor sees more",
            f"sudo -u {SERVICE_USER} edge-cl doctor",
        )
    else:
        yield ok("state-writable", f"{scene.state} can be written")


def _kept(scene: Scene, mount: Mount | None) -> Finding:
    if mount is not None and mount.kind in VOLATILE:
        return problem(
            "state-volatile",
            f"{scene.state} is on {mount.kind}",
            "what was learned is gone after the next start",
            "keep it on a partition of its own: docs/boards.md, Read-only root",
        )
    return ok("state-volatile", f"{scene.state} is on {mount.kind if mount else 'a disk'}")


def _space(scene: Scene, there: Path) -> Finding:
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    held = (
        sum(p.stat().st_size for p in there.rglob("*") if p.is_file())
        if there.name == scene.state.name
        else 0
    )
    wanted = int(scene.settings.budget.disk_mb * MIB)
    if free + held < wanted + SPARE_BYTES:
        return problem(
            "disk-low",
            f"{free / MIB:,.0f} MB are free for {scene.state}, budget.disk_mb is {wanted / MIB:,.0f}",
            "when it is full the device only answers and learns nothing",
            "sudo journalctl --vacuum-size=50M; sudo apt-get clean; or lower budget.disk_mb",
        )
    return ok("disk-low", f"{free / MIB:,.0f} MB free, {wanted / MIB:,.0f} in the budget")


def _journal_budget(scene: Scene) -> Finding:
    daily = scene.settings.state.daily_write_mb
    on_card = (mount := scene.mount_of(scene.state)) is not None and "mmcblk" in mount.device
    if not daily and on_card:
        return warning(
            "daily-writes",
            "state.daily_write_mb is 0: writes are not limited",
            "many labels a day wear the card out",
            "set [state] daily_write_mb = 1000",
        )
    return ok(
        "daily-writes", f"at most {daily:g} MB a day are written" if daily else "not limited, not a card"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
