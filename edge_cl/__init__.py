"""edge-cl: a model on a small board that keeps learning after it is deployed.

Start reading at :mod:`edge_cl.learner`: the whole system is one loop there.
"""

import os

# onnxruntime would keep a database of its use in the user's cache folder and send it to its maker
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from edge_cl.budget import Budget
from edge_cl.bundle import Bundle
from edge_cl.learner import Learner
from edge_cl.records import Decision, Label, Reading, Receipt, SleepProgress, SleepReport

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Bundle",
    "Decision",
    "Label",
    "Learner",
    "Reading",
    "Receipt",
    "SleepProgress",
    "SleepReport",
    "__version__",
]
