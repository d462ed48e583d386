"""A process in a memory limit that the kernel enforces: a cgroup, version 1 or 2."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")


class NoLimits(Exception):
    """This machine does not let us limit memory; the text says why."""


class Limit(NamedTuple):
    """A cgroup; start a command in it with :meth:`wrap`."""

    folder: Path
    peak_file: str

    def wrap(self, command: list[str]) -> list[str]:
        """The command, run inside."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *command]

    def peak_mb(self) -> float | None:
        """Most memory that was ever charged, page cache included; None where the kernel does not say."""
        path = self.folder / self.peak_file
        return round(int(path.read_text()) / 2**20, 1) if path.exists() else None


@contextlib.contextmanager
def memory_limit(nbytes: int) -> Iterator[Limit]:
    """A cgroup of at most so much memory, without swap. Raises `NoLimits`."""
    v1 = ROOT / "memory"
    is_v1 = (v1 / "memory.limit_in_bytes").exists()
    parent = v1 if is_v1 else ROOT
    folder = parent / f"edge-cl-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(nbytes))
        with contextlib.suppress(OSError):  # where swap is not counted there is none to forbid
            (folder / ("memory.memsw.limit_in_bytes" if is_v1 else "memory.swap.max")).write_text(
                str(nbytes if is_v1 else 0)
            )
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        raise NoLimits(f"{folder}: {error.strerror}; it needs root and a memory controller") from error
    try:
        yield Limit(folder, "memory.max_usage_in_bytes" if is_v1 else "memory.peak")
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        with contextlib.suppress(OSError):
            folder.rmdir()
