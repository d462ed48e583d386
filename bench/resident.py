"""Memory and start-up of `edge-cl run`, measured from outside on the real process."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench import recording
from edge_cl.budget import MIB
from edge_cl.bundle import Bundle
from edge_cl.config import Settings
from edge_cl.records import Status
from edge_cl.sync.control import SOCKET_NAME, Request, ask

SAMPLE_EVERY = 20
"""Windows between two looks at the process's memory."""


def resident_bytes(pid: int) -> int:
    """Resident memory of a process now."""
    return _field(pid, "VmRSS")


@contextlib.contextmanager
def device(
    bundle: str, state: Path, *options: str, python: str | Path = sys.executable
) -> Iterator[subprocess.Popen[bytes]]:
    """`edge-cl run` on standard input; killed at the end if it still runs."""
    command = [
        str(python),
        "-m",
        "edge_cl",
        "run",
        str(Path(bundle).resolve()),
        "--state",
        str(state.resolve()),
        *options,
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=state.parent,  # else another Python would take edge_cl from this folder
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def start_to_first_prediction_s(bundle: str, folder: Path, *, n: int = 5) -> float:
    """Median seconds from starting `edge-cl run` to its first line of output, a new state folder each."""
    lines = list(recording.lines(Bundle.load(bundle).manifest, 1, seed=0, labelled=False))
    took = []
    for k in range(n):
        began = time.perf_counter()
        with device(bundle, folder / f"start-{k}") as process:
            assert process.stdin and process.stdout
            process.stdin.write(b"".join(lines))
            process.stdin.flush()
            if b'"decision"' not in process.stdout.readline():
                raise RuntimeError("edge-cl run ended without a prediction")
            took.append(time.perf_counter() - began)
    return round(statistics.median(took), 3)


def resident(
    bundle: str,
    state: Path,
    *,
    n_windows: int,
    seed: int,
    label_every: int = 5,
    ram_mb: float | None = None,
    python: str | Path = sys.executable,
) -> dict[str, Any]:
    """Stream `n_windows` through `edge-cl run`, one in `label_every` labelled, and watch its memory.

    Returns
    -------
    dict
        ``resident_mb`` after the last window, awake, the input open; ``resident_growth_last_half_mb``,
        the same less that in the tenth before the middle; ``resident_peak_mb``, the kernel's own
        maximum, sleeps and snapshots included; ``ledger_mb``, the total of the device's own ledger, and
        ``ledger_awake_mb``, that without what it reserves for a sleep (MB are 2²⁰ bytes).
    """
    manifest = Bundle.load(bundle).manifest
    text = "[mqtt]\nstatus_s = 0.5  # so that the last figures need not be waited for\n"
    if ram_mb is not None:
        text += f"[budget]\nram_mb = {ram_mb}\n"
    config = state.with_suffix(".toml").resolve()
    config.write_text(text)
    options = ["--label-every", str(label_every), "--config", str(config)]
    with device(bundle, state, *options, python=python) as process:
        assert process.stdin and process.stdout
        windows = recording.lines(manifest, n_windows, seed=seed)
        threading.Thread(target=feed, args=(process, windows), daemon=True).start()
        tenth = max(n_windows // 10, 1)
        _awake_bytes(process, n_windows // 2 - tenth)
        middle = _awake_bytes(process, tenth)
        _awake_bytes(process, n_windows - n_windows // 2 - tenth)
        end = _awake_bytes(process, tenth)
        status = _status(state, n_windows)
        peak = _field(process.pid, "VmHWM")
    return {
        "resident_mb": _mb(end),
        "resident_growth_last_half_mb": _mb(end - middle),
        "resident_peak_mb": _mb(peak),
        "ledger_mb": _mb(status.held_bytes),
        "ledger_awake_mb": _mb(status.held_bytes - status.held["sleep"]),
        "ledger": status.held,
        "labels": status.n_labels,
        "sleeps": status.n_sleeps,
    }


def ledger_to_growth(
    bundle: str, folder: Path, *, n_windows: int, seed: int, ram_mb: tuple[float, float] = (16.0, 32.0)
) -> dict[str, Any]:
    """Does the ledger count what is really held? The same run under two budgets, compared.

    Interpreter, libraries and encoder are the same in both, so the difference of resident memory is what the
    larger budget really cost, and the difference of the ledgers what it says that it cost; both awake, since
    what is reserved for a sleep is held only then. Every window is labelled, so that queues and memories
    fill. ``ledger_to_growth_ratio`` is the second over the first: below 1 the ledger misses memory.
    """
    small, large = (
        resident(bundle, folder / f"ram-{mb:g}", n_windows=n_windows, seed=seed, label_every=1, ram_mb=mb)
        for mb in ram_mb
    )
    growth = large["resident_mb"] - small["resident_mb"]
    ledger = large["ledger_awake_mb"] - small["ledger_awake_mb"]
    return {
        "ram_mb": list(ram_mb),
        "resident_growth_mb": round(growth, 2),
        "ledger_growth_mb": round(ledger, 2),
        "ledger_to_growth_ratio": round(ledger / growth, 3) if growth > 0 else None,
    }


def feed(process: subprocess.Popen[bytes], lines: Iterable[bytes], close: bool = False) -> None:
    """Write the lines to its input, and with `close` end it."""
    assert process.stdin
    with contextlib.suppress(BrokenPipeError, ValueError):
        for line in lines:
            process.stdin.write(line)
        process.stdin.flush()
        if close:
            process.stdin.close()


def _awake_bytes(process: subprocess.Popen[bytes], n_windows: int) -> int:
    """Read `n_windows` more decisions; the least resident memory meanwhile, thus not that of a sleep."""
    assert process.stdout
    least, seen = resident_bytes(process.pid), 0
    for line in process.stdout if n_windows else ():
        if line.startswith(b'{"type":"decision"'):
            seen += 1
            if seen % SAMPLE_EVERY == 0:
                least = min(least, resident_bytes(process.pid))
            if seen == n_windows:
                break
    if seen < n_windows:
        raise RuntimeError(f"edge-cl run ended {n_windows - seen} windows too early")
    return least


def _field(pid: int, name: str) -> int:
    """A field of a process's status that is given in kB, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {name}: these figures need Linux")


def _status(state: Path, n_windows: int) -> Status:
    """The device's own status, once it knows of the last window."""
    deadline_s = time.monotonic() + 4 * Settings().mqtt.status_s
    while time.monotonic() < deadline_s:
        status = ask(state / SOCKET_NAME, Request(op="status")).status
        if status is not None and status.n_readings >= n_windows:
            return status
        time.sleep(0.1)
    raise RuntimeError("the device gave no status after the last window")


def _mb(nbytes: int) -> float:
    return round(nbytes / MIB, 2)
