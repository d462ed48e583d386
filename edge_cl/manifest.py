"""What a bundle says of itself: the typed content of its ``manifest.json``.

:mod:`edge_cl.bundle` reads and writes the file around it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edge_cl.plastic import PlasticSpec


class Member(msgspec.Struct, frozen=True):
    """Size and SHA-256 (hex) of one member."""

    size: int
    sha256: str


class Channel(msgspec.Struct, frozen=True):
    """One sensor channel: its name and physical unit."""

    name: str
    unit: str = ""


class EncoderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a window becomes a feature.

    `kind` is the encoder's registered name. For ``onnx`` the graph takes
    (n, window_samples, n_channels) float32 in physical units as `input` and gives
    (n, feature_size) as `output`.
    """

    kind: str = "onnx"
    member: str = "encoder.onnx"
    input: str = "window"
    output: str = "feature"


class VariantReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the exporter measured of a variant against the float32 encoder; judged on windows it never saw.

    Attributes
    ----------
    agreement
        Share of `n_windows` windows with the same best class, 0 to 1, by a linear discriminant on the prior.
    accuracy, accuracy_loss_points
        Of those answers, and how many percentage points less than with float32 (negative: more).
    max_error
        Largest difference of a feature, relative to the features' scale.
    latency_ratio
        Median time for one window over that of the float32 encoder in the same runtime, on the exporter.
    vnni
        Whether the exporter's processor multiplies int8 without saturating; None when float32.
    """

    n_windows: int
    agreement: float
    accuracy: float
    accuracy_loss_points: float
    max_error: float
    latency_ratio: float
    vnni: bool | None = None


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """The same encoder in another form; a device uses it only where it was proven and found faster.

    `format` says which runtimes can run it: ``onnx`` onnxruntime, ``tflite`` LiteRT and tflite-runtime (one
    window at a time). `golden` names the array of ``golden.npz`` with this variant's own features.
    """

    format: Literal["onnx", "tflite"]
    precision: Literal["float32", "int8"]
    scheme: str = ""
    """How it was quantised: ``static per-channel``, ``dynamic range``; "" for float32."""
    member: str
    golden: str
    report: VariantReport


class HeadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The head this bundle was made for; a device may choose another."""

    name: str = "dual"
    options: dict[str, Any] = {}


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What was added to the prior of the bundle `base`: labels that devices were taught.

    Attributes
    ----------
    includes
        Journal number, by ``site/device``, up to which that device's labels are in the prior.
    left_out
        Of some of them, classes of which no label is; "*" for all that the bundle before did not know.
    weight
        Labels a class that the prior counts for in a head that merges exactly; None for all that it has.
    epsilon
        How private each device's labels are, by ``site/device``; devices that sent them as they are, are not
        in it.
    """

    base: str
    includes: dict[str, int]
    left_out: dict[str, list[str]] = {}
    weight: float | None = None
    epsilon: dict[str, float] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The typed content of ``manifest.json``."""

    format: Literal["edge-cl-bundle"]
    format_version: int
    name: str
    class_names: tuple[str, ...]
    channels: tuple[Channel, ...]
    rate_hz: float
    window_samples: int
    hop_samples: int
    feature_size: int
    encoder: EncoderSpec
    variants: tuple[Variant, ...] = ()
    head: HeadSpec = HeadSpec()
    plastic: PlasticSpec | None = None
    merged: Merged | None = None
    members: dict[str, Member] = {}
    provenance: dict[str, Any] = {}

    @property
    def n_channels(self) -> int:
        """Number of sensor channels."""
        return len(self.channels)
