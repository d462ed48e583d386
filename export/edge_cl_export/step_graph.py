"""A plastic torch head to two plain ONNX graphs: one answers, one is a whole optimisation step."""

from __future__ import annotations

import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from edge_cl.errors import BundleError
from edge_cl.heads.program import StepProgram
from edge_cl.plastic import PlasticParameter, PlasticSpec
from edge_cl.records import FloatArray
from edge_cl_export.anatomy import Factory, Named, PlasticModule, plastic_module
from edge_cl_export.decompositions import decompositions, expand_late
from edge_cl_export.freeze import plain
from edge_cl_export.losses import COSINE_LAYER, LOSSES, Outputs
from edge_cl_export.optimisers import StepSettings, clipped, stepped
from edge_cl_export.step_parity import check_steps

DEFAULT_SETTINGS = StepSettings()
Inputs = dict[str, Tensor]
Function = Callable[[PlasticModule, Inputs], Inputs]


def compile_program(
    factory: Factory,
    feature_shape: tuple[int, ...],
    n_classes: int,
    settings: StepSettings = DEFAULT_SETTINGS,
    *,
    seed: int = 0,
    moments: tuple[FloatArray, FloatArray] | None = None,
) -> StepProgram:
    """Compile a plastic head with free batch and class axes, and check it against torch.

    Parameters
    ----------
    factory
        See `edge_cl_export.plastic`.
    feature_shape
        Of one feature, without the batch.
    n_classes
        Classes known at export, at least 1.
    seed
        Of the head's initial parameters.
    moments
        Mean and standard deviation (D,) of the features; they become constants of the graphs.

    Raises
    ------
    BundleError
        When the head is not one that can be compiled, an operator has no ONNX form, or 20 steps in
        onnxruntime are not torch's within 1e-5 of each tensor's scale.
    """

    def make(n: int) -> PlasticModule:
        return make_module(factory, feature_shape, n, settings, seed=seed, moments=moments)

    module = make(n_classes)
    odd = make(_unused_size(module))
    batch = _unused_size(odd)
    program = StepProgram(
        _spec(module, settings),
        {name: value.numpy() for name, value in module.parameters.items()},
        _to_onnx(predict_of, predict_inputs(odd, batch), odd),
        _to_onnx(step_of(settings), step_inputs(odd, settings, batch), odd),
    )
    for n in (n_classes, n_classes + 1):
        check_steps(program, make(n), settings)
    return program


def make_module(
    factory: Factory,
    feature_shape: tuple[int, ...],
    n_classes: int,
    settings: StepSettings,
    *,
    seed: int = 0,
    moments: tuple[FloatArray, FloatArray] | None = None,
) -> PlasticModule:
    """The head as it is compiled: with the class layer the loss wants, and its features standardised."""
    scaling = None
    if moments is not None:
        scaling = _tensor(moments[0]), 1 / torch.clamp_min(_tensor(moments[1]), 1e-6)
    cosine_scale = COSINE_LAYER.get(settings.loss)
    return plastic_module(
        factory, feature_shape, n_classes, cosine_scale=cosine_scale, seed=seed, moments=scaling
    )


def _tensor(array: FloatArray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


def _spec(module: PlasticModule, settings: StepSettings) -> PlasticSpec:
    parameters = tuple(
        PlasticParameter(name=name, shape=tuple(p.shape), class_axis=module.class_axes[name])
        for name, p in module.head.named_parameters()
    )
    return PlasticSpec(
        parameters=parameters,
        slots=settings.slots,
        class_weight=module.class_weight,
        hidden_size=module.head.get_parameter(module.class_weight).shape[1],
        feature_shape=module.feature_shape,
        loss=settings.loss,
        optimiser=settings.optimiser,
        lr=settings.highest_lr,
        batch=settings.batch,
    )


def _unused_size(module: PlasticModule) -> int:
    """A size that no other axis has, for classes or batch: the tracer takes equal sizes for the same one."""
    sizes = {n for p in module.head.parameters() for n in p.shape} | set(module.feature_shape)
    sizes |= {math.prod(module.feature_shape)}
    return next(n for n in (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, *range(53, 999)) if n not in sizes)


def predict_of(module: PlasticModule, inputs: Inputs) -> Inputs:
    """Logits and hidden features, as a function of parameters and features by name."""
    logits, hidden = module({name: inputs[name] for name in module.class_axes}, inputs["features"])
    return {"logits": logits, "hidden": hidden}


def step_of(settings: StepSettings) -> Function:
    """The step as a function of its inputs by name; `plasticity` scales what it did to each class's rows."""
    loss_of = LOSSES[settings.loss]

    def step(module: PlasticModule, inputs: Inputs) -> Inputs:
        old = {name: inputs[name] for name in module.class_axes}

        def loss(parameters: Named) -> Tensor:
            logits, hidden = module(parameters, inputs["features"])
            targets = inputs["targets"]
            current = inputs.get("current", targets[:, 0])
            return loss_of(Outputs(logits, hidden, parameters[module.class_weight], targets, current))

        gradients, value = torch.func.grad_and_value(loss)(old)
        gradients = clipped(gradients, settings.clip)
        outputs: Inputs = {}
        states: Inputs = {}
        for name, p in old.items():
            slots = tuple(inputs[f"{slot}/{name}"] for slot in settings.slots)
            new, slots = stepped(p, gradients[name], slots, inputs["lr"], inputs.get("step_number"), settings)
            axis = module.class_axes[name]
            if axis >= 0:
                shape = [-1 if k == axis else 1 for k in range(p.ndim)]
                new = p + inputs["plasticity"].reshape(shape) * (new - p)
            outputs[f"new/{name}"] = new
            states |= {f"new/{s}/{name}": value for s, value in zip(settings.slots, slots, strict=True)}
        return outputs | states | {"loss": value}

    return step


def predict_inputs(module: PlasticModule, batch: int) -> Inputs:
    """Inputs of `predict_of`, in the graph's order, for a batch of random features."""
    features = torch.randn(batch, len(module.mean), generator=torch.Generator().manual_seed(0))
    return module.parameters | {"features": features}


def step_inputs(module: PlasticModule, settings: StepSettings, batch: int) -> Inputs:
    """Inputs of `step_of`, in the graph's order, for a batch of random features."""
    inputs = predict_inputs(module, batch)
    features = inputs.pop("features")
    n_classes = len(module.head.get_parameter(module.class_weight))
    for slot in settings.slots:
        inputs |= {f"{slot}/{name}": torch.zeros_like(p) for name, p in module.parameters.items()}
    inputs |= {"features": features, "targets": torch.full((batch, n_classes), 1 / n_classes)}
    inputs |= {"lr": torch.tensor(0.1), "plasticity": torch.ones(n_classes)}
    if settings.optimiser == "adamw":
        inputs["step_number"] = torch.tensor(1.0)
    if settings.loss == "uer":
        inputs["current"] = torch.zeros(batch)
    return inputs


def traced(
    function: Function, inputs: Inputs, module: PlasticModule, *, mode: str
) -> tuple[torch.fx.GraphModule, list[str]]:
    """The operators that `function` comes to, as a graph of the inputs' values, and its outputs' names.

    `mode` ``real`` fixes every size to the inputs', ``symbolic`` does not.
    """
    outputs: list[str] = []

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        result = function(module, dict(zip(inputs, values, strict=True)))
        outputs[:] = result
        return tuple(result.values())

    trace = make_fx(flat, decompositions(), tracing_mode=mode, _allow_non_fake_inputs=True)
    graph = trace(*inputs.values())
    _refuse_chance(graph)
    expand_late(graph)
    return graph, outputs


def _to_onnx(function: Function, inputs: Inputs, module: PlasticModule) -> bytes:
    """Trace `function` and export it, with the sizes of batch and classes left free."""
    tensors = tuple(inputs.values())
    free = {len(inputs["features"]), len(module.head.get_parameter(module.class_weight))}
    auto = torch.export.Dim.DYNAMIC
    shapes = tuple({k: auto for k, n in enumerate(t.shape) if n in free} for t in tensors)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            graph, outputs = traced(function, inputs, module, mode="symbolic")
            program = torch.export.export(graph, tensors, dynamic_shapes=shapes, strict=False)
            path = Path(folder) / "graph.onnx"
            torch.onnx.export(
                program,
                (),
                path,
                input_names=list(inputs),
                output_names=outputs,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            encoded: bytes = plain(onnx.load(path)).SerializeToString()
            return encoded
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise BundleError(
            f"the plastic head cannot be compiled to ONNX: {_reason(error)}; write it with other operators, "
            "or leave it to the frozen part (--split-at): it must be one graph for any batch, without "
            "branches on values and without recurrent layers"
        ) from error
    finally:
        logger.setLevel(level)


def _refuse_chance(graph: torch.fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise BundleError(
                f"the plastic head calls {node.target}, which may depend on chance: a sleep must be "
                "repeatable bit for bit after a power cut; leave it out"
            )


def _reason(error: BaseException) -> str:
    """The operator, where the exporter's long message names one; else how its summary begins."""
    message = str(error)
    if "No ONNX function found for " in message:
        found = message.partition("No ONNX function found for ")[2].splitlines()[0]
        return "no ONNX form of " + re.sub(r".*op='([^']+)', overload='([^']+)'.*", r"\1.\2", found)
    _, _, summary = message.rpartition("## Exception summary")
    return " ".join(summary.split()).partition(" For more information")[0][:300]
