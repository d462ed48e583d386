"""``python -m edge_cl_export.default_bundle OUT``: the bundle that comes with the package.

Trained on the source people of the simulated wrist sensor; `make assets` runs it. With one thread and
the same versions the weights come out the same every time.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from edge_cl.simulate.wrist import HOP_SAMPLES, RATE_HZ, source_windows
from edge_cl_export.freeze import freeze, spread
from edge_cl_export.pack import N_GOLDEN, Source, fit, pack, split_people
from edge_cl_export.train import TrainSettings
from edge_cl_export.variants import Windows, add_variants

EPOCHS = 12
FEATURES = 64
VALIDATION_PEOPLE = (21, 22, 23)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--seed", default=0, show_default=True)
def make(out: Path, seed: int) -> None:
    """Train the default encoder and write the bundle OUT."""
    torch.set_num_threads(1)
    X, y, person, class_names, channels = source_windows(seed)
    source = Source(
        name="wrist",
        X=X,
        y=y,
        person=person,
        class_names=class_names,
        channels=channels,
        rate_hz=RATE_HZ,
        hop_samples=HOP_SAMPLES,
    )
    # A watch sits on the wrist one way round, so nothing is turned at random: the knock in the demo is
    # then as hard as a real one.
    settings = TrainSettings(feature_size=FEATURES, epochs=EPOCHS, seed=seed)
    fitted = fit(source, VALIDATION_PEOPLE, settings, progress=_say)
    pack(
        freeze(fitted.encoder, spread(source.X, N_GOLDEN)),
        source,
        out,
        metrics=fitted.metrics,
        seed=seed,
        provenance={
            "command": f"python -m edge_cl_export.default_bundle --seed {seed}",
            "data": "simulated",
            **fitted.provenance,
        },
    )
    train, validation = split_people(source, VALIDATION_PEOPLE)
    windows = Windows(calibration=train.X, X=validation.X, y=validation.y)
    bundle = add_variants(out, fitted.encoder, windows)
    click.echo(f"{out}: {out.stat().st_size:,} bytes, {bundle.manifest.provenance['metrics']}")


def _say(epoch: int, epochs: int, words: str) -> None:
    click.echo(f"epoch {epoch} of {epochs}: {words}")


if __name__ == "__main__":
    make()
