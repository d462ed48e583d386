"""When to rest, what to rehearse, and whether to wake with the new head."""

from edge_cl.sleep.causes import SleepNeed, sleep_cause
from edge_cl.sleep.conditions import may_sleep
from edge_cl.sleep.gate import Verdict, answers, judge
from edge_cl.sleep.rehearsal import Rehearsal, dropped
from edge_cl.sleep.samplers import after as recall_after
from edge_cl.sleep.surroundings import Surroundings

__all__ = [
    "Rehearsal",
    "SleepNeed",
    "Surroundings",
    "Verdict",
    "answers",
    "dropped",
    "judge",
    "may_sleep",
    "recall_after",
    "sleep_cause",
]
