"""Learned state on disk: the journal of all that was taught, snapshots, which of it counts, recovery."""

from edge_cl.state.describe import audit, describe, heads_of, sleep_reports
from edge_cl.state.entries import Entry
from edge_cl.state.journal import DamagedEntry, Journal
from edge_cl.state.revising import held_labels, revise
from edge_cl.state.snapshots import Snapshot, Snapshots
from edge_cl.state.store import StateStore
from edge_cl.state.timeline import holds

__all__ = [
    "DamagedEntry",
    "Entry",
    "Journal",
    "Snapshot",
    "Snapshots",
    "StateStore",
    "audit",
    "describe",
    "heads_of",
    "held_labels",
    "holds",
    "revise",
    "sleep_reports",
]
