"""``edge-cl export``: its options. The work, and torch with it, is imported only when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_cl.datasets import scenarios
from edge_cl.errors import ConfigError
from edge_cl.heads import DEFAULT, HEADS

_ABOVE_0, _FROM_1 = click.FloatRange(0, min_open=True), click.IntRange(1)
LOSSES, OPTIMISERS = ("cross-entropy", "cosine", "uer", "pcr"), ("sgd", "adamw")
"""Here too, so that --help needs no torch."""
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=_FILE, required=True, help="Recordings (.npz); `edge-cl data list`.")
@click.option("--scenario", help="A known split: " + ", ".join(scenarios.SCENARIOS) + ".")
@click.option("--train-people", help="Whose recordings train the encoder, e.g. 1-12,20.")
@click.option("--val-people", help="Whose recordings check it, e.g. 13-15.")
@click.option("--device", default="", help="Only recordings with this device tag.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Sampling rate on the device, Hz.  [default: the data's]",
)
@click.option("--window", type=_FROM_1, help="Samples per window.  [default: one second]")
@click.option("--hop", type=_FROM_1, help="Samples between windows.  [default: the window]")
@click.option("--train-hop", type=_FROM_1, help="The same for training windows.  [default: the hop]")
@click.option("--epochs", default=20, show_default=True, type=_FROM_1)
@click.option("--seed", default=0, show_default=True)
@click.option("--features", default=128, show_default=True, help="Feature size, a multiple of 4.")
@click.option("--exemplars", default=100, show_default=True, type=click.IntRange(0), help="Per class.")
@click.option("--rotate/--no-rotate", default=True, help="Turn ..._x/_y/_z vectors at random in training.")
@click.option("--model", help="Your encoder: module:factory, a trained torch.nn.Module; not trained here.")
@click.option("--split-at", help="Freeze --model up to this layer; what comes after is not taken.")
@click.option("--program", type=_FILE, help="Your encoder: a torch.export program (.pt2).")
@click.option("--onnx", type=_FILE, help="Your encoder: an ONNX file, with --feature-output.")
@click.option("--feature-output", help="The tensor of the ONNX file to use as feature.")
@click.option(
    "--head",
    default=DEFAULT,
    show_default=True,
    type=click.Choice(list(HEADS)),
    help="What learns on the device.",
)
@click.option(
    "--head-mb",
    type=_ABOVE_0,
    help="The head's largest version that fits; a device's budget counts it twice, for sleep.",
)
@click.option("--plastic-head", help="What the device trains: module:Factory.  [default: a small MLP]")
@click.option("--loss", type=click.Choice(LOSSES), help="Of --head step.  [default: cross-entropy]")
@click.option("--optimiser", type=click.Choice(OPTIMISERS), help="Of --head step.  [default: sgd]")
@click.option("--lr", type=_ABOVE_0, help="Highest learning rate of a sleep.  [default: the optimiser's]")
@click.option("--tflite", is_flag=True, help="Write .tflite twins of the step, too.")
@click.option("--variants/--no-variants", default=True, help="Write the encoder as .tflite and in int8, too.")
@click.option("--name", help="The bundle's name.  [default: the data's]")
@click.option("-o", "--out", type=_FILE, required=True, help="The bundle to write (.ecl).")
def export(**options: Any) -> None:
    """Train or take an encoder, freeze it, and write one bundle for a device."""
    try:
        from edge_cl_export import job
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"edge-cl export needs {error.name}, which is not installed; on the server run "
            "`pip install torch==2.13.0` and then `pip install 'edge-cl[export]'`"
        ) from error
    job.run(**options)
