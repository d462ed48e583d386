"""A compiled plastic head: two ONNX graphs, and what runs one optimisation step after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.errors import BundleError, NumericalError
from edge_cl.plastic import PlasticParameter, PlasticSpec
from edge_cl.records import FloatArray

Parameters = dict[str, FloatArray]


class StepProgram:
    """The graphs ``predict.onnx`` and ``step.onnx`` in onnxruntime, and the parameters to start from.

    Immutable: heads share one. Its class axis is free, so heads of any number of classes can.

    Parameters
    ----------
    spec
        Names, shapes and settings.
    parameters
        (shape of each) float32 by name; never written to.
    predict_graph, step_graph
        ONNX models as bytes.
    """

    def __init__(
        self, spec: PlasticSpec, parameters: Parameters, predict_graph: bytes, step_graph: bytes
    ) -> None:
        self.spec = spec
        self.parameters = parameters
        self.predict_graph, self.step_graph = predict_graph, step_graph
        self._predict = _session(predict_graph, "predict.onnx")
        self.step_session = _session(step_graph, "step.onnx", arena=True)
        self._check_names(self._predict, "predict.onnx", [*parameters, "features"], ["logits", "hidden"])
        states = [f"{slot}/{name}" for slot in spec.slots for name in parameters]
        new = [f"new/{name}" for name in (*parameters, *states)]
        self._check_names(
            self.step_session, "step.onnx", [*parameters, *states, *_FED, *_MAYBE_FED], [*new, "loss"]
        )

    @classmethod
    def load(cls, bundle: Bundle) -> Self | None:
        """The bundle's program; None when it carries none.

        Raises
        ------
        BundleError
            When onnxruntime is missing or refuses a graph, or a graph does not fit the manifest.
        """
        plastic = bundle.plastic()
        if plastic is None:
            return None
        program = cls(*plastic, bundle.member("predict.onnx"), bundle.member("step.onnx"))
        program._try()
        return program

    @property
    def n_features(self) -> int:
        """Length D of a flat feature."""
        return int(np.prod(self.spec.feature_shape))

    @property
    def n_classes(self) -> int:
        """Classes C that the parameters to start from have rows for."""
        return len(self.parameters[self.spec.class_weight])

    def start(self, n_classes: int) -> Parameters:
        """Copies of the parameters with `n_classes` classes: the first ones, or rows of 0 added."""
        return {p.name: _resized(self.parameters[p.name], p, n_classes) for p in self.spec.parameters}

    def grown(self, parameters: Parameters) -> Parameters:
        """Copies with a row of 0 for one more class."""
        n_classes = len(parameters[self.spec.class_weight]) + 1
        return {p.name: _resized(parameters[p.name], p, n_classes) for p in self.spec.parameters}

    def n_values(self, n_classes: int) -> int:
        """Numbers in all parameters of a head with so many classes."""
        return sum(
            int(np.prod([n_classes if k == p.class_axis else n for k, n in enumerate(p.shape)]))
            for p in self.spec.parameters
        )

    def predict(self, parameters: Parameters, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Logits (n, C) and hidden features (n, H) of X (n, D)."""
        logits, hidden = self._predict.run(
            ["logits", "hidden"], {**parameters, "features": np.ascontiguousarray(X, dtype=np.float32)}
        )
        return logits, hidden

    def trainer(self, parameters: Parameters) -> Trainer:
        """Begins to optimise from copies of `parameters`, with fresh optimiser state."""
        return Trainer(self, parameters)

    def trainer_bytes(self, n_classes: int) -> int:
        """`Trainer.nbytes` for so many classes."""
        sets = 2 * (1 + len(self.spec.slots)) * self.n_values(n_classes)
        return 4 * (sets + self.spec.batch * (self.n_features + n_classes + 1) + n_classes + 3)

    def _try(self) -> None:
        """Run both graphs once, so that shapes that do not fit are found now."""
        spec = self.spec
        X = np.zeros((spec.batch, self.n_features), dtype=np.float32)
        try:
            logits, hidden = self.predict(self.parameters, X)
            self.trainer(self.parameters).step(X, 0, lr=0.0, last=True)
        except Exception as error:  # the runtime raises its own untyped family
            raise BundleError(f"the plastic head's graphs cannot run: {error}; export again") from error
        wanted = (len(X), self.n_classes), (len(X), spec.hidden_size)
        if (logits.shape, hidden.shape) != wanted:
            raise BundleError(
                f"predict.onnx gives {logits.shape} and {hidden.shape}, the manifest wants {wanted}"
            )

    def _check_names(self, session: Any, member: str, inputs: list[str], outputs: list[str]) -> None:
        has = {value.name for value in session.get_inputs()}
        gives = {value.name for value in session.get_outputs()}
        needed = set(inputs) - set(_MAYBE_FED)
        if not needed <= has <= set(inputs) or not set(outputs) <= gives:
            raise BundleError(
                f"{member} has the inputs {sorted(has)} and outputs {sorted(gives)}; the manifest wants "
                f"{sorted(needed)} and {sorted(outputs)}; export the bundle again"
            )


_FED = ("features", "targets", "lr", "plasticity")
_MAYBE_FED = ("step_number", "current")
"""Inputs of some optimisers and losses: counted from 1, and which samples are newly learned."""


class Trainer:
    """Runs optimisation steps between two preallocated sets of parameters and optimiser state.

    A step reads one set and writes the other, so nothing is copied but the batch. The optimiser state begins
    at 0: a sleep is some hundred steps on a memory that has changed since the last one, and state that
    outlived it would triple what a head holds.
    """

    def __init__(self, program: StepProgram, parameters: Parameters) -> None:
        spec = program.spec
        self._session = program.step_session
        self._names = list(parameters)
        n_classes = len(parameters[spec.class_weight])
        self._sets: list[Parameters] = []
        for _ in range(2):
            arrays = {name: np.array(value, dtype=np.float32) for name, value in parameters.items()}
            for slot in spec.slots:
                arrays |= {f"{slot}/{name}": np.zeros_like(arrays[name]) for name in parameters}
            self._sets.append(arrays)
        self._fed: Parameters = {
            "features": np.zeros((spec.batch, program.n_features), dtype=np.float32),
            "targets": np.zeros((spec.batch, n_classes), dtype=np.float32),
            "current": np.zeros(spec.batch, dtype=np.float32),
            "plasticity": np.ones(n_classes, dtype=np.float32),
            "lr": np.zeros((), dtype=np.float32),
            "step_number": np.zeros((), dtype=np.float32),
        }
        self._loss = np.zeros((), dtype=np.float32)
        taken = {value.name for value in self._session.get_inputs()}
        self._fed_names = [name for name in self._fed if name in taken]
        self._bindings = [self._bind(old, 1 - old) for old in (0, 1)]
        self._giving_back = _giving_back()
        self._now = 0
        self.n_steps = 0

    @property
    def parameters(self) -> Parameters:
        """The parameters as they are now: views that the step after the next overwrites."""
        return {name: self._sets[self._now][name] for name in self._names}

    @property
    def nbytes(self) -> int:
        """Bytes held: both sets and the batch."""
        arrays = [*self._sets[0].values(), *self._sets[1].values(), *self._fed.values(), self._loss]
        return sum(array.nbytes for array in arrays)

    def step(
        self,
        features: FloatArray,
        classes: Any,
        *,
        lr: float,
        plasticity: FloatArray | float = 1.0,
        current: FloatArray | float = 0.0,
        last: bool = False,
    ) -> float:
        """One optimisation step; returns the loss before it.

        Parameters
        ----------
        features
            (batch, D).
        classes
            (batch,) int, or one for all.
        lr
            Learning rate.
        plasticity
            (C,) in [0, 1]: what each class's rows move, of what they would.
        current
            (batch,) 1 for samples of what is newly learned; only the loss ``uer`` looks at it.
        last
            Give the runtime's working memory back to the system after this step.

        Raises
        ------
        NumericalError
            When loss or parameters are not finite; they are of no more use.
        """
        fed = self._fed
        fed["features"][:] = features
        fed["targets"][:] = 0
        fed["targets"][np.arange(len(fed["targets"])), classes] = 1
        fed["plasticity"][:], fed["current"][:] = plasticity, current
        self.n_steps += 1
        fed["lr"][()], fed["step_number"][()] = lr, self.n_steps
        self._session.run_with_iobinding(self._bindings[self._now], self._giving_back if last else None)
        self._now = 1 - self._now
        loss = float(self._loss)
        if not (np.isfinite(loss) and all(np.isfinite(np.vdot(p, p)) for p in self.parameters.values())):
            raise NumericalError(
                f"optimisation step {self.n_steps} left the finite numbers (loss {loss}); the candidate is "
                "dropped; a lower learning rate at export may help"
            )
        return loss

    def _bind(self, old: int, new: int) -> Any:
        binding = self._session.io_binding()
        inputs: Mapping[str, FloatArray] = self._sets[old] | {n: self._fed[n] for n in self._fed_names}
        outputs = {f"new/{name}": array for name, array in self._sets[new].items()} | {"loss": self._loss}
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, _shared(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, _shared(array))
        return binding


def _giving_back() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _shared(array: FloatArray) -> Any:
    """A runtime's value on the memory of `array`, which must outlive it."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _resized(array: FloatArray, parameter: PlasticParameter, n_classes: int) -> FloatArray:
    axis = parameter.class_axis
    if axis < 0:
        return array.copy()
    kept = np.moveaxis(array, axis, 0)[:n_classes]
    added = np.zeros((n_classes - len(kept), *kept.shape[1:]), dtype=np.float32)
    return np.ascontiguousarray(np.moveaxis(np.concatenate([kept, added]), 0, axis))


def _session(graph: bytes, member: str, *, arena: bool = False) -> Any:
    """A session on one thread. Without an arena every run asks the system for fresh pages, which takes longer
    than a step's arithmetic; with one they stay until a run that gives them back."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleError(
            "the bundle's plastic head needs onnxruntime, which is not installed; "
            "run `pip install edge-cl[onnx]` (on a Jetson: onnxruntime-gpu for your JetPack)"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own untyped family
        raise BundleError(f"onnxruntime cannot load {member}: {error}") from error
