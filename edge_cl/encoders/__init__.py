"""feature = encoder(window): one small class per runtime, picked by name or by measurement."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.config import EncoderSettings
from edge_cl.encoders.base import Encoder
from edge_cl.encoders.choice import Choice, form_of, misfit, obeys
from edge_cl.encoders.forms import RUNTIMES, Form, Runtime, forms, is_installed
from edge_cl.encoders.identity import IdentityEncoder
from edge_cl.errors import BadReading, BundleError
from edge_cl.manifest import Manifest
from edge_cl.records import FloatArray, Reading

log = logging.getLogger(__name__)

GOLDEN_TOLERANCE = 1e-3
INT8_TOLERANCE = 2e-2
"""A rounding that falls the other way is a whole step of 8 bits, where float32 differs by next to nothing."""

_HINT = "; `edge-cl verify BUNDLE --bench` finds out which is the fastest here"

__all__ = [
    "GOLDEN_TOLERANCE",
    "INT8_TOLERANCE",
    "Encoder",
    "create",
    "encode",
    "golden_error",
    "let_go",
    "load",
    "load_model",
    "self_test",
    "tolerance",
]


def create(bundle: Bundle, settings: EncoderSettings | None = None, choice: Choice | None = None) -> Encoder:
    """The encoder of a bundle that shall run here.

    What `settings` name is obeyed. What they leave open is taken from `choice` as long as that holds for this
    bundle, these runtimes and this machine and gives what the exporter had; else it is float32 in the first
    runtime that is here and right. A choice that fails is only warned of.

    Raises
    ------
    BundleError
        When the kind of encoder is unknown, what the settings name is not to be had, or no runtime works.
    """
    settings = settings or EncoderSettings()
    kind = bundle.manifest.encoder.kind
    if kind == "identity":
        return IdentityEncoder(bundle.manifest)
    if kind != "onnx":
        raise BundleError(
            f"bundle asks for encoder {kind!r}; this edge-cl knows onnx and identity: upgrade edge-cl"
        )
    if choice is not None and (chosen := _chosen(bundle, settings, choice)) is not None:
        return chosen
    return _first_that_works(bundle, settings)


def let_go(bundle: Bundle) -> None:
    """Forget what only `create` needs, most of a bundle with a large encoder: a runtime has its own."""
    bundle.let_go([*(form.member for form in forms(bundle)), "golden.npz"])


def load(bundle: Bundle, form: Form, runtime: str, *, provider: str = "cpu", threads: int = 1) -> Encoder:
    """One form of a bundle's encoder in one runtime; only that runtime is imported. Raises BundleError."""
    model = bundle.member(form.member)
    return load_model(model, form, runtime, bundle.manifest, provider=provider, threads=threads)


def load_model(
    model: bytes, form: Form, runtime: str, manifest: Manifest, *, provider: str = "cpu", threads: int = 1
) -> Encoder:
    """As `load`, of a model that is in no bundle yet."""
    shape, n_features = (manifest.window_samples, manifest.n_channels), manifest.feature_size
    encoder: Encoder
    if runtime == "onnx":
        from edge_cl.encoders.onnx import OnnxEncoder

        encoder = OnnxEncoder(
            model, shape, n_features, spec=manifest.encoder, provider=provider, threads=threads
        )
    elif runtime == "litert":
        from edge_cl.encoders.litert import LiteRTEncoder

        encoder = LiteRTEncoder(model, shape, n_features, threads=threads)
    else:
        from edge_cl.encoders.tflite import TfliteEncoder

        encoder = TfliteEncoder(model, shape, n_features, threads=threads)
    encoder.form = form
    return encoder


def _chosen(bundle: Bundle, settings: EncoderSettings, choice: Choice) -> Encoder | None:
    """The encoder that was chosen; None when the settings say otherwise, or with a warning when it fails."""
    if not obeys(choice, settings):
        return None
    provider = choice.provider or "cpu"
    why = misfit(choice, bundle, settings.threads)
    form = form_of(choice, bundle)
    if not why and form is not None:
        try:
            encoder = load(bundle, form, choice.runtime, provider=provider, threads=settings.threads)
            why = self_test(encoder, bundle)
            if not why:
                log.info("encoder: %s in %s (%s), as measured here", form, choice.runtime, encoder.running_on)
                return encoder
        except BundleError as error:
            why = str(error)
    log.warning("the encoder that was chosen is not used: %s; run `edge-cl verify --bench` again", why)
    return None


def _first_that_works(bundle: Bundle, settings: EncoderSettings) -> Encoder:
    precision = "float32" if settings.precision == "auto" else settings.precision
    fitting = [form for form in forms(bundle) if form.precision == precision]
    runtimes = [RUNTIMES[settings.runtime]] if settings.runtime != "auto" else list(RUNTIMES.values())
    if settings.provider not in ("auto", "cpu"):
        runtimes = [runtime for runtime in runtimes if runtime.name == "onnx"]
    pairs = [(form, runtime) for runtime in runtimes for form in fitting if form.format == runtime.format]
    if not pairs:
        has = ", ".join(str(form) for form in forms(bundle))
        raise BundleError(
            f"bundle {bundle.manifest.name!r} has no {precision} encoder for runtime {settings.runtime!r}, "
            f"provider {settings.provider!r}; it has {has}: set [encoder] to one of those, or export it again"
        )
    here = [(form, runtime) for form, runtime in pairs if is_installed(runtime)]
    if not here and len(runtimes) > 1:
        wanted = " or ".join(f"`pip install 'edge-cl[{runtime.name}]'`" for _, runtime in pairs)
        raise BundleError(
            f"no runtime is installed that can run bundle {bundle.manifest.name!r}: {wanted} "
            "(on a Jetson: onnxruntime-gpu for your JetPack)"
        )
    hint = "" if settings.runtime != "auto" or len(forms(bundle)) == 1 else _HINT
    return _first_that_is_right(bundle, here or pairs, settings, hint)


def _first_that_is_right(
    bundle: Bundle, pairs: Sequence[tuple[Form, Runtime]], settings: EncoderSettings, hint: str
) -> Encoder:
    """The first that passes its self-test; when none does, the first that runs at all, with a warning: a
    device that has learned goes on."""
    provider = "cpu" if settings.provider == "auto" else settings.provider
    wrong: Encoder | None = None
    failed = []
    for form, runtime in pairs:
        try:
            encoder = load(bundle, form, runtime.name, provider=provider, threads=settings.threads)
        except BundleError as error:
            failed.append(error)
            continue
        if differs := _differs(encoder, bundle):
            log.warning("%s in %s: %s", form, runtime.name, differs)
            wrong = wrong or encoder
            continue
        for failure in failed:
            log.warning("%s", failure)
        log.info("encoder: %s in %s (%s)%s", form, runtime.name, encoder.running_on, hint)
        return encoder
    if wrong is None:
        raise failed[0]
    log.warning(
        "no encoder of bundle %r is right here; %s is used all the same, and answers may be worse: update "
        "the runtime, or export the bundle again",
        bundle.manifest.name,
        wrong.form,
    )
    return wrong


def _differs(encoder: Encoder, bundle: Bundle) -> str:
    try:
        return self_test(encoder, bundle)
    except BundleError as error:
        return str(error)


def encode(encoder: Encoder, reading: Reading, shape: tuple[int, int]) -> FloatArray:
    """The feature (D,) of a reading whose window should have this shape; BadReading when it is of no use."""
    window = np.asarray(reading.window, dtype=np.float32)
    if window.shape != shape:
        raise BadReading(f"reading {reading.id}: window {window.shape} is not the bundle's {shape}; dropped")
    if not np.isfinite(window).all():
        raise BadReading(f"reading {reading.id}: the window holds values that are not finite; dropped")
    feature = encoder.encode(window)
    if not np.isfinite(np.vdot(feature, feature)):  # heads refuse what has no square
        raise BadReading(
            f"reading {reading.id}: the encoder's feature is not finite, or beyond about 1e19; dropped"
        )
    return feature


def self_test(encoder: Encoder, bundle: Bundle) -> str:
    """How an encoder differs from what the exporter had, in words; "" when it may be used."""
    error, allowed = golden_error(encoder, bundle), tolerance(encoder.form)
    if error is None or error <= allowed:
        return ""
    return f"features differ from the exporter's by {error:.1e} (allowed {allowed:g})"


def tolerance(form: Form | None) -> float:
    """Largest accepted difference to the exporter's features, relative to their scale."""
    return INT8_TOLERANCE if form is not None and form.precision == "int8" else GOLDEN_TOLERANCE


def golden_error(encoder: Encoder, bundle: Bundle) -> float | None:
    """Self-test: the largest difference to what the exporter's features were in the same form, relative to
    their scale.

    None when the bundle carries no golden pair. Not finite when the encoder's output is not.
    """
    pair = bundle.golden(encoder.form.golden if encoder.form else "features")
    if pair is None:
        return None
    inputs, features = pair
    found = encoder.encode_many(inputs)
    if found.shape != features.shape:
        raise BundleError(f"encoder gives features of shape {found.shape}, the exporter had {features.shape}")
    return float(np.abs(found - features).max() / max(float(np.abs(features).max()), 1e-6))
