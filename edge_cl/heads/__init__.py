"""What learns: one head per file, all with the contract of :class:`edge_cl.heads.base.Head`.

========== ==================================== ========================= ================================
name       memory (bytes, float32)              one label                 good at
========== ==================================== ========================= ================================
dual       4·d·(d+C) + 4·W² + 8·A·D + 4·257²    O(d² + W² + (W+A)·D)      today *and* last month (default)
slda       8·D² + 8·C·D                         O(D²) amortised           remembering; small; exact merge
kalman     4·D·(D+C)                            O(D² + C·D)               uncertainty; exact merge
prototype  4·C·D·(2+K)                          O(K²·D)                   the smallest boards
logistic   4·D² + 8·C·D                         O(D² + C·D)               one scale for all; sure answers
knn        memory_bytes + 4·C·D                 O(D); predict O(n·D)      classes of any shape; forgets one
step       4·P + 4·W² + 8·W·D                   network + O(W² + W·D)     your own torch head, trained asleep
========== ==================================== ========================= ================================

D features, C classes, d lifted features, W recent samples, A anchors, K sub-prototypes, n exemplars, P
numbers in the network; `step` needs the program of a bundle exported for it (`STANDALONE` are the others);
`needed_bytes` gives the exact figure.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edge_cl.errors import BudgetExceeded
from edge_cl.heads.base import MAX_EXEMPLARS, Head, HeadState

if TYPE_CHECKING:
    from edge_cl.heads.program import StepProgram


class _Heads(Mapping[str, type[Head]]):
    """The classes by name, each imported when it is asked for: a device uses one, and all cost 0.6 MB."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __getitem__(self, name: str) -> type[Head]:
        if name not in self._names:
            raise KeyError(name)
        head: type[Head] = getattr(
            importlib.import_module(f"edge_cl.heads.{name}"), f"{name.capitalize()}Head"
        )
        return head

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


STANDALONE = ("dual", "slda", "kalman", "prototype", "logistic", "knn")
"""Heads that any bundle can have: they need no compiled program."""
HEADS: Mapping[str, type[Head]] = _Heads(*STANDALONE, "step")
DEFAULT = "dual"
LEAN = {"lift": 512, "window": 128, "anchors": 0, "memory_bytes": 60 * 1024}
"""Options of a `dual` of about 3 MB: half the lifted features, a constant gate."""
SMALLER: dict[str, tuple[dict[str, int], ...]] = {
    "dual": (
        {"memory_bytes": 0},
        LEAN,
        {"lift": 256, "window": 64, "anchors": 0, "memory_bytes": 0},
    ),
    "knn": tuple({"memory_bytes": 2**n} for n in (18, 16, 14)),
    "prototype": ({"sub_prototypes": 2}, {"sub_prototypes": 0}),
    "step": ({"window": 128}, {"window": 64}),
}
"""Options that make a head smaller, each time more so; the last are the smallest worth having."""

__all__ = [
    "DEFAULT",
    "HEADS",
    "LEAN",
    "MAX_EXEMPLARS",
    "SMALLER",
    "STANDALONE",
    "Head",
    "HeadState",
    "create",
    "device_options",
    "fit",
    "from_state",
    "needed_bytes",
    "versions",
]


def create(
    name: str = DEFAULT,
    *,
    n_features: int,
    n_classes: int = 0,
    max_bytes: int | None = None,
    program: StepProgram | None = None,
    **options: Any,
) -> Head:
    """Make a head by name; with `max_bytes` only one that needs no more; `program` if the head needs one.

    >>> head = create("slda", n_features=2, n_classes=2)
    >>> head.learn_one([0.0, 1.0], 0); head.learn_one([1.0, 0.0], 1)
    >>> int(head.predict_one([0.9, 0.2]).argmax())
    1

    Raises
    ------
    ValueError
        When the head or an option is unknown, or an option's value is not allowed.
    BudgetExceeded
        When it needs more than `max_bytes`; says what would fit.
    """
    options |= _given(name, program)
    if max_bytes is not None:
        _require(max_bytes, name, n_features, n_classes, options)
    with _named(name) as cls:
        return cls(n_features, n_classes, **options)


def needed_bytes(
    name: str = DEFAULT,
    *,
    n_features: int,
    n_classes: int = 0,
    program: StepProgram | None = None,
    **options: Any,
) -> int:
    """Bytes that a new head would hold; nothing is allocated.

    >>> needed_bytes("prototype", n_features=128, n_classes=10)
    32224
    """
    with _named(name) as cls:
        return cls.needed_bytes(n_features, n_classes, **options, **_given(name, program))


def device_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """`options` as a device takes them: it has a replay memory, so the head keeps none of its own."""
    keeps_memory = name in HEADS and HEADS[name].keeps_memory
    return {**options, "memory_bytes": 0} if keeps_memory else dict(options)


def versions(name: str = DEFAULT) -> list[dict[str, Any]]:
    """Options of a head on a device: the default's, then those of `SMALLER`, each smaller than the last."""
    found: list[dict[str, Any]] = []
    for options in ({}, *SMALLER.get(name, ())):
        wanted = device_options(name, options)
        if wanted not in found:
            found.append(wanted)
    return found


def fit(
    name: str = DEFAULT,
    *,
    max_bytes: int,
    n_features: int,
    n_classes: int = 0,
    program: StepProgram | None = None,
) -> dict[str, Any]:
    """Options of the largest of a head's `versions` that needs no more than `max_bytes`.

    >>> fit("prototype", max_bytes=25_000, n_features=128, n_classes=10)
    {'sub_prototypes': 2}

    Raises
    ------
    ValueError
        When the head is unknown.
    BudgetExceeded
        When the smallest needs more; says what would fit.
    """
    *larger, smallest = versions(name)
    given = _given(name, program)
    for options in larger:
        if needed_bytes(name, n_features=n_features, n_classes=n_classes, **options, **given) <= max_bytes:
            return options
    _require(max_bytes, name, n_features, n_classes, smallest | given)
    return smallest


def _given(name: str, program: StepProgram | None) -> dict[str, Any]:
    """The program, for a head that needs one."""
    return {"program": program} if name in HEADS and HEADS[name].needs_program else {}


@contextlib.contextmanager
def _named(name: str) -> Iterator[type[Head]]:
    """The class of a head; an unknown option of it is a ValueError that names it and what there is."""
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}; known: {', '.join(HEADS)}")
    try:
        yield HEADS[name]
    except TypeError as error:
        known = [
            option
            for option in inspect.signature(HEADS[name]).parameters
            if not option.startswith("n_") and option != "program"
        ]
        raise ValueError(f"head {name!r}: {error}; its options: {', '.join(known) or 'none'}") from None


def _require(max_bytes: int, name: str, n_features: int, n_classes: int, options: dict[str, Any]) -> None:
    needed = needed_bytes(name, n_features=n_features, n_classes=n_classes, **options)
    if needed > max_bytes:
        raise BudgetExceeded(
            f"head {name!r} needs {needed:,} bytes for {n_features} features and {n_classes} classes, "
            f"allowed are {max_bytes:,}; {_what_fits(max_bytes, name, n_features, n_classes, options)}"
        )


def _what_fits(max_bytes: int, name: str, n_features: int, n_classes: int, options: dict[str, Any]) -> str:
    """The same head, smaller or with fewer classes, else other heads; for a message."""

    def needed(name: str, n_classes: int, options: dict[str, Any]) -> int:
        return needed_bytes(name, n_features=n_features, n_classes=n_classes, **options)

    found = []
    for smaller in SMALLER.get(name, ()):
        size = needed(name, n_classes, options | smaller)
        if size <= max_bytes:
            changes = ", ".join(f"{option} = {value:,}" for option, value in smaller.items())
            found.append(f"{name} with {changes} ({size:,} bytes)")
            break
    if not found:
        sizes = {
            other: needed(other, n_classes, SMALLER.get(other, ({},))[-1])
            for other in STANDALONE
            if other != name
        }
        found = [f"{other} ({size:,} bytes)" for other, size in sizes.items() if size <= max_bytes]
    without = needed(name, 0, options)
    most_classes = (max_bytes - without) // (needed(name, 1, options) - without)
    if most_classes > 0:
        found.append(f"{name} as asked for with at most {most_classes:,} classes")
    return "what fits: " + "; ".join(found) if found else "no head fits; allow more, or use fewer features"


def from_state(state: HeadState, program: StepProgram | None = None) -> Head:
    """Make a head from what `Head.state` gave, bit-exactly; `program` is the bundle's.

    Raises
    ------
    ValueError
        When the state belongs to an unknown head or a newer version.
    """
    if state.head not in HEADS:
        raise ValueError(f"state of an unknown head {state.head!r}; known: {', '.join(HEADS)}")
    return HEADS[state.head].from_state(state, **_given(state.head, program))
