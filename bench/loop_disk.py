"""A real file system on a loop device: what it has on its image is what a power cut leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

MIB = 1 << 20
SECTOR_BYTES = 512
WRITES, SECTORS_WRITTEN = 4, 6
"""Columns of /sys/block/…/stat."""


def make_image(path: Path, n_mib: int) -> Path:
    """An empty ext4 image."""
    with path.open("wb") as file:
        file.truncate(n_mib * MIB)
    _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", str(path))
    return path


class LoopDisk:
    """An ext4 image, mounted at a folder of its own as long as the ``with`` block lasts."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self._resources: list[tuple[str, ...]] = []

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(dir=self.image.parent, prefix="mnt-"))
        try:
            self._device = Path(_run("losetup", "-f", "--show", str(self.image)).strip())
            self._resources.append(("losetup", "-d", str(self._device)))
            _run("mount", "-o", "data=ordered", str(self._device), str(self.folder))
            self._resources.append(("umount", str(self.folder)))
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def _let_go(self) -> None:
        while self._resources:
            _run(*self._resources.pop())
        self.folder.rmdir()

    def written(self) -> tuple[int, int]:
        """Writes completed by the device, and bytes written, since it was attached."""
        columns = Path(f"/sys/block/{self._device.name}/stat").read_text().split()
        return int(columns[WRITES]), int(columns[SECTORS_WRITTEN]) * SECTOR_BYTES

    def copy_as_it_is(self, to: Path) -> Path:
        """What the device holds at this moment; its writer should be stopped.

        The kernel may still be writing: a copy during which a write was completed is made again. One under
        way all the while may be in the copy in part, as after a power cut.
        """
        while True:
            before = self.written()[0]
            shutil.copyfile(self.image, to)
            if self.written()[0] == before:
                return to


@cache
def why_not() -> str:
    """Why there can be no loop disks here, "" when there can."""
    if os.geteuid() != 0:
        return "loop devices need root"
    with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
        try:
            with LoopDisk(make_image(Path(folder) / "image", 16)):
                return ""
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no loop devices here: {getattr(error, 'stderr', '') or error}"


def in_memory() -> str | None:
    """Where images and trials' folders are made: a folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
