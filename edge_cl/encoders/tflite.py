"""The frozen encoder in tflite-runtime: the last release, for Python 3.11 with numpy 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_cl.encoders.interpreter import InterpreterEncoder
from edge_cl.errors import BundleError


class TfliteEncoder(InterpreterEncoder):
    """Needs ``pip install 'edge-cl[tflite]'``; prefer LiteRT where it can be had."""

    def _load(self, model: bytes, threads: int) -> Any:
        if int(np.__version__.split(".")[0]) >= 2:
            # it can be imported, and breaks only when an interpreter is made
            raise BundleError(
                f"tflite-runtime cannot work with numpy {np.__version__}; run `pip install 'numpy<2'`, "
                "or `pip install 'edge-cl[litert]'`, which takes its place"
            )
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError as error:
            raise BundleError(
                f"tflite-runtime is not installed or cannot be loaded ({error}); run `pip install "
                "'edge-cl[tflite]'` with Python 3.11, else `pip install 'edge-cl[litert]'`"
            ) from error
        return Interpreter(model_content=model, num_threads=threads)
