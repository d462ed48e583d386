"""What a device computes, as JSON: ``python answers.py BUNDLE WINDOWS.npy RUNTIME PRECISION``.

Runs on either machine, with nothing but the installed wheel: features of all windows, the probabilities of a
new device, and those after it was taught every tenth window as the next class.
"""

from __future__ import annotations

import sys

import msgspec
import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.config import settings_from
from edge_cl.learner import Learner
from edge_cl.records import Label, Reading


def main() -> None:
    """Compute and print."""
    path, windows, runtime, precision = sys.argv[1:]
    bundle, X = Bundle.load(path), np.load(windows)
    settings = settings_from({"encoder": {"runtime": runtime, "precision": precision}})
    with Learner.from_bundle(bundle, settings=settings) as learner:
        features = learner.encoder.encode_many(X)
        before = learner.predict(X)
        names = bundle.manifest.class_names
        for k, window in enumerate(X):
            learner.observe(Reading(id=f"r{k}", t_s=float(k), window=window))
            if k % 10 == 0:
                learner.teach(Label(reading_id=f"r{k}", label=names[(before[k].argmax() + 1) % len(names)]))
        after = learner.predict(X)
    found = {"features": features.tolist(), "before": before.tolist(), "after": after.tolist()}
    sys.stdout.write(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
