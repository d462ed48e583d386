"""Python, the inference runtimes and what goes badly with them."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator

from edge_cl.encoders.forms import RUNTIMES, Runtime
from edge_cl_device.doctor.findings import Finding, note, ok, problem, warning
from edge_cl_device.doctor.scene import VENV, Scene

OLDEST, NEWEST = (3, 11), (3, 13)
OLDEST_ONNXRUNTIME = (1, 28, 1)
"""Earlier ones read files outside of the model, or crash: 1.21 with an illegal instruction on a Pi 4."""
RUNTIME_OF = {name: runtime for runtime in RUNTIMES.values() for name in runtime.distributions}
"""By what is installed."""
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
CHOICE = "encoder.json"
"""In the state folder; written by ``edge-cl verify --bench``."""
_PIP = f"sudo /{VENV}/bin/pip install"


def check(scene: Scene) -> Iterator[Finding]:
    """Whether Python and a runtime are there, fit each other, and really start."""
    yield from _python(scene)
    packages = scene.packages
    if not packages:
        yield note("runtime", "no installed packages can be read", "edge-cl is not installed here")
        return
    yield from _clashes(packages)
    yield from _versions(scene)
    yield from _imports(scene)
    yield from _providers(scene)
    yield from _choice(scene)


def _python(scene: Scene) -> Iterator[Finding]:
    named = [p.name.removeprefix("python") for p in scene.path(VENV).glob("lib/python3*")]
    version = sorted(named)[0] if named else platform.python_version() if scene.live else ""
    numbers = _numbers(version)[:2]
    if not numbers:
        yield note("python", "no environment of edge-cl below /opt", "nothing is installed")
    elif not OLDEST <= numbers <= NEWEST:
        yield problem(
            "python",
            f"Python {version}",
            f"edge-cl runs with {_dotted(OLDEST)} to {_dotted(NEWEST)}",
            "install such a Python and run device/install.sh again with --python; see docs/boards.md",
        )
    else:
        yield ok("python", f"Python {version}")
    if scene.live and not scene.path(VENV).exists() and not _in_environment():
        yield warning(
            "python-environment",
            "edge-cl runs in the system's Python, not in an environment of its own",
            "an update of the system can take its packages away (PEP 668)",
            "install it with device/install.sh, or python3 -m venv",
        )


def _in_environment() -> bool:
    import sys

    return sys.prefix != sys.base_prefix


def _clashes(packages: dict[str, str]) -> Iterator[Finding]:
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        yield problem(
            "onnxruntime-twice",
            "onnxruntime and onnxruntime-gpu are both installed",
            "they overwrite each other's files: the GPU is silently not used, or nothing works",
            f"/{VENV}/bin/pip uninstall -y onnxruntime onnxruntime-gpu, then install one again",
        )
    numpy = _numbers(packages.get("numpy", ""))
    if "tflite-runtime" in packages and numpy >= (2,):
        yield problem(
            "tflite-numpy",
            f"tflite-runtime {packages['tflite-runtime']} with numpy {packages['numpy']}",
            "it was built for numpy 1: it imports, and fails when a model is loaded",
            f"{_PIP} 'numpy<2', or better {_PIP} 'edge-cl[litert]'",
        )


def _versions(scene: Scene) -> Iterator[Finding]:
    packages = scene.packages
    known = {name: packages[name] for name in RUNTIME_OF if name in packages}
    encoder = scene.bundle.manifest.encoder.kind if scene.bundle else "onnx"
    if not known and encoder != "identity":
        yield problem(
            "runtime",
            "no inference runtime is installed",
            "the bundle's encoder cannot run",
            f"{_PIP} 'edge-cl[onnx]' (or 'edge-cl[litert]'; on a Jetson onnxruntime-gpu, see docs/boards.md)",
        )
    elif known:
        yield ok("runtime", ", ".join(f"{name} {version}" for name, version in known.items()))
    yield from _asked_for(scene, known)
    onnx = known.get("onnxruntime") or known.get("onnxruntime-gpu", "")
    if onnx and _numbers(onnx) < OLDEST_ONNXRUNTIME:
        crash = "; 1.21 ends with an illegal instruction on a Pi 4" if onnx.startswith("1.21.") else ""
        yield problem(
            "onnxruntime-old",
            f"onnxruntime {onnx}, {_dotted(OLDEST_ONNXRUNTIME)} is the oldest that edge-cl is tested with",
            f"older ones have known holes in reading models{crash}",
            f"{_PIP} --upgrade 'edge-cl[onnx]'",
        )


def _asked_for(scene: Scene, known: dict[str, str]) -> Iterator[Finding]:
    """Whether what the settings name, and what the bundle is made for, is among the runtimes."""
    installed: set[str] = {RUNTIME_OF[name].name for name in known}
    wished = scene.settings.encoder.runtime
    if wished != "auto" and wished not in installed:
        yield problem(
            "runtime-missing",
            f"encoder.runtime is {wished}, installed are: {', '.join(sorted(installed)) or 'none'}",
            "the encoder cannot run as it was asked for",
            f"{_PIP} 'edge-cl[{wished}]', or set encoder.runtime = \"auto\"",
        )
    manifest = scene.bundle.manifest if scene.bundle else None
    if manifest is None or manifest.encoder.kind == "identity" or not known:
        return
    forms = {"onnx", *(variant.format for variant in manifest.variants)}
    if not installed & {runtime.name for runtime in RUNTIMES.values() if runtime.format in forms}:
        yield problem(
            "runtime-missing",
            f"bundle {manifest.name} has encoders for {', '.join(sorted(forms))}, installed are: "
            f"{', '.join(sorted(installed))}",
            "the encoder cannot run",
            f"{_PIP} 'edge-cl[onnx]'",
        )


def _imports(scene: Scene) -> Iterator[Finding]:
    runtimes = [_imported(runtime) for name, runtime in RUNTIME_OF.items() if name in scene.packages]
    for module in dict.fromkeys(["numpy", *runtimes]):
        probed = scene.probe(module)
        if probed is None:
            return
        name = f"import-{module.partition('.')[0]}"
        if not probed.error:
            yield ok(name, f"{module} can be imported")
            continue
        illegal = "signal 4" in probed.error
        yield problem(
            name,
            f"importing {module}: {probed.error}",
            "it was built for a newer processor than this one" if illegal else "the device cannot use it",
            f"{_PIP} --force-reinstall {module.partition('.')[0].replace('_', '-')}"
            + (", an older or a newer release" if illegal else ""),
        )


def _imported(runtime: Runtime) -> str:
    """What loads its native code."""
    return f"{runtime.module}.interpreter" if runtime.format == "tflite" else runtime.module


def _providers(scene: Scene) -> Iterator[Finding]:
    """Which execution providers a session really has: one that cannot start is left out without a word."""
    wished = PROVIDERS.get(scene.settings.encoder.provider, "CPUExecutionProvider")
    if not {"onnxruntime", "onnxruntime-gpu"} & set(scene.packages):
        return
    probed = scene.probe("onnxruntime", wished)
    if probed is None or probed.error:
        return  # said by the import
    if wished not in probed.providers:
        yield problem(
            "providers",
            f"encoder.provider is {scene.settings.encoder.provider}, a session has "
            f"{', '.join(probed.providers) or 'none'}",
            "the encoder runs on the processor instead, and says nothing about it",
            'install onnxruntime-gpu for your JetPack (docs/boards.md), or set encoder.provider = "cpu"',
        )
    else:
        yield ok("providers", f"active: {', '.join(probed.providers)}")


def _choice(scene: Scene) -> Iterator[Finding]:
    """Whether it was measured here which of several encoders is the best."""
    if scene.bundle is None or not scene.bundle.manifest.variants:
        return
    if scene.exists(scene.state / CHOICE):
        yield ok("encoder-choice", "the encoder's runtime and form were chosen by measurement")
    else:
        yield note(
            "encoder-choice",
            "nobody measured which of the bundle's encoders is the fastest here",
            "the first that works is used, in float32",
            "edge-cl verify BUNDLE --bench --state STATE; the service does it when it starts",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
