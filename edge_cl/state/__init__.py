"""Learned state on disk: the journal of all that was taught, snapshots, which of it counts, recovery."""

from edge_cl.state.carrying import carry_back, hand_on, labels_of, last_revision, origin_of
from edge_cl.state.describe import audit, describe, heads_of, sleep_reports
from edge_cl.state.entries import Entry
from edge_cl.state.journal import DamagedEntry, Journal
from edge_cl.state.revising import (
    class_names_now,
    held_labels,
    last_hold,
    revise,
    revised_by,
    said_after,
    took_back,
)
from edge_cl.state.shared import FROM_OTHERS, SHARED, Shared
from edge_cl.state.snapshots import Snapshot, Snapshots, sync_folder
from edge_cl.state.store import JOURNAL, StateStore, locked
from edge_cl.state.timeline import holds, ranges_of
from edge_cl.state.wear import Wear

__all__ = [
    "FROM_OTHERS",
    "JOURNAL",
    "SHARED",
    "DamagedEntry",
    "Entry",
    "Journal",
    "Shared",
    "Snapshot",
    "Snapshots",
    "StateStore",
    "Wear",
    "audit",
    "carry_back",
    "class_names_now",
    "describe",
    "hand_on",
    "heads_of",
    "held_labels",
    "holds",
    "labels_of",
    "last_hold",
    "last_revision",
    "locked",
    "origin_of",
    "ranges_of",
    "revise",
    "revised_by",
    "said_after",
    "sleep_reports",
    "sync_folder",
    "took_back",
]
