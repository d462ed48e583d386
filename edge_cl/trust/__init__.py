"""When not to believe it: calibrated confidence, refused answers, accuracy on the labels that come."""

from edge_cl.trust.accuracy import PrequentialAccuracy
from edge_cl.trust.calibration import Calibrator
from edge_cl.trust.refusals import Refusals
from edge_cl.trust.stability import Stability

__all__ = ["Calibrator", "PrequentialAccuracy", "Refusals", "Stability"]
