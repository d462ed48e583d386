"""What a device keeps: remembered exemplars and features that wait for their label."""

from edge_cl.memory.exemplars import Exemplars
from edge_cl.memory.pending import Pending, PendingFeature
from edge_cl.memory.pq import default_codes, fit_codebook
from edge_cl.memory.replay import LEAST_EXEMPLARS, ReplayMemory
from edge_cl.memory.reservoir import Reservoir
from edge_cl.memory.rows import RowFile

__all__ = [
    "LEAST_EXEMPLARS",
    "Exemplars",
    "Pending",
    "PendingFeature",
    "ReplayMemory",
    "Reservoir",
    "RowFile",
    "default_codes",
    "fit_codebook",
]
