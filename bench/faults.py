"""What faults cost. ``python -m bench.faults [--quick] [--data FOLDER] [--json FILE]``

=============  ==========================================================================================
power-cuts     an ext4 image copied under a device that learns, and started from (root and loop devices)
kills          ``kill -9`` at random moments
corruption     a byte of a stopped or killed device's folder changed
injected       EIO, ENOSPC, short writes at each call that changes a file (a C compiler)
wear           bytes that reach the block device per label (root and loop devices)
recovery       seconds to the first prediction after 100,000 labels
forgetting     a tenth of 10,000 labels taken back: seconds, and the difference to a head that never saw them
poison         100 flipped labels a day from one source: points of recall of the attacked class (real streams)
=============  ==========================================================================================

Each part's docstring in its module says what is done and what is not. Everything takes about half an
hour, ``--quick`` two minutes; ``--only`` names parts. A part that cannot run here leaves its figures null.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from bench import (
    corruption,
    forgetting,
    injected,
    kills,
    lives,
    loop_disk,
    poison,
    power_cuts,
    recovery,
    wear,
)
from bench.pipeline import versions
from edge_cl.datasets.streams import find_streams
from edge_cl.errors import DataError

Targets: TypeAlias = dict[str, tuple[str, Callable[[float], bool]]]
"""By figure: the target in words, and whether a value meets it."""
TARGETS: Targets = {
    "power_cuts": ("≥ 300", lambda x: x >= 300),
    "kills": ("≥ 1,000", lambda x: x >= 1000),
    "corruptions": ("≥ 10,000", lambda x: x >= 10_000),
    "labels_lost": ("0", lambda x: x == 0),
    "unreadable_heads": ("0", lambda x: x == 0),
    "hash_mismatches": ("0", lambda x: x == 0),
    "undetected_corruptions": ("0", lambda x: x == 0),
    "recovery_s_100k": ("≤ 1", lambda x: x <= 1),
    "forget_max_error": ("≤ 1e-5", lambda x: x <= 1e-5),
    "forget_s": ("≤ 2", lambda x: x <= 2),
    "poison_recall_loss_points": ("≤ 5", lambda x: x <= 5),
    "bytes_per_label": ("≤ 2,500", lambda x: x <= 2500),
}
SHOWN_FAILURES = 20


class Size(NamedTuple):
    """How much of everything is done; cuts and kills also of a device that forgets. `data`: real streams."""

    cuts: int
    default_cuts: int
    forgetting_cuts: int
    kills: int
    forgetting_kills: int
    corruptions: int
    every_call: int
    worn_before: int
    worn_labels: int
    history_labels: int
    forgotten_from: int
    compared_after: int
    poisoned: tuple[str, ...]
    targets: int
    seeds: int
    data: Path | None = None


FULL = Size(240, 30, 60, 900, 100, 10_000, 1, 2_000, 55_000, 100_000, 10_000, 2_000, poison.REPORTED, 3, 2)
QUICK = Size(15, 4, 5, 30, 10, 300, 11, 500, 1200, 2500, 500, 200, poison.REPORTED[:1], 1, 1)


def cut_power(size: Size, folder: Path) -> dict[str, Any]:
    """Of a small head, learning and forgetting, and of the default bundle."""
    if why := loop_disk.why_not():
        return {"skipped": why}
    found = power_cuts.measure(lives.small(folder), size.cuts)
    found += power_cuts.measure(lives.forgetting(folder), size.forgetting_cuts)
    found += power_cuts.measure(lives.default(), size.default_cuts, image_mib=48)
    return dict(found)


def kill(size: Size, folder: Path) -> dict[str, Any]:
    """Of a small head, learning and forgetting."""
    found = kills.measure(lives.small(folder), size.kills)
    return dict(found + kills.measure(lives.forgetting(folder), size.forgetting_kills))


def corrupt(size: Size, folder: Path) -> dict[str, Any]:
    """Of a small head."""
    life = lives.small(folder, n_labels=corruption.N_LABELS, **corruption.SETTINGS)
    found, failed = corruption.measure(life, size.corruptions)
    return {**found, "failed": _listed(failed, lambda t: f"{t.outcome}: {t.victim}, {t.file}")}


def inject(size: Size, folder: Path) -> dict[str, Any]:
    """Into a small head's device."""
    if why := injected.why_not():
        return {"skipped": why}
    found, failed = injected.measure(every=size.every_call)
    found["labels_lost"] = found["labels lost"]
    found["unreadable_heads"] = found["no restart"]
    found["hash_mismatches"] = found["other knowledge"] + found["refused yet known"]
    return {**found, "failed": _listed(failed, lambda t: f"{t.outcome}: {t.kind}, {t.phase}, {t.call}")}


def wear_out(size: Size, folder: Path) -> dict[str, Any]:
    """Of the default bundle."""
    if why := loop_disk.why_not():
        return {"skipped": why}
    return dict(wear.measure(size.worn_labels, size.worn_before))


def recover(size: Size, folder: Path) -> dict[str, Any]:
    """Of the default bundle."""
    return recovery.measure(size.history_labels)


def forget(size: Size, folder: Path) -> dict[str, Any]:
    """Of the default bundle, by head."""
    return forgetting.measure(size.forgotten_from, size.compared_after)


def teach_lies(size: Size, folder: Path) -> dict[str, Any]:
    """Streams on which nothing of the defence was chosen."""
    if size.data is None:
        return {"skipped": "no --data with feature streams"}
    try:
        return poison.measure(find_streams(size.data, only=size.poisoned), size.targets, size.seeds)
    except DataError as error:
        return {"skipped": str(error)}


PARTS: dict[str, Callable[[Size, Path], dict[str, Any]]] = {
    "power-cuts": cut_power,
    "kills": kill,
    "corruption": corrupt,
    "injected": inject,
    "wear": wear_out,
    "recovery": recover,
    "forgetting": forget,
    "poison": teach_lies,
}


def measure(parts: Iterable[str], size: Size) -> dict[str, Any]:
    """The figures of `TARGETS`, null where no part gave one; and what each part found, under ``parts``."""
    found = {}
    for name in parts:
        with tempfile.TemporaryDirectory(dir=loop_disk.in_memory()) as place:
            found[name] = PARTS[name](size, Path(place))
            print(f"{name}: {found[name]}", flush=True)
    figures: dict[str, Any] = dict.fromkeys(TARGETS)
    for part in found.values():
        for name in figures.keys() & part.keys():
            figures[name] = (figures[name] or 0) + part[name]
    if {"power-cuts", "kills"} & found.keys():  # a counter does not count to zero
        for name in ("labels_lost", "unreadable_heads", "hash_mismatches"):
            figures[name] = figures[name] or 0
    return figures | {"parts": found}


def show(figures: dict[str, Any], targets: Targets = TARGETS) -> None:
    """The table."""
    for name, (target, met) in targets.items():
        value = figures[name]
        told = f"{value:>12,.6g}" if value is not None else f"{'not measured':>12}"
        print(f"{name:28s} {told}   target {target}{'' if value is None or met(value) else '  MISSED'}")


def _listed(failed: Iterable[Any], kind: Callable[[Any], str]) -> dict[str, int]:
    """The commonest kinds of failure and how often each was met."""
    return dict(Counter(map(kind, failed)).most_common(SHOWN_FAILURES))


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute: only shows that it measures")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("EDGE_CL_DATA"), metavar="FOLDER", help="for poison"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    asked = parser.parse_args()
    size = (QUICK if asked.quick else FULL)._replace(data=asked.data)
    figures = measure(asked.only.split(","), size) | {"versions": versions()}
    show(figures)
    if asked.json:
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


if __name__ == "__main__":
    main()
