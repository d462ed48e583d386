"""The forms in which a bundle carries its encoder, and the runtimes that can run them."""

from __future__ import annotations

import importlib.util
from typing import Literal, NamedTuple, TypeAlias

from edge_cl.bundle import Bundle
from edge_cl.manifest import VariantReport

RuntimeName: TypeAlias = Literal["onnx", "litert", "tflite"]
Precision: TypeAlias = Literal["float32", "int8"]


class Runtime(NamedTuple):
    """An inference runtime: what it reads, the module to import, what it is called when installed."""

    name: RuntimeName
    format: str
    module: str
    distributions: tuple[str, ...]


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        # in the order they are tried: least memory and time first, measured in docs/encoders.md
        Runtime("litert", "tflite", "ai_edge_litert", ("ai-edge-litert",)),
        Runtime("tflite", "tflite", "tflite_runtime", ("tflite-runtime",)),
        Runtime("onnx", "onnx", "onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
    )
}


LEAST_AGREEMENT = 0.99
MOST_LOSS_POINTS = 0.5
"""What an int8 form must keep of the float32 one's answers and accuracy."""


class Form(NamedTuple):
    """One form of a bundle's encoder; `golden` names its features in ``golden.npz``."""

    format: str
    precision: Precision
    member: str
    golden: str
    report: VariantReport | None = None

    def __str__(self) -> str:
        return f"{self.format} {self.precision}"

    @property
    def shortfall(self) -> str:
        """The figure of its report for which it must not be used, in words; "" when there is none."""
        if self.precision == "float32":
            return ""
        if self.report is None:
            return "nobody measured what it costs in accuracy"
        if not self.report.agreement >= LEAST_AGREEMENT:
            found = f"{self.report.agreement:.2%} of {self.report.n_windows:,} windows"
            return f"agrees with float32 on {found}, needs {LEAST_AGREEMENT:.0%}"
        if not self.report.accuracy_loss_points <= MOST_LOSS_POINTS:
            lost = self.report.accuracy_loss_points
            return f"loses {lost:.2f} points of accuracy, allowed {MOST_LOSS_POINTS:g}"
        return ""


def forms(bundle: Bundle) -> tuple[Form, ...]:
    """The float32 graph that every bundle has, then its variants; none when no runtime is needed."""
    manifest = bundle.manifest
    if manifest.encoder.kind != "onnx":
        return ()
    first = Form("onnx", "float32", manifest.encoder.member, "features")
    return (first, *(Form(v.format, v.precision, v.member, v.golden, v.report) for v in manifest.variants))


def is_installed(runtime: Runtime) -> bool:
    """Whether it can be found; nothing is imported, since every runtime costs memory."""
    return importlib.util.find_spec(runtime.module) is not None


def installed_versions() -> dict[str, str]:
    """Versions of the runtimes that are here, and of numpy, which one of them depends on."""
    found = {
        name: _version(runtime.distributions) for name, runtime in RUNTIMES.items() if is_installed(runtime)
    }
    return {**found, "numpy": _version(("numpy",))}


def _version(distributions: tuple[str, ...]) -> str:
    from importlib import metadata  # half a megabyte that a device without a choice need not hold

    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"  # a vendor's build by another name
