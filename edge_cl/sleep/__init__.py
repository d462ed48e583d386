"""When to rest, what to rehearse, and whether to wake with the new head."""

from edge_cl.sleep.gate import Verdict, judge
from edge_cl.sleep.pressure import sleep_cause
from edge_cl.sleep.rehearsal import Rehearsal

__all__ = ["Rehearsal", "Verdict", "judge", "sleep_cause"]
