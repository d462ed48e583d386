"""What a device says of its labels when a server asks: sums over all of them, as private as was set."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

import msgspec
import numpy as np

from edge_cl import privacy, statistics
from edge_cl.bundle import Bundle
from edge_cl.config import PrivacySettings
from edge_cl.errors import StateError
from edge_cl.records import FloatArray
from edge_cl.release import encoder_hash
from edge_cl.state import FROM_OTHERS, SHARED, Entry, Journal, Shared, labels_of
from edge_cl.statistics import NEW_CLASSES, Account, Statistics

LEAST_LABELS = 5
"""Of a class, to be told without noise: of a single label the sum would be its feature."""
AT_ONCE = 512


def share(
    journal: Journal, bundle: Bundle, settings: PrivacySettings, *, device: str, rng: np.random.Generator
) -> tuple[Statistics, Account]:
    """Statistics of the labels that count in a journal with nothing uncommitted, and whose they are.

    Classes with fewer than `LEAST_LABELS` labels are left out. With noise, features are cut to `clip_norm`
    first, and left out are classes that the bundle does not know, since a name alone would tell of a label.
    That one more report was made is on disk before this returns.

    Parameters
    ----------
    device
        ``site/device``.
    rng
        Draws the noise.

    Raises
    ------
    StateError, StateUnwritable
        Nothing may leave the device, or nothing of it can be noted.
    """
    if not settings.share:
        raise StateError("this device shares nothing of what it learned (privacy.share = false)")
    known = bundle.manifest.class_names
    if settings.noise:
        told, left_out = set(known), [NEW_CLASSES]
    else:
        counts = Counter(entry.label for entry in labels_of(journal) if _is_own(entry))
        told = {name for name, n in counts.items() if n >= LEAST_LABELS}
        left_out = sorted(set(counts) - told)
    found = _collected(journal, bundle, told, settings.clip_norm)
    if settings.noise:
        found = privacy.noised(found, settings.clip_norm, settings.noise, rng)
    given = _note_report(journal, settings.noise)
    epsilon = privacy.epsilon(given.noise)
    account = Account(
        device=device,
        bundle_id=bundle.bundle_id,
        encoder=encoder_hash(bundle),
        history=journal.uid,
        first=journal.first_seq,
        seq=journal.last_seq,
        left_out=left_out,
        clip_norm=settings.clip_norm,
        noise=settings.noise,
        epsilon=epsilon if math.isfinite(epsilon) else None,
        delta=privacy.DELTA if math.isfinite(epsilon) else 0.0,
        n_reports=given.n_reports,
    )
    return found, account


def _collected(journal: Journal, bundle: Bundle, told: set[str], clip_norm: float) -> Statistics:
    """Sums over the labels of these classes, a block at a time."""
    known = bundle.manifest.class_names
    found = statistics.empty(known, bundle.manifest.feature_size)
    labels = (entry for entry in labels_of(journal) if _is_own(entry) and entry.label in told)
    while block := list(islice(labels, AT_ONCE)):
        X: FloatArray = np.stack([np.asarray(entry.feature, np.float64) for entry in block])
        if clip_norm:
            X = privacy.clip(X, clip_norm)
        names = statistics.union(known, tuple(entry.label for entry in block))
        y = np.array([names.index(entry.label) for entry in block])
        found = statistics.add(found, statistics.collect(X, y, names))
    return found


def _is_own(entry: Entry) -> bool:
    # Those that a backup of another device brought, that one reports itself.
    return entry.kind == "label" and not entry.source.startswith(FROM_OTHERS)


def _note_report(journal: Journal, noise: float) -> Shared:
    """Count one more report, durably."""
    before = Shared.read(journal.get_meta(SHARED))
    given = Shared(
        n_reports=before.n_reports + 1,
        n_plain=before.n_plain + (noise == 0),
        information=before.information + (1 / noise**2 if noise else 0.0),
    )
    journal.set_meta(SHARED, msgspec.json.encode(given).decode())
    return given
