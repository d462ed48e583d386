"""What a bundle costs on this very machine: memory, time for a window, a label and a sleep, the byte ledger.

Measured in a process of its own (:mod:`edge_cl_device.measuring`), stage by stage, so that what one part
takes is not confused with another's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from edge_cl.budget import MIB
from edge_cl.bundle import Bundle
from edge_cl.errors import EdgeCLError

PACKAGED = "wrist.ecl"
MEASURING = "edge_cl_device.measuring"
NO_STATISTICS = {"ORT_DISABLE_TELEMETRY": "1"}
"""As the service has it: onnxruntime 1.31 else keeps a number of the device and sends statistics."""
MOST_CLASSES = 1000
"""More are not counted."""
TIMEOUT_S = 300.0
N_WINDOWS = 40


class Measured(msgspec.Struct, kw_only=True):
    """What was found; MB are 2²⁰ bytes.

    Attributes
    ----------
    base_mb
        What a running device holds besides its encoder and head: interpreter, libraries, their working space.
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

    base_mb: float = 0.0
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
    """Measure in new processes; all but `base_mb`.

    Raises
    ------
    EdgeCLError
        When it cannot: with what that process said.
    """
    command = [sys.executable, "-m", MEASURING, str(bundle), *([str(config)] if config else [])]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, env=os.environ | NO_STATISTICS)
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


def measure_packaged() -> Measured:
    """The packaged bundle, and a device that really runs it: the only one that tells `base_mb`.

    Raises EdgeCLError when the device does not answer.
    """
    bundle = packaged_bundle()
    found = measure(bundle)
    if found.encoder_error:
        raise EdgeCLError(f"the packaged bundle's encoder does not run here: {found.encoder_error}")
    found.base_mb = round(_running_mb(bundle) - found.encoder_mb - found.ledger["head"] / MIB, 2)
    return found


def in_runtime(packaged: Measured, runtime: str) -> Measured:
    """The packaged bundle with its encoder in this runtime: times of two runtimes are in no proportion.

    `encoder_error` says why when it does not run there.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "settings.toml"
        config.write_text(f'[encoder]\nruntime = "{runtime}"\n')
        found = measure(packaged_bundle(), config)
    return msgspec.structs.replace(
        packaged,
        runtime=found.runtime,
        encode_ms=found.encode_ms,
        encoder_mb=found.encoder_mb,
        encoder_error=found.encoder_error,
    )


def _running_mb(bundle: Path) -> float:
    """Resident memory of ``edge-cl run`` after some windows."""
    manifest = Bundle.load(bundle).manifest
    window = [[0.0] * manifest.n_channels] * manifest.window_samples
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "edge_cl",
            "run",
            str(bundle),
            "-i",
            "-",
            "--state",
            f"{folder}/state",
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_CL_")} | NO_STATISTICS
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        ) as device:
            assert device.stdin and device.stdout
            with contextlib.suppress(BrokenPipeError):
                for k in range(N_WINDOWS):
                    line = {"t": float(k), "window": window, "id": f"w{k}"}
                    device.stdin.write(msgspec.json.encode(line) + b"\n")
                device.stdin.flush()
            answers = sum(bool(device.stdout.readline()) for _ in range(N_WINDOWS))
            resident = resident_mb(device.pid) if answers == N_WINDOWS else 0.0
            device.kill()
    if not resident:
        raise EdgeCLError(f"edge-cl run {bundle} ended after {answers} of {N_WINDOWS} windows")
    return resident


def resident_mb(pid: int | str = "self") -> float:
    """Resident memory of a process; raises EdgeCLError where the kernel does not tell."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 2)
    raise EdgeCLError("/proc/self/status tells no resident memory; these figures need Linux")
