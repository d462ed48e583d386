"""How a byte budget is shared: the head, what a sleep holds besides, and the memory with the rest."""

from __future__ import annotations

from pathlib import Path

from edge_cl.budget import MIB, Ledger
from edge_cl.bundle import Bundle
from edge_cl.config import MemorySettings, TrustSettings
from edge_cl.errors import BudgetExceeded, ConfigError
from edge_cl.heads import Head
from edge_cl.memory import LEAST_EXEMPLARS, Pending, ReplayMemory, Reservoir, RowFile
from edge_cl.nap import MAX_LEARNED
from edge_cl.trust import Guard, Refusals

EXEMPLARS_FILE = "exemplars"
"""In the state folder, with the name of the memory's part behind it."""
QUEUE_BYTES = 256 * 1024
"""Set aside for the outbox in memory and other queues, used or not: what fits must not depend on them."""
PENDING_SHARE = 0.1
"""Part of the budget for features that wait for a label."""
REFUSALS_SHARE = 0.01
"""Part of the budget for what readings are not."""
CHOICE_BYTES = 100
"""What a sleep holds of every exemplar it can choose: class, age, recall, the sampler's orders; measured."""
TRUSTED_SHARE = 0.03
"""Part of the budget for trusted labels that the others are checked by, at most."""


def make_guards(ledger: Ledger, n_features: int, settings: TrustSettings | None) -> tuple[Guard, Refusals]:
    """Room for trusted labels, and for what readings are not; both are registered with the ledger."""
    rows = int(TRUSTED_SHARE * ledger.capacity_bytes) // (2 * (2 * n_features + 16))
    guard = Guard(n_features, settings, max(16, min(rows, 512)))
    ledger.require("trusted labels", guard.nbytes)
    ledger.register("trusted labels", lambda: guard.nbytes)
    refusals = Refusals.within(int(REFUSALS_SHARE * ledger.capacity_bytes), n_features)
    ledger.require("refusals", refusals.nbytes)
    ledger.register("refusals", lambda: refusals.nbytes)
    return guard, refusals


def make_pending(ledger: Ledger, n_features: int) -> Pending:
    """Room for features that wait for a label; it and the queues are registered with the ledger."""
    pending = Pending.within(int(PENDING_SHARE * ledger.capacity_bytes), n_features)
    ledger.require("pending features", pending.nbytes)
    ledger.register("pending", lambda: pending.nbytes)
    ledger.require("queues", QUEUE_BYTES)
    ledger.register("queues", lambda: QUEUE_BYTES)
    return pending


def smallest_memory(settings: MemorySettings, bundle: Bundle, file: RowFile | None) -> ReplayMemory:
    """A memory of `LEAST_EXEMPLARS`, as the settings want it, its rows in `file` if given; to be resized.

    Raises ConfigError when the settings want what the bundle has not.
    """
    codec = settings.codec if settings.codec != "pq" else bundle.codebook()
    if codec is None:
        raise ConfigError(
            f"memory.codec is pq, but bundle {bundle.manifest.name!r} has no codebook; export it again, "
            "or choose float16 or int8"
        )
    n_features = bundle.manifest.feature_size
    try:
        return ReplayMemory(n_features=n_features, codec=codec, evict=settings.evict, file=file)
    except ValueError as error:
        raise ConfigError(f"{error}; see [memory] in the settings") from error


def exemplars_file(
    settings: MemorySettings, bundle: Bundle, folder: Path | None, snapshot_labels: int
) -> RowFile | None:
    """Where the settings want the exemplars kept, None for RAM.

    Parameters
    ----------
    folder
        The state folder, None when nothing is kept on disk.
    snapshot_labels
        Labels between two snapshots; a row goes to the file when two hold it.
    """
    if not settings.file:
        return None
    if folder is None:
        raise ConfigError("memory.file is true, but nothing is kept on disk; give a --state folder")
    return RowFile(
        path=folder / EXEMPLARS_FILE,
        max_bytes=int(settings.max_mb * MIB),
        owner=bundle.bundle_id,
        unsaved_rows=3 * snapshot_labels,
    )


def most_memory_bytes(settings: MemorySettings, free_bytes: int, head: Head, memory: ReplayMemory) -> int:
    """Bytes of RAM for the memory when `free_bytes` are for it and for what a sleep holds of it.

    Raises BudgetExceeded when the settings leave room for fewer exemplars than the head's classes need.
    """
    spare = free_bytes - memory.own_bytes
    row, decoded = memory.row_bytes + CHOICE_BYTES, _decoded_row_bytes(head.n_features)
    n = spare // (row + decoded)
    if n > head.most_decoded:
        n = (spare - head.most_decoded * decoded) // row
    most = _bytes_of(max(n, 0), memory)
    most = most if settings.file else min(most, int(settings.max_mb * MIB))
    n, least = memory.n_exemplars(most), _least_exemplars(head.n_classes)
    if n < least:
        raise BudgetExceeded(
            f"the memory has room for {n} exemplars, {head.n_classes} classes need {least}; raise "
            f"memory.max_mb ({settings.max_mb:g}) or budget.ram_mb, or choose a codec with fewer bytes "
            "(memory.codec)"
        )
    return most


def sleep_bytes(head: Head, memory: ReplayMemory) -> int:
    """What a sleep holds: candidate head, rehearsed exemplars, decoded, what chooses among all, labels that
    come meanwhile."""
    choice = memory.rehearsed.capacity * CHOICE_BYTES
    decoded = min(memory.rehearsed.capacity, head.most_decoded) * _decoded_row_bytes(head.n_features)
    return head.nbytes + head.rehearse_bytes + decoded + choice + beside_rows_bytes(head.n_features)


def class_bytes(head: Head) -> int:
    """What one more class costs, awake and asleep."""
    return 2 * head.bytes_per_class + head.rehearse_bytes_per_class


def memory_bytes_beside_one_more_class(ledger: Ledger, head: Head, memory: ReplayMemory, label: str) -> int:
    """What the memory may hold when the head grows by a class; BudgetExceeded when that is too little."""
    n = memory.rehearsed.capacity + memory.held_back.capacity
    if n < _least_exemplars(head.n_classes + 1):
        raise BudgetExceeded(
            f"no room for a class {label!r}: the memory holds {n} exemplars at most, {head.n_classes + 1} "
            f"classes need {_least_exemplars(head.n_classes + 1)}; raise memory.max_mb or budget.ram_mb"
        )
    needed = class_bytes(head) - ledger.free_bytes
    if needed <= 0:
        return memory.nbytes
    left = memory.nbytes - needed - memory.row_bytes
    if left < _least_bytes(head.n_classes + 1, memory):
        raise BudgetExceeded(
            f"no room for a class {label!r}: the head would grow by {class_bytes(head):,} "
            f"bytes and the memory is already at {memory.nbytes:,}; raise budget.ram_mb"
        )
    return left


def release(ledger: Ledger) -> None:
    """Give back what knowledge took of the budget."""
    for name in ("trusted labels", "refusals", "head", "sleep", "memory"):
        ledger.release(name)


def fit_settings(settings: MemorySettings, head: Head, memory: ReplayMemory) -> None:
    """After a restore under a smaller `memory.max_mb` than then: the memory keeps to it."""
    held = memory.rehearsed.capacity + memory.held_back.capacity
    most = memory.nbytes if settings.file else int(settings.max_mb * MIB)
    n = memory.n_exemplars(most)
    if n >= held:
        return
    if n < _least_exemplars(head.n_classes):
        raise BudgetExceeded(
            f"memory.max_mb ({settings.max_mb:g}) has room for {n} exemplars, the {head.n_classes} classes "
            f"that were learned need {_least_exemplars(head.n_classes)}; raise it"
        )
    memory.resize(most)


def fit_budget(ledger: Ledger, head: Head, memory: ReplayMemory) -> None:
    """After a restore under a smaller budget than then: the memory gives what is over."""
    row, decoded = memory.row_bytes, _decoded_row_bytes(head.n_features) + CHOICE_BYTES
    while (over := -ledger.free_bytes) > 0:
        left = memory.nbytes - max(over * row // (row + decoded), row)
        if left < _least_bytes(head.n_classes, memory):
            raise BudgetExceeded(
                f"what was learned needs {over:,} bytes more than the budget of "
                f"{ledger.capacity_bytes:,}; raise budget.ram_mb"
            )
        memory.resize(left)


def head_share(free_bytes: int, n_features: int) -> int:
    """Bytes of a budget that a head may hold: a sleep holds a copy of it and the exemplars, decoded."""
    row = Reservoir.row_bytes(n_features) + _decoded_row_bytes(n_features) + CHOICE_BYTES
    return max(free_bytes - LEAST_EXEMPLARS * row - beside_rows_bytes(n_features), 0) // 2


def beside_rows_bytes(n_features: int) -> int:
    """What a sleep holds however large the memory is: labels that come meanwhile."""
    return MAX_LEARNED * _decoded_row_bytes(n_features)


def _bytes_of(n_exemplars: int, memory: ReplayMemory) -> int:
    return memory.own_bytes + n_exemplars * memory.row_bytes


def _least_bytes(n_classes: int, memory: ReplayMemory) -> int:
    return _bytes_of(_least_exemplars(n_classes), memory)


def _least_exemplars(n_classes: int) -> int:
    """Some to rehearse of every class."""
    return max(2 * n_classes, LEAST_EXEMPLARS)


def _decoded_row_bytes(n_features: int) -> int:
    """What a sleep holds of one exemplar: its feature as float32, and its class."""
    return 4 * n_features + 8
