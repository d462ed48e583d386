"""What a bundle says of the part that the device may train: names, shapes, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from edge_cl.errors import BundleError
from edge_cl.records import FloatArray


class PlasticParameter(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of the plastic head; `class_axis` has one entry per class, -1: no axis has."""

    name: str
    shape: tuple[int, ...]
    class_axis: int = -1


class PlasticSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the device trains, and how ``step.onnx`` is to be fed.

    Attributes
    ----------
    parameters
        In the order of the graphs' inputs; shapes with the classes of the manifest.
    slots
        Optimiser state: input ``slot/parameter`` for each slot and parameter, shaped like the parameter.
    class_weight
        The parameter (C, hidden_size) whose rows answer for the classes.
    feature_shape
        What the graph reshapes a flat feature to.
    loss, optimiser
        For people; they are compiled into the graph.
    lr
        Highest learning rate of a sleep.
    batch
        Exemplars per step.
    """

    parameters: tuple[PlasticParameter, ...]
    slots: tuple[str, ...]
    class_weight: str
    hidden_size: int
    feature_shape: tuple[int, ...]
    loss: str
    optimiser: str
    lr: float
    batch: int


def check_plastic(
    spec: PlasticSpec, arrays: Mapping[str, FloatArray], n_features: int, n_classes: int
) -> None:
    """Raise BundleError unless the parameters (by name) are what `spec` says, and it fits the manifest."""
    names = [parameter.name for parameter in spec.parameters]
    if sorted(names) != sorted(arrays):
        raise BundleError(f"plastic.npz holds {sorted(arrays)}, the manifest names {sorted(names)}")
    if math.prod(spec.feature_shape) != n_features or spec.batch < 1 or not spec.lr > 0:
        raise BundleError(
            f"the plastic head takes features {spec.feature_shape}, {spec.batch} a batch, at lr {spec.lr}; "
            f"the manifest's feature_size is {n_features}; export the bundle again"
        )
    for parameter in spec.parameters:
        array = arrays[parameter.name]
        if array.shape != parameter.shape or array.dtype != np.float32:
            raise BundleError(
                f"plastic.npz: {parameter.name} is {array.dtype} of shape {array.shape}, should be float32 "
                f"of shape {parameter.shape}"
            )
        if not np.isfinite(array).all():
            raise BundleError(f"plastic.npz: {parameter.name} holds values that are not finite")
        if parameter.class_axis >= 0 and parameter.shape[parameter.class_axis :][:1] != (n_classes,):
            raise BundleError(
                f"plastic.npz: {parameter.name} has shape {parameter.shape}; its axis {parameter.class_axis} "
                f"should have the manifest's {n_classes} classes"
            )
    if (spec.class_weight, (n_classes, spec.hidden_size), 0) not in [
        (parameter.name, parameter.shape, parameter.class_axis) for parameter in spec.parameters
    ]:
        raise BundleError(
            f"the plastic head's class weight {spec.class_weight!r} is not a parameter of shape "
            f"({n_classes}, {spec.hidden_size}); export the bundle again"
        )
