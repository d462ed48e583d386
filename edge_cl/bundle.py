"""The one file that crosses from the server to the device: read, verify, write.

A bundle (``.ecl``) is a zip archive, stored without compression, of

=================  ==========================================================================
``manifest.json``  what is inside, with the size and SHA-256 of every other member
``encoder.onnx``   the frozen encoder (absent when the encoder is ``identity``)
``encoder.*``      the same for other runtimes or in int8 (each may be absent)
``prior.npz``      statistics of the source data, so that a device starts warm
``codebook.npz``   centroids, so that a device may keep product-quantised memories (may be absent)
``golden.npz``     inputs and the features the exporter computed for them, for a self-test
``step.onnx``      one optimisation step of a plastic head (the last three only with head ``step``)
``predict.onnx``   parameters and features in, logits out
``plastic.npz``    the head's parameters, trained on the source
=================  ==========================================================================

Sizes and hashes are checked before a byte reaches a runtime, and the runtime is handed
bytes, never a path: onnxruntime reads files outside the model's folder when given one.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_cl.errors import BundleError
from edge_cl.manifest import Manifest, Member
from edge_cl.plastic import PlasticSpec, check_plastic
from edge_cl.records import FloatArray

FORMAT = "edge-cl-bundle"
FORMAT_VERSION = 1
MAX_MEMBER_BYTES = 512 * 1024 * 1024
MAX_MANIFEST_BYTES = 1024 * 1024
MANIFEST = "manifest.json"


class Prior(msgspec.Struct, frozen=True, kw_only=True):
    """What the source data looked like in feature space; D = feature_size, C = classes.

    Attributes
    ----------
    class_counts
        (C,) float64, source windows per class.
    class_means
        (C, D) float32, or float64 where it was merged from devices; so are the next two.
    shared_cov
        (D, D) float32, pooled within-class covariance.
    second_moment
        (D, D) float32, mean of x xᵀ over all source windows.
    exemplars, exemplar_labels
        (n, D) float16 features of real source windows, class-balanced, and (n,) int64 classes:
        the first memories of a new device.
    """

    class_counts: FloatArray
    class_means: FloatArray
    shared_cov: FloatArray
    second_moment: FloatArray
    exemplars: FloatArray
    exemplar_labels: Any


class Codebook(msgspec.Struct, frozen=True, kw_only=True):
    """Product quantiser of feature vectors: z = (x · scale) @ rotation, in M parts of d channels in a row.

    Attributes
    ----------
    centroids
        (M, K, d) float32 of z, K ≤ 256, M = ⌈D / d⌉; the last part is zero-padded.
    scale
        (D,) float32, one over each channel's standard deviation on the source data.
    rotation
        (D, D) float32, orthogonal; (0, 0): z is not rotated.
    error
        (M,) float32, mean squared error of each part of z on the source data.
    """

    centroids: FloatArray
    scale: FloatArray
    rotation: FloatArray
    error: FloatArray


class Bundle:
    """A verified bundle in memory. Make one with :meth:`load`."""

    def __init__(self, manifest: Manifest, members: Mapping[str, bytes], bundle_id: str) -> None:
        self.manifest = manifest
        self._members = dict(members)
        self.bundle_id = bundle_id
        """SHA-256 (hex) of the manifest: names this exact bundle, since it pins every member."""

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read and verify a bundle file.

        Raises
        ------
        BundleError
            When the file is missing, truncated, altered, of a newer format, or inconsistent.
        """
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                return _read(path, archive)
        except FileNotFoundError:
            raise BundleError(f"{path}: no such file; make one with `edge-cl export`") from None
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
            # all that zipfile raises for damaged tables: "encrypted", "unsupported", names that are no text
            raise BundleError(
                f"{path}: not a readable bundle ({error}); it may be truncated, copy it again"
            ) from error

    def member(self, name: str) -> bytes:
        """The verified bytes of one member."""
        try:
            return self._members[name]
        except KeyError:
            if name in self.manifest.members:
                raise BundleError(
                    f"bundle {self.manifest.name!r} holds {name!r} no longer: a device runs it; for another, "
                    "load its file again"
                ) from None
            raise BundleError(f"bundle {self.manifest.name!r} has no member {name!r}") from None

    def let_go(self, names: Iterable[str]) -> None:
        """Hold the bytes of these members no longer; whoever wants them again loads the file again."""
        for name in names:
            self._members.pop(name, None)

    def prior(self) -> Prior | None:
        """The source statistics, or None when the bundle carries none (a cold start)."""
        if "prior.npz" not in self._members:
            return None
        arrays = _arrays(self.member("prior.npz"), "prior.npz")
        missing = set(Prior.__struct_fields__) - set(arrays)
        if missing:
            raise BundleError(f"prior.npz lacks {sorted(missing)}; export the bundle again")
        prior = Prior(**{name: arrays[name] for name in Prior.__struct_fields__})
        _check_prior(prior, len(self.manifest.class_names), self.manifest.feature_size)
        return prior

    def codebook(self) -> Codebook | None:
        """The product quantiser, or None when the bundle carries none."""
        if "codebook.npz" not in self._members:
            return None
        arrays = _arrays(self.member("codebook.npz"), "codebook.npz")
        missing = set(Codebook.__struct_fields__) - set(arrays)
        if missing:
            raise BundleError(f"codebook.npz lacks {sorted(missing)}; export the bundle again")
        codebook = Codebook(**{name: arrays[name] for name in Codebook.__struct_fields__})
        _check_codebook(codebook, self.manifest.feature_size)
        return codebook

    def plastic(self) -> tuple[PlasticSpec, dict[str, FloatArray]] | None:
        """What the device may train and its parameters by name; None when the bundle carries no such part."""
        spec = self.manifest.plastic
        if spec is None:
            return None
        arrays = _arrays(self.member("plastic.npz"), "plastic.npz")
        check_plastic(spec, arrays, self.manifest.feature_size, len(self.manifest.class_names))
        return spec, {parameter.name: arrays[parameter.name] for parameter in spec.parameters}

    def golden(self, name: str = "features") -> tuple[FloatArray, FloatArray] | None:
        """Self-test pair: inputs (k, window, channels), features (k, feature_size); None if absent.

        `name` is a variant's `golden`: an int8 one has features of its own.
        """
        if "golden.npz" not in self.manifest.members:  # one that was let go would pass for none
            return None
        arrays = _arrays(self.member("golden.npz"), "golden.npz")
        if not {"inputs", name} <= set(arrays):
            raise BundleError(f"golden.npz lacks inputs or {name}; export the bundle again")
        return arrays["inputs"], arrays[name]


def write_bundle(path: str | Path, manifest: Manifest, members: Mapping[str, bytes]) -> Bundle:
    """Write `members` and the manifest (its `members` table filled in here) as one bundle file.

    The archive is reproducible: fixed timestamps, fixed order, no compression. Returns the
    bundle read back from the file just written.
    """
    table = {name: Member(len(data), hashlib.sha256(data).hexdigest()) for name, data in members.items()}
    manifest = msgspec.structs.replace(manifest, members=table)
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {MANIFEST: encoded, **members}.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    part.replace(path)
    return Bundle.load(path)


def npz_bytes(**arrays: FloatArray) -> bytes:
    """The arrays as the bytes of an uncompressed ``.npz`` with fixed timestamps."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(name + ".npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return out.getvalue()


def _read(path: Path, archive: zipfile.ZipFile) -> Bundle:
    infos = {info.filename: info for info in archive.infolist()}
    if MANIFEST not in infos:
        raise BundleError(
            f"{path}: no {MANIFEST} inside; not an edge-cl bundle, or a truncated one: copy it again"
        )
    if infos[MANIFEST].file_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES:,} bytes; not accepted")
    if infos[MANIFEST].compress_type != zipfile.ZIP_STORED:
        raise BundleError(f"{path}: {MANIFEST} is compressed; bundles store their members as they are")
    raw = archive.read(MANIFEST)
    manifest = _parse_manifest(path, raw)
    extra = set(infos) - set(manifest.members) - {MANIFEST}
    if extra:
        raise BundleError(f"{path}: members not in the manifest: {sorted(extra)}; the file was altered")
    members = {
        name: _read_member(path, archive, infos, name, want) for name, want in manifest.members.items()
    }
    if manifest.encoder.kind == "onnx" and manifest.encoder.member not in members:
        raise BundleError(
            f"{path}: the manifest names {manifest.encoder.member!r} as encoder but lists no such member"
        )
    for variant in manifest.variants:
        if variant.member not in members:
            raise BundleError(
                f"{path}: the manifest names the variant {variant.member!r} but lists no such member"
            )
    return Bundle(manifest, members, hashlib.sha256(raw).hexdigest())


def _parse_manifest(path: Path, raw: bytes) -> Manifest:
    try:
        head = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {MANIFEST} is not JSON ({error}); copy the bundle again") from error
    version = head.get("format_version") if isinstance(head, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: bundle format {version}, but this edge-cl reads up to {FORMAT_VERSION}; upgrade edge-cl"
        )
    try:
        manifest = msgspec.convert(head, Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: {MANIFEST}: {error}; export the bundle again") from error
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: Manifest) -> None:
    positive = ("rate_hz", "window_samples", "hop_samples", "feature_size")
    for name in positive:
        if not getattr(manifest, name) > 0:
            raise BundleError(f"{path}: {name} is {getattr(manifest, name)}, must be above 0")
    if not manifest.channels:
        raise BundleError(f"{path}: the manifest names no sensor channel")
    if len(set(manifest.class_names)) != len(manifest.class_names):
        raise BundleError(f"{path}: class names are not unique: {list(manifest.class_names)}")


def _read_member(
    path: Path, archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], name: str, want: Member
) -> bytes:
    info = infos.get(name)
    if info is None:
        raise BundleError(f"{path}: {name} is in the manifest but not in the file; copy the bundle again")
    if info.compress_type != zipfile.ZIP_STORED:
        raise BundleError(f"{path}: {name} is compressed; bundles store their members as they are")
    if info.file_size != want.size or want.size > MAX_MEMBER_BYTES:
        raise BundleError(f"{path}: {name} has {info.file_size:,} bytes, the manifest says {want.size:,}")
    data = archive.read(info)
    found = hashlib.sha256(data).hexdigest()
    if found != want.sha256:
        raise BundleError(
            f"{path}: {name} has SHA-256 {found[:12]}…, the manifest says {want.sha256[:12]}…; "
            "the file was altered or damaged, copy it again"
        )
    return data


def _arrays(data: bytes, name: str) -> dict[str, FloatArray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{name} is not an array file ({error}); export the bundle again") from error


def _check_codebook(codebook: Codebook, n_features: int) -> None:
    if len(codebook.scale) != n_features:
        raise BundleError(
            f"codebook.npz: made for features of size {len(codebook.scale)}, the manifest's feature_size is "
            f"{n_features}; export the bundle again"
        )
    shape = codebook.centroids.shape
    fits = len(shape) == 3 and 1 <= shape[1] <= 256 and shape[0] == -(-n_features // max(shape[2], 1))
    fits = fits and codebook.rotation.shape in ((0, 0), (n_features, n_features))
    if not fits or codebook.error.shape != shape[:1]:
        raise BundleError(
            f"codebook.npz: centroids {shape}, rotation {codebook.rotation.shape} and error "
            f"{codebook.error.shape} do not make up features of size {n_features}; export the bundle again"
        )
    if not all(np.isfinite(getattr(codebook, name)).all() for name in codebook.__struct_fields__):
        raise BundleError("codebook.npz holds values that are not finite; export the bundle again")


def _check_prior(prior: Prior, n_classes: int, n_features: int) -> None:
    shapes = {
        "class_counts": (n_classes,),
        "class_means": (n_classes, n_features),
        "shared_cov": (n_features, n_features),
        "second_moment": (n_features, n_features),
        "exemplars": (len(prior.exemplar_labels), n_features),
    }
    for name, shape in shapes.items():
        array = getattr(prior, name)
        if array.shape != shape:
            raise BundleError(f"prior.npz: {name} has shape {array.shape}, should be {shape}")
        if not np.isfinite(array).all():
            raise BundleError(f"prior.npz: {name} holds values that are not finite; export the bundle again")
    labels = prior.exemplar_labels
    if len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
        raise BundleError("prior.npz: exemplar_labels name classes outside the manifest")
