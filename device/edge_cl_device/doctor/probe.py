"""Imports one module and says its version: ``python -m edge_cl_device.doctor.probe MODULE [PROVIDER]``.

In a process of its own, since a module that was built for another processor ends it. With a provider of
onnxruntime, a session of the packaged bundle's encoder is opened, to see which are active: one that cannot
start is left out without a word.
"""

from __future__ import annotations

import importlib
import sys

import msgspec


def main() -> None:
    """Write what was found as JSON."""
    module, *provider = sys.argv[1:]
    try:
        loaded = importlib.import_module(module)
        version = str(getattr(loaded, "__version__", ""))
        found = {"version": version, "providers": _active(loaded, provider[0]) if provider else []}
    except Exception as error:  # noqa: BLE001  whatever a foreign module raises is the finding
        found = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.buffer.write(msgspec.json.encode(found))


def _active(onnxruntime: object, provider: str) -> list[str]:
    from edge_cl.bundle import Bundle
    from edge_cl_device.measurements import packaged_bundle

    bundle = Bundle.load(packaged_bundle())
    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(  # type: ignore[attr-defined]
        bundle.member(bundle.manifest.encoder.member), options, providers=[provider, "CPUExecutionProvider"]
    )
    return list(session.get_providers())


if __name__ == "__main__":
    main()
