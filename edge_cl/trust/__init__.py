"""What not to believe: calibrated confidence, refused answers, accuracy, and who may teach."""

from edge_cl.trust.accuracy import PrequentialAccuracy
from edge_cl.trust.calibration import Calibrator
from edge_cl.trust.guard import Guard
from edge_cl.trust.pinned import Pinned
from edge_cl.trust.refusals import Refusals
from edge_cl.trust.relapse import Trial, TrustedAnswers, try_without
from edge_cl.trust.stability import Stability
from edge_cl.trust.teachers import TRUSTED, Origin, Said, Teachers, Verdict, trust_in

__all__ = [
    "TRUSTED",
    "Calibrator",
    "Guard",
    "Origin",
    "Pinned",
    "PrequentialAccuracy",
    "Refusals",
    "Said",
    "Stability",
    "Teachers",
    "Trial",
    "TrustedAnswers",
    "Verdict",
    "trust_in",
    "try_without",
]
