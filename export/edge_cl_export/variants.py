"""The encoder of a bundle in other forms, each of which has to prove itself before it is written."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_cl import encoders
from edge_cl.bundle import Bundle, Prior, npz_bytes, write_bundle
from edge_cl.encoders.base import Encoder
from edge_cl.encoders.forms import Form
from edge_cl.errors import BundleError
from edge_cl.manifest import Variant, VariantReport
from edge_cl.records import FloatArray
from edge_cl_export import int8_onnx, litert
from edge_cl_export.freeze import spread
from edge_cl_export.prior import linear_scores

Module: TypeAlias = nn.Module | torch.export.ExportedProgram

FLOAT_PARITY = 1e-4
N_CALIBRATION = 512
N_JUDGED = 4000
N_TIMED = 300
BATCH = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class Windows:
    """What variants are made from and judged on.

    Attributes
    ----------
    calibration
        (n, window_samples, n_channels) windows of training people; 512 of them set the ranges.
    X, y
        Windows of other people, and their classes.
    """

    calibration: FloatArray
    X: FloatArray
    y: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Judge:
    """The float32 encoder, and what it says of the windows that variants are judged on."""

    prior: Prior
    X: FloatArray
    y: NDArray[np.int64]
    features: FloatArray

    def report(self, encoder: Encoder, float32: Encoder) -> VariantReport:
        """How a variant differs; `float32` is the float32 encoder in the same runtime."""
        found = _features(encoder, self.X)
        said, before = (linear_scores(self.prior, x).argmax(1) for x in (found, self.features))
        accuracy = float((said == self.y).mean())
        lost = float((before == self.y).mean()) - accuracy
        scale = max(float(np.abs(self.features).max()), 1e-6)
        is_int8 = encoder.form is not None and encoder.form.precision == "int8"
        return VariantReport(
            n_windows=len(self.X),
            agreement=round(float((said == before).mean()), 5),
            accuracy=round(accuracy, 5),
            accuracy_loss_points=round(100 * lost, 3),
            max_error=float(f"{np.abs(found - self.features).max() / scale:.3g}"),
            latency_ratio=round(latency_ratio(encoder, float32, self.X), 2),
            vnni=has_vnni() if is_int8 else None,
        )


def add_variants(path: str | Path, module: Module | None, windows: Windows) -> Bundle:
    """Write the encoder of the bundle at `path` into it once more as ``.tflite`` and in int8.

    Its float32 encoder and everything else stay as they are. Variants that it had are replaced.

    Parameters
    ----------
    module
        The torch module that the bundle's encoder was made of; None when there is none: no ``.tflite`` then.
    windows
        What they are made from and judged on.

    Returns
    -------
    Bundle
        What was left out of it, and which figure kept it out, is in its provenance as `left_out`.
    """
    bundle = Bundle.load(path)
    prior = bundle.prior()
    if prior is None or bundle.golden() is None or bundle.manifest.encoder.kind != "onnx":
        raise BundleError(f"{path}: has no encoder, or no prior and golden pair to judge a variant by")
    X, y = spread(windows.X, N_JUDGED), spread(windows.y, N_JUDGED)
    first = encoders.load(bundle, encoders.forms(bundle)[0], "onnx")
    judge = _Judge(prior, X, y, _features(first, X))
    made = _Made(bundle, judge, spread(windows.calibration, N_CALIBRATION))
    made.onnx_int8(first)
    made.tflite(module)
    return made.written(path)


class _Made:
    """Variants as they are made and pass."""

    def __init__(self, bundle: Bundle, judge: _Judge, calibration: FloatArray) -> None:
        self._bundle, self._judge, self._calibration = bundle, judge, calibration
        self._variants: list[Variant] = []
        self._models: dict[str, bytes] = {}
        inputs, features = bundle.golden() or (judge.X[:0], judge.features[:0])
        self._golden: dict[str, FloatArray] = {"inputs": inputs, "features": features}
        self.notes: list[str] = []

    def onnx_int8(self, float32: Encoder) -> None:
        """Statically quantised by onnxruntime's tools."""
        graph = self._bundle.member(self._bundle.manifest.encoder.member)
        form = Form("onnx", "int8", "encoder.int8.onnx", "onnx_int8")
        self._try(
            form, "onnx", int8_onnx.SCHEME, lambda: int8_onnx.quantise(graph, self._calibration), float32
        )

    def tflite(self, module: Module | None) -> None:
        """In float32, and quantised in the first way that passes."""
        if module is None:
            self.notes.append("no .tflite: a torch module is needed for that, and an ONNX file has none")
            return
        form = Form("tflite", "float32", "encoder.tflite", "features")
        try:
            model = litert.to_tflite(module, self._calibration[0])
        except BundleError as error:
            self.notes.append(f"no {form.member}: {error}")
            return
        float32 = self._try(form, "litert", "", lambda: litert.slim(model), None)
        if float32 is None:
            return
        form = Form("tflite", "int8", "encoder.int8.tflite", "tflite_int8")
        for scheme in litert.SCHEMES:
            make = _bound(litert.quantise, model, self._calibration, scheme)
            if self._try(form, "litert", scheme.name, make, float32) is not None:
                return

    def written(self, path: str | Path) -> Bundle:
        """The bundle with what passed."""
        before = self._bundle.manifest
        replaced = {variant.member for variant in before.variants}
        members = {name: self._bundle.member(name) for name in before.members if name not in replaced}
        members["golden.npz"] = npz_bytes(**self._golden)
        provenance = {**before.provenance, "left_out": self.notes}
        manifest = msgspec.structs.replace(before, variants=tuple(self._variants), provenance=provenance)
        return write_bundle(path, manifest, {**members, **self._models})

    def _try(
        self, form: Form, runtime: str, scheme: str, make: Callable[[], bytes], float32: Encoder | None
    ) -> Encoder | None:
        """Make a variant, judge it, and keep it when it passes; else None, and a note says why."""
        what = f"{form.member}{f' ({scheme})' if scheme else ''}"
        try:
            model = make()
            encoder = encoders.load_model(model, form, runtime, self._bundle.manifest)
        except BundleError as error:
            self.notes.append(f"no {what}: {error}")
            return None
        report = self._judge.report(encoder, float32 or encoder)
        if why := failure(form._replace(report=report)):
            self.notes.append(f"no {what}: {why}")
            return None
        if form.golden != "features":
            self._golden[form.golden] = encoder.encode_many(self._golden["inputs"])
        self._models[form.member] = model
        self._variants.append(
            Variant(
                format="onnx" if form.format == "onnx" else "tflite",
                precision="int8" if form.precision == "int8" else "float32",
                scheme=scheme,
                member=form.member,
                golden=form.golden,
                report=report,
            )
        )
        return encoder


def failure(form: Form) -> str:
    """The figure that keeps a variant out of a bundle, "" when none does."""
    error = 0.0 if form.report is None else form.report.max_error
    if form.precision == "float32" and not error <= FLOAT_PARITY:
        return f"its features differ by {error:.1e} of their scale, allowed {FLOAT_PARITY:g}"
    return form.shortfall


def latency_ratio(encoder: Encoder, other: Encoder, X: FloatArray) -> float:
    """Median time for one window over that of another encoder, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for window in _cycled(X, N_TIMED):
        for one, took in zip((encoder, other), times, strict=True):
            began = time.perf_counter()
            one.encode(window)
            took.append(time.perf_counter() - began)
    return statistics.median(times[0]) / statistics.median(times[1])


def has_vnni() -> bool:
    """Whether this processor multiplies int8 without saturating: Arm does, x86 only with VNNI."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return os.uname().machine == "aarch64" or "vnni" in text


def _features(encoder: Encoder, X: FloatArray) -> FloatArray:
    """Some windows at a time: all of them at once take gigabytes in a wide network."""
    return np.concatenate([encoder.encode_many(X[k : k + BATCH]) for k in range(0, len(X), BATCH)])


def _cycled(X: FloatArray, n: int) -> Iterator[FloatArray]:
    for k in range(n):
        yield X[k % len(X)]


def _bound(make: Callable[..., bytes], *given: object) -> Callable[[], bytes]:
    return lambda: make(*given)
