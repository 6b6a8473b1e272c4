"""Keras models, of Keras 3 and of tf_keras (Keras 2), as sources of an export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..errors import ExportError
from ..signature import Signature, TensorSpec
from . import naming
from .source_model import Arrays, TracedModel, first_line
from .structure import leaves, rebuild

PREDICT_ROWS = 250
# A longer loop stays one: unrolled, each step is a copy of the cell in the file.
MAX_UNROLLED_STEPS = 256
# What cells without dropout have; the second implementation is one matrix product where the first has several.
_OF_DROPOUT = {"dropout": 0.0, "recurrent_dropout": 0.0, "implementation": 2}
# Of a vocabulary, to ask the model with.
_WORDS = 500


class KerasModel(TracedModel):
    """A ``keras.Model`` or ``tf_keras.Model``: Sequential, Functional, or subclassed and built."""

    def __init__(self, model: Any, signature: Signature) -> None:
        """``signature`` names the model's inputs and outputs, in the order of `structure.leaves`.

        Raises `ExportError` where Keras does not run on TensorFlow.
        """
        self.model = model
        self.signature = signature
        self.kind = "tf_keras" if _is_tf_keras(model) else "keras"
        if self.kind == "keras":
            _check_backend()
        self.parameters = int(model.count_params())
        self.recurrent = bool(self._recurrent_layers())
        sizes = [layer.input_dim for layer in model._flatten_layers() if hasattr(layer, "input_dim")]
        self.vocabulary = min((size for size in sizes if size), default=self.vocabulary)
        self.words = _known_words(model) or self.words
        self.half = any(layer.compute_dtype in ("float16", "bfloat16") for layer in model._flatten_layers())
        self._structure = _input_structure(model)

    @classmethod
    def of(cls, model: Any, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> KerasModel:
        """Find out the signature of any built Keras model; ``inputs`` and ``outputs`` are names to give.

        Inputs and outputs that nobody named get names that mean something (`naming`). Raises
        `ExportError` for what is no model, for one that was never built and for one that cannot be
        traced, and `InvalidArgumentError` for names that do not fit.
        """
        if not callable(getattr(model, "count_params", None)) or not hasattr(model, "predict"):
            raise ExportError(f"a {type(model).__module__}.{type(model).__qualname__} is no Keras model")
        if not model.built:
            raise ExportError(
                f"the model {model.name!r} was never built, so nothing says what it takes: call it once on a batch of "
                "its inputs before it is saved or returned"
            )
        stateful = next((layer.name for layer in model._flatten_layers() if getattr(layer, "stateful", False)), None)
        if stateful:
            raise ExportError(
                f"the layer {stateful!r} is stateful, and a servable keeps no state between requests: rebuild it "
                "with stateful=False"
            )
        specs = [_spec(path, leaf) for path, leaf in leaves(_input_structure(model))]
        names = naming.input_names(specs, inputs)
        taken = {name: replace(spec, name=name) for name, spec in zip(names, specs, strict=True)}
        answers = cls(model, Signature(taken, {}))._trace()
        found = naming.output_names(_output_names(model, [path for path, _ in answers]), outputs)
        given = {name: _spec(name, leaf) for name, (_, leaf) in zip(found, answers, strict=True)}
        return cls(model, Signature(taken, {name: replace(spec, name=name) for name, spec in given.items()}))

    def call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        with self._for_inference():
            found = [leaf for _, leaf in leaves(self._answer([tensors[name] for name in self.signature.inputs]))]
        return dict(zip(self.signature.outputs, found, strict=True))

    @contextmanager
    def _for_inference(self) -> Iterator[None]:
        """While this is entered, layers leave out what Keras 3 traces and inference does not need.

        Flatten leaves the batch to the reshape: computed from the input's shape it is four operations
        that XNNPACK does not take, and that cost TensorFlow as much as a small layer. Recurrent cells with
        dropout draw no masks, which nothing uses, and for which each request would change a seed.
        """
        layers = self.model._flatten_layers()
        flat = [layer for layer in layers if _flattens(layer)]
        cells = [layer for layer in layers if self.kind == "keras" and hasattr(layer, "get_recurrent_dropout_mask")]
        before = [(cell, {name: getattr(cell, name) for name in _OF_DROPOUT if hasattr(cell, name)}) for cell in cells]
        try:
            for layer in flat:
                layer.call = partial(_flatten, layer.compute_output_shape)
            for cell, values in before:
                vars(cell).update({name: _OF_DROPOUT[name] for name in values})
            yield
        finally:
            for layer in flat:
                del layer.call
            for cell, values in before:
                vars(cell).update(values)

    def _answer(self, tensors: Sequence[Any]) -> Any:
        return self.model(rebuild(self._structure, iter(tensors)), training=False)

    def _trace(self) -> list[tuple[str, Any]]:
        """Paths and TensorSpecs of the outputs."""
        tf = extras.load("tensorflow", "exporting a model")
        specs = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in self.signature.inputs.items()]
        function = tf.function(lambda *tensors: self._answer(tensors), input_signature=specs, autograph=False)
        try:
            answers = leaves(function.get_concrete_function().structured_outputs)
        except Exception as error:  # a model's own code raises every kind
            raise ExportError(f"the model {self.model.name!r} cannot be traced: {first_line(error)}") from error
        if not answers or not all(isinstance(leaf, tf.Tensor | tf.TensorSpec) for _, leaf in answers):
            raise ExportError(f"the model {self.model.name!r} answers something other than dense tensors")
        return answers

    def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        tf = extras.load("tensorflow", "running a Keras model")
        tensors = [tf.constant(inputs[name], spec.dtype) for name, spec in self.signature.inputs.items()]
        try:
            answers = self.model.predict(rebuild(self._structure, iter(tensors)), batch_size=PREDICT_ROWS, verbose=0)
        except Exception as error:  # a model's own code raises every kind
            raise ExportError(f"the model {self.model.name!r} fails on its data: {first_line(error)}") from error
        arrays = [np.asarray(leaf) for _, leaf in leaves(answers)]
        return dict(zip(self.signature.outputs, arrays, strict=True))

    def describe(self) -> dict[str, Any]:
        """The digest is SHA-256 over the bytes of each weight array, in the order of ``get_weights``."""
        digest = hashlib.sha256()
        for array in self.model.get_weights():
            digest.update(np.ascontiguousarray(array).tobytes())
        return {
            "kind": self.kind,
            "class": f"{type(self.model).__module__}.{type(self.model).__qualname__}".replace(".src", ""),
            "parameters": self.parameters,
            "sha256": digest.hexdigest(),
        }

    @property
    def tracked(self) -> Sequence[Any]:
        # Not the model itself: a SavedModel would hold the functions of all its layers.
        tf = extras.load("tensorflow", "exporting a model")
        resource = tf.saved_model.experimental.TrackableResource
        found = [item for item in tf.train.TrackableView(self.model).descendants() if isinstance(item, resource)]
        found += [item if isinstance(item, tf.Variable) else item.value for item in self.model.variables]
        return found

    def unrolls(self, open_steps: int = 0) -> bool:
        steps = [_steps(layer) or open_steps for layer in self._recurrent_layers()]
        return self.recurrent and all(0 < count <= MAX_UNROLLED_STEPS for count in steps)

    def _recurrent_layers(self) -> list[Any]:
        return [layer for layer in self.model._flatten_layers() if isinstance(getattr(layer, "unroll", None), bool)]

    @contextmanager
    def unrolled(self) -> Iterator[None]:
        layers = [layer for layer in self._recurrent_layers() if hasattr(layer, "cell")]
        before = [(layer, layer.unroll) for layer in self._recurrent_layers()]
        try:
            for layer, _ in before:
                layer.unroll = True
            for layer in layers:
                layer.get_initial_state = _one_initial_state(layer.get_initial_state, self.kind)
            with self.without_fused_loops():
                yield
        finally:
            for layer, value in before:
                layer.unroll = value
            for layer in layers:
                vars(layer).pop("get_initial_state", None)

    @contextmanager
    def without_fused_loops(self) -> Iterator[None]:
        # TFLite has a fused LSTM for the loop of Keras 2, which carries its state from one request to the next.
        gpu = "_could_use_gpu_kernel"
        before = [(layer, getattr(layer, gpu)) for layer in self._recurrent_layers() if hasattr(layer, gpu)]
        try:
            for layer, _ in before:
                setattr(layer, gpu, False)
            yield
        finally:
            for layer, value in before:
                setattr(layer, gpu, value)


def _one_initial_state(original: Callable[[Any], Any], kind: str) -> Callable[[Any], Any]:
    """The state of one row for all: a constant, where as many rows as there are would be computed.

    The int16x8 quantizer gives computed zeros a scale of 0, and what is multiplied with them is lost.
    """
    if kind == "keras":
        return lambda batch_size: original(1)
    tf = extras.load("tensorflow", "exporting a model")
    return lambda inputs: original(tf.zeros((1, *inputs.shape[1:]), inputs.dtype))


def _check_backend() -> None:
    backend = extras.load("keras", "exporting a model").backend.backend()
    if backend != "tensorflow":
        raise ExportError(
            f"Keras runs on {backend!r} in this process, and exports are made of TensorFlow's graphs: set "
            "KERAS_BACKEND=tensorflow before Keras is imported, and load the model again"
        )


def _is_tf_keras(model: Any) -> bool:
    return any(base.__module__.startswith("tf_keras.") for base in type(model).__mro__)


def _known_words(model: Any) -> tuple[str, ...]:
    """Some of the words that a text layer knows, and one that none does."""
    for layer in model._flatten_layers():
        if hasattr(layer, "get_vocabulary"):
            words = [word for word in layer.get_vocabulary()[:_WORDS] if isinstance(word, str)]
            if words:
                return (*words, "no such word")
    return ()


def _flattens(layer: Any) -> bool:
    """Whether this is Keras 3's own Flatten, which keeps the order of the values."""
    is_own = type(layer).__name__ == "Flatten" and type(layer).__module__.startswith("keras.")
    return is_own and layer.data_format == "channels_last"


def _flatten(output_shape: Callable[[Any], Sequence[int | None]], inputs: Any) -> Any:
    tf = extras.load("tensorflow", "exporting a model")
    (_, size) = output_shape(tuple(inputs.shape))
    return tf.reshape(inputs, (-1, size)) if size else tf.reshape(inputs, (tf.shape(inputs)[0], -1))


def _steps(layer: Any) -> int:
    """Time steps of a recurrent layer, 0 where they are not known."""
    built = layer.get_build_config() or {}
    if "shapes_dict" in built:  # called with an initial state
        built = {"input_shape": built["shapes_dict"].get("sequences_shape")}
    shape = list(built.get("input_shape") or [])
    return int(shape[1] or 0) if len(shape) > 2 else 0


def _input_structure(model: Any) -> Any:
    """What the model takes, nested as it takes it; the leaves have a shape, a dtype and mostly a name."""
    known = getattr(model, "inputs", None)
    if known:
        return getattr(model, "input", known[0])  # a Sequential has no structure: one tensor
    if _is_tf_keras(model) and model.save_spec():
        positional, _ = model.save_spec()
        return positional[0]
    # Loaded from a .keras file, or of Keras 3: only the shapes are known.
    return _shaped(model, (model.get_build_config() or {}).get("input_shape", []))


def _shaped(model: Any, shape: Any) -> Any:
    """The shapes that a subclassed model was built with, as leaves of any batch."""
    if isinstance(shape, dict):
        return {key: _shaped(model, child) for key, child in shape.items()}
    if shape and all(size is None or isinstance(size, int) for size in shape):
        dtype = model.compute_dtype if _is_tf_keras(model) else model.input_dtype
        return TensorSpec("", str(dtype), (None, *shape[1:]))
    return [_shaped(model, child) for child in shape]


def _spec(path: str, leaf: Any) -> TensorSpec:
    """A `TensorSpec` of what Keras or TensorFlow describe a tensor with; the batch is left open."""
    name = path if path.strip("0123456789_") else str(getattr(leaf, "name", "") or "")
    dtype = getattr(leaf.dtype, "name", leaf.dtype)
    if leaf.shape is None or getattr(leaf.shape, "rank", 0) is None:
        return TensorSpec(name, str(dtype), None)
    sizes = tuple(None if size is None else int(size) for size in leaf.shape)
    return TensorSpec(name, str(dtype), (None, *sizes[1:]) if sizes else sizes)


def _output_names(model: Any, paths: Sequence[str]) -> list[str]:
    """Keys of a dictionary, else names that somebody gave to the last layers, else empty."""
    if any(path and not path.replace("_", "").isdigit() for path in paths):
        return list(paths)
    layers = {layer.name: type(layer).__name__ for layer in model.layers}
    names = list(getattr(model, "output_names", None) or [model.layers[-1].name if model.layers else ""])
    if len(names) != len(paths):
        return [""] * len(paths)
    return ["" if naming.is_default_layer_name(name, layers.get(name, name)) else name for name in names]
