"""What an encoder's other forms cost: answers and accuracy on people that nothing was trained on, and bytes.

``python -m bench.encoders --data FOLDER`` first exports the bundles of myo_emg and spsw_har, unless
``--bundles`` has them from the last time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from edge_cl_export.prior import linear_scores
from numpy.typing import NDArray

from edge_cl import encoders
from edge_cl.bundle import Bundle, Prior
from edge_cl.datasets import recordings, scenarios
from edge_cl.datasets.windows import windows
from edge_cl.encoders.forms import RUNTIMES, forms, is_installed
from edge_cl.records import FloatArray
from edge_cl.simulate.bundles import default_bundle
from edge_cl.simulate.wrist import source_windows

OTHER_PEOPLE = 1
"""Seed of simulated people who are not those of the default bundle."""
SCENARIOS = {"myo": "new-person", "spsw": "phone-to-watch"}
JUDGED = ("wrist", "myo")
"""Whose worst is the result; spsw was looked at when the way to quantise was chosen."""
BATCH = 256


def measure(data: Path | None, bundles: Path) -> dict[str, Any]:
    """Per bundle and form: agreement, accuracy lost (points), size and median time against float32.

    Parameters
    ----------
    data
        Folder with myo_emg.npz and spsw_har.npz; None for the default bundle alone.
    bundles
        Folder where their bundles are, or are put.
    """
    X, y, *_ = source_windows(OTHER_PEOPLE)
    found = {"wrist": of_bundle(default_bundle(), X, y)}
    for name, scenario in SCENARIOS.items() if data else ():
        bundle = _exported(bundles / f"{name}.ecl", data, scenario)
        found[name] = of_bundle(bundle, *_stream(data, scenario))
    judging = [name for name in JUDGED if name in found]
    judged = [form for name in judging for form in found[name].values() if form["precision"] == "int8"]
    return {
        "int8_agreement": min(form["agreement"] for form in judged),
        "int8_accuracy_loss_points": max(form["accuracy_loss_points"] for form in judged),
        **{
            f"{kind}_int8_size_ratio": max(
                found[name][form]["size_ratio"]
                for name in judging
                if (form := f"{kind} int8") in found[name]  # else a gate left it out
            )
            for kind in ("onnx", "tflite")
        },
        "judged": judging,
        "bundles": found,
    }


def of_bundle(bundle: Bundle, X: FloatArray, y: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """By form, against the first one, on windows (n, n_samples, n_channels) and their classes."""
    prior = bundle.prior()
    if prior is None:
        raise ValueError(f"bundle {bundle.manifest.name} has no prior to answer by")
    size = {name: member.size for name, member in bundle.manifest.members.items()}
    scheme = {variant.member: variant.scheme for variant in bundle.manifest.variants}
    reference: NDArray[np.int64] | None = None
    found = {}
    for form in forms(bundle):
        runtime = next(r.name for r in RUNTIMES.values() if r.format == form.format and is_installed(r))
        said = _answers(encoders.load(bundle, form, runtime), prior, X)
        reference = said if reference is None else reference
        float32 = next(f for f in forms(bundle) if (f.format, f.precision) == (form.format, "float32"))
        found[str(form)] = {
            "precision": form.precision,
            "scheme": scheme.get(form.member, ""),
            "windows": len(X),
            "agreement": round(float((said == reference).mean()), 5),
            "accuracy": round(float((said == y).mean()), 5),
            "accuracy_loss_points": round(100 * float((reference == y).mean() - (said == y).mean()), 3),
            "bytes": size[form.member],
            "size_ratio": round(size[form.member] / size[float32.member], 4),
            "latency_ratio_at_export": form.report.latency_ratio if form.report else 1.0,
        }
    return found


def _answers(encoder: encoders.Encoder, prior: Prior, X: FloatArray) -> NDArray[np.int64]:
    batches = [encoder.encode_many(X[k : k + BATCH]) for k in range(0, len(X), BATCH)]
    said: NDArray[np.int64] = linear_scores(prior, np.concatenate(batches)).argmax(1)
    return said


def _exported(path: Path, data: Path, scenario: str) -> Bundle:
    if not path.exists():
        from edge_cl_export.command import export

        path.parent.mkdir(parents=True, exist_ok=True)
        file = data / f"{scenarios.get(scenario).data}.npz"
        export.main(["--data", str(file), "--scenario", scenario, "-o", str(path)], standalone_mode=False)
    return Bundle.load(path)


def _stream(data: Path, scenario: str) -> tuple[FloatArray, NDArray[np.int64]]:
    plan = scenarios.get(scenario)
    cut = windows(
        scenarios.split(recordings.load(data / f"{plan.data}.npz"), plan).stream,
        rate_hz=plan.rate_hz,
        window_samples=plan.window_samples,
        hop_samples=plan.hop_samples,
    )
    return cut.X, cut.y


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--bundles", type=click.Path(path_type=Path), default=Path("bench-encoders"), show_default=True)
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the figures here, too.")
def main(data: Path, bundles: Path, as_json: Path | None) -> None:
    """Print the figures as JSON."""
    text = json.dumps(measure(data, bundles), indent=2)
    click.echo(text)
    if as_json is not None:
        as_json.write_text(text + "\n")


if __name__ == "__main__":
    main()
