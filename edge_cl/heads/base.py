"""The contract every head keeps, and the checks they share."""

from __future__ import annotations

import abc
import inspect
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_cl.bundle import Prior
from edge_cl.memory.exemplars import Exemplars
from edge_cl.records import FloatArray

STATE_VERSION = 2
MAX_EXEMPLARS = 4096
"""Taken at most by a head that learns each exemplar once: bounds the work and the memory of a sleep."""


class HeadState(msgspec.Struct, frozen=True, kw_only=True):
    """A head as arrays and JSON values: enough to rebuild it bit for bit.

    `options` are the constructor's keyword arguments, `meta` small JSON values, `arrays`
    everything numeric. No pickle anywhere.
    """

    head: str
    version: int
    n_features: int
    n_classes: int
    options: dict[str, Any]
    meta: dict[str, Any]
    arrays: dict[str, Any]


class Head(abc.ABC):
    """A classifier that learns one sample at a time.

    Scores are class probabilities: (n_classes,) float32, non-negative, summing to 1; a class that
    was never seen scores 0, and before the first label all scores are 0. Learning is
    deterministic. `predict_one` never changes what the head has learned.

    Parameters
    ----------
    n_features
        Length D of a feature vector, at least 1.
    n_classes
        Classes known from the start; `add_class` adds more.
    """

    name: ClassVar[str]
    keeps_memory: ClassVar[bool] = False
    """Whether the option `memory_bytes` gives it a replay memory of its own; 0 when the caller has one."""

    can_merge: ClassVar[bool] = False
    """Whether `merge` is exact, and so allowed."""
    can_forget: ClassVar[bool] = False
    """Whether `forget_one` is exact, and so allowed."""

    can_explain: ClassVar[bool] = False
    """Whether `explain_one` names what an answer rests on."""
    gains_by_rehearsal: ClassVar[bool] = True
    """Whether `rehearse` can improve its answers."""
    most_decoded: ClassVar[int] = MAX_EXEMPLARS
    """Exemplars that `rehearse` holds decoded at most."""
    needs_program: ClassVar[bool] = False
    """Whether it is made with the compiled `program` of a bundle."""
    learns_by_steps: ClassVar[bool] = False
    """Whether `rehearse` takes batches, one optimisation step a slice, and may be ended after any of them."""

    def __init__(self, n_features: int, n_classes: int = 0) -> None:
        if n_features < 1 or n_classes < 0:
            raise ValueError(f"n_features {n_features} must be ≥ 1 and n_classes {n_classes} ≥ 0")
        self.n_features = int(n_features)
        self.class_counts: NDArray[np.float64] = np.zeros(n_classes)
        self.prior: tuple[Prior, float] | None = None
        """What `warm_start` was given; not part of the state, since the bundle has it."""

    @property
    def n_classes(self) -> int:
        """Number of classes, seen or not."""
        return len(self.class_counts)

    @property
    def n_seen(self) -> int:
        """Labels learned (a warm start counts with its prior weight)."""
        return int(self.class_counts.sum())

    def predict_one(self, x: ArrayLike, *, missing: ArrayLike | None = None) -> FloatArray:
        """Class probabilities of one feature vector: (D,) → (C,) float32.

        `missing` (D,) bool marks what was not measured: its value in x is ignored, and may be anything.
        """
        scores: FloatArray = self._predict(self._checked_one(x, missing)[None])[0]
        return scores

    def predict_many(self, X: ArrayLike) -> FloatArray:
        """Class probabilities of many: (n, D) → (n, C) float32."""
        features = self._checked(X, 2)
        if not len(features):
            return np.zeros((0, self.n_classes), dtype=np.float32)
        return self._predict(features)

    def learn_one(self, x: ArrayLike, y: int, *, missing: ArrayLike | None = None) -> None:
        """Learn one sample: x (D,), class index y in [0, n_classes); `missing` as in `predict_one`.

        What is missing is taken as typical of class y, or of all classes where a head keeps no class means.
        """
        c = self._checked_class(y)
        self._learn(self._checked_one(x, missing, c), c)

    def learn_many(self, X: ArrayLike, y: ArrayLike) -> None:
        """Learn samples in order: X (n, D), y (n,). As `learn_one` on each, but for rounding."""
        features, classes = self._checked(X, 2), np.asarray(y)
        if classes.shape != (len(features),):
            raise ValueError(f"y has shape {classes.shape}, X has {len(features)} rows")
        checked = [self._checked_class(c) for c in classes]
        if checked:
            self._learn_many(features, np.array(checked))

    def merge(self, other: Head) -> None:
        """Take in all that `other` learned, as if it had been learned here; `other` stays as it is.

        A warm start is part of what was learned: a prior that both began from counts twice.

        Raises
        ------
        ValueError
            When the head cannot merge exactly, or `other` is another head or has other options, features
            or number of classes. Which class is which is the caller's business.
        """
        if not self.can_merge:
            raise self._cannot("merge")
        for what in ("name", "n_features", "n_classes"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise ValueError(f"merge needs heads of equal {what}, found {mine!r} and {theirs!r}")
        if self._options() != other._options():
            raise ValueError(f"merge needs equal options, found {self._options()} and {other._options()}")
        self._merge(other)  # reads the counts of both
        self.class_counts = self.class_counts + other.class_counts

    def forget_one(self, x: ArrayLike, y: int) -> None:
        """Unlearn one sample that was learned: x (D,), class index y.

        Raises
        ------
        ValueError
            When the head cannot forget exactly, or the sample cannot have been learned. Not every sample
            that was never learned can be told.
        """
        if not self.can_forget:
            raise self._cannot("forget")
        features, c = self._checked(x, 1), self._checked_class(y)
        if self.class_counts[c] < 1:
            raise ValueError(f"class {c} has no label left to forget; it has {self.class_counts[c]:g}")
        self._forget(features, c)
        self.class_counts[c] -= 1

    def explain_one(self, x: ArrayLike, n: int = 3) -> dict[str, Any]:
        """What the answer at x (D,) rests on: at most n things nearest to it, or how sure it is.

        Raises
        ------
        ValueError
            When the head has neither: ``dual``, ``prototype``, ``knn`` and ``kalman`` can explain.
        """
        raise ValueError(f"head {self.name!r} cannot explain an answer; dual, prototype, knn and kalman can")

    def _checked_n(self, n: int) -> int:
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n is {n!r}; allowed: a whole number from 1")
        return n

    def add_class(self) -> int:
        """Make room for one more class; returns its index."""
        self.class_counts = np.append(self.class_counts, 0.0)
        self._grow()
        return self.n_classes - 1

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes held by the head's arrays."""

    @classmethod
    def needed_bytes(cls, n_features: int, n_classes: int = 0, **options: Any) -> int:
        """`nbytes` of a new head with these options, without making it."""
        given = inspect.signature(cls).bind(n_features, n_classes, **options)
        given.apply_defaults()
        named = {key: value for key, value in given.arguments.items() if not key.startswith("n_")}
        return cls._needed_bytes(n_features, n_classes, named)

    @classmethod
    @abc.abstractmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        """As `needed_bytes`, with every option named."""

    @property
    @abc.abstractmethod
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""

    @property
    def rehearse_bytes(self) -> int:
        """Bytes that `rehearse` holds beside the head itself and the exemplars."""
        return 0

    @property
    def rehearse_bytes_per_class(self) -> int:
        """What one more class adds to `rehearse_bytes`."""
        return 0

    @abc.abstractmethod
    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Begin from a bundle's prior, weighed as if `strength` labels per class had been seen.

        Only for a head that has learned nothing yet, with the prior's classes.
        """

    @abc.abstractmethod
    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        """Relearn from remembered exemplars in small slices of work, of a few milliseconds each.

        Each `yield` ends a slice. A head that `learns_by_steps` is usable after every slice, another one only
        when the iterator is exhausted.
        """

    def exam(self, X: FloatArray, y: NDArray[np.int64], *, learned: bool) -> FloatArray:
        """Scores for held-back exemplars X (n, D), y (n,) that judge a sleep: (n, C).

        With `learned` the head has learned them, and answers as if each alone had not been. A head whose
        `rehearse` builds on all it has learned has learned them either way, so both sides compare.
        """
        return self.predict_many(X)

    def settle(self, X: FloatArray, y: NDArray[np.int64]) -> None:  # noqa: B027  nothing to do is an answer
        """Called when a rehearsed head is adopted: learn the exemplars that judged it, if not known."""

    @abc.abstractmethod
    def _typical(self, y: int | None = None) -> FloatArray:
        """What a missing feature is taken for, (D,): of class y if known, so that learning it moves nothing,
        else of all that was learned, so that it argues for no class; 0 before the first label."""

    @abc.abstractmethod
    def _predict(self, X: FloatArray) -> FloatArray: ...

    @abc.abstractmethod
    def _learn(self, x: FloatArray, y: int) -> None: ...

    def _learn_many(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Checked samples (n, D) and classes (n,), counted as `_learn` does; for heads that learn blocks."""
        for x, c in zip(X, y.tolist(), strict=True):
            self._learn(x, c)

    @abc.abstractmethod
    def _grow(self) -> None:
        """Give every per-class array a row or column for the class just counted in."""

    def _merge(self, other: Any) -> None:
        """Everything but the class counts; only with `can_merge`."""
        raise self._cannot("merge")

    def _forget(self, x: FloatArray, y: int) -> None:
        """Everything but the class count; only with `can_forget`."""
        raise self._cannot("forget")

    def _cannot(self, what: str) -> ValueError:
        return ValueError(f"head {self.name!r} cannot {what} exactly; choose a head whose can_{what} is true")

    @abc.abstractmethod
    def _options(self) -> dict[str, Any]:
        """The constructor's keyword arguments."""

    def _given(self) -> dict[str, Any]:
        """The constructor's keyword arguments that no state holds."""
        return {}

    @abc.abstractmethod
    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    @abc.abstractmethod
    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None: ...

    def state(self) -> HeadState:
        """Everything the head has learned, as copies."""
        arrays, meta = self._get_state()
        return HeadState(
            head=self.name,
            version=STATE_VERSION,
            n_features=self.n_features,
            n_classes=self.n_classes,
            options=self._options(),
            meta=meta,
            arrays={"class_counts": self.class_counts.copy(), **arrays},
        )

    @classmethod
    def from_state(cls, state: HeadState, **given: Any) -> Self:
        """Rebuild a head from `state`; raises ValueError when it is another head's or of another version.

        `given` are constructor arguments that no state holds: the `program` of a head that needs one.

        A head that began from a prior needs its `prior` set again.
        """
        if state.head != cls.name:
            raise ValueError(f"state is of head {state.head!r}, not {cls.name!r}")
        if state.version != STATE_VERSION:
            raise ValueError(
                f"head state version {state.version}; this edge-cl reads {STATE_VERSION}: "
                + ("upgrade edge-cl" if state.version > STATE_VERSION else "use the release that wrote it")
            )
        return cls._rebuilt(state, {key: np.array(value) for key, value in state.arrays.items()}, given)

    @classmethod
    def _rebuilt(cls, state: HeadState, arrays: dict[str, np.ndarray], given: dict[str, Any]) -> Self:
        """A head that owns these arrays of `state`."""
        head = cls(state.n_features, state.n_classes, **state.options, **given)
        head.class_counts = arrays.pop("class_counts")
        head._set_state(arrays, state.meta)
        return head

    def copy(self) -> Self:
        """An independent copy that predicts and learns the same, bit for bit."""
        state = self.state()
        twin = self._rebuilt(state, state.arrays, self._given())  # copies already
        twin.prior = self.prior
        return twin

    def _checked_one(self, x: ArrayLike, missing: ArrayLike | None, y: int | None = None) -> FloatArray:
        """One vector (D,), with typical values where it is `missing`."""
        if missing is None:
            return self._checked(x, 1)
        mask = np.asarray(missing)
        if mask.dtype != np.bool_ or mask.shape != (self.n_features,):
            raise ValueError(
                f"missing is {mask.dtype} of shape {mask.shape}, should be bool of shape ({self.n_features},)"
            )
        known = np.asarray(x, dtype=np.float64)
        if known.shape != mask.shape:
            return self._checked(x, 1)  # says what is wrong
        return self._checked(np.where(mask, self._typical(y), known), 1)

    def _checked(self, x: ArrayLike, ndim: int) -> FloatArray:
        if isinstance(x, np.ndarray) and x.dtype == np.float32:
            array = np.ascontiguousarray(x) if x.ndim else x
        else:
            with np.errstate(over="ignore"):  # an overflow is refused below, as infinite
                array = np.asarray(x, dtype=np.float32, order="C")
        if array.ndim != ndim or array.shape[-1] != self.n_features:
            want = f"({self.n_features},)" if ndim == 1 else f"(n, {self.n_features})"
            raise ValueError(f"features have shape {np.shape(x)}, should be {want}")
        if not math.isfinite(np.vdot(array, array)):  # of many rows the sum may overflow where none does
            with np.errstate(over="ignore", invalid="ignore"):
                squares = np.einsum("...d,...d->...", array, array)
            if not np.isfinite(squares).all():
                raise ValueError(
                    "features are not all finite, or their squares overflow float32 (beyond about 1e19); "
                    "drop the reading"
                )
        return array

    def _checked_class(self, y: Any) -> int:
        if type(y) is not int and (isinstance(y, bool | np.bool_) or not isinstance(y, int | np.integer)):
            raise TypeError(f"a class is an integer index, found {type(y).__name__}")
        if not 0 <= y < self.n_classes:
            raise ValueError(
                f"class {y} is outside the {self.n_classes} known classes; call add_class() first"
            )
        return int(y)


def typical(class_means: FloatArray, class_counts: FloatArray, y: int | None) -> FloatArray:
    """Mean of class y, once it was seen, else of all seen classes alike, else 0: (C, D) and (C,) → (D,)."""
    seen = class_counts > 0
    if y is not None and seen[y]:
        seen = np.arange(len(seen)) == y
    mean: FloatArray = class_means[seen].mean(axis=0) if seen.any() else np.zeros(class_means.shape[1])
    return mean


def softmax(logits: FloatArray, seen: NDArray[np.bool_]) -> FloatArray:
    """Row-wise softmax over the classes marked `seen`; the others get 0.

    Parameters
    ----------
    logits
        (n, C) float; overwritten.
    seen
        (C,) bool; when none is True all scores are 0.
    """
    if not (len(seen) and seen.all()):
        if not seen.any():
            return np.zeros(logits.shape, dtype=np.float32)
        logits[:, ~seen] = -np.inf
    logits -= np.maximum.reduce(logits, axis=1, keepdims=True)  # the ufuncs themselves: less to do per call
    np.exp(logits, out=logits)
    logits /= np.add.reduce(logits, axis=1, keepdims=True)
    return logits.astype(np.float32, copy=False)
