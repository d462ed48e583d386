"""What labels taught, as sums: numbers of labels, sums of features, their second moment. They add up.

Sums of any number of devices added together are those of all their labels at once, so a head that is
computed from them is the one that saw all labels. They do not depend on the head that a device has.
"""

from __future__ import annotations

import hashlib
import struct

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.errors import SyncError
from edge_cl.records import FloatArray

MAGIC = b"edge-cl statistics 1\n"
MAX_HEADER_BYTES = 64 * 1024
NEW_CLASSES = "*"
"""In `left_out`: all classes that the device's bundle did not know."""
MAX_FEATURES = 16_384
BLOCK = 1024
"""Features taken into the second moment with one matrix product."""
_LENGTH = struct.Struct("<I")
_HASH_BYTES = 32


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over labels; C classes by name, D features, all float64.

    Attributes
    ----------
    counts
        (C,) labels of each class.
    sums
        (C, D) sum of the features of each class.
    second
        (D, D) sum of x xᵀ over all labels.
    """

    class_names: tuple[str, ...]
    counts: FloatArray
    sums: FloatArray
    second: FloatArray

    @property
    def n_features(self) -> int:
        """Length D of a feature."""
        return len(self.second)


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Whose statistics these are, of what, and how much of a single label they give away.

    Attributes
    ----------
    device, bundle_id, encoder
        ``site/device``; the bundle that it runs; what :func:`edge_cl.release.encoder_hash` says of that.
    history
        Of the journal that the labels are in.
    first, seq
        The journal entries that are covered; those before `first` were pruned on the device.
    left_out
        Classes of which no label is in the sums, since there are too few to tell.
    clip_norm, noise
        Of the device's settings; 0 for neither. With noise the second moment is not told, and is 0.
    epsilon, delta
        How private one label's feature is after all `n_reports` of this device together; None without noise
        in all of them.
    """

    device: str
    bundle_id: str
    encoder: str
    history: str
    first: int = 1
    seq: int
    left_out: list[str] = []
    clip_norm: float = 0.0
    noise: float = 0.0
    epsilon: float | None = None
    delta: float = 0.0
    n_reports: int = 1


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    account: Account
    class_names: list[str]
    n_features: int


_decoder = msgspec.json.Decoder(_Header)


def empty(class_names: tuple[str, ...], n_features: int) -> Statistics:
    """Of no label."""
    n_classes = len(class_names)
    return Statistics(
        class_names=class_names,
        counts=np.zeros(n_classes),
        sums=np.zeros((n_classes, n_features)),
        second=np.zeros((n_features, n_features)),
    )


def collect(X: FloatArray, y: NDArray[np.int64], class_names: tuple[str, ...]) -> Statistics:
    """Of features X (n, D) with classes y (n,)."""
    found = empty(class_names, X.shape[1])
    for start in range(0, len(X), BLOCK):
        rows = np.asarray(X[start : start + BLOCK], np.float64)
        np.add.at(found.sums, y[start : start + BLOCK], rows)
        found.second[...] += rows.T @ rows
    found.counts[...] = np.bincount(y, minlength=len(class_names))
    return found


def of_prior(prior: Prior, class_names: tuple[str, ...], strength: float) -> Statistics:
    """Those that a head begins with, which counts a prior as at most `strength` labels a class."""
    counts = np.minimum(np.asarray(prior.class_counts, np.float64), strength)
    means = np.asarray(prior.class_means, np.float64)
    sums = counts[:, None] * means
    second = np.asarray(prior.shared_cov, np.float64) * counts.sum() + means.T @ sums
    return Statistics(class_names=class_names, counts=counts, sums=sums, second=second)


def to_prior(statistics: Statistics, exemplars: FloatArray, exemplar_labels: NDArray[np.int64]) -> Prior:
    """A bundle's prior; float64, and `shared_cov` divided by the number of labels.

    Of that covariance a head makes its scatter again by multiplying with the number of labels, so nothing is
    lost. Exemplars are the caller's: sums hold none.
    """
    counts = statistics.counts
    n = max(float(counts.sum()), 1.0)
    return Prior(
        class_counts=counts,
        class_means=_means(statistics),
        shared_cov=scatter(statistics) / n,
        second_moment=statistics.second / n,
        exemplars=exemplars,
        exemplar_labels=exemplar_labels,
    )


def scatter(statistics: Statistics) -> FloatArray:
    """The scatter within the classes, (D, D)."""
    within = statistics.second - _means(statistics).T @ statistics.sums
    symmetric: FloatArray = (within + within.T) / 2
    return symmetric


def _means(statistics: Statistics) -> FloatArray:
    counts = statistics.counts[:, None]
    return np.divide(statistics.sums, counts, out=np.zeros_like(statistics.sums), where=counts > 0)


def add(one: Statistics, other: Statistics) -> Statistics:
    """Of the labels of both; classes are the same when their names are."""
    names = union(one.class_names, other.class_names)
    one, other = aligned(one, names), aligned(other, names)
    return Statistics(
        class_names=names,
        counts=one.counts + other.counts,
        sums=one.sums + other.sums,
        second=one.second + other.second,
    )


def subtract(one: Statistics, other: Statistics) -> Statistics:
    """`one` without the labels of `other`, which are among them."""
    names = union(one.class_names, other.class_names)
    one, other = aligned(one, names), aligned(other, names)
    return Statistics(
        class_names=names,
        counts=one.counts - other.counts,
        sums=one.sums - other.sums,
        second=one.second - other.second,
    )


def union(names: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """The first names as they are, then new ones in alphabetical order.

    >>> union(("rest", "walk"), ("walk", "swim", "run"))
    ('rest', 'walk', 'run', 'swim')
    """
    return (*names, *sorted(set(others) - set(names)))


def aligned(statistics: Statistics, class_names: tuple[str, ...]) -> Statistics:
    """With these classes in this order; those that are not named must have no labels.

    Raises ValueError when features differ in size or labels would be lost.
    """
    if class_names == statistics.class_names:
        return statistics
    lost = set(statistics.class_names) - set(class_names)
    if lost:
        raise ValueError(f"classes {sorted(lost)} are not among {list(class_names)}")
    found = empty(class_names, statistics.n_features)
    rows = [class_names.index(name) for name in statistics.class_names]
    found.counts[rows], found.sums[rows] = statistics.counts, statistics.sums
    return msgspec.structs.replace(found, second=statistics.second)


def to_bytes(statistics: Statistics, account: Account) -> bytes:
    """As bytes: `MAGIC`, SHA-256 of the rest, length of the header, header (JSON), float64 arrays.

    The arrays are little-endian and without gaps: counts, sums and, without noise, the upper triangle of the
    second moment.
    """
    names = list(statistics.class_names)
    header = msgspec.json.encode(
        _Header(account=account, class_names=names, n_features=statistics.n_features)
    )
    if len(header) > MAX_HEADER_BYTES:
        raise SyncError(
            f"statistics of {len(names):,} classes have a header of {len(header):,} bytes; allowed: "
            f"{MAX_HEADER_BYTES:,}; merge classes that are alike"
        )
    arrays = [statistics.counts, statistics.sums.ravel()]
    if not account.noise:
        arrays.append(statistics.second[np.triu_indices(statistics.n_features)])
    rest = _LENGTH.pack(len(header)) + header + np.concatenate(arrays).astype("<f8").tobytes()
    return MAGIC + hashlib.sha256(rest).digest() + rest


def from_bytes(body: bytes) -> tuple[Statistics, Account]:
    """The inverse of `to_bytes`. Raises SyncError for anything that it cannot have made."""
    rest = body[len(MAGIC) + _HASH_BYTES :]
    if not body.startswith(MAGIC) or len(rest) < _LENGTH.size:
        raise SyncError(f"these are no statistics of a device: they begin with {body[:24]!r}")
    if hashlib.sha256(rest).digest() != body[len(MAGIC) : len(MAGIC) + _HASH_BYTES]:
        raise SyncError("statistics failed their checksum; ask the device for them again")
    (length,) = _LENGTH.unpack(rest[: _LENGTH.size])
    if length > MAX_HEADER_BYTES:
        raise SyncError(f"statistics have a header of {length:,} bytes; allowed: {MAX_HEADER_BYTES:,}")
    try:
        header = _decoder.decode(rest[_LENGTH.size : _LENGTH.size + length])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SyncError(f"statistics with a header that cannot be read: {error}") from error
    statistics = _read_arrays(header, rest[_LENGTH.size + length :])
    _check(statistics, header.account)
    return statistics, header.account


def _read_arrays(header: _Header, raw: bytes) -> Statistics:
    C, D = len(header.class_names), header.n_features
    if not 1 <= D <= MAX_FEATURES or len(set(header.class_names)) != C:
        raise SyncError(f"statistics of {D:,} features and classes {header.class_names[:20]} are not usable")
    n_sums, n_second = C + C * D, 0 if header.account.noise else D * (D + 1) // 2
    if len(raw) != 8 * (n_sums + n_second):
        raise SyncError(
            f"statistics of {C} classes and {D} features cannot have {len(raw):,} bytes of numbers"
        )
    numbers = np.frombuffer(raw, "<f8").astype(np.float64)
    if not np.isfinite(numbers).all():
        raise SyncError("statistics hold numbers that are not finite; the device is to be looked at")
    second = np.zeros((D, D))
    if n_second:
        second[np.triu_indices(D)] = numbers[n_sums:]
        second += np.triu(second, 1).T
    return Statistics(
        class_names=tuple(header.class_names),
        counts=numbers[:C],
        sums=numbers[C:n_sums].reshape(C, D),
        second=second,
    )


def _check(statistics: Statistics, account: Account) -> None:
    """Raise SyncError for sums that no labels can have; noise may make anything."""
    if account.noise:
        return
    counts, second = statistics.counts, statistics.second
    possible = (counts >= 0).all() and not statistics.sums[counts == 0].any()
    trace = float(np.trace(second))
    positive = np.linalg.eigvalsh(second)[0] >= -1e-9 * max(trace, 1e-300)
    if not possible or not positive or np.trace(scatter(statistics)) < -1e-9 * trace:
        raise SyncError(f"{account.device}: no labels have such sums; the device is to be looked at")
