"""What a bundle costs on this very machine: memory, time for a window, a label and a sleep, the byte ledger.

Measured in a process of its own (:mod:`edge_cl_device.measuring`), stage by stage, so that what one part
takes is not confused with another's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from edge_cl.errors import EdgeCLError

PACKAGED = "wrist.ecl"
MEASURING = "edge_cl_device.measuring"
MOST_CLASSES = 1000
"""More are not counted."""
TIMEOUT_S = 300.0


class Measured(msgspec.Struct, kw_only=True):
    """What was found; MB are 2²⁰ bytes.

    Attributes
    ----------
    base_mb
        Interpreter, numpy and all that `edge-cl run` imports.
    mqtt_mb, encoder_mb
        What the MQTT link and the encoder with its runtime add.
    encoder_error
        Why there is no encoder here, else "".
    ledger
        Bytes that each holder has of the RAM budget, in a new device.
    n_exemplars
        The memory's capacity.
    most_classes
        Classes that the budget has room for, `MOST_CLASSES` at most.
    disk_bytes
        Snapshots and exemplar files of a full memory; the journal comes besides.
    label_bytes
        What one label takes in the journal, about.
    """

    base_mb: float
    mqtt_mb: float = 0.0
    encoder_mb: float = 0.0
    encoder_error: str = ""
    runtime: str = ""
    head: str = ""
    encode_ms: float | None = None
    predict_ms: float = 0.0
    learn_ms: float = 0.0
    sleep_s: float = 0.0
    ledger: dict[str, int] = {}
    n_classes: int = 0
    n_exemplars: int = 0
    most_classes: int = 0
    disk_bytes: int = 0
    label_bytes: int = 0


def packaged_bundle() -> Path:
    """The bundle that comes with the package: the reference's work."""
    import edge_cl

    return Path(edge_cl.__file__).parent / "assets" / PACKAGED


def measure(bundle: Path, config: Path | None = None) -> Measured:
    """Measure in a new process.

    Raises
    ------
    EdgeCLError
        When it cannot: with what that process said.
    """
    command = [sys.executable, "-m", MEASURING, str(bundle), *([str(config)] if config else [])]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise EdgeCLError(
            f"measuring {bundle} took more than {TIMEOUT_S:g} s; is this machine busy?"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise EdgeCLError(
            f"{bundle} cannot be measured: {said[-1] if said else f'ended with {done.returncode}'}"
        )
    return msgspec.json.decode(done.stdout, type=Measured)
