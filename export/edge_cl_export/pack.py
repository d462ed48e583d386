"""Everything a device needs, in one bundle file."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

import edge_cl
from edge_cl.bundle import FORMAT_VERSION, Bundle, PlasticSpec, Prior, npz_bytes, write_bundle
from edge_cl.manifest import Channel, EncoderSpec, HeadSpec, Manifest
from edge_cl.records import FloatArray
from edge_cl_export.codebook import codebook_member, make_codebook
from edge_cl_export.encoders import SensorEncoder, triplets
from edge_cl_export.freeze import INPUT, OUTPUT, freeze, run_graph, spread
from edge_cl_export.prior import linear_scores, make_prior
from edge_cl_export.train import Progress, TrainReport, TrainSettings, accuracy, train
from edge_cl_export.warm import PlasticHead, make_members

N_GOLDEN = 12
DEFAULT_HEAD = HeadSpec()


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Labelled training windows and what their numbers mean.

    Attributes
    ----------
    X
        (n, window_samples, n_channels) float32, physical units.
    y, person
        (n,) int64; windows of one person are never split over training and validation.
    """

    name: str
    X: FloatArray
    y: NDArray[np.int64]
    person: NDArray[np.int64]
    class_names: Sequence[str]
    channels: Sequence[Channel]
    rate_hz: float
    hop_samples: int


def split_people(source: Source, validation_people: Iterable[int]) -> tuple[Source, Source]:
    """(training part, validation part). Raises `ValueError` when either would be empty."""
    people = sorted(set(validation_people))
    held_out = np.isin(source.person, people)
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"validation people {people} leave {int((~held_out).sum())} windows to train on and "
            f"{int(held_out.sum())} to validate on; people are {np.unique(source.person).tolist()}"
        )
    return _rows(source, ~held_out), _rows(source, held_out)


def train_and_pack(
    source: Source,
    out: str | Path,
    *,
    validation_people: Iterable[int],
    settings: TrainSettings | None = None,
    exemplars: int = 100,
    head: HeadSpec | PlasticHead = DEFAULT_HEAD,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Train the built-in encoder on `source`, freeze it and write the bundle `out`, without variants.

    Trained twice: without `validation_people`, whose windows choose the epoch and give the metrics; then
    on everybody for that many epochs, which is what is shipped. Channels named ``…_x, …_y, …_z`` are
    vectors; unless `settings` says otherwise they are turned at random in training. Deterministic for a
    seed on one machine with one thread.
    """
    fitted = fit(source, validation_people, settings, progress=progress)
    return pack(
        freeze(fitted.encoder, spread(source.X, N_GOLDEN)),
        source,
        out,
        metrics=fitted.metrics,
        exemplars=exemplars,
        head=head,
        seed=0 if settings is None else settings.seed,
        provenance={**(provenance or {}), **fitted.provenance},
    )


@dataclass(frozen=True, eq=False)
class Fitted:
    """An encoder trained on everybody, and how one did that was trained without the validation people."""

    encoder: SensorEncoder
    metrics: dict[str, Any]
    best_epoch: int

    @property
    def provenance(self) -> dict[str, Any]:
        """What a bundle says of its training."""
        return {"encoder": "built-in", "best_epoch": self.best_epoch}


def fit(
    source: Source,
    validation_people: Iterable[int],
    settings: TrainSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Fitted:
    """Train the built-in encoder as :func:`train_and_pack` does."""
    kept, validation = split_people(source, validation_people)
    settings = settings or TrainSettings(vectors=triplets(source.channels))
    encoder, report = _fit(kept, validation, settings, progress=progress)
    metrics = held_out_metrics(freeze(encoder, spread(kept.X, N_GOLDEN)), kept, validation)
    epoch = settings.epochs if report is None else report.best_epoch
    encoder, _ = _fit(source, None, settings, stop_epoch=epoch, progress=progress)
    return Fitted(encoder, metrics, epoch)


def _fit(
    source: Source,
    validation: Source | None,
    settings: TrainSettings,
    *,
    stop_epoch: int | None = None,
    progress: Progress | None = None,
) -> tuple[SensorEncoder, TrainReport | None]:
    # The layers' own initialisation only knows torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        vectors = triplets(source.channels)
        encoder = SensorEncoder(source.X.shape[2], feature_size=settings.feature_size, vectors=vectors)
        encoder.fit_normalisation(torch.from_numpy(np.asarray(source.X, np.float32)))
        report = train(
            encoder,
            (source.X, source.y),
            None if validation is None else (validation.X, validation.y),
            n_classes=len(source.class_names),
            settings=settings,
            stop_epoch=stop_epoch,
            progress=progress,
        )
    return encoder, report


def pack(
    graph: bytes,
    source: Source,
    out: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    exemplars: int = 100,
    head: HeadSpec | PlasticHead = DEFAULT_HEAD,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle around a frozen encoder `graph`; prior, codebook and golden pairs come from `source`.

    A `PlasticHead` is compiled and trained on the source's features, and becomes the bundle's head ``step``.
    """
    features = run_graph(graph, source.X)
    rng = np.random.default_rng(seed)
    prior = make_prior(features, source.y, n_classes=len(source.class_names), exemplars=exemplars, rng=rng)
    golden = np.asarray(spread(source.X, N_GOLDEN), np.float32)
    members, spec = _plastic_members(head, features, source, seed)
    members |= {
        "encoder.onnx": graph,
        "prior.npz": npz_bytes(**{name: getattr(prior, name) for name in Prior.__struct_fields__}),
        "golden.npz": npz_bytes(inputs=golden, features=run_graph(graph, golden)),
        **codebook_member(make_codebook(features, source.y, rng=rng)),
    }
    manifest = Manifest(
        format="edge-cl-bundle",
        format_version=FORMAT_VERSION,
        name=source.name,
        class_names=tuple(source.class_names),
        channels=tuple(source.channels),
        rate_hz=float(source.rate_hz),
        window_samples=source.X.shape[1],
        hop_samples=source.hop_samples,
        feature_size=features.shape[1],
        encoder=EncoderSpec(input=INPUT, output=OUTPUT),
        head=HeadSpec(name="step") if isinstance(head, PlasticHead) else head,
        plastic=spec,
        provenance={
            **(provenance or {}),
            "seed": seed,
            "metrics": dict(metrics or {}),
            "n_windows": len(source.X),
            "people": sorted({int(p) for p in source.person}),
            "versions": versions(),
        },
    )
    return write_bundle(out, manifest, members)


def _plastic_members(
    head: HeadSpec | PlasticHead, features: FloatArray, source: Source, seed: int
) -> tuple[dict[str, bytes], PlasticSpec | None]:
    if isinstance(head, HeadSpec):
        return {}, None
    return make_members(head, features, source.y, n_classes=len(source.class_names), seed=seed)


def versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    return {
        "edge_cl": edge_cl.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def held_out_metrics(graph: bytes, source: Source, validation: Source) -> dict[str, Any]:
    """How well a linear discriminant on the features of `source` does on the people of `validation`."""
    rng = np.random.default_rng(0)
    prior = make_prior(
        run_graph(graph, source.X), source.y, n_classes=len(source.class_names), exemplars=0, rng=rng
    )
    scores = linear_scores(prior, run_graph(graph, validation.X))
    plain, balanced = accuracy(scores.argmax(1), validation.y)
    return {
        "validation_accuracy": round(plain, 4),
        "validation_balanced_accuracy": round(balanced, 4),
        "validation_windows": len(validation.X),
        "validation_people": sorted({int(p) for p in validation.person}),
    }


def _rows(source: Source, keep: NDArray[np.bool_]) -> Source:
    return replace(source, X=source.X[keep], y=source.y[keep], person=source.person[keep])
