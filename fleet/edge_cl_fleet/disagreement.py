"""Devices that see the world otherwise than the others of their group: pure functions.

A group does the same work, so its devices' answers should be of the same classes in about the same shares.
One that differs has a loose sensor, a wrong label taught, or really another life: a person should look.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SHARE = 0.3
ACCURACY = 0.15
MIN_ANSWERS = 50
MIN_DEVICES = 3


class Outlier(NamedTuple):
    """A device and how it differs; `distance` is 0 to 1."""

    device: str
    distance: float
    why: str


def label_shares(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each label's share of a device's answers; empty for too few.

    >>> label_shares([{"n_by_label": {"sit": 30, "walk": 30}}, {"n_by_label": {"walk": 60}}])
    {'sit': 0.25, 'walk': 0.75}
    """
    counted: Counter[str] = Counter()
    for summary in summaries:
        found = summary.get("n_by_label")
        if isinstance(found, dict):
            counted.update({label: n for label, n in found.items() if isinstance(n, int) and n > 0})
    total = sum(counted.values())
    return {label: n / total for label, n in counted.items()} if total >= MIN_ANSWERS else {}


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Half the summed differences of shares: the part of the answers that would have to change.

    >>> distance({"sit": 1.0}, {"sit": 0.5, "walk": 0.5})
    0.5
    """
    return sum(abs(one.get(label, 0.0) - other.get(label, 0.0)) for label in {*one, *other}) / 2


def find_outliers(
    groups: Mapping[str, str],
    shares: Mapping[str, Mapping[str, float]],
    accuracies: Mapping[str, float | None],
) -> list[Outlier]:
    """Who differs from its group by more than chance would: worst first.

    `groups` is by device; a device is compared with the typical (median) share of each label.
    """
    members: defaultdict[str, list[str]] = defaultdict(list)
    for device, group in groups.items():
        members[group].append(device)
    found = []
    for devices in members.values():
        found += _in_shares({device: shares[device] for device in devices if shares.get(device)})
        known = {device: accuracies.get(device) for device in devices}
        found += _in_accuracy({device: value for device, value in known.items() if value is not None})
    return sorted(found, key=lambda one: -one.distance)


def _in_shares(shares: Mapping[str, Mapping[str, float]]) -> list[Outlier]:
    if len(shares) < MIN_DEVICES:
        return []
    labels = {label for share in shares.values() for label in share}
    typical = {
        label: statistics.median(share.get(label, 0.0) for share in shares.values())
        for label in sorted(labels)
    }
    found = []
    for device, share in shares.items():
        away = distance(share, typical)
        if away > SHARE:
            most = max(typical, key=lambda label: share.get(label, 0.0) - typical[label])
            why = f"answers {most} in {share.get(most, 0.0):.0%}, its group in {typical[most]:.0%}"
            found.append(Outlier(device, away, why))
    return found


def _in_accuracy(accuracies: Mapping[str, float]) -> list[Outlier]:
    if len(accuracies) < MIN_DEVICES:
        return []
    typical = statistics.median(accuracies.values())
    return [
        Outlier(device, typical - accuracy, f"accuracy {accuracy:.2f}, its group's {typical:.2f}")
        for device, accuracy in accuracies.items()
        if accuracy < typical - ACCURACY
    ]
