"""Learned state on disk: the journal of labels, two snapshots, recovery."""

from edge_cl.state.describe import describe, sleep_reports
from edge_cl.state.journal import Entry, Journal
from edge_cl.state.snapshots import Snapshot, Snapshots
from edge_cl.state.store import StateStore

__all__ = ["Entry", "Journal", "Snapshot", "Snapshots", "StateStore", "describe", "sleep_reports"]
