"""How right, how fast and how large each form of a bundle's encoder is here, each in a process of its own.

``python -m edge_cl.encoders.measuring BUNDLE MEMBER RUNTIME PROVIDER THREADS WINDOWS`` prints one of them:
two runtimes in one process share memory and disturb each other, and one that crashes takes nothing along.
"""

from __future__ import annotations

import logging
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edge_cl import encoders
from edge_cl.bundle import Bundle
from edge_cl.config import EncoderSettings
from edge_cl.encoders.choice import Choice, Measured, machine, obeys
from edge_cl.encoders.forms import RUNTIMES, Form, RuntimeName, forms, installed_versions, is_installed
from edge_cl.errors import BundleError

N_WINDOWS = 300
ROUNDS = 2
"""Each is measured so often, in turns; the least time counts, since a busy board only ever adds to it."""
INT8_GAIN = 0.95
"""int8 must take at most this part of float32's time, or it is not worth its error."""


class Patience(NamedTuple):
    """How long one process may take, and all of them, in seconds."""

    one_s: float = 900.0
    """TensorRT builds its engine when it starts."""
    all_s: float = math.inf


ASKED = Patience()
AT_START = Patience(60.0, 200.0)
"""Before a service starts: systemd ends it after ``TimeoutStartSec=300``, and it would never come up."""


def measure(
    path: Path, *, threads: int = 1, n_windows: int = N_WINDOWS, patience: Patience = ASKED
) -> list[Measured]:
    """All that the runtimes here can run of a bundle, the fastest of each round."""
    found: dict[tuple[str, str, str], Measured] = {}
    ends_s = time.monotonic() + patience.all_s
    candidates = list(_candidates(Bundle.load(path), min(patience)))
    for _ in range(ROUNDS):
        for form, runtime, provider in candidates:
            key = runtime, form.precision, provider
            before = found.get(key)
            left_s = min(patience.one_s, ends_s - time.monotonic())
            if before is not None and (before.failed or left_s <= 0):
                continue
            one = _in_a_process(path, form, runtime, provider, (threads, n_windows), left_s)
            if before is None or one.failed or one.p50_us < before.p50_us:
                found[key] = one
    return list(found.values())


def choose(path: Path, measured: list[Measured], settings: EncoderSettings | None = None) -> Choice | None:
    """The fastest that is right, of those that the settings allow; int8 only where it clearly wins.

    None when nothing works.
    """
    bundle, settings = Bundle.load(path), settings or EncoderSettings()
    right = [one for one in measured if not one.failed and obeys(one, settings)]
    float32 = min((one for one in right if one.precision == "float32"), key=_time, default=None)
    best = min(right, key=_time, default=None)
    if best is None:
        return None
    if float32 is not None and best.precision == "int8" and best.p50_us > INT8_GAIN * float32.p50_us:
        best = float32
    members = bundle.manifest.members
    return Choice(
        bundle_id=bundle.bundle_id,
        encoder_sha256=members[bundle.manifest.encoder.member].sha256,
        member_sha256=members[_form(bundle, best).member].sha256,
        runtime=best.runtime,
        precision=best.precision,
        provider=best.provider,
        threads=settings.threads,
        versions=installed_versions(),
        machine=machine(),
        measured=measured,
    )


def measure_one(
    bundle: Bundle, form: Form, runtime: RuntimeName, provider: str, threads: int, n_windows: int
) -> Measured:
    """One form in one runtime, in this process."""
    encoder = encoders.load(bundle, form, runtime, provider=provider or "cpu", threads=threads)
    error = encoders.golden_error(encoder, bundle)
    p50_us, p99_us = _latency_us(encoder, bundle, n_windows)
    failed = form.shortfall or encoders.self_test(encoder, bundle)
    if form.precision == "int8" and error is None:
        failed = failed or "the bundle has no golden features, by which it could be checked here"
    return Measured(
        runtime=runtime,
        precision=form.precision,
        provider=provider,
        running_on=encoder.running_on,
        parity=error if error is None or math.isfinite(error) else None,
        p50_us=round(p50_us, 1),
        p99_us=round(p99_us, 1),
        resident_mb=_resident_mb(),
        failed=failed,
    )


def _candidates(bundle: Bundle, timeout_s: float) -> Iterator[tuple[Form, RuntimeName, str]]:
    for runtime in RUNTIMES.values():
        if not is_installed(runtime):
            continue
        providers = _providers(timeout_s) if runtime.name == "onnx" else [""]
        for form in forms(bundle):
            if form.format == runtime.format:
                yield from ((form, runtime.name, provider) for provider in providers)


def _providers(timeout_s: float) -> list[str]:
    """As onnxruntime says in a process of its own: on some boards it dies when it is imported."""
    code = "from edge_cl.encoders.onnx import available_providers; print(*available_providers())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=timeout_s, check=False
        )
    except (subprocess.TimeoutExpired, OSError):
        return ["cpu"]  # the process that measures it says what is wrong
    last = done.stdout.decode(errors="replace").splitlines()[-1:]
    return [name for line in last for name in line.split()] or ["cpu"]


def _in_a_process(
    path: Path, form: Form, runtime: RuntimeName, provider: str, numbers: tuple[int, int], timeout_s: float
) -> Measured:
    words = [str(path), form.member, runtime, provider, *map(str, numbers)]
    nothing = Measured(runtime=runtime, precision=form.precision, provider=provider)
    if timeout_s <= 0:
        return msgspec.structs.replace(nothing, failed="not measured: no time was left")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edge_cl.encoders.measuring", *words],
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return msgspec.structs.replace(nothing, failed=f"no answer within {timeout_s:.0f} s")
    except OSError as error:
        return msgspec.structs.replace(nothing, failed=f"no process could be started ({error.strerror})")
    try:
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)
    except (msgspec.DecodeError, IndexError):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = f"its process ended with {done.returncode}{': ' + last[0] if last else ''}"
        return msgspec.structs.replace(nothing, failed=why)


def _latency_us(encoder: encoders.Encoder, bundle: Bundle, n_windows: int) -> tuple[float, float]:
    golden, manifest = bundle.golden(), bundle.manifest
    windows = np.zeros((1, manifest.window_samples, manifest.n_channels), np.float32)
    if golden is not None:
        windows = golden[0]
    for window in windows:
        encoder.encode(window)
    times = []
    for k in range(n_windows):
        began = time.perf_counter()
        encoder.encode(windows[k % len(windows)])
        times.append(1e6 * (time.perf_counter() - began))
    return statistics.median(times), float(np.quantile(times, 0.99))


def _resident_mb() -> float:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    kb = next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS:"))
    return round(int(kb) / 1024, 1)


def _time(one: Measured) -> float:
    return one.p50_us


def _form(bundle: Bundle, one: Measured) -> Form:
    wanted = RUNTIMES[one.runtime].format, one.precision
    return next(form for form in forms(bundle) if (form.format, form.precision) == wanted)


def main(words: list[str]) -> None:
    """Measure what the words say and print it."""
    path, member, name, provider, threads, n_windows = words
    runtime = RUNTIMES[name].name
    bundle = Bundle.load(path)
    form = next(form for form in forms(bundle) if form.member == member)
    try:
        found = measure_one(bundle, form, runtime, provider, int(threads), int(n_windows))
    except BundleError as error:
        found = Measured(runtime=runtime, precision=form.precision, provider=provider, failed=str(error))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(sys.argv[1:])
