"""Sums over many devices' labels as the prior of a bundle: pure functions, and one that writes the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import msgspec
import numpy as np

from edge_cl import statistics
from edge_cl.bundle import Bundle, Prior, npz_bytes, write_bundle
from edge_cl.errors import FleetError
from edge_cl.manifest import Merged
from edge_cl.records import FloatArray
from edge_cl.release import encoder_hash
from edge_cl.statistics import Account, Statistics
from edge_cl.sync.messages import check_label, topic_root
from edge_cl_fleet.reports import Shared

PRIOR_STRENGTH = 10.0
"""Labels a class that devices count an exported prior for; as `edge_cl.knowledge.PRIOR_STRENGTH`."""
_NUMBERS = ("class_counts", "class_means", "shared_cov", "second_moment")
LEAST_COUNT = 1.0
"""Labels that a class needs after noise, else nothing is known of it."""


def check(base: Bundle, shared: Sequence[Shared]) -> None:
    """Raise FleetError, naming the device, for sums that cannot be added to the prior of `base`.

    Names that no device or class can have are a ConfigError or SyncError.
    """
    manifest = base.manifest
    encoder = encoder_hash(base)
    for found, account in shared:
        topic_root(*account.device.split("/", 1))
        for name in found.class_names:
            check_label(name, "")
        if account.encoder != encoder:
            raise FleetError(
                f"{account.device} runs bundle {account.bundle_id[:12]}, whose encoder or sensors are not "
                f"those of {manifest.name!r} ({base.bundle_id[:12]}): its features mean something else; "
                "leave it out"
            )
        if _is_twice(base, account):
            raise FleetError(
                f"{account.device} runs bundle {account.bundle_id[:12]}, and {manifest.name!r} has labels of "
                "it already: they would count twice; install that bundle there first, or take another --base"
            )
    names = [one.account.device for one in shared]
    if len(set(names)) < len(names):
        raise FleetError(f"a device is given twice: {sorted(names)}")


def _is_twice(base: Bundle, account: Account) -> bool:
    merged = base.manifest.merged
    return merged is not None and account.device in merged.includes and account.bundle_id != base.bundle_id


def merge(base: Bundle, shared: Sequence[Shared]) -> Statistics:
    """Sums over the labels of all devices, and over those that a device's head counts base's prior for.

    The order of the devices does not matter.
    """
    found = of_base(base)
    ordered = sorted(shared, key=lambda one: one.account.device)
    for one in ordered:
        if not one.account.noise:
            found = statistics.add(found, one.statistics)
    noisy = [one.statistics for one in ordered if one.account.noise]
    return _with_noisy(found, noisy, base) if noisy else found


def of_base(base: Bundle) -> Statistics:
    """What a device that learned nothing yet knows by its bundle's prior; all labels of a merged one."""
    manifest, prior = base.manifest, base.prior()
    if prior is None:
        return statistics.empty(manifest.class_names, manifest.feature_size)
    strength = PRIOR_STRENGTH if manifest.merged is None else np.inf
    return statistics.of_prior(prior, manifest.class_names, strength)


def _with_noisy(plain: Statistics, noisy: Sequence[Statistics], base: Bundle) -> Statistics:
    """Sums of devices that add noise, with those that are exact: as labels could have them.

    Noisy ones tell no second moment: their labels are taken to scatter within a class as those behind base's
    prior. Classes that are left with no label are not known.
    """
    prior = base.prior()
    if prior is None:
        raise FleetError(
            f"devices that add noise tell no second moment, and {base.manifest.name!r} has no prior to take "
            "it from; give another --base"
        )
    found = reduce(statistics.add, noisy, plain)
    counts = np.where(found.counts >= LEAST_COUNT, found.counts, 0.0)
    sums = np.where(counts[:, None] > 0, found.sums, 0.0)
    n_noisy = max(float(counts.sum() - plain.counts.sum()), 0.0)
    within = statistics.scatter(plain) + n_noisy * np.asarray(prior.shared_cov, np.float64)
    means = sums / np.maximum(counts, LEAST_COUNT)[:, None]
    return msgspec.structs.replace(found, counts=counts, sums=sums, second=within + means.T @ sums)


def write(
    out: Path,
    base: Bundle,
    shared: Sequence[Shared],
    *,
    weight: float | None = None,
    running: Mapping[str, str] | None = None,
) -> tuple[Bundle, Statistics]:
    """A bundle like `base` with the merged prior; every other member stays as it is.

    Parameters
    ----------
    weight
        See :class:`edge_cl.bundle.Merged`.
    running
        The ids of the bundles that devices run, by ``site/device``, as far as they are known.

    Raises
    ------
    FleetError
        When the devices do not fit together, or a class would be new to a network that cannot grow.
    """
    check(base, shared)
    found = merge(base, shared)
    manifest = base.manifest
    new = found.class_names[len(manifest.class_names) :]
    if new and manifest.plastic is not None:
        raise FleetError(
            f"classes {list(new)} are new, and {manifest.name!r} carries a network for "
            f"{len(manifest.class_names)}; export it again with them, or leave out the devices that know them"
        )
    prior = _prior_of(found, base)
    members = {name: base.member(name) for name in manifest.members}
    members["prior.npz"] = npz_bytes(**{field: getattr(prior, field) for field in Prior.__struct_fields__})
    accounts = sorted((one.account for one in shared), key=lambda account: account.device)
    includes, left_out = _covered(base, accounts, running or {})
    merged = Merged(
        base=base.bundle_id,
        includes=includes,
        left_out=left_out,
        weight=weight,
        epsilon={account.device: account.epsilon for account in accounts if account.epsilon is not None},
    )
    manifest = msgspec.structs.replace(manifest, class_names=found.class_names, merged=merged)
    return write_bundle(out, manifest, members), found


def _covered(
    base: Bundle, accounts: Sequence[Account], running: Mapping[str, str]
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """`includes` and `left_out`: what was added now, and base's own of devices that did not take it over yet.

    A device that runs base numbers its labels anew since.
    """
    includes: dict[str, int] = {}
    left_out: dict[str, list[str]] = {}
    before = base.manifest.merged
    for name, seq in before.includes.items() if before else ():
        if running.get(name, base.bundle_id) != base.bundle_id:
            includes[name], left_out[name] = seq, before.left_out.get(name, []) if before else []
    for account in accounts:
        includes[account.device], left_out[account.device] = account.seq, account.left_out
    return includes, {name: names for name, names in left_out.items() if names}


def _prior_of(found: Statistics, base: Bundle) -> Prior:
    before = base.prior()
    exemplars: FloatArray = np.zeros((0, base.manifest.feature_size), np.float16)
    labels = np.zeros(0, np.int64)
    if before is not None:
        exemplars, labels = before.exemplars, before.exemplar_labels
    with np.errstate(over="ignore", invalid="ignore"):
        prior = statistics.to_prior(found, exemplars, labels)
        numbers = [np.asarray(getattr(prior, name), np.float32) for name in _NUMBERS]  # as heads take them
    if not all(np.isfinite(array).all() for array in numbers):
        raise FleetError("the sums are too large for a head; leave out the device that sends such numbers")
    return prior
