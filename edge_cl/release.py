"""What a bundle file is, told so that it can be fetched in pieces and compared with the one in use."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path

import msgspec

from edge_cl.bundle import MANIFEST, Bundle
from edge_cl.commands import Release
from edge_cl.errors import BundleError
from edge_cl.manifest import Manifest

MAX_BYTES = 256 * 1024 * 1024
_HEX = re.compile("[0-9a-f]{64}")
CHUNK_HASH_DIGITS = 16
"""Of a chunk's SHA-256: enough to tell damage; the whole file's SHA-256 is what counts."""


def release_of(
    path: str | Path, *, chunk_bytes: int, url: str = "", includes: dict[str, int] | None = None
) -> Release:
    """Describe a bundle file, which is verified; see :class:`edge_cl.commands.Release` for the rest.

    Without `includes` they are those that a merged bundle's manifest has.
    """
    path = Path(path)
    bundle = Bundle.load(path)
    if includes is None and bundle.manifest.merged is not None:
        includes = bundle.manifest.merged.includes
    whole, chunks, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while piece := file.read(chunk_bytes):
            whole.update(piece)
            chunks.append(chunk_hash(piece))
            size += len(piece)
    return Release(
        name=bundle.manifest.name,
        bundle_id=bundle.bundle_id,
        sha256=whole.hexdigest(),
        size=size,
        chunk_bytes=chunk_bytes,
        chunks=chunks,
        url=url,
        includes=includes or {},
    )


def check_release(release: Release) -> None:
    """Raise BundleError unless the numbers and names in it can be of one file."""
    n_chunks = -(-release.size // max(release.chunk_bytes, 1))
    if not (_HEX.fullmatch(release.bundle_id) and _HEX.fullmatch(release.sha256)):
        raise BundleError("a release has a bundle_id or sha256 that is no SHA-256; add the bundle again")
    if not 0 < release.size <= MAX_BYTES or len(release.chunks) != n_chunks:
        raise BundleError(
            f"release {release.name}: {release.size:,} bytes in {len(release.chunks):,} chunks of "
            f"{release.chunk_bytes:,}; at most {MAX_BYTES:,} are taken, and the chunks must make up the file"
        )


def chunk_hash(body: bytes) -> str:
    """A chunk's hash as a release has it."""
    return hashlib.sha256(body).hexdigest()[:CHUNK_HASH_DIGITS]


def bundle_id_of(path: Path) -> str:
    """A bundle file's id, without reading more of it than its manifest. Raises BundleError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return hashlib.sha256(archive.read(MANIFEST)).hexdigest()
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; make one with `edge-cl export`") from None
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise BundleError(
            f"{path}: not a readable bundle ({error}); it may be truncated, copy it again"
        ) from error


def encoder_hash(bundle: Bundle) -> str:
    """The same for two bundles exactly when the same window gives the same feature in both.

    By the encoder that every bundle has. A variant of it gives the same to within its report, so that labels
    which one device learned in int8 may count for another that runs float32.
    """
    manifest = bundle.manifest
    spec = manifest.encoder
    member = manifest.members.get(spec.member)
    said = (spec, member.sha256 if member else "", _sensors(manifest), manifest.feature_size)
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:32]


def other_sensors(old: Manifest, new: Manifest) -> str:
    """How the readings that `new` needs differ from those that `old` is given, "" when they are the same."""
    differing = [
        f"{what} {_text(was)} here, {_text(wants)} there"
        for (what, was), (_, wants) in zip(_sensors(old).items(), _sensors(new).items(), strict=True)
        if was != wants
    ]
    return "; ".join(differing)


def _sensors(manifest: Manifest) -> dict[str, object]:
    return {
        "channels": [f"{channel.name} {channel.unit}".strip() for channel in manifest.channels],
        "rate (Hz)": manifest.rate_hz,
        "window (samples)": manifest.window_samples,
        "hop (samples)": manifest.hop_samples,
    }


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
