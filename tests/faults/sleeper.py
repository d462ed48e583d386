"""A device process for fault tests: sleeps once, and says after every piece that it is still there.

Run as ``python -m tests.faults.sleeper BUNDLE STATE``.
"""

import sys
from pathlib import Path

from edge_cl import Bundle, Learner
from edge_cl.config import settings_from

SETTINGS = settings_from({"sleep": {"after_labels": 0, "idle_s": 0, "slice_ms": 1e-6}})


def main(bundle: str, state: str) -> None:
    with Learner.from_bundle(Bundle.load(Path(bundle)), state_dir=state, settings=SETTINGS) as learner:
        for _ in learner.sleep():
            sys.stdout.write("piece\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
