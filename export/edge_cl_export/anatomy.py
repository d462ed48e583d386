"""Looks into a plastic head: which axes have one entry per class, which layer answers, what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from edge_cl.errors import BundleError
from edge_cl_export.plastic import CosineLinear

Factory = Callable[[tuple[int, ...], int], nn.Module]
Named = dict[str, Tensor]


@dataclass(eq=False)
class PlasticModule:
    """A plastic head as a function of its parameters and of flat features.

    Attributes
    ----------
    head
        As the factory made it, its class layer exchanged where the loss wants cosines.
    class_axes
        Parameter name to the axis with one entry per class, -1: none.
    class_weight
        Name of the parameter (C, H) whose rows answer for the classes.
    mean, inv_std
        Standardise a flat feature; constants of the graph.
    """

    head: nn.Module
    class_axes: dict[str, int]
    class_weight: str
    feature_shape: tuple[int, ...]
    mean: Tensor
    inv_std: Tensor
    _hidden: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        layer = self.head.get_submodule(self.class_weight.rpartition(".")[0])
        layer.register_forward_pre_hook(lambda _, inputs: self._hidden.append(inputs[0]))

    @property
    def parameters(self) -> Named:
        """Copies of the parameters as they are, by name."""
        return {name: value.detach().clone() for name, value in self.head.named_parameters()}

    def __call__(self, parameters: Named | None, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, C) and hidden (n, H) of flat features (n, D); None: the head's own parameters."""
        self._hidden.clear()
        x = ((features - self.mean) * self.inv_std).reshape(-1, *self.feature_shape)
        logits = self.head(x) if parameters is None else functional_call(self.head, parameters, (x,))
        return logits, self._hidden.pop()


def plastic_module(
    factory: Factory,
    feature_shape: tuple[int, ...],
    n_classes: int,
    *,
    cosine_scale: float | None = None,
    seed: int = 0,
    moments: tuple[Tensor, Tensor] | None = None,
) -> PlasticModule:
    """Make the head of a factory and find its class axes, by making it once more with one class more.

    `cosine_scale` exchanges the class layer for a `CosineLinear`; `moments` are mean and 1 / std (D,).

    Raises
    ------
    BundleError
        When no parameter grows with the classes, more than one axis does, the class layer is not one
        linear layer, or the head depends on the batch (batch norm) or on chance (dropout).
    """
    head, larger = (_made(factory, feature_shape, n_classes + more, seed) for more in (0, 1))
    _refuse_training_modules(head)
    axes = {
        name: _class_axis(name, tuple(p.shape), tuple(larger.get_parameter(name).shape))
        for name, p in head.named_parameters()
    }
    class_weight = _class_weight(head, axes)
    if cosine_scale is not None:
        class_weight, axes = _with_cosine_layer(head, class_weight, axes, cosine_scale)
    n_features = int(torch.Size(feature_shape).numel())
    mean, inv_std = moments or (torch.zeros(n_features), torch.ones(n_features))
    module = PlasticModule(head, axes, class_weight, feature_shape, mean, inv_std)
    _check_outputs(module, n_features, n_classes)
    return module


def _made(factory: Factory, feature_shape: tuple[int, ...], n_classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            head = factory(feature_shape, n_classes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"the plastic head's factory failed for features {feature_shape} and {n_classes} classes: "
                f"{error}"
            ) from error
    if not isinstance(head, nn.Module):
        raise BundleError(f"the plastic head's factory returned {type(head).__name__}, not a torch.nn.Module")
    return head


def _refuse_training_modules(head: nn.Module) -> None:
    for name, module in head.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise BundleError(
                f"the plastic head's {name} is a {type(module).__name__} in training mode: batch statistics "
                "have no place in a compiled step; use GroupNorm or LayerNorm, or call its eval()"
            )
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise BundleError(
                f"the plastic head's {name} is a {type(module).__name__}: a step must not depend on chance, "
                "since a sleep is repeated bit for bit after a power cut; leave it out"
            )


def _class_axis(name: str, shape: tuple[int, ...], larger: tuple[int, ...]) -> int:
    if len(shape) != len(larger):
        raise BundleError(
            f"the plastic head's {name} has {len(shape)} axes, {len(larger)} with one class more"
        )
    grown = [k for k, (a, b) in enumerate(zip(shape, larger, strict=True)) if a != b]
    if not grown:
        return -1
    if len(grown) > 1 or larger[grown[0]] != shape[grown[0]] + 1:
        raise BundleError(
            f"the plastic head's {name} is {shape}, but {larger} with one class more: exactly one axis may "
            "grow, by one"
        )
    return grown[0]


def _class_weight(head: nn.Module, axes: dict[str, int]) -> str:
    if not any(axis >= 0 for axis in axes.values()):
        raise BundleError(
            "no parameter of the plastic head grows with n_classes: its last layer must have a row per class"
        )
    found = [name for name, axis in axes.items() if axis == 0 and head.get_parameter(name).ndim == 2]
    if len(found) != 1:
        raise BundleError(
            f"the plastic head has {len(found)} weights with a row per class ({', '.join(found) or 'none'}); "
            "its last layer must be the only one, an nn.Linear"
        )
    layer = head.get_submodule(found[0].rpartition(".")[0])
    if not isinstance(layer, nn.Linear | CosineLinear):
        raise BundleError(
            f"the class layer of the plastic head is a {type(layer).__name__}, not an nn.Linear"
        )
    return found[0]


def _with_cosine_layer(
    head: nn.Module, class_weight: str, axes: dict[str, int], scale: float
) -> tuple[str, dict[str, int]]:
    path, _, _ = class_weight.rpartition(".")
    layer = head.get_submodule(path)
    if isinstance(layer, nn.Linear):
        if not path:
            raise BundleError("a loss on cosines exchanges the class layer: put it into a module of its own")
        cosine = CosineLinear(layer.in_features, layer.out_features, scale=scale)
        cosine.weight.data.copy_(layer.weight.data)
        head.set_submodule(path, cosine)
    left = {name for name, _ in head.named_parameters()}
    return class_weight, {name: axis for name, axis in axes.items() if name in left}


def _check_outputs(module: PlasticModule, n_features: int, n_classes: int) -> None:
    try:
        with torch.no_grad():
            logits, hidden = module(None, torch.zeros(3, n_features))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise BundleError(
            f"the plastic head cannot take features of shape {('n', *module.feature_shape)}: {error}"
        ) from error
    rows = module.head.get_parameter(module.class_weight).shape
    if logits.shape != (3, n_classes) or hidden.shape != (3, rows[1]):
        raise BundleError(
            f"the plastic head gives {tuple(logits.shape)} for 3 features and {n_classes} classes, its class "
            f"layer sees {tuple(hidden.shape)}; wanted are (3, {n_classes}) and (3, {rows[1]})"
        )
