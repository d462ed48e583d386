"""The frozen encoder in LiteRT (ai-edge-litert)."""

from __future__ import annotations

from typing import Any

from edge_cl.encoders.interpreter import InterpreterEncoder
from edge_cl.errors import BundleError


class LiteRTEncoder(InterpreterEncoder):
    """Needs ``pip install 'edge-cl[litert]'``."""

    def _load(self, model: bytes, threads: int) -> Any:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise BundleError(
                "LiteRT (ai-edge-litert) is not installed or cannot be loaded "
                f"({error}); run `pip install 'edge-cl[litert]'`"
            ) from error
        return Interpreter(model_content=model, num_threads=threads)
