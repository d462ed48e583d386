"""A device process for fault tests: learns a fixed labelled stream and says what was receipted.

Run as ``python device.py BUNDLE STATE N_EVENTS``: starts after the last journalled label.
"""

import sys
from pathlib import Path

from edge_cl import Bundle, Learner, Receipt
from edge_cl.config import settings_from
from tests.worlds import World

SETTINGS = settings_from(
    {
        "sleep": {"after_labels": 60, "idle_s": 0, "slice_ms": 1},
        "state": {"snapshot_labels": 45, "commit_ms": 5},
    }
)


def main(bundle: str, state: str, n: int) -> None:
    events = list(World(seed=4, shift=1.0).events(n))
    with Learner.from_bundle(Bundle.load(Path(bundle)), state_dir=state, settings=SETTINGS) as learner:

        def say(answer: object) -> None:
            if isinstance(answer, Receipt) and answer.status == "learned":
                sys.stdout.write(f"{answer.reading_id}\n")
                sys.stdout.flush()

        learner.run(events[2 * learner.knowledge.n_labels :], sinks=[say])
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
