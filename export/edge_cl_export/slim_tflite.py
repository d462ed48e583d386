"""A ``.tflite`` file in fewer bytes: what is equal is stored once, what nobody reads is left out."""

from __future__ import annotations

from typing import Any, cast

import flatbuffers
import numpy as np
from ai_edge_litert.tools import flatbuffer_utils

IDENTIFIER = b"TFL3"


def slim(model: bytes, *, names: bool = False) -> bytes:
    """The same computation, operator by operator.

    Parameters
    ----------
    model
        A file with one graph of fixed shapes; any other comes back as it is.
    names
        Keep the signature, and call inner tensors by short names: the quantiser needs both. A runtime
        that is told which tensors are input and output needs none.
    """
    tree: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    if not _understood(tree):
        return model
    tree.metadata = tree.metadataBuffer = tree.description = None
    (graph,) = tree.subgraphs
    graph.name = None
    if not names:
        tree.signatureDefs = None
    ends = {*graph.inputs, *graph.outputs}
    for number, tensor in enumerate(graph.tensors):
        if not names:
            tensor.name = None
        elif number not in ends:
            tensor.name = b"%d" % number
        _strip(tensor)
    _share_buffers(tree, graph)
    _share_tables(graph)
    builder = _SharingBuilder(len(model))
    builder.Finish(tree.Pack(builder), file_identifier=IDENTIFIER)
    found = bytes(builder.Output())
    return found if len(found) < len(model) else model


def _understood(tree: Any) -> bool:
    if len(tree.subgraphs) != 1:
        return False
    (graph,) = tree.subgraphs
    free = any(-1 in (tensor.shapeSignature or ()) or tensor.isVariable for tensor in graph.tensors)
    return not free and all(op.customOptions is None for op in graph.operators)


def _strip(tensor: Any) -> None:
    """Leave out what says nothing: signatures of fixed shapes, calibrated ranges, parameters of no scale."""
    tensor.shapeSignature = None
    tensor.hasRank = False  # for converters, which meet shapes that nobody knows yet
    quantization = tensor.quantization
    if quantization is None:
        return
    quantization.min = quantization.max = None
    if quantization.scale is None and quantization.details is None:
        tensor.quantization = None


def _share_buffers(tree: Any, graph: Any) -> None:
    """One buffer for equal bytes, none for those that no tensor reads; the first one stays, and is empty."""
    kept, place = [tree.buffers[0]], {_key(tree.buffers[0].data): 0}
    for tensor in graph.tensors:
        key = _key(tree.buffers[tensor.buffer].data)
        if key not in place:
            place[key] = len(kept)
            kept.append(tree.buffers[tensor.buffer])
        tensor.buffer = place[key]
    tree.buffers = kept


def _share_tables(graph: Any) -> None:
    """One table for equal options of operators, for equal scales, and for tensors that are alike."""
    first: dict[object, _Once] = {}

    def shared(table: Any) -> Any:
        return table and first.setdefault((type(table), _key(table)), _Once(table))

    for operator in graph.operators:
        operator.builtinOptions = shared(operator.builtinOptions)
    for tensor in graph.tensors:
        tensor.quantization = shared(tensor.quantization)
    graph.tensors = [shared(tensor) for tensor in graph.tensors]


def _key(value: Any) -> object:
    """Equal for what would be the same bytes."""
    if isinstance(value, _Once):
        return id(value)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    fields = getattr(value, "__dict__", None)
    return value if fields is None else tuple((name, _key(field)) for name, field in sorted(fields.items()))


class _Once:
    """A table that is written where it is first needed."""

    def __init__(self, table: Any) -> None:
        self._table, self._at = table, 0

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802  the schema's name for it
        """Its place in the file."""
        if not self._at:
            self._at = self._table.Pack(builder)
        return self._at


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]  # the library is not typed
    """Takes a vector back that it has just written if there is an equal one."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[bytes, int] = {}
        self._before = self._size = 0
        self._of_values = False

    def StartVector(self, size: int, n: int, alignment: int) -> int:  # noqa: N802
        self._before, self._size, self._of_values = self.Offset(), size * n, True
        return cast(int, super().StartVector(size, n, alignment))

    def PrependUOffsetTRelative(self, place: int) -> None:  # noqa: N802
        self._of_values = False  # places are counted from here: equal ones mean other things elsewhere
        super().PrependUOffsetTRelative(place)

    def EndVector(self, *given: Any) -> int:  # noqa: N802
        at = cast(int, super().EndVector(*given))
        if not self._of_values:
            return at
        self._of_values = False  # strings end like vectors, and begin otherwise
        written = bytes(self.Bytes[self.head : self.head + 4 + self._size])  # their number, and they
        first = self._vectors.setdefault(written, at)
        if first != at:
            self.head = len(self.Bytes) - self._before
        return first
